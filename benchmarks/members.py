"""Times K networks trained at once by `jax.vmap` against K trained one after another, on this device.

    python -m benchmarks.members --output results/speed.csv
    python -m benchmarks.members --of rates --output results/speed.csv

The networks differ in their seed, or have one seed and K learning rates. Both programs are compiled first; then blocks
of each are timed alternately. The ratio is the time one by one over the time at once: above 1, training at once is
faster. Figures are recorded as they are measured. A model's series ends early, with a message, if the next K would
exceed `--seconds` (assuming time proportional to K) or, on a CPU, two thirds of the memory.
"""

import argparse
import os
import time
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np

from benchmarks.speed import Figure, figure, record, table
from benchmarks.timing import BATCH, CASES, Bench, make_bench, timed_pair
from cnn_jax.commands.parser import ArgumentParser, guard, positive, positive_number
from cnn_jax.config import Config


def measure(case: str, alone: Bench, together: Bench, members: int, blocks: int, seconds: float) -> list[Figure]:
    """Times blocks of about `seconds` of one network and of all of them, alternately."""
    one, every = partial(alone.bare, alone.steps_in(seconds)), partial(together.bare, together.steps_in(seconds))
    turns = [timed_pair(one, every, turn) for turn in range(blocks)]
    return [
        figure(case, "one by one / at once", [members * single / at_once for single, at_once in turns], "x"),
        figure(case, "step of all at once", [1e3 * at_once for _, at_once in turns], "ms"),
        figure(case, "step of one alone", [1e3 * single for single, _ in turns], "ms"),
    ]


def of_several(config: Config, members: int, kind: str) -> Config:
    """Returns the config of several networks with different "seeds" or "rates" (evenly spaced on a log scale)."""
    if kind == "seeds":
        return config.override(members=members)
    rates = np.geomspace(1e-3, 1e-2, members).tolist()
    return config.override(member_learning_rates=tuple(rates))


def memory_limit() -> float:
    """Returns the memory budget in bytes: on a CPU two thirds of RAM, elsewhere infinity.

    On a CPU the system kills a program that uses too much memory; elsewhere JAX raises an error.
    """
    if jax.default_backend() != "cpu":
        return float("inf")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 2 / 3


def main(argv: Sequence[str] | None = None) -> None:
    """Prints and records three figures for each model and K."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--of", choices=("seeds", "rates"), default="seeds", help="what differs (default %(default)s)")
    parser.add_argument("--members", type=positive, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="K, ascending")
    parser.add_argument(
        "--batch", type=positive, default=BATCH, help=f"images per step of each network (default {BATCH})"
    )
    parser.add_argument("--images", type=positive, help="examples in the data set (default: as in MNIST or CIFAR-10)")
    parser.add_argument("--blocks", type=positive, default=5, help="pairs of blocks (default 5)")
    parser.add_argument(
        "--block-seconds", type=positive_number, default=2.0, help="target length of a block (default 2)"
    )
    parser.add_argument("--seconds", type=positive_number, default=600.0, help="limit for each model (default 600)")
    parser.add_argument("--output", type=table, help="CSV file to add the figures to")
    arguments = parser.parse_args(argv)
    for model in arguments.models:
        config, end = CASES[model].override(batch_size=arguments.batch), time.perf_counter() + arguments.seconds
        if arguments.images:
            config = config.override(dataset=f"{config.data.dataset.rpartition(':')[0]}:{arguments.images}")
        alone, per_member = make_bench(config), 0.0
        for members in arguments.members:
            start = time.perf_counter()
            memory, seconds = members * alone.scratch, members * per_member
            if memory > memory_limit() or start + seconds > end:
                need = f"they would need about {memory / 2**30:.1f} GiB and {seconds:.0f} s"
                print(f"{model} ends before {members} members: {need}")
                break
            together = make_bench(of_several(config, members, arguments.of))
            rates = " rates" if arguments.of == "rates" else ""
            case = f"{model} batch {arguments.batch}{rates}, {members} members"
            figures = measure(case, alone, together, members, arguments.blocks, arguments.block_seconds)
            print(*figures, sep="\n", flush=True)
            record(arguments.output, "members", figures)
            per_member = (time.perf_counter() - start) / members


if __name__ == "__main__":
    guard(main)
