"""Tasks by name and of the user's own."""

import re

import pytest

from cnn_jax.config import OptimConfig
from cnn_jax.errors import UserError
from cnn_jax.optim.optimizers import make_optimizer
from cnn_jax.tasks import Reconstruction, make_task

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


def test_a_single_class_is_nothing_to_classify():
    with pytest.raises(UserError, match="the only class of the data is 'cat', but classification needs two"):
        make_task(OptimConfig(), ("cat",))


def test_a_factory_that_makes_no_optimizer_is_refused(own):
    config = OptimConfig(optimizer="owntask:factory", learning_rate=0.1)
    with pytest.raises(UserError, match=r"owntask:factory makes int: return an optax.GradientTransformation"):
        make_optimizer(config, total_steps=3)
