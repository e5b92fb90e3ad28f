"""Gauges against NumPy and the full Hessian, and what they do to a run: nothing but rows, figures and a section."""

import csv
import os
import signal
from dataclasses import replace
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parts import classification

from cnn_jax.config import Config
from cnn_jax.errors import TrainingStopped
from cnn_jax.inspect.rectifiers import active_units
from cnn_jax.models import build
from cnn_jax.models.resnet import ResNet
from cnn_jax.optim.optimizers import from_transformation, is_gradient_descent
from cnn_jax.optim.parameter_groups import Rule
from cnn_jax.report import gauges as pictures
from cnn_jax.storage import run_folder as files
from cnn_jax.training.experiment import Given, make_experiment
from cnn_jax.training.gauges import largest_eigenvalue, make_gauges, power_step
from cnn_jax.training.gauging import GaugeReader
from cnn_jax.training.run import train
from cnn_jax.training.state import init_state

CLASSES = 3
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 256, (16, 2, 3, 1), dtype=np.uint8),
    "label": RNG.integers(0, CLASSES, 16, dtype=np.int32),
}
X_BxD = BATCH["image"].reshape(16, -1) / 255.0
ONE_HOT = np.eye(CLASSES)[BATCH["label"]]


def drawn(model: nn.Module, tx=None, frozen=(), **options):
    """Returns gauges and a state whose parameters are normal draws."""
    optimizer = from_transformation(tx or optax.sgd(0.1), frozen=frozen)
    state = init_state(model, optimizer, (2, 3, 1), 0)
    params = optax.tree.random_like(jax.random.key(1), state.params, jax.random.normal)
    state = replace(state, params=params)
    return make_gauges(model, classification(CLASSES), optimizer, dict, **options), state


def sharpness(gauges, state, tolerance: float = 1e-3) -> float:
    step = jax.jit(gauges.power_step)
    value, residual = largest_eigenvalue(
        lambda vector, shift: step(state, vector, shift, BATCH), gauges.direction(state), tolerance=tolerance, most=2000
    )
    assert residual <= tolerance * abs(value)
    return float(value)


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exp / exp.sum(axis=-1, keepdims=True)


def test_norms_and_ratio_of_one_layer_equal_numpy():
    tx = optax.sgd(0.1, momentum=0.9)
    gauges, state = drawn(build("softmax_regression", CLASSES), tx)
    (layer, own), *_ = state.params.items()
    ones = jax.tree.map(jnp.ones_like, state.params)  # a first gradient, which fills the momentum
    state = replace(state, opt_state=from_transformation(tx).tx.update(ones, state.opt_state, state.params)[1])

    kernel, bias = (np.asarray(own[name], np.float64) for name in ("kernel", "bias"))
    error_BxK = (softmax(X_BxD @ kernel + bias) - ONE_HOT) / len(X_BxD)
    grad = np.concatenate([(X_BxD.T @ error_BxK).ravel(), error_BxK.sum(axis=0)])
    weights = np.concatenate([kernel.ravel(), bias])
    update = 0.1 * (grad + 0.9 * np.ones_like(grad))
    found = jax.jit(gauges.measure)(state, BATCH)
    assert set(found) == {f"gradient_norm/{layer}", f"update_ratio/{layer}"}, "no ReLU, no dead units"
    np.testing.assert_allclose(found[f"gradient_norm/{layer}"], np.linalg.norm(grad), rtol=1e-5)
    np.testing.assert_allclose(
        found[f"update_ratio/{layer}"], np.linalg.norm(update) / np.linalg.norm(weights), rtol=1e-5
    )


def test_sharpness_of_softmax_regression_equals_the_largest_eigenvalue_of_its_hessian():
    gauges, state = drawn(build("softmax_regression", CLASSES))
    (own,) = state.params.values()
    x_BxD = np.concatenate([X_BxD, np.ones((16, 1))], axis=1)  # the bias as a weight of 1
    p_BxK = softmax(x_BxD @ np.concatenate([own["kernel"], own["bias"][None]]).astype(np.float64))
    hessian = np.mean([np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x)) for p, x in zip(p_BxK, x_BxD)], axis=0)
    assert sharpness(gauges, state) == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"accumulate": 4}], ids=["whole", "in parts"])
