"""Facts about this device, and its ceilings: matrix products and copies.

    python -m benchmarks.device --require gpu --output results/speed.csv

Prints what a run records about its machine. A speed is the fastest of five trials: of a product of two square matrices
of random numbers, and of a copy that reads and writes an array much larger than the caches.
"""

import argparse
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from benchmarks.jax_side import matmul
from benchmarks.sides import fastest
from benchmarks.speed import Figure, record, table
from cnn_jax.commands.parser import ArgumentParser, guard, positive
from cnn_jax.config import TrainConfig
from cnn_jax.training import runtime
from experiments.cifar10_speedrun.contest import accelerator, busy

TYPES = ("float32", "bfloat16")


def copy_speed(mebibytes: int) -> float:
    """Measures bytes per second, read and written, of a copy of an array of this size."""
    x = jnp.zeros(mebibytes * 2**18, jnp.float32)
    negate = jax.jit(jnp.negative)  # XLA would not copy without a reason

    def run(times: int) -> None:
        y = x
        for _ in range(times):
            y = negate(x)
        y.block_until_ready()

    return 2 * x.nbytes * fastest(run)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the facts, measures, prints and records.

    Raises:
        UserError: JAX did not find the platform of `--require`.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require", choices=("cpu", "gpu", "tpu"), help="refuse to run on another platform")
    parser.add_argument("--side", type=positive, default=8192, help="rows and columns of the matrices (default 8192)")
    parser.add_argument("--mebibytes", type=positive, default=4096, help="size of the array (default 4096)")
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = parser.parse_args(argv)
    runtime.prepare(TrainConfig(require=arguments.require))
    facts = accelerator()
    print(json.dumps(runtime.environment(runtime.command_line()), indent=2))
    print(*facts, json.dumps(jax.devices()[0].memory_stats() or {}), sep="\n", flush=True)
    if busy():
        print("warning: the GPU is in use by others, so times are not comparable: wait until it is idle", flush=True)
    side = arguments.side
    figures = [
        Figure(f"matrix product of {side}x{side} {dtype}", "speed", 1e-12 * matmul(side, dtype), "TFLOP/s", n=5)
        for dtype in TYPES
    ]
    speed = copy_speed(arguments.mebibytes)
    figures.append(Figure(f"copy of {arguments.mebibytes} MiB", "speed", 1e-9 * speed, "GB/s", n=5))
    print(*figures, sep="\n", flush=True)
    record(arguments.output, "device", figures, extra_versions=facts)


if __name__ == "__main__":
    guard(main)
