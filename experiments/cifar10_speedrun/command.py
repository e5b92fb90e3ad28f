"""The command of the speed run: its flags, the contest that they describe, and what it prints.

No JAX is imported before the flags are known to be right.
"""

import argparse
import math
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_jax.commands.parser import ArgumentParser
from cnn_jax.config import TrainConfig
from cnn_jax.errors import UserError
from experiments.cifar10_speedrun.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from experiments.cifar10_speedrun.contest import Run

Presets = Mapping[str, Mapping[str, Any]]  # name → flag → another default

_RECIPE_FLAGS = ("epochs", "batch_size", "width_factor", "precision")  # that replace a field of the recipe


def make_parser(doc: str | None, recipe: str, presets: Presets) -> ArgumentParser:
    """The flags, with their defaults.

    Args:
        doc: what `--help` shows first.
        recipe: name of the usual one.
        presets: to choose from by `--preset`.
    """
    parser = ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=presets, help="other defaults of the flags below")
    parser.add_argument("--recipe", choices=RECIPES, default=recipe, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of each contender (default %(default)s)")
    parser.add_argument("--split", choices=("tune", "full"), default="tune", help="default: %(default)s")
    parser.add_argument("--torch-script", type=Path, nargs="+", default=[], metavar="PATH", help="to compare with")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="PATH", help="Python that has PyTorch (default: this one)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the next ones count up")
    parser.add_argument("--require", choices=("cpu", "gpu", "tpu"), help="refuse to run on another platform")
    parser.add_argument("--data-dir", help="folder of TFDS sets (default: TFDS_DATA_DIR)")
    parser.add_argument("--train-images", type=int, help="train on the first so many only")
    parser.add_argument("--test-images", type=int, help="test on the first so many only")
    parser.add_argument("--epochs", type=float, help="default: the recipe's")
    parser.add_argument("--batch-size", type=int, help="default: the recipe's")
    parser.add_argument("--width-factor", type=float, help="of the filters of each group (default 1)")
    parser.add_argument("--precision", choices=("bfloat16", "float16", "float32"), help="default: bfloat16")
    parser.add_argument("--unroll", type=int, default=1, help="steps in a turn of the compiled loop (default 1)")
    parser.add_argument(
        "--stream",
        type=int,
        metavar="STEPS",
        help="send images of so many steps at a time from the host (default: only if the device cannot hold them all)",
    )
    return parser


