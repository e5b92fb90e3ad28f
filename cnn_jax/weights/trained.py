"""Opens the trained model of a finished run; its folder is all that is needed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.config import Config
from cnn_jax.data.preprocess import Preprocess
from cnn_jax.errors import UserError
from cnn_jax.models.ensembles import Committee, Network
from cnn_jax.models.named import check_module, make_model, variable_shapes
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.weights_file import check_same_structure, load_weights
from cnn_jax.tasks import Task, make_task


@dataclass(frozen=True)
class Trained:
    """A trained model and what it needs.

    Attributes:
        model: a Linen module; for a run with several members, a `Committee` of it.
        variables: NumPy arrays; with several members, each has a leading member axis.
        preprocess: turns an image into the model's input.
        task: what it was trained for.
        config: the run's.
        classes: class names in the order of the logits.
    """

    model: Network
    variables: dict[str, Any]
    preprocess: Preprocess
    task: Task
    config: Config
    classes: tuple[str, ...]


def load_trained(run: str | Path, model: nn.Module | None = None, task: Task | None = None) -> Trained:
    """Opens a finished run.

    Args:
        run: its folder.
        model: the module, required if the run was trained with a module object; default: built from the config.
        task: likewise for the task.

    Raises:
        UserError: `run` is not a run folder or not finished, its model is unknown, `model` is no Linen
            module, or the weights do not fit the model.
    """
    config = files.read_config(run)
    path = Path(run) / files.WEIGHTS
    if not path.is_file():
        raise UserError(f"{run} is not finished (it has no {files.WEIGHTS}): {_how_to_continue(config, run)}")
    classes, preprocess = files.read_classes(run), read_preprocess(run)
    task = _task(config, classes, run) if task is None else task
    module = _module(config, task, run) if model is None else check_module(model)
    expected = variable_shapes(module, preprocess.image_shape)
    members = config.committee
    if members > 1:
        expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype), expected)
    variables, _ = load_weights(path)
    size = "x".join(map(str, preprocess.image_shape))
    check_same_structure(
        variables,
        expected,
        given=str(path),
        wanted=f"weights of {config.model.model} for {size} images and the {len(classes)} classes of {files.CLASSES}",
    )
    network = module if members == 1 else Committee(module, task.combine)
    return Trained(network, variables, preprocess, task, config, classes)


def _how_to_continue(config: Config, run: str | Path) -> str:
    if config.experiment in ("fit", Config.experiment):  # of `cnn_jax.fit`
        return f"repeat the call of cnn_jax.fit with workdir={str(run)!r}"
    module = f"python -m experiments.{config.experiment}"
    return f"continue it with {module} --config {Path(run) / files.CONFIG} --workdir {run}"


def read_preprocess(run: str | Path) -> Preprocess:
    """Returns the run's preprocessing, which turns an image into the model's input."""
    path = Path(run) / files.PREPROCESS
    return Preprocess.from_json(files.read_text(path, "the preprocessing of a run"), path)


def _task(config: Config, classes: tuple[str, ...], run: str | Path) -> Task:
    if config.optim.task.startswith("<"):
        raise UserError(f"{run} was trained with a task object, {config.optim.task}: pass it, as in load(run, task=…)")
    return make_task(config.optim, classes)


def _module(config: Config, task: Task, run: str | Path) -> nn.Module:
    name = config.model.model
    if name.startswith("<"):
        raise UserError(
            f"{run} was trained with a module object, {name}, which its config cannot rebuild: pass it, as in "
            "load(run, model=…)"
        )
    return make_model(name, task.outputs, dtype=jnp.dtype(config.model.precision), args=config.model.model_args)
