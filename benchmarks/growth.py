"""Measures how the cost of a training step per image grows with batch size, image size, depth and number of classes.

    python -m benchmarks.growth --output results/speed.csv
    python -m benchmarks.growth --model resnet50 --image 224 --batch 128 --classes 1000 --precision bfloat16 \\
        --batches 8 16 32 64 128 256 --images 64 96 128 160 192 224 256 --depths 18 34 50 101 152 \\
        --output results/speed.csv    # on an accelerator

Along each axis one number grows and the others are fixed. Each case is timed alternately with the first of its axis.
Figures are recorded as they are measured, so after an interruption `--axes` runs only what is left.

The *bend* of a case is its seconds per FLOP over the value that its two neighbours predict by log-log interpolation;
each case counts by its fastest block. Sizes that are not powers of two are there to expose bends.
"""

import argparse
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from benchmarks.speed import Figure, figure, record, table
from benchmarks.timing import BASE, make_bench, timed_pair
from cnn_jax.commands.parser import ArgumentParser, guard, positive, positive_number
from cnn_jax.config import Config
from cnn_jax.errors import UserError

AXES = ("batch", "image", "depth", "classes")


@dataclass(frozen=True)
class Case:
    """A network of `depth` layers, trained on batches of `batch` random images of `image` x `image` pixels."""

    family: str
    depth: int
    image: int
    batch: int
    classes: int
    precision: str

    @classmethod
    def of(cls, model: str, image: int, batch: int, classes: int, precision: str) -> "Case":
        """Makes the case of a model by its name.

        Raises:
            UserError: the name does not end in the depth.
        """
        name = re.fullmatch(r"(\w*\D)(\d+)", model)
        if name is None:
            raise UserError(f"--model {model} does not end in its depth: choose a name such as resnet20")
        return cls(name[1], int(name[2]), image, batch, classes, precision)

    def __str__(self) -> str:
        size = f"{self.image}x{self.image}"
        return f"{self.family}{self.depth} {size} batch {self.batch} classes {self.classes} {self.precision}"

    def config(self) -> Config:
        """Returns the config of the run whose step is timed."""
        return BASE.override(
            model=f"{self.family}{self.depth}",
            dataset=f"synthetic:{self.image}x{self.image}x3:{self.classes}:{max(2 * self.batch, self.classes)}",
            normalize="half",
            batch_size=self.batch,
            precision=self.precision,
            scan_steps=10,
        )


def measure(axis: str, cases: Sequence[Case], blocks: int, seconds: float) -> Iterator[list[Figure]]:
    """Times the cases of an axis; yields the figures of each case as it is done, then the largest bend."""
    first, costs = None, {}
    for case in cases:
        bench = make_bench(case.config())
        steps = bench.steps_in(seconds)
        first = first or (bench, steps, case.batch)
        pairs = [timed_pair(partial(bench.bare, steps), partial(first[0].bare, first[1]), i) for i in range(blocks)]
        images = [(here / case.batch, there / first[2]) for here, there in pairs]
        flops = 3 * bench.experiment.flops_per_image
        cost = figure(str(case), f"{axis}: an image", [1e3 * here for here, _ in images], "ms")
        costs[getattr(case, axis)] = min(here for here, _ in images) / flops  # other load only slows a block down
        yield [
            cost,
            figure(str(case), f"{axis}: an image / of the first case", [here / there for here, there in images], "x"),
            figure(str(case), f"{axis}: speed", [1e-9 * flops / here for here, _ in images], "GFLOP/s"),
        ]
    if len(costs) > 2:
        where, worst = max(bends(costs).items(), key=lambda bend: bend[1])
        yield [Figure(str(replace(cases[0], **{axis: where})), f"{axis}: largest bend", worst, "x")]


def bends(cost_per_flop: Mapping[int, float]) -> dict[int, float]:
    """Returns the cost of each case except the first and the last, relative to the line between its neighbours.

    >>> {number: round(bend, 2) for number, bend in bends({8: 4.0, 16: 2.0, 32: 2.0, 64: 0.5}).items()}
    {16: 0.71, 32: 2.0}
    """
    points = sorted(cost_per_flop.items())
    found = {}
    for (before, low), (here, cost), (after, high) in zip(points, points[1:], points[2:]):
        share = math.log(here / before) / math.log(after / before)
        found[here] = cost / (low ** (1 - share) * high**share)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and records three figures for each case, and the largest bend of each axis.

    Raises:
        UserError: the model's name does not end in its depth.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=AXES)
    parser.add_argument("--model", default="resnet20", help="a name that ends in its depth (default resnet20)")
    parser.add_argument("--image", type=positive, default=32, help="height and width in pixels (default 32)")
    parser.add_argument("--batch", type=positive, default=64, help="images per step (default 64)")
    parser.add_argument("--classes", type=positive, default=10, help="number of classes (default 10)")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--batches", type=positive, nargs="+", default=[1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 100, 128, 256]
    )
    parser.add_argument("--images", type=positive, nargs="+", default=[16, 20, 24, 28, 32, 40, 48, 64, 96])
    parser.add_argument("--depths", type=positive, nargs="+", default=[20, 32, 44, 56, 110])
    parser.add_argument("--class-counts", type=positive, nargs="+", default=[2, 10, 100, 1000, 10000])
    parser.add_argument("--blocks", type=positive, default=5, help="pairs of blocks (default 5)")
    parser.add_argument("--seconds", type=positive_number, default=1.0, help="target length of a block (default 1)")
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = parser.parse_args(argv)
    base = Case.of(arguments.model, arguments.image, arguments.batch, arguments.classes, arguments.precision)
    numbers = (arguments.batches, arguments.images, arguments.depths, arguments.class_counts)
    for axis, values in zip(AXES, numbers):
        if axis in arguments.axes:
            cases = [replace(base, **{axis: value}) for value in values]
            for figures in measure(axis, cases, arguments.blocks, arguments.seconds):
                print(*figures, sep="\n", flush=True)
                record(arguments.output, "growth", figures)


if __name__ == "__main__":
    guard(main)