def test_sharpness_of_a_network_equals_that_of_its_full_hessian(options):
    model = build("mlp", CLASSES, hidden=(3,), activation="tanh")
    gauges, state = drawn(model, **options)
    flat, restore = jax.flatten_util.ravel_pytree(state.params)

    def loss(flat):
        logits: Any = model.apply({"params": restore(flat)}, jnp.asarray(BATCH["image"] / np.float32(255)), train=True)
        return -jnp.mean(jnp.sum(jnp.asarray(ONE_HOT, jnp.float32) * jax.nn.log_softmax(logits), axis=-1))

    eigenvalues = np.linalg.eigvalsh(np.asarray(jax.hessian(loss)(flat), np.float64))
    assert eigenvalues[0] < -0.01, "the network's loss is not convex"
    assert sharpness(gauges, state) == pytest.approx(eigenvalues[-1], rel=1e-3)


def test_frozen_parameters_are_no_part_of_the_hessian():
    gauges, state = drawn(build("softmax_regression", CLASSES), frozen=[Rule("kernel", 0.0)])
    (own,) = state.params.values()
    p_BxK = softmax(X_BxD @ np.asarray(own["kernel"], np.float64) + np.asarray(own["bias"], np.float64))
    hessian = np.mean([np.diag(p) - np.outer(p, p) for p in p_BxK], axis=0)
    assert sharpness(gauges, state) == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-3)


@pytest.mark.parametrize("eigenvalues", [[3, 1, -2], [1, 0.5, -5], [2, 0, -2], [-1, -2, -3], [0, 0, 0]])
def test_the_largest_eigenvalue_is_found_whatever_the_signs(eigenvalues):
    basis, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    matrix = jnp.asarray(basis * eigenvalues @ basis.T, jnp.float32)
    step = jax.jit(partial(power_step, lambda v: matrix @ v))
    found, _ = largest_eigenvalue(step, jnp.full(3, 3**-0.5), tolerance=1e-4, most=200)
    assert found == pytest.approx(max(eigenvalues), abs=1e-3)


def test_eigenvalues_of_several_matrices_are_found_apart_and_one_may_not_be_finite():
    matrices = jnp.stack([jnp.diag(jnp.array(d)) for d in ([4.0, 1.0], [1.0, -9.0], [np.nan, 1.0])])
    step = jax.jit(jax.vmap(lambda matrix, v, shift: power_step(lambda v: matrix @ v, v, shift)))
    found, _ = largest_eigenvalue(partial(step, matrices), jnp.full((3, 2), 0.5**0.5), shape=(3,), most=100)
    np.testing.assert_allclose(found, [4, 1, np.nan], rtol=0.01)


class Net(nn.Module):
    """Convolution of 4 channels and dense layer of 5 units, each with ReLU; half of the latter dropped."""

    activation: str = "relu"
    drop: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool):
        activate = getattr(nn, self.activation)
        x = activate(nn.Conv(4, (2, 2), name="conv")(x))
        x = activate(nn.Dense(5, name="fc")(x.reshape(len(x), -1)))
        return nn.Dense(CLASSES, name="output")(nn.Dropout(self.drop, deterministic=not train)(x))


def test_units_with_a_hopeless_bias_are_dead():
    gauges, state = drawn(Net())
    params = jax.tree.map(jnp.array, state.params)
    params["conv"]["bias"] = jnp.array([9.0, -1e9, 9.0, -1e9])
    params["fc"]["bias"] = jnp.array([1e9, 1e9, -1e9, 1e9, 1e9])
    measure = jax.jit(gauges.measure)
    found = measure(replace(state, params=params), BATCH)
    assert {name: float(value) for name, value in found.items() if name.startswith("dead")} == {
        "dead_units/conv": 0.5,
        "dead_units/fc": pytest.approx(0.2),
    }
    params["conv"]["bias"] = jnp.array([9.0, 9.0, 9.0, 9.0])  # dead units return: nothing is remembered
    assert measure(replace(state, params=params), BATCH)["dead_units/conv"] == 0


def test_a_unit_that_one_example_activates_at_one_position_is_not_dead():
    x_BxHxWxC = -np.ones((3, 2, 2, 2), np.float32)
    x_BxHxWxC[1, 0, 1, 0] = 1e-3
    assert active_units(nn.relu, x_BxHxWxC)["input"].tolist() == [True, False]


def test_other_activations_have_no_dead_units_and_hard_swish_those_of_its_relu6():
    dead = {}
    for kind in ("tanh", "gelu", "hard_swish"):
        gauges, state = drawn(Net(kind))
        dead[kind] = [name for name in jax.eval_shape(gauges.measure, state, BATCH) if name.startswith("dead")]
    assert dead == {"tanh": [], "gelu": [], "hard_swish": ["dead_units/conv", "dead_units/fc"]}


