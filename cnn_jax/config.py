"""The config of an experiment: frozen dataclasses that define the defaults, the command line and `config.json`.

Each field is defined once, here: its name is the command-line flag (`batch_size` → `--batch-size`), the string below it
is the help text, and its value goes into `config.json`. Imports no JAX, to keep `--help` fast.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from cnn_jax.errors import UserError, nearest


@dataclass(frozen=True)
class DataConfig:
    """The data set, its splits, augmentation and batches."""

    dataset: str = "digits"
    """A TFDS name (mnist, cifar10, …), folder:PATH, digits, xo[:args] or synthetic:HxWxC:K."""
    data_dir: str | None = None
    """Folder of prepared TFDS sets; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    image_size: int | None = None
    """Height and width to which images are resized; default: the data's own."""
    channels: Literal[1, 3] | None = None
    """Channels of the images: 1 grey, 3 colour; default: the data's own."""
    train_split: str | None = None
    """TFDS split syntax, such as train[:55000]; default: the set's usual split."""
    validation_split: str | None = None
    """Split for choosing the best weights; never the test set."""
    test_split: str | None = None
    """Split for the final test, used once, at the end; none: leave the test set unread."""
    group_by: str | None = None
    """Regular expression on file names of a folder: training images of a class with the same first group, such as the
    frames of one video in '^(.+)_', are not divided between splits."""
    balance: Literal["none", "loss", "sampling"] = "none"
    """For classes of unequal size: weight the loss by inverse class frequency, or sample all classes equally often."""
    batch_size: int = 128
    """Images per step, over all devices."""
    eval_batch_size: int = 500
    """Images per forward pass in evaluation."""
    augment: tuple[str, ...] = ()
    """Augmentations in order, each name or name:arg=value,arg=value, such as flip pad_crop:padding=4."""
    normalize: Literal["dataset", "half", "none"] = "dataset"
    """Mean and standard deviation per channel: those of the training set, 0.5 and 0.5, or 0 and 1."""
    pipeline: Literal["auto", "resident", "stream"] = "auto"
    """Keep the whole set on the device, or stream it; auto: resident up to 1 GiB."""
    workers: int = 0
    """Worker processes that decode when streaming; 0: threads."""
    skip_bad_images: bool = False
    """Skip and count unreadable images of a folder instead of stopping."""


@dataclass(frozen=True)
class ModelConfig:
    """The network."""

    model: str = "lenet5"
    """A model listed by `python -m cnn_jax models`."""
    model_args: tuple[str, ...] = ()
    """Arguments of the model, each key=value, such as shortcut=B."""
    init_from: str | None = None
    """Weights to start from: a run folder, a weights file, torchvision/NAME or OWNER/NAME on the hub."""
    init_head: Literal["auto", "keep", "replace"] = "auto"
    """The classifier of those weights; auto: keep it if the classes are the same, or as many of unknown names."""
    init_weights: Literal["auto", "ema", "plain"] = "auto"
    """Of a file with both: the moving average of the weights, or those without it; auto: the average."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; parameters are always float32."""


@dataclass(frozen=True)
class OptimConfig:
    """Task, loss and optimizer."""

    task: str = "classification"
    """classification, reconstruction, or package.module:attribute, a function that makes your own task."""

    optimizer: str = "adam"
    """gradient_descent, momentum, nesterov, adagrad, adadelta, rmsprop, adam, adamax, nadam, or any of optax."""
    optimizer_args: tuple[str, ...] = ()
    """Arguments of the optimizer, each key=value, such as b1=0.95."""
    learning_rate: float | None = None
    """Peak rate; default: that of the optimizer's paper."""
    member_learning_rates: tuple[float, ...] = ()
    """Peak rates to compare, one network each, all from one seed, trained at once; the best by validation is kept."""
    member_optimizer_args: tuple[str, ...] = ()
    """Other numbers to compare, each key=value,value with a value for every member's rate, such as momentum=0.5,0.9;
    arguments of the optimizer, or weight_decay."""
    schedule: str = "constant"
    """constant, step, cosine, one_cycle (or triangular) or exponential."""
    schedule_args: tuple[str, ...] = ()
    """Arguments of the schedule, each key=value, such as peak=0.3."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up before the schedule."""
    weight_decay: float = 0.0
    """L2 coefficient (decoupled for optimizers that have their own); not on biases and norms."""
    decay_all: bool = False
    """Decay biases and norms too."""
    clip_norm: float | None = None
    """Global norm to which gradients are clipped."""
    accumulate: int = 1
    """Parts into which a batch is split to save memory; their gradients are averaged."""
    ema_decay: float | None = None
    """Decay of an exponential moving average of the weights, which is then evaluated and saved instead."""
    freeze: str | None = None
    """Regular expression: parameters whose path matches are frozen."""
    freeze_until: tuple[str, ...] = ()
    """regex=epochs pairs: parameters whose path matches are frozen until that epoch (gradual unfreezing)."""
    head_learning_rate: float | None = None
    """Peak rate of the classifier; default: the same as for all layers."""
    layer_decay: float | None = None
    """Ratio of each layer's rate to that of the next layer, such as 0.8; default: one rate for all."""
    rate_groups: tuple[str, ...] = ()
    """regex=multiplier pairs: learning-rate multipliers for parameters whose path matches."""
    loss: str | None = None
    """For classification cross_entropy (default), mse or hinge; for reconstruction mse (default) or l1."""
    label_smoothing: float = 0.0
    """Share of the target spread evenly over the classes."""


