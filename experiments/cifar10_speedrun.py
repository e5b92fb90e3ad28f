"""CIFAR-10 in seconds: the speed records' recipes as one compiled program, timed by the protocol of the records.

    python -m experiments.cifar10_speedrun --preset smoke       # a tiny network, about a minute on two CPU cores
    python -m experiments.cifar10_speedrun --require gpu        # 50 runs of muon94, on 45,000 of the training images
    python -m experiments.cifar10_speedrun --require gpu --split full --recipe sgd96
    python -m experiments.cifar10_speedrun --require gpu --torch-script ~/cifar10-airbench/airbench94_muon.py

Recipes, with the mean accuracy and the time that were published for an A100: muon94 (94.01 %, 2.59 s), sgd94 (94.01 %,
3.83 s), sgd95 (95.01 %, 10.4 s), sgd96 (96.03 %, 34.7 s). Here every recipe computes in bfloat16 with float32 weights.

The clock runs from the bytes on the device to the accuracy on the host. The program is compiled before, and warmed up
by a run on random labels. `--split tune` trains on 45,000 training images and tests on the other 5,000: for choices,
and where the test set is not whole. `--split full` gives the official figure, with a t-test against the target.

`--torch-script` names scripts of github.com/KellerJordan/cifar10-airbench or github.com/hiverge/cifar10-speedrun on
this machine. Each runs unmodified in a process of its own, on the same images and device, in turns with our program.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnn_jax.cli import ArgumentParser, guard
from cnn_jax.config import TrainConfig
from cnn_jax.errors import UserError
from cnn_jax.speedrun.recipe import RECIPES, Recipe

if TYPE_CHECKING:
    from cnn_jax.speedrun.contest import Run

PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {
        "runs": 1,
        "train_images": 1000,
        "test_images": 250,
        "epochs": 4,
        "batch_size": 50,
        "width_factor": 0.125,
        "precision": "float32",
    }
}
_RECIPE_FLAGS = ("epochs", "batch_size", "width_factor", "precision")  # that replace a field of the recipe


def parser(doc: str | None) -> ArgumentParser:
    """The flags, with their defaults."""
    parser = ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, help="other defaults of the flags below")
    parser.add_argument("--recipe", choices=RECIPES, default="muon94", help="default: %(default)s")
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
    return parser


def parse(parser: ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; a preset gives defaults.

    Raises:
        UserError: a value that no run can have.
    """
    preset = parser.parse_args(argv).preset
    parser.set_defaults(**PRESETS.get(preset, {}))
    arguments = parser.parse_args(argv)
    positive = ("runs", "train_images", "test_images", "epochs", "batch_size", "width_factor", "unroll")
    for name in positive:
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UserError(f"given --{name.replace('_', '-')} {value}; expected more than 0; change it")
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


def contest(arguments: argparse.Namespace) -> "dict[str, list[Run]]":
    """Measures and prints; returns the runs of each contender by its name, ours first."""
    if arguments.torch_script:  # JAX must leave room on the device for the others
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from cnn_jax.speedrun.contest import Contender, Program, alternate, machine
    from cnn_jax.speedrun.data import load_data
    from cnn_jax.speedrun.torch_script import TorchScript
    from cnn_jax.training import runtime

    runtime.prepare(TrainConfig(require=arguments.require))
    recipe = replace(RECIPES[arguments.recipe], **changes(arguments))
    data = load_data(arguments.split, arguments.data_dir, arguments.train_images, arguments.test_images)
    sizes = f"{len(data.train[0]):,} training and {len(data.test[0]):,} test images"
    print(f"{arguments.recipe}, {arguments.split} split: {sizes}\n{machine()}", flush=True)
    with ExitStack() as scripts:
        contenders: list[Contender] = []
        for script in arguments.torch_script:
            other = scripts.enter_context(TorchScript(script, data, arguments.torch_python))
            print(f"{other.name}: warm, {other.versions}", flush=True)
            contenders.append(other)
        ours = Program(arguments.recipe, recipe, data, arguments.seed, arguments.unroll)
        print(f"{ours.name}: compiled in {ours.compile_seconds:.1f} s, {ours.flops / 1e15:.3g} PFLOP a run", flush=True)
        contenders.insert(0, ours)
        runs = dict(zip((contender.name for contender in contenders), alternate(contenders, arguments.runs)))
    report(arguments, recipe, ours.flops, runs, len(data.beside[0]) if data.beside else 0)
    return runs


def report(
    arguments: argparse.Namespace, recipe: Recipe, flops: int, runs: "dict[str, list[Run]]", beside: int
) -> None:
    """Prints what the runs say; the last line is the ratio, where there is another contender."""
    import jax

    from cnn_jax.speedrun.contest import describe, p_below, ratios, spread
    from cnn_jax.training.runtime import peak_flops

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
        print(f"{name} / {title}: time ratio {statistics.median(found):.3f} ({min(found):.3f}–{max(found):.3f})")


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, measures and prints."""
    contest(parse(parser(__doc__), argv))


if __name__ == "__main__":
    guard(main)
