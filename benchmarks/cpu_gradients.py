"""A training step with the gradients of `cnn_jax.ops` against the same step with XLA's and Flax's own, on this CPU.

    python -m benchmarks.cpu_gradients --output results/benchmarks/cpu_gradients.csv

Both are compiled first; then blocks of each are timed in turns. A ratio above 1 says how many times faster ours is.
"""

import argparse
import statistics
from pathlib import Path
from unittest import mock

import flax.linen as nn

from benchmarks.loop_overhead import BATCH, CASES, Bench, make_bench, ratio_columns, timed_pair, write_rows
from cnn_jax import ops
from cnn_jax.cli import ArgumentParser, guard
from cnn_jax.config import Config
from cnn_jax.training import runtime

MORE = {
    "mnist_cnn": CASES["lenet5"].override(model="mnist_cnn"),
    "keras_cifar_cnn": CASES["resnet20"].override(model="keras_cifar_cnn"),
}


def plain_bench(config: Config, steps: int) -> Bench:
    """The same model without our gradients: no convolution finds a chunk size, pooling is Flax's."""
    with (
        mock.patch("cnn_jax.ops.conv._chunk_size", lambda *arguments: 0),
        mock.patch.object(ops, "max_pool", nn.max_pool),
        mock.patch.object(ops, "avg_pool", nn.avg_pool),
    ):
        return make_bench(config, steps)


def main() -> None:
    """Prints and writes one row a model."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=5, help="pairs of blocks (default 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="aimed length of a block (default 4)")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    arguments = parser.parse_args()
    facts = runtime.environment(runtime.command_line())
    rows = []
    for name, config in (CASES | MORE).items():
        probe = make_bench(config, 5)
        steps = max(5, round(arguments.seconds * 5 / min(probe.bare() for _ in range(2))))
        ours, plain = make_bench(config, steps), plain_bench(config, steps)
        pairs = [timed_pair(plain.bare, ours.bare, turn) for turn in range(arguments.blocks)]
        row = {
            "model": name,
            "batch_size": BATCH,
            "plain_ms_per_step": round(1e3 * statistics.median(p for p, _ in pairs) / ours.plan.total_steps, 2),
            "ours_ms_per_step": round(1e3 * statistics.median(o for _, o in pairs) / ours.plan.total_steps, 2),
            **ratio_columns(pairs),
        }
        rows.append(row | {key: facts[key] for key in ("device", "jax", "commit", "command")})
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_rows(arguments.output, rows)


if __name__ == "__main__":
    guard(main)
