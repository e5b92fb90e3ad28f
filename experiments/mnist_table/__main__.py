"""Makes the lectures' table of MNIST results anew: published error beside ours, with seeds, time and parameters.

    python -m experiments.mnist_table                            # about 40 minutes on two CPU cores
    python -m experiments.mnist_table --rows linear simard       # these rows only
    python -m experiments.mnist_table --budget full --seeds 3    # the published recipes, for an accelerator

Every row is measured in a folder of its own; a network is an ordinary run there. Repeat the command to go on after a
stop: finished rows are not run again. Out come table.md, table.csv and table.png. Networks train on 55,000 images and
select their weights on 5,000; the test set is read once, at the end.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from cnn_jax.commands.parser import ArgumentParser, file_path, guard, positive
from experiments.mnist_table.rows import BUDGETS, ROWS
from experiments.mnist_table.run import choose, make_table


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the command line, runs the rows and prints the table.

    Raises:
        UserError: an unknown row, a row folder of another measurement, or MNIST is not prepared.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=BUDGETS, default="quick", help="default: %(default)s")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help=f"default: all ({', '.join(ROWS)})")
    parser.add_argument(
        "--seeds", type=positive, metavar="N", help="seeds of each network row (default: the row's own)"
    )
    parser.add_argument("--output", type=file_path, metavar="DIR", help="default: runs/mnist_table-BUDGET")
    parser.add_argument("--page", type=file_path, metavar="FILE", help="also put the table into this Markdown page")
    parser.add_argument("--csv", type=file_path, metavar="FILE", help="also write the rows to this file")
    given = parser.parse_args(argv)
    folder = Path(given.output or f"runs/mnist_table-{given.budget}")
    make_table(choose(given.rows), given.budget, folder, seeds=given.seeds, page=given.page, csv=given.csv)


if __name__ == "__main__":
    guard(main)
