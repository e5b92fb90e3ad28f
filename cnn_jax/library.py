"""The Python interface: train, load and use networks. `cnn_jax` re-exports these names."""

import dataclasses
import html
import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax.arguments import as_text
from cnn_jax.classical.solved import is_solved
from cnn_jax.config import NO_TEST, Config, DataConfig, ModelConfig, as_field
from cnn_jax.data import Preprocess, Source, default_splits, open_source
from cnn_jax.data.channels import with_channels
from cnn_jax.data.own import OwnData, as_source, fingerprint, resized, split_off
from cnn_jax.errors import TrainingStopped, UserError
from cnn_jax.models import model_name
from cnn_jax.models.ensembles import Network
from cnn_jax.models.named import check_module, make_model
from cnn_jax.ops.plain import plain_operations
from cnn_jax.report import curves, figures
from cnn_jax.runs.evaluate import evaluate, evaluate_source
from cnn_jax.runs.inference import predict_outputs
from cnn_jax.storage import durable
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.lock import LOCK
from cnn_jax.storage.weights_file import to_bytes
from cnn_jax.tasks import Task, check_metrics
from cnn_jax.training.callbacks import Callback
from cnn_jax.training.compiled import call_once
from cnn_jax.training.experiment import Given
from cnn_jax.training.labels import label
from cnn_jax.training.run import train as train_run
from cnn_jax.training.state import draw_variables, variables_for_evaluation
from cnn_jax.weights.trained import Trained, load_trained

__all__ = ["Run", "fit", "init", "load"]