def parse(parser: ArgumentParser, presets: Presets, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; a preset gives defaults.

    Raises:
        UserError: a value that no run can have.
    """
    preset = parser.parse_args(argv).preset
    parser.set_defaults(**presets.get(preset, {}))
    arguments = parser.parse_args(argv)
    positive = ("runs", "train_images", "test_images", "epochs", "batch_size", "width_factor", "unroll", "stream")
    for name in positive:
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"given --{name.replace('_', '-')} {value}; expected a number greater than 0; change it")
    if not 0 <= arguments.seed < 2**32 - arguments.runs:
        raise UserError(f"given --seed {arguments.seed}; expected 0 or more, and less than 2**32; change it")
    names = [script.name for script in arguments.torch_script]
    if len(set(names)) < len(names):
        raise UserError(f"given --torch-script {' '.join(names)}; expected files of different names; leave one out")
    return arguments


def changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the recipe that flags change."""
    given = {name: getattr(arguments, name) for name in _RECIPE_FLAGS}
    return {name: value for name, value in given.items() if value is not None}


def contest(arguments: argparse.Namespace) -> "tuple[dict[str, list[Run]], list[str]]":
    """Measures and prints; returns the runs of each contender by its name, ours first, and versions for the table."""
    if arguments.torch_script:  # JAX must leave room on the device for the others
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from cnn_jax.training import runtime
    from experiments.cifar10_speedrun.contest import Contender, Program, accelerator, alternate, busy, machine
    from experiments.cifar10_speedrun.data import load_data
    from experiments.cifar10_speedrun.torch_script import TorchScript

    runtime.prepare(TrainConfig(require=arguments.require))
    recipe = replace(RECIPES[arguments.recipe], **changes(arguments))
    data = load_data(arguments.split, arguments.data_dir, arguments.train_images, arguments.test_images)
    sizes = f"{len(data.train[0]):,} training and {len(data.test[0]):,} test images"
    print(f"{arguments.recipe}, {arguments.split} split: {sizes}\n{machine()}", flush=True)
    facts = accelerator()
    if busy():
        print("warning: others use the GPU; times are not comparable; wait until it is idle", flush=True)
    with ExitStack() as scripts:
        contenders: list[Contender] = []
        for script in arguments.torch_script:
            other = scripts.enter_context(TorchScript(script, data, arguments.torch_python))
            print(f"{other.name}: warm, {other.versions}", flush=True)
            contenders.append(other)
            facts.append(f"{other.name}: {other.versions}")
        ours = Program(arguments.recipe, recipe, data, arguments.seed, unroll=arguments.unroll, stream=arguments.stream)
        if ours.streamed is not None:
            why = "the device cannot hold all images" if arguments.stream is None else "as was asked for"
            print(f"{ours.name}: {why}; streaming them from the host, {ours.streamed} steps at a time", flush=True)
        done = f"compiled and warm in {ours.ready_seconds:.1f} s"
        print(f"{ours.name}: {done}, {ours.flops / 1e15:.3g} PFLOP a run", flush=True)
        contenders.insert(0, ours)
        runs = dict(zip((contender.name for contender in contenders), alternate(contenders, arguments.runs)))
    report(arguments, recipe, ours.flops, runs, len(data.beside[0]) if data.beside else 0)
    return runs, facts


def report(
    arguments: argparse.Namespace, recipe: Recipe, flops: int, runs: "dict[str, list[Run]]", beside: int
) -> None:
    """Prints what the runs say; the last line is the ratio, where there is another contender."""
    import jax

    from cnn_jax.training.runtime import peak_flops
    from experiments.cifar10_speedrun.contest import describe, interval, p_below, ratios, spread

    (name, ours), *others = runs.items()
    rate, peak = flops / statistics.median(run.seconds for run in ours), peak_flops(1)
    share = "" if peak is None else f", {100 * rate / peak:.0f} % of the peak of the {jax.devices()[0].device_kind}"
    print(f"training loss by epoch: {' '.join(f'{loss:.3f}' for loss in ours[-1].losses)} (last run)")
    for title, each in runs.items():
        print(describe(title, each))
    print(f"{name}: {rate / 1e12:.3g} TFLOP/s{share}")
    if beside:
        percent = [100 * run.beside for run in ours if run.beside is not None]
        mean = statistics.mean(percent)
        error = (mean * (100 - mean) / beside) ** 0.5
        print(
            f"{name}: {mean:.2f} % (std {spread(percent):.2f}) of the first {beside:,} official test images, a choice "
            f"that has itself a standard error of {error:.1f}"
        )
    if arguments.split == "full" and len(ours) > 1:
        p = p_below([100 * run.accuracy for run in ours], recipe.target)
        print(f"{name}: p = {p:.2g} of this mean if the true one were {recipe.target:.2f} % (one-sided t-test)")
    for title, theirs in others:
        percent, other = ([100 * run.accuracy for run in each] for each in (ours, theirs))
        error = ((spread(percent) ** 2 + spread(other) ** 2) / len(percent)) ** 0.5
        gain = statistics.mean(percent) - statistics.mean(other)
        print(f"{name} - {title}: accuracy {gain:+.2f} ± {error:.2f} points")
        found = ratios(ours, theirs)
        walls = [run.wall for run in theirs if run.wall is not None]
        if walls:
            print(f"{title}: {statistics.median(walls):.4g} s by our clock, with what its own leaves out (median)")
        low, high = interval(ours, theirs)
        print(f"{name} / {title}: ratio of mean times between {low:.3f} and {high:.3f} (95 %, bootstrap)")
        print(f"{name} / {title}: time ratio {statistics.median(found):.3f} ({min(found):.3f}–{max(found):.3f})")
