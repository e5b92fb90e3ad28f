"""The command line shared by all files in `experiments/`.

JAX is imported only once the arguments are valid, so that `--help` and most errors answer at once.
"""

import dataclasses
import gc
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cnn_jax.commands.parser import guard, with_flags
from cnn_jax.config import GROUPS, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from cnn_jax.errors import UserError, unknown
from cnn_jax.native import build
from cnn_jax.storage.lock import is_locked
from cnn_jax.storage.run_folder import CONFIG, has_trained


@dataclass(frozen=True)
class Start:
    """Where the defaults of all other flags come from."""

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
    """Parses the command line of an experiment and trains. A user's mistake exits with code 2.

    Args:
        config: defaults of the experiment.
        doc: the experiment's docstring, shown by `--help`.
        presets: named variants.
    """

    def train() -> None:
        parsed = parse(sys.argv[1:], config, doc, presets or {})
        build.start()
        gc.disable()  # imports make many objects and no garbage
        from cnn_jax.training.checkpoint import quiet_failures  # imports JAX
        from cnn_jax.training.run import train as train_run

        gc.freeze()  # nor will these become garbage
        gc.enable()
        quiet_failures()
        train_run(parsed, tell=lambda message: print(with_flags(message), flush=True))

    guard(train)


def parse(argv: Sequence[str], base: Config, doc: str | None = None, presets: Mapping[str, Config] = {}) -> Config:
    """Turns arguments into a config: flags override a preset or saved config, which overrides `base`.

    Raises:
        UserError: an unknown preset, an unreadable saved config, or an invalid value.
        SystemExit: tyro has printed the help (code 0) or an error about a flag (code 2).
    """
    argv = plain_switches(argv)
    prog = f"python -m experiments.{base.experiment}"
    preset, saved = peek(argv, "--preset"), peek(argv, "--config")
    if preset is not None and saved is not None:
        raise UserError("`preset` and `config` cannot be combined: drop one")
    folder = base.experiment
    if preset is not None:
        folder += f"-{preset}"
        if not presets:
            raise UserError(f"{prog} has no presets: drop `preset`")
        if preset not in presets:
            raise unknown("preset", preset, presets)
        base = presets[preset]
    if saved is not None:
        experiment, base = base.experiment, Config.load(os.path.expanduser(saved))
        folder = os.path.basename(os.path.abspath(base.train.workdir or experiment)) + "-repeated"
        base = base.override(workdir=None)
        if base.experiment != experiment:
            raise UserError(
                f"{saved} is a config of the experiment {base.experiment}, not {experiment}; "
                f"run python -m experiments.{base.experiment} --config {saved}"
            )
    arguments = _parse(argv, prog, doc, base, presets)
    chosen = Config(base.experiment, arguments.data, arguments.model, arguments.optim, arguments.train)
    explicit = explicit_fields(chosen, base, argv)
    if "augment" not in explicit and (note := chosen.borrowed_augmentation(base)):
        print(with_flags(note), flush=True)
    if chosen.train.workdir is not None:
        return base.override(**explicit).resolve()
    config = base.override(**explicit, workdir=os.path.join("runs", folder)).resolve()
    return config if config.train.fresh else _in_own_folder(config)


def _parse(argv: Sequence[str], prog: str, doc: str | None, base: Config, presets: Mapping[str, Config]) -> Any:
    import tyro  # takes 0.1 s, which commands without a config need not pay

    default = _Arguments(Start(), base.data, base.model, base.optim, base.train)
    names = f"\n\nPresets: {', '.join(presets)}." if presets else ""
    return tyro.cli(
        tyro.conf.OmitArgPrefixes[_Arguments],
        args=list(argv),
        default=default,
        prog=prog,
        description=(doc or "") + names,
    )


def plain_switches(argv: Sequence[str]) -> list[str]:
    """Rewrites boolean flags with a value, which tyro does not accept, as `--name` or `--no-name`.

    >>> plain_switches(["--fresh=False", "--deterministic", "true", "--decay-all", "--seed", "1"])
    ['--no-fresh', '--deterministic', '--decay-all', '--seed', '1']
    """
    switches = {
        f"--{f.name.replace('_', '-')}" for g in GROUPS.values() for f in dataclasses.fields(g) if f.type is bool
    }
    plain: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        if flag in switches:
            if not equals and words and words[0].lower() in _TRUTH:
                value = words.pop(0)
            if value.lower() in _TRUTH:
                word = flag if _TRUTH[value.lower()] else flag.replace("--", "--no-", 1)
        plain.append(word)
    return plain


_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def peek(argv: Sequence[str], flag: str) -> str | None:
    """Finds the value of a flag that determines the defaults of the others. The last one wins, as in tyro."""
    value = None
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv) and not argv[i + 1].startswith("--"):
            value = argv[i + 1]
        elif word.startswith(flag + "="):
            value = word.removeprefix(flag + "=")
    return value


def _given(argv: Sequence[str], flag: str) -> bool:
    return any(word.replace("_", "-").split("=")[0] == flag for word in argv)


def _in_own_folder(config: Config) -> Config:
    """Adds a number to the default folder if another run has trained there, or is about to: runs/NAME-2, …"""
    usual = config.train.workdir
    for number in itertools.count(2):
        run = Path(str(config.train.workdir))
        if not (has_trained(run) or is_locked(run)):
            break
        try:
            differences = config.difference(Config.load(run / CONFIG))
        except UserError:  # none, or a damaged one, which is refused later
            break
        if not differences:
            break
        if number == 2:
            print(f"{usual} holds another run ({'; '.join(differences)})")
        config = config.override(workdir=f"{usual}-{number}")
    if config.train.workdir != usual:
        print(f"using {config.train.workdir}", flush=True)
    return config


def explicit_fields(config: Config, base: Config, argv: Sequence[str]) -> dict[str, Any]:
    """Returns the fields that the flags set, by name.

    Args:
        config: `base` with the flags applied.
        base: the experiment's defaults.
        argv: shows flags that repeat a default.

    Raises:
        UserError: two flags cannot be combined.
    """
    if _given(argv, "--members") and config.optim.member_learning_rates:
        raise UserError("`member_learning_rates` says how many members there are: drop `members`")
    if _given(argv, "--steps") and _given(argv, "--epochs"):
        raise UserError("`steps` and `epochs` cannot be combined: drop one")
    before = base.flat()
    return {
        name: value
        for name, value in config.flat().items()
        if value != before[name] or _given(argv, "--" + name.replace("_", "-"))
    }
