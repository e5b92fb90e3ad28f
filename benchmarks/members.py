"""K networks trained at once by `jax.vmap` against K trained one after another, on this device.

    python -m benchmarks.members --output results/benchmarks/members.csv

Both are compiled first; then blocks of each are timed in turns. A ratio above 1 says how many times faster at once is.
"""

import argparse
import statistics
from pathlib import Path

from benchmarks.loop_overhead import BATCH, CASES, make_bench, ratio_columns, timed_pair, write_rows
from cnn_jax.cli import ArgumentParser, guard
from cnn_jax.training import runtime


def main() -> None:
    """Prints and writes one row for each K."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lenet5", choices=CASES)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--blocks", type=int, default=5, help="pairs of blocks (default 5)")
    parser.add_argument("--steps", type=int, default=40, help="steps a block (default 40)")
    parser.add_argument("--output", type=Path, help="CSV file to write")
    arguments = parser.parse_args()
    facts = runtime.environment(runtime.command_line())
    rows = []
    alone = make_bench(CASES[arguments.model], arguments.steps)
    for members in arguments.members:
        together = make_bench(CASES[arguments.model].override(members=members), arguments.steps)
        together.bare()
        alone.bare()  # both are warm now
        blocks = [timed_pair(alone.bare, together.bare, turn) for turn in range(arguments.blocks)]
        pairs = [(members * one, at_once) for one, at_once in blocks]
        row = {
            "model": arguments.model,
            "batch_size": BATCH,
            "members": members,
            "one_by_one_ms_per_step": round(1e3 * statistics.median(o for o, _ in pairs) / alone.plan.total_steps, 2),
            "at_once_ms_per_step": round(1e3 * statistics.median(a for _, a in pairs) / together.plan.total_steps, 2),
            **ratio_columns(pairs),
        }
        rows.append(row | {key: facts[key] for key in ("device", "jax", "commit", "command")})
        print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    write_rows(arguments.output, rows)


if __name__ == "__main__":
    guard(main)
