"""Every experiment and preset: shapes of one step, and two real steps on data that ships with the package."""

import functools
import importlib
import math
import pkgutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import experiments
from cnn_jax.commands.experiment import parse
from cnn_jax.errors import UserError
from cnn_jax.training import run
from cnn_jax.training.experiment import make_experiment

pytestmark = pytest.mark.usefixtures("one_device")

STUDIES = {"cifar10_speedrun", "mnist_table"}  # separate programs with their own flags
NAMES = sorted({module.name for module in pkgutil.iter_modules(experiments.__path__)} - STUDIES)
OFFLINE = {"xo_cnn": "xo:train=64", "traffic_signs": "folder:"}


def variants(name: str) -> list[tuple[str, str | None]]:
    """The recipe of an experiment and its presets that train step by step; the others: tests/test_classical.py."""
    module = importlib.import_module(f"experiments.{name}")
    presets = getattr(module, "PRESETS", {})
    chosen = {preset: module.CONFIG if preset is None else presets[preset] for preset in (None, *presets)}
    return [(name, preset) for preset, of in chosen.items() if not of.model.model.startswith("cnn_jax.classical:")]


TRAINED = [variant for name in NAMES for variant in variants(name)]


@functools.cache
def signs() -> tempfile.TemporaryDirectory[str]:
    """A folder for experiments on images of one's own: two classes of ten tracks of one frame, and a test set."""
    made = tempfile.TemporaryDirectory()
    for name in ("0", "1"):
        for number in range(10):
            image = Image.fromarray(np.full((32, 32, 3), 20 * number, np.uint8))
            for place in (f"train/{name}/{number:05d}_00000.png", f"test/{name}/{number:05d}.png"):
                (Path(made.name) / place).parent.mkdir(parents=True, exist_ok=True)
                image.save(Path(made.name) / place)
    return made


def config_of(name: str, preset: str | None, *argv: str):
    module = importlib.import_module(f"experiments.{name}")
    chosen = ("--preset", preset) if preset else ()
    if module.CONFIG.data.dataset == "folder:":
        argv = (*argv, "--dataset", f"folder:{signs().name}")
    return parse((*chosen, *argv), module.CONFIG, module.__doc__, getattr(module, "PRESETS", {}))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run for the transfer experiments to start from."""
    workdir = str(tmp_path_factory.mktemp("pretrained") / "run")
    run.train(config_of("digits_lenet5", None, "--steps", "1", "--devices", "1", "--workdir", workdir))
    return workdir


def start_of(name: str, preset: str | None, request: pytest.FixtureRequest) -> tuple[str, ...]:
    transfers = config_of(name, preset).model.init_from is not None
    return ("--init-from", request.getfixturevalue("pretrained")) if transfers else ()


@pytest.mark.parametrize("name", [*NAMES, *sorted(STUDIES)])
def test_file_is_small_documented_and_named_as_its_config(name):
    module = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "__path__"):  # a package: its command is in __main__
        module = importlib.import_module(f"experiments.{name}.__main__")
    assert name in STUDIES or module.CONFIG.experiment == name
    assert module.__doc__ and f"python -m experiments.{name}" in module.__doc__
    with open(str(module.__file__)) as file:
        assert len(file.readlines()) <= 60


def test_an_experiment_for_a_folder_asks_for_its_path():
    module = importlib.import_module("experiments.traffic_signs")
    with pytest.raises(UserError, match="`dataset` has no path after folder: write folder:PATH"):
        parse((), module.CONFIG, module.__doc__, module.PRESETS)


def test_the_recipe_of_an_experiment_for_any_folder_is_no_surprise(capsys):
    config_of("traffic_signs", None)
    assert not capsys.readouterr().out


def test_the_baseline_of_traffic_signs_is_solved(tmp_path):
    argv = ("--workdir", str(tmp_path), "--model-args", "refit=true", "--no-report")
    summary = run.train(config_of("traffic_signs", "hog", *argv))
    assert 0 <= summary["test_accuracy"] <= 1 and summary["test_count"] == 20


@pytest.mark.parametrize(("name", "preset"), TRAINED)
def test_two_steps_on_offline_data(name, preset, tmp_path, request):
    dataset = OFFLINE.get(name, "digits")
    argv = ["--dataset", dataset, "--steps", "2", "--workdir", str(tmp_path / "run"), "--batch-size", "16"]
    argv += ["--devices", "1", "--no-report"]
    if dataset == "digits":  # evaluating large networks takes longest
        argv += ["--validation-split", "validation[:32]", "--test-split", "test[:32]"]
    summary = run.train(config_of(name, preset, *argv, *start_of(name, preset, request)))
    assert summary["steps"] == 2 and 0 <= summary.get("test_accuracy", 0) <= 1 and math.isfinite(summary["test_loss"])


def reads_tfds(name: str, preset: str | None) -> bool:
    return config_of(name, preset).data.dataset.partition(":")[0] not in ("digits", "xo", "synthetic", "folder")


@pytest.mark.parametrize(
    ("name", "preset"), [pytest.param(*v, marks=[pytest.mark.tfds] if reads_tfds(*v) else []) for v in TRAINED]
)
def test_step_has_the_right_shapes_on_its_own_data(name, preset, request):
    argv = ["--devices", "1"]
    if reads_tfds(name, preset):
        request.getfixturevalue("tfds_dir")
        argv += ["--train-split", "train[:640]", "--validation-split", "train[-32:]", "--test-split", "test[:32]"]
    experiment = make_experiment(config_of(name, preset, *argv, *start_of(name, preset, request)))
    data = experiment.data["train"]
    item = next(data.train_items(0))
    step = lambda state, arrays, item: experiment.train_step(state, data.gather(arrays, item))  # noqa: E731
    state, metrics = jax.eval_shape(step, experiment.state, data.arrays, item)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), experiment.state
    )
    assert set(metrics) == {*experiment.task.metrics, "gradient_norm"}
