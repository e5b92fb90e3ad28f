"""Draws the paths of optimizers on 2-D surfaces, one still and one animation per surface.

    python -m cnn_jax optimizer-paths
    python -m cnn_jax optimizer-paths --surfaces beale saddle --optimizers momentum adam lion --steps 200
    python -m cnn_jax optimizer-paths --surfaces rosenbrock --start -1,2 --learning-rate adam=0.1 momentum=0.001

Rates that you do not set are chosen for every optimizer by one rule: of 65 rates from 0.00001 to 1000, the one with the
lowest mean of f over the last tenth of the steps shown. They are in the pictures and in OUTPUT/rates.csv. The point is
one parameter with two elements, as a bias is: muon, lamb and lars move it by their rules for biases.
"""

import argparse
import csv
import io
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cnn_jax.commands.output import write_output
from cnn_jax.commands.parser import ArgumentParser, file_path, positive
from cnn_jax.errors import UserError

if TYPE_CHECKING:
    from cnn_jax.optim.paths import Race

RATES_FILE = "rates.csv"
COLUMNS = ("surface", "optimizer", "learning_rate", "rate_from", "steps", "start_x", "start_y", "x", "y", "f")


def main(argv: Sequence[str]) -> None:
    """Writes the pictures and the table of rates, and prints the table.

    Raises:
        UserError: an unknown surface or optimizer, or a wrong argument.
    """
    arguments = _parse(argv)
    from cnn_jax.optim.paths import CLASSICS, race  # imports JAX
    from cnn_jax.optim.surfaces import SURFACES, get_surface
    from cnn_jax.studies.optimizer_paths import animation, still

    surfaces = [get_surface(name) for name in dict.fromkeys(arguments.surfaces or SURFACES)]
    optimizers = list(dict.fromkeys(arguments.optimizers or CLASSICS))
    rates = dict(arguments.learning_rate)
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    races = []
    for surface in surfaces:
        races.append(race(surface, optimizers, rates, arguments.start, arguments.steps))
        print(_told(races[-1]), flush=True)
        for warning in _warnings(races[-1]):
            print(f"warning: {warning}", file=sys.stderr)
        write_output("--output", str(folder / f"{surface.name}.png"), still(races[-1]))
        if arguments.animation:
            write_output("--output", str(folder / f"{surface.name}.gif"), animation(races[-1]))
    write_output("--output", str(folder / RATES_FILE), _table(races))
    kinds = "stills and animations" if arguments.animation else "stills"
    print(f"wrote {kinds} of {', '.join(each.surface.name for each in races)}, and {RATES_FILE}, to {folder}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m cnn_jax optimizer-paths",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--surfaces", nargs="+", metavar="NAME", help="default: all seven")
    parser.add_argument(
        "--optimizers", nargs="+", metavar="NAME", help="any that an experiment takes; default: the nine classics"
    )
    parser.add_argument(
        "--learning-rate", nargs="+", type=_rate, default=[], metavar="NAME=VALUE", help="rates of some optimizers"
    )
    parser.add_argument("--steps", type=positive, default=100, help="updates of each optimizer; default: 100")
    parser.add_argument("--start", type=_point, metavar="X,Y", help="where all begin; default: each surface's own")
    parser.add_argument(
        "--output", type=file_path, default="optimizer_paths", metavar="DIR", help="default: optimizer_paths"
    )
    parser.add_argument("--no-animation", dest="animation", action="store_false", help="only stills")
    return parser.parse_args(argv)


def _rate(text: str) -> tuple[str, float]:
    name, equals, value = text.rpartition("=")
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not (name and equals and 0 < rate < math.inf):
        raise UserError(f"`learning_rate` has {text}: write NAME=VALUE with a number above 0, such as adam=0.1")
    return name, rate


def _point(text: str) -> tuple[float, float]:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise UserError(f"`start` is {text}: write X,Y, such as -1.2,1") from None
    return x, y


def _told(race: "Race") -> str:
    """Lines for the screen."""
    x, y = race.start
    lines = [f"{race.surface.name}: f = {race.surface.formula}, start ({x:g}, {y:g}), {race.steps} steps"]
    for path in race.paths:
        rate = "its own" if path.learning_rate is None else f"{path.learning_rate:.3g}"
        lines.append(f"  {path.optimizer:20} rate {rate:>8}  last f {path.values[-1]:.3g}")
    return "\n".join(lines)


def _warnings(race: "Race") -> Iterator[str]:
    """Sentences about rates at an end of the range searched."""
    for path in race.paths:
        if path.at_edge:
            yield (
                f"the rate of {path.optimizer} on {race.surface.name}, {path.learning_rate:g}, is at the end of the "
                f"range searched; look beyond it with --learning-rate {path.optimizer}=VALUE"
            )


def _table(races: Sequence["Race"]) -> str:
    """The rates as CSV, one row per surface and optimizer."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for race in races:
        for path in race.paths:
            source = "chosen" if path.chosen else "given" if path.learning_rate else "its own"
            x, y = path.points[-1]
            row = (race.surface.name, path.optimizer, path.learning_rate, source, race.steps, *race.start, x, y)
            writer.writerow(dict(zip(COLUMNS, (*row, path.values[-1]), strict=True)))
    return text.getvalue()