class Run:
    """A trained network and the folder it came from.

    Attributes:
        folder: the run folder; a temporary one until `save`, if `fit` was given no `workdir`.
        model: the Flax module; a `Committee` for several members.
        variables: its parameters and statistics, NumPy arrays.
        preprocess: turns images into the model's input.
        task: what it was trained for.
        config: the run's config.
        classes: class names, in the order of a classifier's outputs.
        interrupted: whether Ctrl-C stopped the run; then the weights are those of the last step, or the best ones by
            validation if the training was complete. Of `member_learning_rates`, those of the best rate by the last
            validation.
    """

    folder: Path
    interrupted: bool

    def __init__(
        self,
        folder: Path,
        trained: Trained,
        *,
        interrupted: bool = False,
        temporary: bool = False,
    ):
        self.folder, self.interrupted, self._trained = folder, interrupted, trained
        # A temporary folder is deleted with the last reference to its run.
        self._remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True) if temporary else None

    @property
    def model(self) -> Network:
        return self._trained.model

    @property
    def variables(self) -> dict[str, Any]:
        return self._trained.variables

    @property
    def preprocess(self) -> Preprocess:
        return self._trained.preprocess

    @property
    def task(self) -> Task:
        return self._trained.task

    @property
    def config(self) -> Config:
        return self._trained.config

    @property
    def classes(self) -> tuple[str, ...]:
        return self._trained.classes

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: dicts of "kind" ("train", "validation", "test", "gauges"), "step", "epoch", …"""
        return files.read_metrics(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """The results, such as "test_accuracy"; for an interrupted run, those of its last validation."""
        if (self.folder / files.SUMMARY).is_file():
            return files.read_json(self.folder, files.SUMMARY)
        last = _last_validation(self.folder, self.task)
        return {f"validation_{name}": last[name] for name in self.task.metrics if last} | {"finished": False}

    def plot(self) -> Any:
        """Plots the task's metrics; returns a matplotlib `Figure`, which notebooks show.

        Raises:
            UserError: the run's model was solved for, see `cnn_jax.classical`.
        """
        summary = self.summary
        if "solution" in summary:
            raise UserError(f"{self.config.model.model} was solved for, so there are no curves: see `summary`")
        with figures.style():
            best = (summary.get("best_step"), summary.get("best_member"))
            return curves.side_by_side(self.history, self.task.metrics, *best)

    def evaluate(self, data: OwnData | str = "test", *, batch_size: int = 500) -> dict[str, Any]:
        """Computes the task's measures, such as "accuracy" and "loss".

        Args:
            data: (images, labels), images alone for a task without labels, a `Source`, or a split of the run's own data
                set, such as "test" or "train[:500]".
            batch_size: examples per forward pass.

        Raises:
            UserError: an unknown split, or images or classes that do not suit the run.
        """
        if isinstance(data, str):
            if self.config.data.dataset.startswith("<"):
                raise UserError(
                    f"the data of this run, {self.config.data.dataset}, were given to `fit` as objects, so there is no "
                    f"split {data!r} to open: pass (images, labels), or a Source"
                )
            return evaluate(self.folder, data, batch_size=batch_size, trained=self._trained)
        source = _adapted(as_source(data, split="test", class_names=self.classes), self.config.data)
        if source.image_shape != self.preprocess.image_shape:
            raise UserError(
                f"images have shape {source.image_shape}: pass {self.preprocess.image_shape}, as in training"
            )
        return evaluate_source(self._trained, source, batch_size=batch_size)

    def predict(self, images: Any, *, batch_size: int = 256) -> np.ndarray:
        """Returns predictions: probabilities (N, K) from a classifier, normalized images from an auto-encoder.

        Args:
            images: uint8 (N, H, W, C) of the shape of the training images, or of any size if `image_size` was set;
                (N, H, W) if they are grey.
            batch_size: images per forward pass.

        Raises:
            UserError: the images have another shape or type.
        """
        array = np.asarray(images)
        if array.ndim == 3 and (self.preprocess.image_shape[-1] == 1 or self.config.data.channels is not None):
            array = array[..., None]
        if array.ndim == 4 and array.shape[1:] != self.preprocess.image_shape:
            source = _adapted(as_source(array, name="images"), self.config.data)
            array = np.stack([source[row]["image"] for row in range(len(source))])
        outputs = predict_outputs(self.model, self.variables, self.preprocess, array, batch_size)
        return self.task.predict(outputs)

    def save(self, folder: str | Path) -> Path:
        """Copies the run folder atomically; returns the new path.

        That of an interrupted run gets the weights of this run, so that `load` opens it; `fit` still resumes it.

        Raises:
            UserError: `folder` exists and is not an empty folder.
        """
        target = Path(folder).expanduser()
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise UserError(f"{target} is not empty: save into a new folder")
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            unfinished = scratch / "run"
            unfinished.mkdir()
            mode = unfinished.stat().st_mode  # a temporary folder is closed to others, a saved one like any new folder
            shutil.copytree(self.folder, unfinished, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LOCK))
            unfinished.chmod(mode)
            if self.interrupted:
                durable.write_checked(unfinished / files.WEIGHTS, to_bytes(self.variables, {}))
            if target.exists():
                target.rmdir()
            unfinished.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if self._remove is not None:
            self._remove()
        self.folder, self._remove = target, None
        return target

    def __repr__(self) -> str:
        metric = self.task.selection.metric
        found = {name: value for name, value in self.summary.items() if name.endswith(f"_{metric}")}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        return (
            f"<Run {self.config.model.model} on {self.config.data.dataset}: {shown or 'not finished'}; {self.folder}>"
        )

    def _repr_html_(self) -> str:
        """Shows the report in a notebook."""
        report = self.folder / files.REPORT
        if not report.is_file():
            return f"<pre>{html.escape(repr(self))}</pre>"
        page = html.escape(report.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 640px; border: 0"></iframe>'


def fit(
    model: nn.Module | str,
    train: OwnData | str,
    *,
    validation: OwnData | str | float | None = None,
    test: OwnData | str | None = None,
    optimizer: optax.GradientTransformation | str | None = None,
    task: Task | str | None = None,
    classes: Sequence[str] | None = None,
    workdir: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    config: Config | None = None,
    **fields: Any,
) -> Run:
    """Trains a network, with the same code as the experiments' commands.

    Ctrl-C (a notebook's interrupt) stops after the current step and returns the run so far; the same call with the same
    `workdir` resumes it. Running a notebook cell again does not compile again.

    Args:
        model: a Flax module whose call takes `train`, a name of `cnn_jax.list_models()`, or `package.module:attribute`;
            a classical classifier of `cnn_jax.classical` is solved for, not trained.
        train: (images uint8 NxHxWxC, labels), a `Source`, or a data set's name, such as "digits" or "folder:PATH". A
            task that needs no labels also takes the images alone.
        validation: a share of the training data, other arrays, a `Source` or a split; default: the data set's own
            split, or a tenth of arrays.
        test: used once, at the end: arrays, a `Source` or a split; default: the data set's own split; none for arrays.
        optimizer: an Optax transformation, a name (see docs/optimizers.md) or `package.module:attribute`; default:
            adam.
        task: "classification" (the default), "reconstruction" or a `Task`.
        classes: class names for arrays; default: "0" to the largest label.
        workdir: run folder; default: that of `config`, or else a temporary one, see `Run.save`.
        callbacks: their `on_evaluation(step, metrics, state)` is called after each validation; True stops training.
        config: supplies fields that are not given, `workdir` included; default: `Config()`.
        fields: any field of the config by name, such as epochs=5, batch_size=64, augment=["flip"], patience=3. NumPy
            numbers, lists and arrays, and one text for a list of texts are accepted.

    Returns:
        The run, with the weights that were best by validation.

    Raises:
        UserError: a mistake in the arguments; nothing has been written then.
    """
    start = Config("fit") if config is None else config
    _check_callbacks(callbacks)
    chosen, given = with_objects(
        start, model, train, validation=validation, test=test, optimizer=optimizer, task=task, classes=classes, **fields
    )
    workdir = workdir or start.train.workdir
    temporary = workdir is None
    folder = Path(tempfile.mkdtemp(prefix="cnn_jax-run-") if temporary else str(workdir)).expanduser()
    try:
        resolved = chosen.override(workdir=str(folder)).resolve()
        train_run(resolved, given, callbacks, command="cnn_jax.fit(…)")
    except TrainingStopped as stop:
        if stop.state is None or stop.experiment is None:
            if temporary:
                _discard(folder)
            raise
        print(stop)
        experiment, every = stop.experiment, jax.device_get(variables_for_evaluation(stop.state))
        best = _last_validation(folder, experiment.task).get("member", 0)
        variables = experiment.kept(every, best)
        trained = Trained(
            experiment.network, variables, experiment.preprocess, experiment.task, resolved, experiment.class_names
        )
        return Run(folder, trained, interrupted=True, temporary=temporary)
    except BaseException:
        if temporary:
            _discard(folder)
        raise
    return Run(folder, load_trained(folder, given.model, given.task), temporary=temporary)


def with_objects(
    config: Config,
    model: nn.Module | str,
    train: OwnData | str,
    *,
    validation: OwnData | str | float | None = None,
    test: OwnData | str | None = None,
    optimizer: optax.GradientTransformation | str | None = None,
    task: Task | str | None = None,
    classes: Sequence[str] | None = None,
    **fields: Any,
) -> tuple[Config, Given]:
    """Returns the config that records objects and fields, and the objects; see `fit` for the arguments.

    Raises:
        UserError: a mistake in the arguments.
    """
    start = config
    _check_objects(start, optimizer, task)
    _check_fields(fields, train, validation, test, classes)
    _check_by_name(fields, {"optimizer": optimizer, "task": task})
    named: dict[str, Any] = {name: as_field(name, value) for name, value in fields.items()}
    named["dataset"] = train if isinstance(train, str) else "<arrays>"
    for field, value in (("optimizer", optimizer), ("task", task)):
        if value is not None:
            named[field] = value if isinstance(value, str) else label(value)
    if isinstance(model, str):
        named["model"] = model
    else:
        recorded = _recorded(check_module(model))
        _check_unset(start.override(**named | {"model": recorded["model"]}), recorded)
        named |= recorded
    start.override(**named).check_types()
    if "augment" not in fields and (note := start.override(**named).borrowed_augmentation(start)):
        print(note, flush=True)
    sources = _sources(start.override(**named), train, validation, test, classes, named)
    # A solution fits the module that its folder records, not the object given.
    given = Given(
        None if isinstance(model, str) or is_solved(model) else model,
        None if isinstance(optimizer, str) else optimizer,
        sources,
        None if isinstance(task, str) else task,
    )
    return start.override(**named), given


def _last_validation(folder: Path, task: Task) -> dict[str, Any]:
    """The row of the last validation, of the best member if rates are compared; {} if there was none."""
    rows = [row for row in files.read_metrics(folder) if row["kind"] == "validation"]
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    return last[task.selection.best(last)] if last else {}


def _discard(folder: Path) -> None:
    """Deletes a temporary folder, unless something was trained in it."""
    if files.has_trained(folder):
        print(f"{folder} keeps what was trained: pass it as workdir to go on from there", flush=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def load(folder: str | Path, model: nn.Module | None = None, task: Task | None = None) -> Run:
    """Opens the folder of a finished run, or of an interrupted one that `Run.save` wrote.

    Args:
        folder: the run folder.
        model: the module, if the config records no name for it.
        task: the task, likewise.

    Raises:
        UserError: the folder is not a finished run, or its weights do not fit the model.
    """
    path = Path(folder).expanduser()
    return Run(path, load_trained(path, model, task), interrupted=not (path / files.SUMMARY).is_file())


def init(model: nn.Module, image_shape: tuple[int, int, int], seed: int = 0) -> dict[str, Any]:
    """Draws a network's initial variables, the ones that `fit` starts from with this seed.

    `model.init` under `jax.jit` draws others, and takes minutes to compile for a deep network.

    Args:
        model: a Flax module whose call takes `train`.
        image_shape: height, width and channels of an image.
        seed: of the draws.

    Raises:
        UserError: `model` is not such a module, or does not take images of this size.
    """
    check_module(model)
    with plain_operations():
        return call_once(lambda seed: draw_variables(model, tuple(image_shape), seed), jnp.uint32(seed))


def _check_objects(config: Any, optimizer: Any, task: Any) -> None:
    """Rejects objects of other kinds than `fit` takes.

    Raises:
        UserError: names the parameter.
    """
    if not isinstance(config, Config):
        raise UserError(f"`config` is {config!r}: pass a cnn_jax.config.Config, or its fields by name")
    if not isinstance(optimizer, str | optax.GradientTransformation | None):
        advice = f"call it, as in {optimizer.__name__}(1e-3)" if callable(optimizer) else "pass one, such as 'adam'"
        raise UserError(f"`optimizer` is {_shown(optimizer)}, which is no Optax transformation: {advice}")
    if task is not None and not isinstance(task, str):
        missing = [part for part in ("metrics", "selection", "prepare", "loss") if not hasattr(task, part)]
        if missing or isinstance(task, type):
            raise UserError(
                f"`task` is {_shown(task)}, which is no cnn_jax.tasks.Task: pass one, such as Classification(names), "
                "or 'classification' or 'reconstruction'"
            )
        check_metrics(task, "`task`")


def _check_callbacks(callbacks: Any) -> None:
    """Rejects what cannot be called after a validation.

    Raises:
        UserError: names it.
    """
    if not isinstance(callbacks, Sequence):
        raise UserError(f"`callbacks` is {_shown(callbacks)}: pass a list of callbacks")
    for callback in callbacks:
        if isinstance(callback, type) or not callable(getattr(callback, "on_evaluation", None)):
            raise UserError(
                f"`callbacks` has {_shown(callback)}: pass objects with a method on_evaluation(step, metrics, state)"
            )


def _shown(value: Any) -> str:
    name = getattr(value, "__name__", None)
    return repr(value) if name is None else f"{'the class' if isinstance(value, type) else 'the function'} {name}"


def _check_fields(fields: Mapping[str, Any], train: Any, validation: Any, test: Any, classes: Any) -> None:
    """Rejects what would be ignored.

    Raises:
        UserError: names the field.
    """
    if "dataset" in fields:
        raise UserError("`dataset` is not a field of fit: pass the name as its second argument, `train`")
    if fields.get("steps") is not None and fields.get("epochs") is not None:
        raise UserError(f"`steps` is {fields['steps']} and `epochs` is {fields['epochs']}: set one of them")
    if classes is not None and not isinstance(train, tuple | list):
        raise UserError("`classes` is for arrays, and this data set has names for its classes: leave it out")
    for name, data in (("train", train), ("validation", validation), ("test", test)):
        if fields.get(f"{name}_split") is None:
            continue
        if not isinstance(train, str):
            raise UserError(f"`{name}_split` is for a data set given by name: pass part of the arrays instead")
        if name != "train" and data is not None:
            raise UserError(f"`{name}` and `{name}_split` are both set: drop one")


# What these objects set themselves. A rate, schedule or decay beside an optimizer is refused by `from_transformation`.
_BY_NAME = {
    "optimizer": ("head_learning_rate", "layer_decay", "decay_all", "schedule_args"),
    "task": ("loss", "label_smoothing"),
}


def _check_by_name(fields: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Rejects fields of an optimizer or task given by name, if it is given as an object.

    Raises:
        UserError: names the field.
    """
    for part, value in parts.items():
        for name in _BY_NAME[part]:
            if fields.get(name) and not isinstance(value, str | None):
                raise UserError(f"`{name}` applies to `{part}` given by name: set it in the object itself")


def _sources(
    config: Config,
    train: OwnData | str,
    validation: OwnData | str | float | None,
    test: OwnData | str | None,
    classes: Sequence[str] | None,
    named: dict[str, Any],
) -> Mapping[str, Source] | None:
    """Opens data given as objects; None if all data is named. Adds the config's names for the data to `named`."""
    data = config.data
    if isinstance(train, str):
        named |= {
            f"{split}_split": part
            for split, part in (("validation", validation), ("test", test))
            if isinstance(part, str)
        }
        if all(part is None or isinstance(part, str) for part in (validation, test)):
            return None
        usual = default_splits(train, data.data_dir, data.group_by)
        open_split = lambda split: open_source(  # noqa: E731
            train,
            split,
            data_dir=data.data_dir,
            image_size=data.image_size,
            channels=data.channels,
            group_by=data.group_by,
        )
        whole = open_split(data.train_split or usual.train)
        validation = (data.validation_split or usual.validation) if validation is None else validation
        test = (data.test_split or usual.test) if test is None else test
        validation = open_split(validation) if isinstance(validation, str) else validation
        if isinstance(test, str):
            test = None if test == NO_TEST else open_split(test)
    else:
        if data.group_by is not None:
            raise UserError("`group_by` is for the file names of a folder, and `train` holds arrays: leave it out")
        whole = as_source(train, class_names=classes)
        if isinstance(validation, str) or isinstance(test, str):
            raise UserError("`train` holds arrays, which have no named splits: pass arrays for validation and test")
    own = {"split": "validation", "class_names": whole.class_names or None}
    if validation is None or isinstance(validation, float | int):
        whole, held_out = split_off(whole, 0.1 if validation is None else float(validation))
    else:
        held_out = as_source(validation, **own)
    sources = {"train": whole, "validation": held_out}
    if test is not None:
        sources["test"] = as_source(test, **{**own, "split": "test"})
    sources = {name: _adapted(source, data) for name, source in sources.items()}
    for name, source in sources.items():
        if source.image_shape != (wanted := sources["train"].image_shape):
            raise UserError(f"{name} images have shape {source.image_shape}: pass {wanted}, as in training")
    named["dataset"] = f"<{named['dataset'].strip('<>')} {fingerprint(sources)}>"
    return sources


def _adapted(source: Source, data: DataConfig) -> Source:
    """The source with the channels and the size that the config asks for."""
    if data.channels is not None:
        source = with_channels(source, data.channels)
    return source if data.image_size is None else resized(source, data.image_size)


def _check_unset(config: Config, recorded: Mapping[str, Any]) -> None:
    """Rejects fields that a module given as an object would ignore.

    Raises:
        UserError: names the field.
    """
    usual, chosen = dataclasses.asdict(ModelConfig()), dataclasses.asdict(config.model)
    for name in ("model_args", "precision"):
        if chosen[name] not in (usual[name], recorded[name]):
            raise UserError(f"`{name}` is for a model given by name: set it in the module itself")


def _recorded(model: nn.Module) -> dict[str, Any]:
    """Returns the config fields that record a module given as an object.

    A catalogue network is recorded by its name and arguments, so that `load` can rebuild it; any other by its class and
    a checksum of its fields, so that resuming with another module is detected. A classical classifier is recorded by
    its class and the fields that differ from their defaults.
    """
    if is_solved(model):
        kind, usual = type(model), {of.name: of.default for of in dataclasses.fields(model)}
        values = {name: getattr(model, name) for name in usual if name not in ("parent", "name", "num_classes")}
        args = tuple(f"{name}={as_text(value)}" for name, value in values.items() if value != usual[name])
        return {"model": f"{kind.__module__}:{kind.__qualname__}", "model_args": args, "precision": "float32"}
    found = model_name(model)
    if found is not None:
        name, fields = found
        dtype = np.dtype(fields.pop("dtype", np.float32)).name
        classes = fields.pop("num_classes", None)
        args = tuple(f"{key}={as_text(value)}" for key, value in fields.items())
        try:
            if make_model(name, classes, dtype=jnp.dtype(dtype), args=args) == model:
                return {"model": name, "model_args": args, "precision": dtype}
        except UserError:
            pass  # fields that have no text, such as a parameter type
    return {"model": label(model), "model_args": (), "precision": ModelConfig.precision}
