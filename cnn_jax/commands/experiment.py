"""From a command line to a trained run: what every file in `experiments/` calls.

No JAX is imported before the arguments are known to be right, so that `--help` and most errors answer at once.
"""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnn_jax.commands.parser import guard
from cnn_jax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from cnn_jax.errors import UserError, unknown


@dataclass(frozen=True)
class Start:
    """Where the values come from before the flags below change them."""

    config: str | None = None
    """config.json of a run to repeat."""
    preset: str | None = None
    """A named variant of this experiment."""


@dataclass(frozen=True)
class _Arguments:
    start: Start
    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    train: TrainConfig


def run(config: Config, doc: str | None, presets: Mapping[str, Config] | None = None) -> None:
    """Entry point of an experiment: parses the command line and trains. Exits 2 on a user's mistake.

    Args:
        config: defaults of the experiment.
        doc: the experiment's docstring, shown by `--help`.
        presets: named variants.
    """

    def train() -> None:
        parsed = parse(sys.argv[1:], config, doc, presets or {})
        from cnn_jax.training.checkpoint import quiet_failures  # from here on JAX is imported
        from cnn_jax.training.run import train as train_run

        quiet_failures()
        train_run(parsed)

    guard(train)


def parse(argv: Sequence[str], base: Config, doc: str | None = None, presets: Mapping[str, Config] = {}) -> Config:
    """Turns arguments into a config: preset or saved config first, then the flags.

    Raises:
        UserError: an unknown flag, preset or value; the message names the nearest flags.
        SystemExit: `--help` was asked for (code 0).
    """
    prog = f"python -m experiments.{base.experiment}"
    preset, saved = _peek(argv, "--preset"), _peek(argv, "--config")
    if preset is not None and saved is not None:
        raise UserError(f"given --preset {preset} and --config {saved}; expected one of them; drop the other")
    folder = base.experiment
    if preset is not None:
        folder += f"-{preset}"
        if not presets:
            raise UserError(f"given --preset {preset}; expected none, since {prog} has no presets; drop it")
        if preset not in presets:
            raise unknown("preset", preset, presets)
        base = presets[preset]
    if saved is not None:
        experiment, base = base.experiment, Config.load(saved)
        folder = os.path.basename(os.path.abspath(base.train.workdir or experiment)) + "-repeated"
        base = base.override(workdir=None)
        if base.experiment != experiment:
            raise UserError(
                f"given --config {saved}, of the experiment {base.experiment}; expected one of {experiment}; "
                f"run python -m experiments.{base.experiment} --config {saved}"
            )
    arguments = _parse(argv, prog, doc, base, presets)
    chosen = Config(base.experiment, arguments.data, arguments.model, arguments.optim, arguments.train)
    return _resolve(chosen, base, argv, os.path.join("runs", folder))


def _parse(argv: Sequence[str], prog: str, doc: str | None, base: Config, presets: Mapping[str, Config]) -> Any:
    import tyro  # here, so that commands without a config do without it

    default = _Arguments(Start(), base.data, base.model, base.optim, base.train)
    names = f"\n\nPresets: {', '.join(presets)}." if presets else ""
    return tyro.cli(
        tyro.conf.OmitArgPrefixes[_Arguments],
        args=list(argv),
        default=default,
        prog=prog,
        description=(doc or "") + names,
    )


def _peek(argv: Sequence[str], flag: str) -> str | None:
    """Value of a flag that decides the defaults of all others (the last one given, as tyro does)."""
    value = None
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv) and not argv[i + 1].startswith("--"):
            value = argv[i + 1]
        elif word.startswith(flag + "="):
            value = word.removeprefix(flag + "=")
    return value


def _given(argv: Sequence[str], flag: str) -> bool:
    return any(word.replace("_", "-").split("=")[0] == flag for word in argv)


def _resolve(config: Config, base: Config, argv: Sequence[str], workdir: str) -> Config:
    """Applies the few rules that join fields; `workdir` is the one where none is given."""
    changes: dict[str, Any] = {}
    if config.optim.optimizer != base.optim.optimizer:
        # The experiment's rate and arguments were tuned for its own optimizer: another one starts from its paper's.
        if not _given(argv, "--learning-rate"):
            changes["learning_rate"] = None
        if not _given(argv, "--optimizer-args"):
            changes["optimizer_args"] = ()
    if config.model.model != base.model.model and not _given(argv, "--model-args"):
        changes["model_args"] = ()
    if config.optim.schedule != base.optim.schedule and not _given(argv, "--schedule-args"):
        changes["schedule_args"] = ()
    family, _, path = config.data.dataset.partition(":")
    if family == "synthetic" or (family == "xo" and "size=" in path):  # the name says the size
        if not _given(argv, "--image-size"):
            changes["image_size"] = None
    if config.data.dataset != base.data.dataset:
        # Splits, and the augmentations' sense, belong to a data set: only the splits are known to be wrong elsewhere.
        for name in ("train_split", "validation_split", "test_split"):
            if not _given(argv, "--" + name.replace("_", "-")):
                changes[name] = None
    if _given(argv, "--members") and config.optim.member_learning_rates:
        raise UserError("given --members and --member-learning-rates; expected one of them; drop --members")
    if _given(argv, "--steps") and _given(argv, "--epochs"):
        raise UserError("given --steps and --epochs; expected one of them; drop the other")
    if _given(argv, "--epochs"):
        changes["steps"] = None
    elif config.train.steps is not None:
        changes["epochs"] = None
    if family == "folder":
        if not path:
            raise UserError("given --dataset folder:; expected folder:PATH; name the folder")
        changes["dataset"] = "folder:" + os.path.abspath(os.path.expanduser(path))  # a run is read from anywhere
    if config.train.workdir is None:
        changes["workdir"] = workdir
    if config.model.init_from is not None and os.path.exists(config.model.init_from):
        changes["init_from"] = os.path.abspath(config.model.init_from)
    config = config.override(**changes)
    _check(config)
    return config


def _check(config: Config) -> None:
    """Refuses values that no run can have, before anything is loaded."""
    positive = ("batch_size", "eval_batch_size", "epochs", "steps", "eval_every", "accumulate", "scan_steps", "members")
    values = config.flat()
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"given --{name.replace('_', '-')} {value}; expected a finite number; change it")
    rates = ("learning_rate", "head_learning_rate", "layer_decay")
    for name in (*positive, *rates, "image_size", "devices", "log_every", "clip_norm"):
        if values[name] is not None and values[name] <= 0:
            raise UserError(f"given --{name.replace('_', '-')} {values[name]}; expected more than 0; change it")
    for name in ("label_smoothing", "ema_decay"):
        if values[name] is not None and not 0 <= values[name] < 1:
            raise UserError(f"given --{name.replace('_', '-')} {values[name]}; expected a value in [0, 1); change it")
    if values["epochs"] is None and values["steps"] is None:
        raise UserError("given neither --epochs nor --steps; expected one of them; give one")
    if (values["steps"] or 0) >= 2**31:
        raise UserError(f"given --steps {values['steps']}; expected less than 2**31; lower it")
    if not values["seed"] < 2**32:
        raise UserError(f"given --seed {values['seed']}; expected less than 2**32; lower it")
    for name in ("workers", "weight_decay", "warmup_epochs", "seed"):
        if values[name] < 0:
            raise UserError(f"given --{name.replace('_', '-')} {values[name]}; expected 0 or more; change it")
    if config.data.batch_size % config.optim.accumulate:
        raise UserError(
            f"given --batch-size {config.data.batch_size} with --accumulate {config.optim.accumulate}; "
            "expected a batch size that the number of parts divides; change one of them"
        )
