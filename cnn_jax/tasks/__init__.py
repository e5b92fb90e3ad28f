"""What a network is trained for: the `Task` interface, and the tasks by name."""

from collections.abc import Callable, Sequence

from cnn_jax.arguments import load_attribute
from cnn_jax.config import OptimConfig
from cnn_jax.errors import unknown
from cnn_jax.tasks import classification, reconstruction
from cnn_jax.tasks.classification import Classification
from cnn_jax.tasks.reconstruction import Reconstruction
from cnn_jax.tasks.task import Batch, Findings, Outputs, Selection, Sums, Task, sums

__all__ = [
    "TASKS",
    "Batch",
    "Classification",
    "Findings",
    "Outputs",
    "Reconstruction",
    "Selection",
    "Sums",
    "Task",
    "make_task",
    "sums",
]

Maker = Callable[[OptimConfig, Sequence[str]], Task]
TASKS: dict[str, Maker] = {"classification": classification.make, "reconstruction": reconstruction.make}


def make_task(config: OptimConfig, class_names: Sequence[str]) -> Task:
    """Makes the task that a config names.

    Args:
        config: its `task` is a key of `TASKS`, or `package.module:attribute`: a function with the same signature.
        class_names: the training set's class names.

    Raises:
        UserError: the task is unknown, or lacks the loss.
    """
    if ":" in config.task:
        return load_attribute(config.task)(config, class_names)
    if config.task not in TASKS:
        raise unknown("task", config.task, TASKS)
    return TASKS[config.task](config, class_names)
