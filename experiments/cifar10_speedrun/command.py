"""The command of the speed run: its flags, the contest they describe, and what it prints.

JAX is imported only after the flags have been checked.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_jax.commands.parser import ArgumentParser, file_path
from cnn_jax.config import TrainConfig
from cnn_jax.errors import UserError
from experiments.cifar10_speedrun.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from experiments.cifar10_speedrun.contest import Run

Presets = Mapping[str, Mapping[str, Any]]  # name → flag → default

_RECIPE_FLAGS = ("epochs", "batch_size", "width_factor", "precision")  # override the recipe's field of that name


def make_parser(doc: str | None, recipe: str, presets: Presets) -> ArgumentParser:
    """Makes the parser of the flags.

    Args:
        doc: shown first by `--help`.
        recipe: name of the default recipe.
        presets: the choices of `--preset`.
    """
    parser = ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=presets, help="sets other defaults for the flags below")
    parser.add_argument("--recipe", choices=RECIPES, default=recipe, help="default: %(default)s")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of each contender (default %(default)s)")
    parser.add_argument("--seconds", type=float, help="start no block of ten runs that would end after this many")
    parser.add_argument("--split", choices=("tune", "full"), default="tune", help="default: %(default)s")
    parser.add_argument("--torch-script", type=Path, nargs="+", default=[], metavar="PATH", help="scripts to race")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="PATH", help="Python that has PyTorch (default: this one)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the first run; later ones count up")
    parser.add_argument("--require", choices=("cpu", "gpu", "tpu"), help="refuse to run on another platform")
    parser.add_argument("--data-dir", type=file_path, help="folder of TFDS sets (default: TFDS_DATA_DIR)")
    parser.add_argument(
        "--random-images", action="store_true", help="random images instead of CIFAR-10: only the times mean something"
    )
    parser.add_argument("--train-images", type=int, help="train only on this many, the first")
    parser.add_argument("--test-images", type=int, help="test only on this many, the first")
    parser.add_argument("--epochs", type=float, help="default: the recipe's")
    parser.add_argument("--batch-size", type=int, help="default: the recipe's")
    parser.add_argument("--width-factor", type=float, help="multiplies the filters of each group (default 1)")
    parser.add_argument("--precision", choices=("bfloat16", "float16", "float32"), help="default: bfloat16")
    parser.add_argument("--unroll", type=int, default=1, help="steps per iteration of the compiled loop (default 1)")
    parser.add_argument(
        "--stream",
        type=int,
        metavar="STEPS",
        help="stream images from the host, this many steps at a time (default: only if the device cannot hold them)",
    )
    return parser


def parse(parser: ArgumentParser, presets: Presets, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; a preset changes the defaults.

    Raises:
        UserError: a value is out of range.
    """
    preset = parser.parse_args(argv).preset
    parser.set_defaults(**presets.get(preset, {}))
    arguments = parser.parse_args(argv)
    positive = (
        "runs",
        "seconds",
        "train_images",
        "test_images",
        "epochs",
        "batch_size",
        "width_factor",
        "unroll",
        "stream",
    )
    for name in positive:
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {value}: it must be a finite number above 0")
    if not 0 <= arguments.seed < 2**32 - arguments.runs:
        raise UserError(f"--seed is {arguments.seed}: it must be at least 0, and below 2**32 in the last run")
    names = [script.name for script in arguments.torch_script]
    if len(set(names)) < len(names):
        raise UserError(f"--torch-script has two files of the same name ({' '.join(names)}): rename or drop one")
    return arguments


def changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the fields of the recipe that the flags override."""
    given = {name: getattr(arguments, name) for name in _RECIPE_FLAGS}
    return {name: value for name, value in given.items() if value is not None}


def contest(
    arguments: argparse.Namespace, seen: "Callable[[dict[str, list[Run]], list[str]], None]" = lambda runs, facts: None
) -> None:
    """Measures and prints.

    Args:
        arguments: from `parse`.
        seen: called after each turn with the runs of each contender so far by name, ours first, and versions for the
            table.
    """
    began = time.perf_counter()
    if arguments.torch_script:  # JAX must leave memory on the device for the scripts
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from cnn_jax.training import runtime
    from experiments.cifar10_speedrun.contest import Contender, Program, accelerator, alternate, busy, machine
    from experiments.cifar10_speedrun.data import load_data, random_data
    from experiments.cifar10_speedrun.torch_script import TorchScript

    runtime.prepare(TrainConfig(require=arguments.require))
    recipe = replace(RECIPES[arguments.recipe], **changes(arguments))
    images = arguments.train_images, arguments.test_images
    if arguments.random_images:
        data = random_data(arguments.split, *images)
    else:
        data = load_data(arguments.split, arguments.data_dir, *images)
    sizes = f"{len(data.train[0]):,} training and {len(data.test[0]):,} test images"
    print(f"{arguments.recipe}, {arguments.split} split: {sizes}\n{machine()}", flush=True)
    facts = accelerator()
    if busy():
        print("warning: the GPU is in use by others, so times are not comparable: wait until it is idle", flush=True)
    with ExitStack() as scripts:
        contenders: list[Contender] = []
        for script in arguments.torch_script:
            other = scripts.enter_context(TorchScript(script, data, arguments.torch_python))
            print(f"{other.name}: warm, {other.versions}", flush=True)
            contenders.append(other)
            facts.append(f"{other.name}: {other.versions}")
        ours = Program(arguments.recipe, recipe, data, arguments.seed, unroll=arguments.unroll, stream=arguments.stream)
        if ours.streamed is not None:
            why = "the device cannot hold all images" if arguments.stream is None else "as --stream says"
            print(f"{ours.name}: {why}: streaming them from the host, {ours.streamed} steps at a time", flush=True)
        done = f"compiled and warmed up in {ours.ready_seconds:.1f} s"
        print(f"{ours.name}: {done}, {ours.flops / 1e15:.3g} PFLOP per run", flush=True)
        contenders.insert(0, ours)
        names = [contender.name for contender in contenders]
        runs = dict(
            zip(
                names,
                alternate(
                    contenders,
                    arguments.runs,
                    until=began + (arguments.seconds or math.inf),
                    seen=lambda results: seen(dict(zip(names, results)), facts),
                ),
            )
        )
    report(arguments, recipe, ours.flops, runs, len(data.extra[0]) if data.extra else 0)


def report(
    arguments: argparse.Namespace, recipe: Recipe, flops: int, runs: "dict[str, list[Run]]", extra_images: int
) -> None:
    """Prints the results; the last line is the time ratio, if there is another contender."""
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
    if extra_images:
        percent = [100 * run.extra_accuracy for run in ours if run.extra_accuracy is not None]
        mean = statistics.mean(percent)
        error = (mean * (100 - mean) / extra_images) ** 0.5
        print(
            f"{name}: {mean:.2f} % (std {spread(percent):.2f}) on the first {extra_images:,} official test images; a "
            f"sample of this size has a standard error of {error:.1f}"
        )
    if arguments.split == "full" and len(ours) > 1:
        p = p_below([100 * run.accuracy for run in ours], recipe.target)
        print(f"{name}: p = {p:.2g} for a mean this high if the true one were {recipe.target:.2f} % (one-sided t-test)")
    for title, theirs in others:
        percent, other = ([100 * run.accuracy for run in each] for each in (ours, theirs))
        error = ((spread(percent) ** 2 + spread(other) ** 2) / len(percent)) ** 0.5
        gain = statistics.mean(percent) - statistics.mean(other)
        print(f"{name} - {title}: accuracy {gain:+.2f} ± {error:.2f} points")
        found = ratios(ours, theirs)
        walls = [run.wall for run in theirs if run.wall is not None]
        if walls:
            print(f"{title}: {statistics.median(walls):.4g} s by our clock, including what its own leaves out (median)")
        low, high = interval(ours, theirs)
        print(f"{name} / {title}: ratio of mean times between {low:.3f} and {high:.3f} (95 %, bootstrap)")
        print(f"{name} / {title}: time ratio {statistics.median(found):.3f} ({min(found):.3f}–{max(found):.3f})")
