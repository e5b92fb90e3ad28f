"""From a command line to a trained run: what every file in `experiments/` calls.

No JAX is imported before the arguments are known to be right, so that `--help` and most errors answer at once.
"""

import argparse
import contextlib
import dataclasses
import io
import math
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from cnn_jax.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from cnn_jax.errors import TrainingStopped, UserError, nearest, unknown


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
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                tyro.conf.OmitArgPrefixes[_Arguments],
                args=list(argv),
                default=default,
                prog=prog,
                description=(doc or "") + names,
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UserError(_one_line(said.getvalue(), prog)) from None


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


_KINDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "a text"}


def _one_line(box: str, prog: str) -> str:
    """Says in one line what tyro says in a box: its sections are parted by rules, the first is the mistake."""
    lines = [re.sub(r"[╭╮╰╯│]+", " ", line).strip() for line in box.splitlines()]
    sections = [" ".join(part.split()) for part in re.split(r"[─-]{3,}", "\n".join(lines)) if part.strip()]
    mistake, rest = (sections[1], sections[2:]) if len(sections) > 1 else ("".join(sections), [])
    see = f"see {prog} --help"
    if found := re.match(r"Error parsing (--[\w-]+): .*?(?:from \['|: \[?')(.*?)'", mistake):
        flag, given = found.groups()
        kind = re.search(rf"{flag} (?:\{{None\}}\||\[)?(\S+)", rest[0] if rest else "")
        expected = _KINDS.get(kind[1], kind[1]) if kind else "another value"
        return f"given {flag} {given}; expected {expected}; {see}"
    if found := re.match(r"invalid choice '(.*?)' for argument '(--[\w-]+)'. Expected one of \((.*)\)", mistake):
        given, flag, choices = found.groups()
        known = [name for name in re.findall(r"'(.*?)'", choices) if name != "None"]
        return _no_choice(flag, given, known)
    if found := re.match(r"Missing value for argument '(--[\w-]+)'", mistake):
        return f"given {found[1]} without a value; expected one after it; {see}"
    if found := re.match(r"Unrecognized options: ([^,=]+)", mistake):
        return f"{_no_option(found[1], _flags())}; {see}"
    return f"{mistake.rstrip('.')}; {see}"


def _flags() -> list[str]:
    names = [*Config().flat(), *dataclasses.asdict(Start())]
    return ["--" + name.replace("_", "-") for name in names]


def _no_option(word: str, options: Iterable[str]) -> str:
    close = nearest(word.replace("_", "-"), options) if word.startswith("-") else []
    hint = f"perhaps you meant {' or '.join(close)}" if close else "drop it"
    return f"given {word}, which is no option; expected --name value; {hint}"


def _no_choice(flag: str, given: Any, known: Iterable[Any]) -> str:
    known = sorted(map(str, known))
    close = nearest(str(given), known)
    hint = f"perhaps you meant {' or '.join(close)}" if close else "choose one"
    return f"given {flag} {given}; expected {' or '.join(known)}; {hint}"


def positive(text: str) -> int:
    """Reads a whole number of at least 1, for `argparse`.

    Raises:
        ValueError: the text is something else.
    """
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def positive_number(text: str) -> float:
    """Reads a number greater than 0, and not infinite, for `argparse`.

    Raises:
        ValueError: the text is something else.
    """
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


# How messages of argparse begin, and what we say for them.
_REPHRASED = {
    r"the following arguments are required: (.*)": r"given no \1; expected it in the command; add it",
    r"argument (\S+): expected .*arguments?": r"given \1 without its value; expected one after it; add it",
    r"argument (\S+): ignored explicit argument '(.*)'": r"given \1 with the value \2; expected none; drop the value",
    r"ambiguous option: (\S+) could match (.*)": r"given \1, short for several; expected one of \2; write it in full",
}


class ArgumentParser(argparse.ArgumentParser):
    """Argparse for the small commands, with the house's one-line errors."""

    def __init__(self, **settings: Any):
        super().__init__(**{"prog": _program(), **settings})

    def error(self, message: str) -> NoReturn:
        """Raises a UserError instead of printing usage and leaving."""
        for pattern, words in _REPHRASED.items():
            message = re.sub(f"^{pattern}$", words, message)
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but refuses what is left over: here, where the options of the sub-command are known."""
        parsed, extra = super().parse_known_args(args, namespace)
        if not extra:
            return parsed, extra
        self.error(_no_option(extra[0].partition("=")[0], self._option_string_actions))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            self.error(_no_choice(_name(action), value, action.choices))

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if isinstance(error.__context__, UserError):  # which says more
                raise error.__context__ from None
            kinds: dict[Any, str] = {
                int: _KINDS["INT"],
                float: _KINDS["FLOAT"],
                positive: "a whole number of at least 1",
                positive_number: "a number greater than 0",
            }
            self.error(f"given {_name(action)} {arg_string}; expected {kinds.get(action.type, 'another')}; correct it")


def _name(action: argparse.Action) -> str:
    return "/".join(action.option_strings) or str(action.metavar or action.dest)


def _program() -> str:
    """The program as it is called: argparse, before Python 3.14, names the file only."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {module.name.removesuffix('.__main__')}" if module else os.path.basename(sys.argv[0])


def guard(main: Callable[[], None]) -> None:
    """Runs `main`; a user's mistake becomes one line on stderr and exit code 2, never a traceback.

    Ctrl-C ends the program at once, with code 130, also in the middle of an import; training asks for a gentler end.
    """
    previous = signal.signal(signal.SIGINT, quit_at_once)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no ellipsis is no reason to end
    try:
        main()
    except UserError as error:
        _leave(f"error: {error}", 2)
    except TrainingStopped as stop:
        _leave(str(stop), stop.code)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        where = error.filename or "a file of the run"
        _leave(f"error: given {where}: {error.strerror}; check the path, its permissions and the free space", 2)
    except MemoryError as error:
        needed = str(error).partition("\n")[0] or "the images and what is made of them"
        _leave(
            f"error: given more than the memory holds ({needed}); expected less; lower --image-size or --batch-size", 2
        )
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        advice = "lower --batch-size, or give --accumulate 2 or --precision bfloat16"
        _leave(f"error: the device has not enough memory for this step; {advice}", 2)
    finally:
        signal.signal(signal.SIGINT, previous)


def quit_at_once(number: int, frame: object) -> NoReturn:
    """Handler of a signal: ends the program and the processes that read for it, with code 130; waits for nothing."""
    os.write(2, b"interrupted\n")
    for worker in multiprocessing.active_children():  # that read data: they would wait for us for ever
        worker.kill()
    os._exit(130)


def _leave(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
