"""Tasks by name and of the user's own."""

import math
import re

import pytest

from cnn_jax.config import OptimConfig
from cnn_jax.errors import UserError
from cnn_jax.optim.optimizers import make_optimizer
from cnn_jax.tasks import Classification, Reconstruction, make_task

MODULE = """
import optax
from cnn_jax.tasks import Reconstruction
task = Reconstruction()
def make(config, class_names): return Reconstruction("l1")
def nothing(config, class_names): return None
def one(config): return task
three = 3
def factory(learning_rate): return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "owntask.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_task_of_the_users_own_is_an_object_or_a_function_that_makes_one(own):
    assert make_task(OptimConfig(task="owntask:task"), ()) == Reconstruction()
    assert make_task(OptimConfig(task="owntask:make"), ("a", "b")) == Reconstruction("l1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("three", "owntask:three is int, without check, collect, combine, findings, …: make it a task"),
        ("nothing", "owntask:nothing is NoneType, without check"),
        ("Reconstruction", "owntask:Reconstruction is the class Reconstruction"),
        ("one", "owntask:one cannot be called with (config, class_names): too many positional arguments"),
        ("tusk", "owntask has no attribute tusk: perhaps you meant task"),
        ("reconstruktion", "owntask has no attribute reconstruktion: perhaps you meant Reconstruction"),
    ],
)
def test_what_is_no_task_is_refused(own, name, said):
    with pytest.raises(UserError, match=re.escape(said)):
        make_task(OptimConfig(task=f"owntask:{name}"), ())


def test_a_task_says_how_each_metric_is_shown(own, tmp_path):
    (tmp_path / "metrictask.py").write_text(
        "import cnn_jax.tasks as t\nclass Task(t.Reconstruction):\n    metrics = {'loss': 'error'}\ntask = Task()\n"
    )
    with pytest.raises(
        UserError, match=r"metrictask:task has the metric 'loss' as 'error': .* cnn_jax.tasks.Metric\(label"
    ):
        make_task(OptimConfig(task="metrictask:task"), ())
    assert Classification(("a", "b")).metrics["accuracy"].text(0.5) == "50.00%"
    assert Reconstruction().metrics["loss"].text(0.5) == "0.5000"


def test_equal_metrics_are_ranked_by_the_loss_and_diverged_networks_last():
    selection = Classification(("a", "b")).selection
    found = [
        {"accuracy": 0.9, "loss": 0.3},
        {"accuracy": 0.9, "loss": 0.2},
        {"accuracy": 1.0, "loss": math.nan},
        {"accuracy": 0.8, "loss": 0.1},
        {"accuracy": 0.9, "loss": 0.2},
    ]
    assert selection.best(found) == 1
    ranked = sorted(range(5), key=lambda i: selection.key(found[i]))
    assert ranked == [2, 3, 0, 1, 4]


def test_a_single_class_is_nothing_to_classify():
    with pytest.raises(UserError, match="the only class of the data is 'cat', but classification needs two"):
        make_task(OptimConfig(), ("cat",))


def test_a_factory_that_makes_no_optimizer_is_refused(own):
    config = OptimConfig(optimizer="owntask:factory", learning_rate=0.1)
    with pytest.raises(UserError, match=r"owntask:factory makes int: return an optax.GradientTransformation"):
        make_optimizer(config, total_steps=3)
