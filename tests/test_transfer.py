"""Layers that do not move, move later, or move at rates of their own; statistics of frozen layers hold still."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from cnn_jax.config import Config
from cnn_jax.errors import UserError
from cnn_jax.models.resnet import ResNet
from cnn_jax.optimizers import make_optimizer
from cnn_jax.parameter_groups import hold_statistics
from cnn_jax.training.experiment import make_experiment

CONFIG = Config("transfer").override(
    dataset="synthetic:16x16x1:3:64",
    model="lenet5",
    optimizer="momentum",
    learning_rate=0.1,
    batch_size=16,
    steps=4,
    epochs=None,
)


def moves(config: Config, steps: int) -> dict[str, list[float]]:
    """Largest change of each parameter in each step."""
    experiment = make_experiment(config)
    data, state, step = experiment.data["train"], experiment.state, jax.jit(experiment.train_step)
    items, changes = data.train_items(0), {}
    for _ in range(steps):
        new, _ = step(state, data.gather(data.arrays, next(items)))
        difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), new.params, state.params)
        for path, value in traverse_util.flatten_dict(difference, sep="/").items():
            changes.setdefault(path, []).append(value)
        state = new
    return changes


def test_gradual_unfreezing_releases_a_layer_at_its_epoch():
    changes = moves(CONFIG.override(freeze_until=("^conv=0.5", "^fc1=0.25")), 4)  # 4 steps are an epoch
    assert [x > 0 for x in changes["conv1/kernel"]] == [False, False, True, True]
    assert [x > 0 for x in changes["fc1/kernel"]] == [False, True, True, True]
    assert all(x > 0 for x in changes["output/kernel"])


def test_head_rate_and_layer_decay_scale_the_first_step():
    plain = moves(CONFIG, 1)
    headed = moves(CONFIG.override(head_learning_rate=0.3), 1)
    decayed = moves(CONFIG.override(layer_decay=0.5), 1)
    for path, (change,) in plain.items():
        layer = path.split("/")[0]
        assert headed[path][0] == pytest.approx(change * (3.0 if layer == "output" else 1.0), rel=1e-4), path
        depth = ["output", "fc2", "fc1", "conv2", "conv1"].index(layer)
        assert decayed[path][0] == pytest.approx(change * 0.5**depth, rel=1e-4), path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze_until": ("conv",)}, "given --freeze-until 'conv'; expected regex=epochs"),
        ({"freeze_until": ("convv=1",)}, "given 'convv'; expected a regular expression found in a path"),
        ({"optimizer": "lamb", "learning_rate": None, "head_learning_rate": 0.1}, "give --learning-rate"),
    ],
)
def test_mistakes_are_told(changes, message):
    with pytest.raises(UserError, match=message):
        make_experiment(CONFIG.override(**changes))


def test_frozen_batch_norm_normalizes_as_in_evaluation_and_holds_still():
    model = ResNet(3, blocks=(1, 1), width=4)
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3)) * 3 + 1
    variables = model.init(jax.random.key(1), x, train=False)

    def run(frozen) -> Any:
        with hold_statistics(frozen):
            return model.apply(variables, x, train=True, mutable=["batch_stats"])

    logits, updates = run("")  # found in every path
    np.testing.assert_allclose(logits, np.asarray(model.apply(variables, x, train=False)), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])
    _, updates = run("^stage1")
    trees: Any = (updates["batch_stats"], variables["batch_stats"])
    flat, before = ({k: np.asarray(v) for k, v in traverse_util.flatten_dict(t, sep="/").items()} for t in trees)
    for path, value in flat.items():
        assert np.array_equal(value, before[path]) == path.startswith("stage1"), path


def test_the_decay_of_held_parameters_fills_no_moments():
    optimizer = make_optimizer(
        "momentum", learning_rate=0.1, weight_decay=1e-2, freeze_until=[("kernel", 5)], total_steps=10
    )
    params = {"kernel": jnp.ones((2, 2))}
    state, zeros = optimizer.tx.init(params), {"kernel": jnp.zeros((2, 2))}
    seen = []
    for _ in range(6):
        updates, state = optimizer.tx.update(zeros, state, params)
        seen.append(float(jax.tree.leaves(updates)[0][0, 0]))
    np.testing.assert_allclose(seen, [0.0] * 5 + [-0.1 * 1e-2], rtol=1e-6)