def test_rectifiers_inside_recomputed_blocks_are_found():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(4, 8, 8, 3)), jnp.float32)
    nets = [ResNet(num_classes=CLASSES, blocks=(1, 1), width=4, remat=remat) for remat in (False, True)]
    variables = jax.jit(partial(nets[0].init, train=False))(jax.random.key(0), x)
    plain, recomputed = (active_units(lambda x, net=net: net.apply(variables, x, train=False), x) for net in nets)
    assert list(plain) == ["bn1", "stage1_block1/bn1", "stage1_block1/bn2", "stage2_block1/bn1", "stage2_block1/bn2"]
    jax.tree.map(np.testing.assert_array_equal, plain, recomputed)


def test_nothing_is_dropped():
    (kept, state), (dropped, _) = drawn(Net()), drawn(Net(drop=0.9))
    texts = [jax.jit(gauges.measure).lower(state, BATCH).as_text() for gauges in (kept, dropped)]
    assert texts[0] == texts[1], "the same program"


def test_which_optimizers_are_gradient_descent():
    optim = Config().optim
    descends = lambda name, **fields: is_gradient_descent(Config().override(optimizer=name, **fields).optim)  # noqa: E731
    assert descends("gradient_descent") and descends("sgd", weight_decay=0.1, freeze="conv")
    assert not is_gradient_descent(optim) and not descends("momentum")
    assert not descends("sgd", optimizer_args=("momentum=0.5",)) and not descends("sgd", clip_norm=1.0)


RUN = Config("gauged").override(
    dataset="synthetic:8x8x1:3:64",
    model="mlp",
    model_args=("hidden=6",),
    optimizer="gradient_descent",
    learning_rate=0.5,
    batch_size=16,
    steps=6,
    eval_every=0.5,
    epochs=None,
    log_every=1,
    logger=("csv", "tensorboard"),
    gauges=True,
)


def gauged(folder) -> list[dict]:
    """The rows of gauges, without their time."""
    rows = [row for row in files.read_metrics(folder) if row["kind"] == "gauges"]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gauged")
    train(RUN.override(workdir=str(folder)))
    return folder


def test_a_run_has_a_row_of_gauges_at_its_start_and_each_validation(finished):
    rows = gauged(finished)
    validated = [row["step"] for row in files.read_metrics(finished) if row["kind"] == "validation"]
    assert [row["step"] for row in rows] == [0, *validated] and validated[-1] == 6
    assert {row["stability_limit"] for row in rows} == {4.0}
    assert all(row["sharpness"] > 0 and row["sharpness_error"] <= 0.03 for row in rows)
    layers = {"gradient_norm/fc1", "gradient_norm/output", "dead_units/fc1", "update_ratio/fc1", "update_ratio/output"}
    assert layers <= rows[0].keys() and "update_ratio/fc1" not in rows[-1], "no update follows the last step"


def test_loggers_and_report_have_the_gauges(finished):
    with open(finished / files.CSV) as file:
        table = {row["step"]: row for row in csv.DictReader(file)}
    row = gauged(finished)[1]
    assert float(table[str(row["step"])]["gauges/gradient_norm/fc1"]) == row["gradient_norm/fc1"]
    (events,) = (finished / files.TENSORBOARD).iterdir()
    assert b"gauges/dead_units/fc1" in events.read_bytes()
    page = (finished / files.REPORT).read_text()
    assert "<h2>Gauges</h2>" in page and "2 ÷ learning rate" in page
    names = {"gradient_norms.png", "update_ratios.png", "dead_units.png", "sharpness.png"}
    assert names <= {path.name for path in (finished / files.PLOTS).iterdir()}


def test_gauges_change_nothing_else(finished, tmp_path):
    off = RUN.override(gauges=False, workdir=str(tmp_path / "off"))
    train(off)
    assert (tmp_path / "off" / files.WEIGHTS).read_bytes()[8:] == (finished / files.WEIGHTS).read_bytes()[8:]
    assert gauged(tmp_path / "off") == [] and "Gauges" not in (tmp_path / "off" / files.REPORT).read_text()
    texts = []
    for config in (off, RUN):
        experiment = make_experiment(config.override(workdir=str(tmp_path / "none")))
        data = experiment.data["train"]
        batch = data.gather(data.arrays, next(data.train_items()))
        texts.append(jax.jit(experiment.train_step).lower(experiment.state, batch).as_text())
    assert texts[0] == texts[1]