@dataclass(frozen=True)
class TrainConfig:
    """The run: its length, folder and devices."""

    workdir: str | None = None
    """Run folder; default: runs/EXPERIMENT[-PRESET]. Repeating the command resumes the run."""
    epochs: float | None = 10
    """Passes over the training split."""
    steps: int | None = None
    """Steps instead of epochs."""
    seed: int = 0
    """Seed of all random draws."""
    members: int = 1
    """Networks trained at once, from seeds SEED, SEED + 1, …; their probabilities are averaged."""
    eval_every: float = 1.0
    """Epochs between validations, each followed by a checkpoint."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl; default: about 20 lines per epoch, but at least 10 steps."""
    select: Literal["best", "last"] = "best"
    """Weights to keep: the best by validation, or the last."""
    patience: int | None = None
    """Stop after this many validations in a row without improvement; default: never."""
    gauges: bool = False
    """At each validation, measure gradients, updates and dead units by layer, and the sharpness of the loss."""
    logger: tuple[str, ...] = ("tensorboard",)
    """Where metrics go besides metrics.jsonl: tensorboard, csv, wandb, mlflow."""
    parallel: Literal["jit", "pmap"] = "jit"
    """How the step runs on several devices; the step itself is the same."""
    devices: int | None = None
    """Number of devices; default: all (see --require)."""
    require: Literal["cpu", "gpu", "tpu"] | None = None
    """Refuse to run on another platform."""
    scan_steps: int = 50
    """Steps compiled into one call on GPU and TPU."""
    distributed: bool = False
    """Call jax.distributed.initialize() first, for several hosts."""
    deterministic: bool = False
    """Ask XLA for deterministic operations on GPU."""
    checkpoints: bool = True
    """Save a checkpoint after each validation; off: nothing to resume from, as for short runs."""
    report: bool = True
    """Write report.html and plots/ at the end."""
    fresh: bool = False
    """Delete the run in the folder and start over; other files stay."""


# Fields that do not change the result: a resumed run may have other values of these.
TRANSIENT = frozenset(
    {
        "workdir",
        "fresh",
        "require",
        "data_dir",
        "workers",
        "pipeline",
        "log_every",
        "scan_steps",
        "eval_batch_size",
        "logger",
        "gauges",
        "checkpoints",
        "report",
    }
    | {"distributed", "parallel", "devices"}
)

# Fields that are chosen for the value of another field, see `Config.override`.
DEPENDENT = {
    "optimizer": ("learning_rate", "head_learning_rate", "optimizer_args", "member_optimizer_args", "weight_decay"),
    "schedule": ("schedule_args",),
    "model": ("model_args",),
    "dataset": ("train_split", "validation_split", "test_split"),
}

NO_TEST = "none"  # the `test_split` of a run that leaves the test set unread

_MORE_THAN_0 = (
    *("batch_size", "eval_batch_size", "epochs", "steps", "eval_every", "accumulate", "scan_steps", "members"),
    *("learning_rate", "head_learning_rate", "layer_decay", "image_size", "devices", "log_every", "clip_norm"),
    "patience",
)


