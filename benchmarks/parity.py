"""How closely our networks match PyTorch's with the same random weights.

    python -m benchmarks.parity --output results/benchmarks/parity.csv

The networks are the cases of `tests/test_parity_*.py`: each of our families against torchvision's (or, where it has
none, the published layers written in PyTorch), on two random images. An error is the largest absolute difference over
the largest absolute value in PyTorch; `stage_error` is the worst of all stages that our network records. A case that
leaves out a stage is refused. Needs torch, torchvision and pytest.
"""

import argparse
import csv
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

from cnn_jax.commands.parser import ArgumentParser, file_path, guard
from cnn_jax.errors import UserError

TESTS = Path(__file__).parents[1] / "tests"
FIELDS = ("family", "model", "image", "stages", "logit_error", "stage_error", "worst_stage", "torch", "jax")


def main(argv: list[str] | None = None) -> None:
    """Compares every case, prints a line for each and writes the table.

    Raises:
        UserError: PyTorch, torchvision or pytest is not installed.
    """
    parser = ArgumentParser(
        prog="python -m benchmarks.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=file_path, metavar="FILE", help="CSV to write")
    arguments = parser.parse_args(argv)
    rows = []
    for row in measure():
        rows.append(row)
        print(f"{row['family']:<12} {row['model']:<32} {row['logit_error']:>9} {row['stage_error']:>9}", flush=True)
    if arguments.output is not None:
        path = Path(arguments.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def measure() -> Iterator[dict[str, Any]]:
    """Yields a row for each case."""
    sys.path.insert(0, str(TESTS))  # as pytest does
    try:
        torch_nets = importlib.import_module("torch_nets")
        torch_nets.torchvision()
        modules = [importlib.import_module(path.stem) for path in sorted(TESTS.glob("test_parity_*.py"))]
    except (SkipTest, ModuleNotFoundError) as error:
        raise UserError(
            f"{error}: install PyTorch, torchvision and pytest with pip install -e '.[test,parity]'"
        ) from error
    import jax

    torch = importlib.import_module("torch")
    for module in modules:
        cases = getattr(module, "CASES", {}) | getattr(module, "WHOLE", {})
        for name, case in cases.items():
            errors = torch_nets.compare(case)
            worst = max(errors.stages, key=errors.stages.__getitem__, default="")
            yield {
                "family": module.__name__.removeprefix("test_parity_"),
                "model": name,
                "image": "x".join(map(str, case.image)),
                "stages": len(errors.stages),
                "logit_error": f"{errors.logits:.1e}",
                "stage_error": f"{errors.stages[worst]:.1e}" if worst else "",
                "worst_stage": worst,
                "torch": torch.__version__,
                "jax": jax.__version__,
            }


if __name__ == "__main__":
    guard(main)