def test_a_resumed_run_has_the_same_rows(finished, tmp_path):
    class Stop:
        def on_evaluation(self, step, metrics, state):
            if step == 4 and state is not None:
                os.kill(os.getpid(), signal.SIGINT)

    config = RUN.override(workdir=str(tmp_path / "run"))
    with pytest.raises(TrainingStopped):
        train(config, callbacks=[Stop()])
    assert not (tmp_path / "run" / files.SUMMARY).exists()
    train(config)
    assert gauged(tmp_path / "run") == gauged(finished)


def test_each_of_the_compared_networks_has_the_gauges_of_a_run_of_its_own():
    changes = {"member_learning_rates": (0.1, 0.5)}
    step, rows = read(RUN.override(**changes))
    assert step == 0 and [row["stability_limit"] for row in rows] == pytest.approx([20, 4])
    for row, rate in zip(rows, changes["member_learning_rates"]):
        _, (alone,) = read(RUN.override(learning_rate=rate))
        assert row == {name: pytest.approx(value, rel=1e-3) for name, value in alone.items()}


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_several_devices_measure_the_same_as_one(kind):
    net = ResNet(num_classes=10, blocks=(1,), width=4, axis_name="data" if kind == "pmap" else None)
    config = RUN.override(dataset="synthetic:8x8x3:10:64", batch_size=16)
    _, (one,) = read(config.override(devices=1), net.clone(axis_name=None))
    _, (several,) = read(config.override(devices=4, parallel=kind), net)
    error = one.pop("sharpness_error"), several.pop("sharpness_error")
    assert max(error) <= 0.03
    assert several == {name: pytest.approx(value, rel=0.01, abs=1e-6) for name, value in one.items()}


def read(config: Config, model: nn.Module | None = None):
    """The gauges of a run's initial state."""
    experiment = make_experiment(config.override(workdir="unused"), Given(model=model))
    return GaugeReader(experiment)(experiment.parallel.place(experiment.state))


def test_a_committee_has_the_means_of_its_networks():
    experiment = make_experiment(RUN.override(members=2, workdir="unused"))
    _, (row,) = GaugeReader(experiment)(experiment.state)
    batch = first_batch(experiment)
    each = [
        jax.jit(experiment.gauges.measure)(jax.tree.map(lambda leaf, i=i: leaf[i], experiment.state), batch)
        for i in range(2)
    ]
    name = "gradient_norm/fc1"
    assert each[0][name] != each[1][name]
    assert row[name] == pytest.approx(np.mean([one[name] for one in each]), rel=1e-5)


def first_batch(experiment):
    data = experiment.data["train"]
    return data.gather(data.arrays, next(data.train_items()))


def test_another_task_and_streamed_data_have_gauges():
    config = RUN.override(task="reconstruction", model="conv_autoencoder", pipeline="stream", batch_size=8)
    step, (row,) = read(config.override(model_args=(), optimizer="adam"))
    assert step == 0 and row["sharpness"] > 0 and "stability_limit" not in row
    assert any(name.startswith("dead_units/") for name in row)


def rows_of(layers: int, points: int = 5) -> list[dict]:
    names = [f"stage1_block{i}/conv1" for i in range(layers)]
    return [
        {"kind": "gauges", "epoch": float(i), "step": i, "sharpness": 3.0 + i, "stability_limit": 4.0}
        | {f"gradient_norm/{name}": 10.0**-k for k, name in enumerate(names[:8])}
        | {f"gradient_norm/{name}": 0.5 for name in names[8:]}
        | {f"update_ratio/{name}": 0.0 for name in names}
        for i in range(points)
    ]


def y_of(line: Any) -> list[float]:
    return np.asarray(line.get_ydata(), float).tolist()


def test_many_layers_are_drawn_as_a_map_and_few_as_lines():
    few, many = pictures.draw(rows_of(12)), pictures.draw(rows_of(13))
    assert few.keys() == many.keys() == {"gradient_norms", "update_ratios", "sharpness"}
    (lines,) = few["gradient_norms"].axes
    assert len(lines.lines) == 12 and lines.get_yscale() == "log"
    assert y_of(lines.lines[3]) == [1e-3] * 5
    chart, bar = many["gradient_norms"].axes
    assert np.asarray(chart.collections[0].get_array()).reshape(13, 5)[3].tolist() == [1e-3] * 5
    assert [tick.get_text() for tick in chart.get_yticklabels()][:2] == ["stage1_block0/conv1", "stage1_block1/conv1"]
    assert bar.get_ylabel() == "gradient norm"
    value, limit = few["sharpness"].axes[0].lines
    assert y_of(value) == [3, 4, 5, 6, 7] and y_of(limit) == [4] * 5
    assert pictures.draw([{"kind": "train", "step": 1}]) == {} and pictures.section({}, []) == ""
