"""Every experiment and preset: shapes of one step, and two real steps on data that ships with the package."""

import importlib
import math
import pkgutil

import jax
import pytest

import experiments
from cnn_jax.commands.experiment import parse
from cnn_jax.training import run
from cnn_jax.training.experiment import make_experiment

STUDIES = {"cifar10_speedrun", "mnist_table"}  # separate programs with their own flags
NAMES = sorted({module.name for module in pkgutil.iter_modules(experiments.__path__)} - STUDIES)
OFFLINE = {"xo_cnn": "xo:train=64"}
VARIANTS = [
    (name, preset)
    for name in NAMES
    for preset in (None, *getattr(importlib.import_module(f"experiments.{name}"), "PRESETS", {}))
]


def config_of(name: str, preset: str | None, *argv: str):
    module = importlib.import_module(f"experiments.{name}")
    chosen = ("--preset", preset) if preset else ()
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


@pytest.mark.parametrize("name", [*NAMES, *STUDIES])
def test_file_is_small_documented_and_named_as_its_config(name):
    module = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "__path__"):  # a package: its command is in __main__
        module = importlib.import_module(f"experiments.{name}.__main__")
    assert name in STUDIES or module.CONFIG.experiment == name
    assert module.__doc__ and f"python -m experiments.{name}" in module.__doc__
    with open(str(module.__file__)) as file:
        assert len(file.readlines()) <= 60


@pytest.mark.parametrize(("name", "preset"), VARIANTS)
def test_two_steps_on_offline_data(name, preset, tmp_path, request):
    dataset = OFFLINE.get(name, "digits")
    argv = ("--dataset", dataset, "--steps", "2", "--workdir", str(tmp_path / "run"), "--batch-size", "16")
    summary = run.train(config_of(name, preset, *argv, *start_of(name, preset, request), "--devices", "1"))
    assert summary["steps"] == 2 and 0 <= summary.get("test_accuracy", 0) <= 1 and math.isfinite(summary["test_loss"])


def reads_tfds(name: str, preset: str | None) -> bool:
    return config_of(name, preset).data.dataset.partition(":")[0] not in ("digits", "xo", "synthetic", "folder")


@pytest.mark.parametrize(
    ("name", "preset"), [pytest.param(*v, marks=[pytest.mark.tfds] if reads_tfds(*v) else []) for v in VARIANTS]
)
def test_step_has_the_right_shapes_on_its_own_data(name, preset, request):
    if reads_tfds(name, preset):
        request.getfixturevalue("tfds_dir")
    experiment = make_experiment(config_of(name, preset, *start_of(name, preset, request), "--devices", "1"))
    data = experiment.data["train"]
    item = next(data.train_items(0))
    step = lambda state, arrays, item: experiment.train_step(state, data.gather(arrays, item))  # noqa: E731
    state, metrics = jax.eval_shape(step, experiment.state, data.arrays, item)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), experiment.state
    )
    assert set(metrics) == {*experiment.task.metrics, "gradient_norm"}