class Member(NamedTuple):
    """What one of several networks that are compared has of its own.

    Attributes:
        learning_rate: its peak rate.
        args: its other hyperparameters, each key=value, as in `optimizer_args`.
    """

    learning_rate: float
    args: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Says what it has.

        >>> str(Member(0.1, ("momentum=0.9",)))
        '0.1 momentum=0.9'
        """
        return " ".join([f"{self.learning_rate:g}", *self.args])


@dataclass(frozen=True)
class Config:
    """The whole config of an experiment."""

    experiment: str = "experiment"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        """Sets `members` to the number of member learning rates, if there are any."""
        if rates := self.optim.member_learning_rates:
            object.__setattr__(self, "train", dataclasses.replace(self.train, members=len(rates)))

    @property
    def compares_rates(self) -> bool:
        """Whether the members have learning rates of their own: then the best by validation is the run's result."""
        return len(self.optim.member_learning_rates) > 1

    @property
    def compared(self) -> tuple[Member, ...]:
        """What each member has of its own if they are compared; () otherwise.

        Raises:
            UserError: `member_optimizer_args` has not one value for each of several rates.

        >>> rates = Config().override(member_learning_rates=(0.1, 0.2))
        >>> rates.override(member_optimizer_args=("b1=0,0.9", "eps=0.1,0.2")).compared[1]
        Member(learning_rate=0.2, args=('b1=0.9', 'eps=0.2'))
        """
        rates, columns = self.optim.member_learning_rates, []
        if self.optim.member_optimizer_args and not self.compares_rates:
            raise UserError("`member_optimizer_args` needs two or more `member_learning_rates`: set these, too")
        for text in self.optim.member_optimizer_args:
            name, _, values = (part.strip() for part in text.partition("="))
            each = [f"{name}={value.strip()}" for value in values.split(",")]
            if not values or len(each) != len(rates):
                raise UserError(
                    f"`member_optimizer_args` has {text!r} for {len(rates)} rates: write "
                    f"{name or 'NAME'}=VALUE,VALUE,… with a value for each"
                )
            columns.append(each)
        if not self.compares_rates:
            return ()
        args = zip(*columns, strict=True) if columns else itertools.repeat(())
        return tuple(map(Member, rates, args))

    @property
    def committee(self) -> int:
        """Number of networks in the result, whose predictions are averaged."""
        return 1 if self.compares_rates else self.train.members

    def override(self, **values: Any) -> Self:
        """Returns a copy with the named fields replaced; names are unique over the groups.

        What was chosen for one optimizer, model, schedule or data set does not carry over to another: when such a field
        changes, those that `DEPENDENT` lists for it return to their defaults unless they are given too.

        Raises:
            UserError: no group has such a field.

        >>> tuned = Config().override(optimizer="adamw", learning_rate=3e-3, weight_decay=0.05)
        >>> other = tuned.override(optimizer="momentum", epochs=3)
        >>> other.optim.learning_rate, other.optim.weight_decay, other.train.epochs
        (None, 0.0, 3)
        """
        values = self._reset_by(values) | values
        groups = {}
        for group in GROUPS:
            part = getattr(self, group)
            names = {f.name for f in dataclasses.fields(part)} & values.keys()
            groups[group] = dataclasses.replace(part, **{name: values.pop(name) for name in names})
        if values:
            name, known = next(iter(values)), self.flat()
            hint = " or ".join(nearest(name, known)) or ", ".join(known)
            raise UserError(f"no config field is called {name!r}; perhaps you meant {hint}")
        return dataclasses.replace(self, **groups)

    def borrowed_augmentation(self, base: "Config") -> str | None:
        """Describes augmentations that `base` chose for another data set, and how to turn them off; None without any.

        >>> flipped = Config().override(dataset="cifar10", augment=("flip",))
        >>> print(flipped.override(dataset="digits").borrowed_augmentation(flipped))
        augment    flip, chosen for cifar10, also applies to digits: an empty `augment` turns it off
        """
        augment, ours, theirs = self.data.augment, self.data.dataset, base.data.dataset
        any_folder = theirs == "folder:"  # a recipe for images at a path that is yet to be given
        if not augment or augment != base.data.augment or ours == theirs or any_folder:
            return None
        verb, it = ("applies", "it") if len(augment) == 1 else ("apply", "them")
        return (
            f"augment    {', '.join(augment)}, chosen for {theirs}, also {verb} to {ours}: "
            f"an empty `augment` turns {it} off"
        )

    def _reset_by(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields that return to their defaults with these changes, and the defaults."""
        ours, defaults = self.flat(), Config().flat()
        changed = {name: value for name, value in changes.items() if name in ours and value != ours[name]}
        reset = {dependent for name in changed for dependent in DEPENDENT.get(name, ())}
        if any(mark in changed.get("optimizer", "") for mark in ":<"):  # not a name: its schedule may be inside
            reset.update(("schedule", "schedule_args", "warmup_epochs"))
        family, _, argument = changed.get("dataset", "").partition(":")
        if family == "synthetic" or (family == "xo" and "size=" in argument):  # the name includes the size
            reset.add("image_size")
        if changes.get("epochs") is not None:
            reset.add("steps")
        return {name: defaults[name] for name in reset}

    def resolve(self) -> Self:
        """Returns a checked copy that does not depend on the current folder.

        Expands `~` in every path, makes the paths that a resumed run needs absolute, and drops `epochs` if `steps` is
        set.

        Raises:
            UserError: a value is invalid, see `check`.

        >>> resolved = Config().override(steps=5).resolve()
        >>> resolved.train.steps, resolved.train.epochs
        (5, None)
        """
        changes: dict[str, Any] = {}
        for name in ("data_dir", "workdir"):
            if (path := self.flat()[name]) is not None:
                changes[name] = os.path.expanduser(path)
        family, _, path = self.data.dataset.partition(":")
        if family == "folder":
            if not path:
                raise UserError("`dataset` has no path after folder: write folder:PATH")
            changes["dataset"] = "folder:" + os.path.abspath(os.path.expanduser(path))
        if self.model.init_from is not None:
            source = os.path.expanduser(self.model.init_from)
            changes["init_from"] = os.path.abspath(source) if os.path.exists(source) else source
        if self.train.steps is not None:
            changes["epochs"] = None
        resolved = self.override(**changes)
        resolved.check()
        return resolved

    def check(self) -> None:
        """Rejects invalid values before anything is loaded.

        Raises:
            UserError: names the field, its value and the valid range.

        >>> Config().override(epochs=0).check()
        Traceback (most recent call last):
            ...
        cnn_jax.errors.UserError: `epochs` is 0: it must be more than 0
        """
        self.check_types()
        values = {name: value for name, value in self.flat().items() if value is not None}

        def require(name: str, holds: Callable[[Any], bool], rule: str) -> None:
            if name in values and not holds(values[name]):
                raise UserError(f"`{name}` is {values[name]}: it must be {rule}")

        for name, value in values.items():
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, float) and not math.isfinite(part):
                    raise UserError(f"`{name}` is {part}: it must be finite")
                if isinstance(part, str):
                    _check_text(name, part)
        _check_text("workdir", os.path.abspath(self.train.workdir or ""))
        for name in _MORE_THAN_0:
            require(name, lambda value: value > 0, "more than 0")
        for name in ("label_smoothing", "ema_decay"):
            require(name, lambda value: 0 <= value < 1, "at least 0 and less than 1")
        for name in ("workers", "weight_decay", "warmup_epochs", "seed"):
            require(name, lambda value: value >= 0, "0 or more")
        require("steps", lambda value: value < 2**31, "less than 2**31")
        require("seed", lambda value: value < 2**32, "less than 2**32")
        if "epochs" not in values and "steps" not in values:
            raise UserError("set `epochs` or `steps`")
        _ = self.compared  # raises its own error
        if self.data.batch_size % self.optim.accumulate:
            raise UserError(
                f"`batch_size` is {self.data.batch_size} and `accumulate` is {self.optim.accumulate}: "
                "the batch size must be divisible by the number of parts"
            )

    def check_types(self) -> None:
        """Rejects values of the wrong type, and those that are not among a field's choices.

        Raises:
            UserError: names the field, its value and what it must be.

        >>> Config().override(batch_size="64").check_types()
        Traceback (most recent call last):
            ...
        cnn_jax.errors.UserError: `batch_size` is '64': it must be a whole number
        """
        for name, value in self.flat().items():
            if not _is(value, hint := field_types()[name]):
                needed = _in_words(hint).replace("or null", "or None").replace("true or false", "True or False")
                raise UserError(f"`{name}` is {value!r}: it must be {needed}")

    def flat(self) -> dict[str, Any]:
        """Returns all fields of all groups by name; names are unique over the groups."""
        return {name: value for group in GROUPS for name, value in dataclasses.asdict(getattr(self, group)).items()}

    def difference(self, other: "Config") -> list[str]:
        """Describes each field that changes the result and differs, as `name: ours here, theirs there`."""
        ours, theirs = self.flat(), other.flat()
        source = ours["init_from"]  # a path that may no longer exist, or a name on the hub
        if source is not None and os.path.abspath(source) == theirs["init_from"]:
            theirs["init_from"] = source
        return [
            f"{n}: {ours[n]!r} here, {theirs[n]!r} there" for n in ours if n not in TRANSIENT and ours[n] != theirs[n]
        ]

    def to_json(self) -> str:
        """Returns the config as JSON, which `load` reads from a file."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a file that `to_json` wrote.

        Raises:
            UserError: the file is missing, is not JSON, has an unknown field or a value of the wrong type.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8-sig"))  # some editors add a byte-order mark
        except OSError as error:
            raise UserError(f"cannot read config {path} ({error.strerror}): pass a run's config.json") from error
        except ValueError as error:
            raise UserError(f"config {path} is not valid JSON ({error}): pass a run's config.json") from error
        if not isinstance(record, dict):
            raise UserError(f"config {path} is not a JSON object with the groups {', '.join(GROUPS)}")
        parts = {group: _group(group, record.pop(group, {}), path) for group in GROUPS}
        experiment = _checked("experiment", record.pop("experiment", cls.experiment), str, path)
        if record:
            raise UserError(f"config {path}: unknown groups {sorted(record)}; the groups are {', '.join(GROUPS)}")
        return cls(experiment=experiment, **parts)


GROUPS = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "train": TrainConfig}


