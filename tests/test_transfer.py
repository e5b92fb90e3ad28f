"""Transfer learning: layers that are frozen, unfrozen later or have their own rates, and frozen statistics."""

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from parts import optimizer_of

import cnn_jax
from benchmarks import transfer_labels
from cnn_jax.config import Config
from cnn_jax.data import open_source
from cnn_jax.data.preprocess import Preprocess
from cnn_jax.errors import UserError
from cnn_jax.models import build
from cnn_jax.models.resnet import ResNet
from cnn_jax.optim.parameter_groups import Rule, hold_statistics
from cnn_jax.storage import run_folder
from cnn_jax.storage.weights_file import save_weights
from cnn_jax.training import run, transfer
from cnn_jax.training.experiment import make_experiment
from cnn_jax.weights.convert import flattened_maps, to_torch
from cnn_jax.weights.naming import namings
from cnn_jax.weights.preprocess import PublishedPreprocess
from cnn_jax.weights.pretrained import Pretrained
from experiments import digits_lenet5

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Config("transfer").override(
    dataset="synthetic:16x16x1:3:64",
    model="lenet5",
    optimizer="momentum",
    learning_rate=0.1,
    batch_size=16,
    steps=4,
    epochs=None,
    report=False,
)


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Arrays by path."""
    return {path: np.asarray(leaf) for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def moves(config: Config, steps: int) -> dict[str, list[float]]:
    """Largest change of each parameter at each step."""
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
    changes = moves(CONFIG.override(freeze_until=("^conv=0.5", "^fc1=0.25")), 4)  # 4 steps per epoch
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
        ({"freeze_until": ("conv",)}, "^`freeze_until` 'conv' is not regex=epochs"),
        ({"freeze_until": ("convv=1",)}, "^`freeze_until` 'convv' matches no parameter .paths: "),
        ({"freeze": "("}, r"^`freeze` '\(' is not a regular expression for parameter paths .*: correct it"),
        ({"rate_groups": ("[=2",)}, r"^`rate_groups` '\[' is not a regular expression"),
        ({"init_from": "x", "members": 2}, "all start from the same weights: train one run per `seed`"),
        ({"optimizer": "lamb", "learning_rate": None, "head_learning_rate": 0.1}, "set `learning_rate`"),
    ],
)
def test_mistakes_are_reported(changes, message):
    with pytest.raises(UserError, match=message):
        make_experiment(CONFIG.override(**changes))


def test_frozen_batch_norm_normalizes_as_in_evaluation_and_holds_still():
    model = ResNet(3, blocks=(1, 1), width=4)
    x = jax.random.normal(jax.random.key(0), (4, 8, 8, 3)) * 3 + 1
    variables = model.init(jax.random.key(1), x, train=False)

    def run(*rules: Rule, step: int = 0) -> Any:
        with hold_statistics(rules, jnp.int32(step)):
            logits, updates = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return np.asarray(logits), flat(updates["batch_stats"])

    before = flat(variables["batch_stats"])
    logits, statistics = run(Rule("", 0.0))  # matches every path
    np.testing.assert_allclose(logits, np.asarray(model.apply(variables, x, train=False)), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, statistics, before)
    _, statistics = run(Rule("^stage1", 0.0))
    for path, value in statistics.items():
        assert np.array_equal(value, before[path]) == path.startswith("stage1"), path
    free, held = run(), run(Rule("^stage1", 0.0))
    for step, expected in ((4, held), (5, free)):  # until=5 covers steps 0 to 4
        found = run(Rule("^stage1", 0.0, until=5), step=step)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    _, statistics = run(Rule("scale", 0.0))  # only half of a layer's parameters
    jax.tree.map(np.testing.assert_array_equal, statistics, free[1])


def test_statistics_are_frozen_as_long_as_the_layer():
    config = CONFIG.override(model="resnet20", model_args=("blocks=1/1/1", "width=4"), accumulate=2)
    experiment = make_experiment(config.override(freeze="^(conv1|bn1)/", freeze_until=("^stage1=0.5",)))
    data, state, step = experiment.data["train"], experiment.state, jax.jit(experiment.train_step)
    moved = []
    for item in itertools.islice(data.train_items(0), 3):
        new, _ = step(state, data.gather(data.arrays, item))
        one, other = flat(new.batch_stats), flat(state.batch_stats)
        moved.append({path.split("_")[0] for path in one if not np.array_equal(one[path], other[path])})
        state = new
    assert moved == [{"stage2", "stage3"}, {"stage2", "stage3"}, {"stage1", "stage2", "stage3"}]


def test_weight_decay_of_frozen_parameters_fills_no_moments():
    optimizer = optimizer_of(
        "momentum", learning_rate=0.1, weight_decay=1e-2, freeze_until=[("kernel", 5)], total_steps=10
    )
    params = {"kernel": jnp.ones((2, 2))}
    state, zeros = optimizer.tx.init(params), {"kernel": jnp.zeros((2, 2))}
    seen = []
    for _ in range(6):
        updates, state = optimizer.tx.update(zeros, state, params)
        seen.append(float(jax.tree.leaves(updates)[0][0, 0]))
    np.testing.assert_allclose(seen, [0.0] * 5 + [-0.1 * 1e-2], rtol=1e-6)


def test_a_run_from_published_weights_takes_only_their_mean_and_deviation(tmp_path, monkeypatch, capsys):
    published = PublishedPreprocess((8, 8, 1), (0.4,), (0.2,), resize=9)  # for smaller images than the run's
    config = CONFIG.override(workdir=str(tmp_path / "run"), init_from="published")
    source = make_experiment(CONFIG).state
    variables = {"params": source.params, "batch_stats": source.batch_stats}
    found = Pretrained(make_experiment(CONFIG).model, variables, published, "their average", "classifier kept")
    monkeypatch.setattr(transfer, "open_pretrained", lambda *_, **__: found)
    run.train(config)
    assert "\nweights    published; their average; classifier kept\n" in capsys.readouterr().out
    monkeypatch.undo()
    for _ in range(2):  # once finished, once reopened
        preprocess = cnn_jax.load(tmp_path / "run").preprocess
        assert type(preprocess) is Preprocess and preprocess == Preprocess((16, 16, 1), (0.4,), (0.2,))
        run.train(config)


def test_weights_for_colour_images_take_grey_ones_as_colour(tmp_path):
    colour = CONFIG.override(dataset="synthetic:8x8x3:10:16", model="resnet20", model_args=("blocks=1/1/1", "width=4"))
    state = make_experiment(colour).state
    weights = str(tmp_path / "colour.safetensors")
    save_weights(weights, {"params": state.params, "batch_stats": state.batch_stats}, {})
    grey = colour.override(dataset="digits", init_from=weights)
    message = "has weights for colour images, but the images are grey: set `channels` to 3"
    with pytest.raises(UserError, match=message):
        make_experiment(grey)
    experiment = make_experiment(grey.override(channels=3))
    assert experiment.preprocess.image_shape == (8, 8, 3)
    jax.tree.map(np.testing.assert_array_equal, experiment.state.params, state.params)
    with pytest.raises(UserError, match="wrong shape: .* take the weights of exactly this model"):
        make_experiment(grey.override(model_args=("blocks=1/1/1", "width=2")))


def test_each_seed_draws_labels_of_its_own():
    seen = {transfer_labels.drawn_split(50, 1257, seed) for seed in range(5)}
    assert len(seen) == 5
    for split in seen:
        assert len(open_source("digits", split)) == 50
    assert {transfer_labels.drawn_split(1257, 1257, seed) for seed in range(3)} == {"train[0:1257]"}


def test_accuracy_against_labels_is_written_and_drawn(tmp_path, monkeypatch, capsys):
    """Runs on the digits as an image folder, which is written once and has the same pixels."""
    pretrained = str(tmp_path / "pretrained")
    run.train(digits_lenet5.CONFIG.override(steps=1, epochs=None, devices=1, workdir=pretrained))
    short = {way: config.override(steps=1, devices=1, report=False) for way, config in transfer_labels.WAYS.items()}
    monkeypatch.setattr(transfer_labels, "WAYS", short)
    monkeypatch.setattr(transfer_labels, "LABELS", (10, 5000))
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path / "cache"))
    output = tmp_path / "transfer"
    argv = ["--init-from", pretrained, "--seeds", "1", "--runs", str(tmp_path / "runs"), "--output", str(output)]
    transfer_labels.main(argv)
    rows = output.with_suffix(".csv").read_text().splitlines()
    assert rows[0] == "way,labels,seed,test_accuracy"
    assert [row.split(",")[:3] for row in rows[1:]] == [[way, n, "0"] for way in short for n in ("10", "1257")]
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    folder = f"folder:{tmp_path / 'runs' / 'images'}"
    written, original = (
        {source[i]["image"].tobytes() for i in range(len(source))}
        for source in (open_source(folder, "test"), open_source("digits", "test"))
    )
    assert written == original
    assert run_folder.read_config(tmp_path / "runs" / "transferred-10-0").data.dataset == folder
    capsys.readouterr()
    transfer_labels.main(argv)  # the second time nothing is trained or written
    assert output.with_suffix(".csv").read_text().splitlines() == rows


def test_a_run_starts_from_a_classifier_in_the_order_of_its_classes(tmp_path):
    config = CONFIG.override(model="resnet20", model_args=("blocks=1/1/1", "width=4"))
    state = make_experiment(config).state
    weights, variables = str(tmp_path / "w.safetensors"), {"params": state.params, "batch_stats": state.batch_stats}
    old = flat(state.params)

    def head(**changes: Any) -> tuple[str, dict[str, np.ndarray]]:
        experiment = make_experiment(config.override(init_from=weights, seed=1, **changes))
        return experiment.origin.removeprefix(f"{weights}; "), flat(experiment.state.params)

    names = open_source(CONFIG.data.dataset, "train").class_names
    save_weights(weights, variables, {"cnn_jax": json.dumps({"classes": [names[2], names[0], names[1]]})})
    told, new = head()
    assert told == "classifier kept, its classes put in the data's order"
    np.testing.assert_array_equal(new["output/bias"], old["output/bias"][[1, 2, 0]])
    np.testing.assert_array_equal(new["output/kernel"], old["output/kernel"][:, [1, 2, 0]])
    save_weights(weights, variables, {"cnn_jax": json.dumps({"classes": ["a", "b", "c"]})})
    told, new = head()
    assert told == "new classifier: the weights are for a, b, c"
    assert not np.array_equal(new["output/kernel"], old["output/kernel"])
    told, new = head(init_head="keep")
    assert told == "classifier kept, though it is for a, b, c"
    jax.tree.map(np.testing.assert_array_equal, new, old)
    with pytest.raises(UserError, match="w.safetensors has no moving average of the weights: set `init_weights`"):
        head(init_weights="ema")
    with pytest.raises(UserError, match="^`init_weights` chooses among the weights of `init_from`: set that, too"):
        make_experiment(CONFIG.override(init_weights="plain"))


@pytest.mark.parametrize(
    ("name", "arguments", "maps", "size"),
    [
        ("vgg11", ("convolutions=1/1/1/1/1", "features=2/2/2/2/2", "dense=3/3"), 7, 64),
        ("alexnet_one_tower", ("features=2/2/2/2/2", "dense=3/3"), 6, 96),
    ],
)
def test_weights_for_another_image_size_name_the_argument(tmp_path, name, arguments, maps, size):
    network: Any = build(name, 3, args=arguments)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, *network.input_shape)), train=False))
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    torchvision = namings(network)["torchvision"].names
    state = to_torch(variables, torchvision, flattened=flattened_maps(network, network.input_shape))
    save_weights(weights := str(tmp_path / "w.safetensors"), state, {})
    config = CONFIG.override(
        dataset=f"synthetic:{size}x{size}x3:3:16", model=name, model_args=arguments, init_from=weights
    )
    message = (
        rf"has weights for maps of {maps}x{maps} before the dense layers, which {size}x{size} images do not give: add "
        rf"head_map={maps} to `model_args`$"
    )
    with pytest.raises(UserError, match=message):
        make_experiment(config)
    experiment = make_experiment(config.override(model_args=(*arguments, f"head_map={maps}")))
    jax.tree.map(np.testing.assert_array_equal, experiment.state.params, variables["params"])
