"""Times a training step with the operations of `cnn_jax.ops` against the same step with XLA's and Flax's, on this CPU.

    python -m benchmarks.cpu_gradients --output results/speed.csv

Both are compiled first; then blocks of each are timed alternately. The ratio is the plain step's time over ours: above
1, ours is faster. CNN_JAX_NATIVE=0 before the command measures what a machine without a C++ compiler gets.
"""

import argparse
from collections.abc import Sequence
from functools import partial

from benchmarks.speed import figure, record, table
from benchmarks.timing import BATCH, CASES, Bench, make_bench, timed_pair
from cnn_jax.commands.parser import ArgumentParser, guard, positive, positive_number
from cnn_jax.config import Config
from cnn_jax.ops.plain import plain_operations

MORE = {
    "mnist_cnn": CASES["lenet5"].override(model="mnist_cnn"),
    "keras_cifar_cnn": CASES["resnet20"].override(model="keras_cifar_cnn"),
}


def plain_bench(config: Config) -> Bench:
    """Compiles the step with XLA's and Flax's operations instead of ours."""
    with plain_operations():
        return make_bench(config)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and records three figures for each model."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=[*CASES, *MORE], default=[*CASES, *MORE])
    parser.add_argument("--batch", type=positive, default=BATCH, help=f"images per step (default {BATCH})")
    parser.add_argument("--blocks", type=positive, default=5, help="pairs of blocks (default 5)")
    parser.add_argument("--seconds", type=positive_number, default=4.0, help="target length of a block (default 4)")
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = parser.parse_args(argv)
    for name in arguments.models:
        config = (CASES | MORE)[name].override(batch_size=arguments.batch)
        ours, plain = make_bench(config), plain_bench(config)
        steps = ours.steps_in(arguments.seconds)
        plain.bare(1)
        blocks = partial(plain.bare, steps), partial(ours.bare, steps)
        pairs = [timed_pair(*blocks, turn) for turn in range(arguments.blocks)]
        case = f"{name} batch {arguments.batch}"
        figures = [
            figure(case, "plain / ours", [p / o for p, o in pairs], "x"),
            figure(case, "plain step", [1e3 * p for p, _ in pairs], "ms"),
            figure(case, "our step", [1e3 * o for _, o in pairs], "ms"),
        ]
        print(*figures, sep="\n", flush=True)
        record(arguments.output, "cpu_gradients", figures)


if __name__ == "__main__":
    guard(main)
