"""Every command in the README and docs/ parses, including those that take too long to run.

Blocks marked `<!-- run -->` or `<!-- ci: … -->` are also run by CI.
"""

import argparse
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cnn_jax.__main__ import VERBS, run
from cnn_jax.commands import compare
from cnn_jax.commands import experiment as cli
from cnn_jax.commands.parser import ArgumentParser
from cnn_jax.config import Config
from cnn_jax.data.augment import make_augment
from cnn_jax.errors import UserError
from cnn_jax.models.named import make_model
from cnn_jax.optim.optimizers import get_optimizer_spec
from cnn_jax.optim.schedules import SCHEDULES
from cnn_jax.tasks import make_task
from cnn_jax.training.experiment import check_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAM = re.compile(
    r"(?:python -m ((?:experiments|benchmarks)(?:\.[a-z_0-9]+)+|cnn_jax(?:\.[a-z_0-9]+)*)(?![\w.])"
    rf"|(?<![\w./-])(cnn_jax)(?= (?:{'|'.join(VERBS)})\b))([^`\n]*)"
)


def shown(text: str) -> Iterator[tuple[str, ...]]:
    """Yields (module, *arguments) for each command in the text of a page.

    >>> list(shown("`python -m cnn_jax models NAME` and\\ncnn_jax predict run \\\\\\n  'a b' | head  # two"))
    [('cnn_jax', 'models', 'NAME'), ('cnn_jax', 'predict', 'run', 'a b')]
    """
    for module, script, rest in PROGRAM.findall(text.replace("\\\n", " ")):
        words = shlex.shlex(rest, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        arguments = []
        for word in words:
            if set(word) <= set("();<>|&"):  # shell syntax ends the command
                break
            arguments.append(word)
        yield module or script, *arguments


COMMANDS = sorted({command for page in PAGES for command in shown(page.read_text())})


class Parsed(Exception):
    """Raised once the arguments are parsed, to stop the program."""


@pytest.fixture
def parse_only(monkeypatch):
    """Makes commands stop once their arguments are parsed."""

    def parse_args(self, args=None, namespace=None):
        argparse.ArgumentParser.parse_args(self, args, namespace)
        raise Parsed

    def run_study(question):
        for candidate in question.candidates:
            check_names(question.config(candidate))
        raise Parsed

    monkeypatch.setattr(ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(compare, "run", run_study)


def parse_command(module: str, *arguments: str) -> None:
    """Makes the program parse its arguments; raises UserError for unknown ones."""
    if module == "cnn_jax":
        if not arguments or arguments[0].startswith("-") or not arguments[0].islower():  # --help, VERB
            return
        with pytest.raises(Parsed):
            run(arguments)
        return
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"there is no module {module}"
    program = importlib.import_module(f"{module}.__main__" if spec.submodule_search_locations else module)
    if not hasattr(program, "CONFIG"):
        with pytest.raises(Parsed):
            program.main(list(arguments))
        return
    config = cli.parse(arguments, program.CONFIG, program.__doc__, getattr(program, "PRESETS", {}))
    if any("$" in word for word in arguments):  # shell variables
        return
    classes = make_task(config.optim, list(map(str, range(10)))).outputs
    make_model(config.model.model, classes, args=config.model.model_args)
    make_augment(config.data.augment)
    get_optimizer_spec(config.optim.optimizer)
    assert config.optim.schedule in SCHEDULES


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_documented_command_is_accepted(command, parse_only, monkeypatch):
    saved = importlib.import_module(command[0])
    if "--config" in command:
        monkeypatch.setattr(Config, "load", lambda path: saved.CONFIG)
    try:
        parse_command(*command)
    except SystemExit as stop:  # from --help
        assert stop.code == 0


def test_commands_are_found_and_wrong_ones_are_rejected(parse_only):
    programs = {command[0] for command in COMMANDS}
    verbs = {command[1] for command in COMMANDS if command[0] == "cnn_jax" and len(command) > 1}
    assert set(VERBS) <= verbs
    assert len(COMMANDS) > 60 and {"experiments.cifar10_resnet", "cnn_jax", "benchmarks.versus_torch"} <= programs
    for command in (
        ("experiments.digits_lenet5", "--no-such-flag", "1"),
        ("experiments.digits_lenet5", "--batch-size", "many"),
        ("experiments.digits_lenet5", "--preset", "no-such"),
        ("experiments.digits_lenet5", "--model", "no-such"),
        ("experiments.digits_lenet5", "--model-args", "no_such=1"),
        ("experiments.digits_lenet5", "--augment", "no-such"),
        ("experiments.cifar10_speedrun", "--recipe", "no-such"),
        ("cnn_jax", "evaluate"),
        ("cnn_jax", "no-such-verb"),
        ("cnn_jax", "data", "prepare", "mnist", "--no-such-flag"),
        ("benchmarks.growth", "--no-such-flag"),
    ):
        with pytest.raises((UserError, SystemExit)) as refused:
            parse_command(*command)
        assert not isinstance(refused.value, SystemExit) or refused.value.code == 2


def test_python_blocks_compile():
    blocks = [block for page in PAGES for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)]
    assert len(blocks) > 5
    for block in blocks:
        compile(block, "a page", "exec")