@functools.cache
def field_types() -> dict[str, Any]:
    """Returns the type of every field of every group."""
    return {name: hint for kind in GROUPS.values() for name, hint in typing.get_type_hints(kind).items()}


def as_field(name: str, value: Any) -> Any:
    """Converts a value from Python code to the form of a field, if it is one that people write for it.

    NumPy and JAX scalars become Python's, lists and arrays tuples, paths texts, whole floats integers for a field that
    is an integer, and one value a tuple for a field that is a tuple. `Config.check_types` rejects other wrong types.

    >>> as_field("augment", "flip"), as_field("batch_size", 64.0), as_field("member_learning_rates", [0.1, 0.2])
    (('flip',), 64, (0.1, 0.2))
    """
    hint = field_types().get(name)
    if hasattr(value, "tolist"):  # without importing NumPy
        value = value.tolist()
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if typing.get_origin(hint) is tuple and value is not None and not isinstance(value, tuple):
        return (value,)
    if isinstance(value, float) and value.is_integer() and not _is(value, hint) and _is(int(value), hint):
        return int(value)
    return value


def _group(group: str, record: Any, path: str | Path) -> Any:
    kind = GROUPS[group]
    types_of = typing.get_type_hints(kind)
    if not isinstance(record, dict):
        raise UserError(f"config {path}: group {group} is not a JSON object of fields by name")
    values = {}
    for name, value in record.items():
        if name not in types_of:
            hint = " or ".join(nearest(name, types_of)) or ", ".join(types_of)
            raise UserError(f"config {path}: unknown field {group}.{name}; perhaps you meant {hint}")
        values[name] = _checked(f"{group}.{name}", value, types_of[name], path)
    return kind(**values)


def _checked(name: str, value: Any, hint: Any, path: str | Path) -> Any:
    """Returns a value read from JSON as a field of type `hint`, or raises UserError."""
    field_value = tuple(value) if isinstance(value, list) else value
    if not _is(field_value, hint):
        given = json.dumps(value, ensure_ascii=False)
        raise UserError(f"config {path}: {name} is {given}; it must be {_in_words(hint)}")
    return field_value


def _check_text(name: str, text: str) -> None:
    """Rejects paths that are not UTF-8: JSON cannot hold them, and checkpoints cannot be written there."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        raise UserError(f"`{name}` is {shown}, which is not UTF-8: rename it, or choose another") from error


def _is(value: Any, hint: Any) -> bool:
    """Whether `value` has the type `hint`; supports only the types used in this file."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, a) for a in args)
    if origin is Literal:
        return any(type(value) is type(a) and value == a for a in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is(v, args[0]) for v in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    """Describes what `_is` accepts in JSON's terms, such as "a number or null"."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, args))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        return f"a list of {'strings' if args[0] is str else 'numbers'}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}.get(hint, "null")
