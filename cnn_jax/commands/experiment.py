"""From a command line to a trained run: what every file in `experiments/` calls.

No JAX is imported before the arguments are known to be right, so that `--help` and most errors answer at once.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnn_jax.commands.parser import guard
from cnn_jax.config import GROUPS, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
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
    argv = _expanded(argv)
    preset, saved = _peek(argv, "--preset"), _peek(argv, "--config")
    if preset is not None and saved is not None:
        raise UserError("--preset and --config exclude each other: drop one")
    folder = base.experiment
    if preset is not None:
        folder += f"-{preset}"
        if not presets:
            raise UserError(f"{prog} has no presets: drop --preset {preset}")
        if preset not in presets:
            raise unknown("preset", preset, presets)
        base = presets[preset]
    if saved is not None:
        experiment, base = base.experiment, Config.load(saved)
        folder = os.path.basename(os.path.abspath(base.train.workdir or experiment)) + "-repeated"
        base = base.override(workdir=None)
        if base.experiment != experiment:
            raise UserError(
                f"{saved} is a config of the experiment {base.experiment}: "
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


_SWITCHES = tuple(
    "--" + field.name.replace("_", "-")
    for group in GROUPS.values()
    for field in dataclasses.fields(group)
    if field.type in (bool, "bool")
)
_PATHS = ("--workdir", "--data-dir", "--config", "--init-from", "--dataset")


def _expanded(argv: Sequence[str]) -> list[str]:
    """Spells arguments as tyro wants them: `--fresh=False` and `--fresh false` become `--no-fresh`, and `~` in a path
    becomes the home folder, also after `=` and `folder:`.

    >>> _expanded(["--fresh=False", "--distributed", "true", "--epochs", "3"])
    ['--no-fresh', '--distributed', '--epochs', '3']
    """
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in _SWITCHES:
            if not equals and rest and rest[0].lower() in ("true", "false"):
                value = rest.pop(0)
            if value.lower() not in ("true", "false", ""):
                raise UserError(f"{flag} is {value}: write {flag} or --no-{flag.removeprefix('--')}")
            words.append(f"--no-{flag.removeprefix('--')}" if value.lower() == "false" else flag)
        elif flag in _PATHS:
            given = value if equals or not rest else rest.pop(0)
            family, colon, path = given.partition(":")
            given = (
                f"folder:{os.path.expanduser(path)}"
                if (family, colon) == ("folder", ":")
                else os.path.expanduser(given)
            )
            words += [f"{flag}={given}"] if given or equals else [flag]
        else:
            words.append(word)
    return words


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
        raise UserError("each of --member-learning-rates is a member: drop --members")
    if _given(argv, "--steps") and _given(argv, "--epochs"):
        raise UserError("--steps and --epochs exclude each other: drop one")
    if _given(argv, "--epochs"):
        changes["steps"] = None
    elif config.train.steps is not None:
        changes["epochs"] = None
    if family == "folder":
        if not path:
            raise UserError("--dataset folder: has no path: write folder:PATH")
        changes["dataset"] = "folder:" + os.path.abspath(os.path.expanduser(path))  # a run is read from anywhere
    if config.train.workdir is None:
        changes["workdir"] = workdir
    if config.model.init_from is not None and os.path.exists(config.model.init_from):
        changes["init_from"] = os.path.abspath(config.model.init_from)
    config = config.override(**changes)
    config.check()
    return config
