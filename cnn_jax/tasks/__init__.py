"""What a network is trained for: the `Task` interface, and the tasks by name."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from cnn_jax.arguments import load_attribute
from cnn_jax.config import OptimConfig
from cnn_jax.errors import UserError, unknown
from cnn_jax.report.metric import Metric
from cnn_jax.tasks import classification, reconstruction
from cnn_jax.tasks.classification import Classification
from cnn_jax.tasks.reconstruction import Reconstruction
from cnn_jax.tasks.task import Batch, Findings, Outputs, Selection, Sums, Task, check_labelled, sums

__all__ = [
    "TASKS",
    "Batch",
    "Classification",
    "Findings",
    "Metric",
    "Outputs",
    "Reconstruction",
    "Selection",
    "Sums",
    "Task",
    "check_labelled",
    "check_metrics",
    "check_task",
    "make_task",
    "sums",
]

Maker = Callable[[OptimConfig, Sequence[str]], Task]
TASKS: dict[str, Maker] = {"classification": classification.make, "reconstruction": reconstruction.make}


def make_task(config: OptimConfig, class_names: Sequence[str]) -> Task:
    """Makes the task that a config names.

    Args:
        config: its `task` is a key of `TASKS`, or `package.module:attribute`: a task, or a function with the same
            signature that makes one.
        class_names: the training set's class names.

    Raises:
        UserError: the task is unknown, or lacks the loss.
    """
    if ":" in config.task:
        return _own(config, class_names)
    if config.task not in TASKS:
        raise unknown("task", config.task, TASKS)
    return TASKS[config.task](config, class_names)


def check_task(task: Any, name: str) -> Task:
    """Returns an object that has everything a task has.

    Raises:
        UserError: something is missing.
    """
    lacking = sorted(member for member in dir(Task) if not member.startswith("_") and not hasattr(task, member))
    if isinstance(task, type) or lacking:
        found = f"the class {task.__name__}" if isinstance(task, type) else f"{type(task).__name__}"
        without = f", without {', '.join(lacking[:4])}{', …' if len(lacking) > 4 else ''}" if lacking else ""
        raise UserError(f"{name} is {found}{without}: make it a task, an object with the members of cnn_jax.tasks.Task")
    return check_metrics(task, name)


def check_metrics(task: Task, name: str) -> Task:
    """Returns a task that says how each of its metrics is shown.

    Raises:
        UserError: one is not a `Metric`.
    """
    for metric, shown in task.metrics.items():
        if not isinstance(shown, Metric):
            raise UserError(
                f"{name} has the metric {metric!r} as {shown!r}: say how it is shown, by "
                "cnn_jax.tasks.Metric(label), or Metric(label, percent=True) for a share"
            )
    return task


def _own(config: OptimConfig, class_names: Sequence[str]) -> Task:
    found: Any = load_attribute(config.task)
    if callable(found) and not hasattr(found, "loss"):
        try:
            inspect.signature(found).bind(config, class_names)
        except TypeError as error:
            raise UserError(f"{config.task} cannot be called with (config, class_names): {error}") from error
        found = found(config, class_names)
    return check_task(found, config.task)
