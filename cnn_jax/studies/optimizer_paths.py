"""Pictures of optimizers on a surface: a still, and an animation.

from cnn_jax.optim.paths import race
from cnn_jax.studies.optimizer_paths import picture

picture(race("beale", optimizers=["momentum", "adam"]))
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_jax.optim.paths import RULE, Path, Race
from cnn_jax.optim.surfaces import Surface
from cnn_jax.report.figures import INK, QUIET, new_axes, shorten, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Nine hues that the colour-blind can tell apart: Paul Tol's scheme "muted", personal.sron.nl/~pault. A tenth optimizer
# has the first hue again, dashed. The markers differ, too.
HUES = ("#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499")
MARKERS = "os^vD<>Pp"
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
LEVELS = 14  # contour lines
COLUMNS = ((0.085, "left"), (0.61, "right"), (0.8, "right"), (0.83, "left"))  # of the table: optimizer, rate, f, note
LONGEST = 16  # letters of an optimizer's name
FLOOR = 1e-12  # values closer to the minimum are drawn as this
MOST_FRAMES = 50
FRAME_MS, LAST_FRAME_MS = 80, 2500
STILL_DPI, ANIMATION_DPI = 120, 100


def picture(race: Race) -> "Figure":
    """Draws the paths over the surface's contours, f after each step, and a table of the rates.

    A cross marks where a path first leaves the picture, or the last finite point of one that diverges; the table says
    at which step.
    """
    with style():
        return _Scene(race).figure


def still(race: Race) -> bytes:
    """Returns `picture` as a PNG file of few colours."""
    with style():
        (image,) = _Scene(race).frames([race.steps], STILL_DPI)
    file = io.BytesIO()
    _indexed(image).save(file, format="PNG", optimize=True)
    return file.getvalue()


def animation(race: Race) -> bytes:
    """Returns `picture` as it grows, an endless GIF of at most `MOST_FRAMES` + 1 frames, the last of which is held."""
    stride = math.ceil(race.steps / MOST_FRAMES)
    shown = [*range(0, race.steps, stride), race.steps]
    with style():
        first, *rest = map(_indexed, _Scene(race).frames(shown, ANIMATION_DPI))
    file = io.BytesIO()
    times = [FRAME_MS] * len(rest) + [LAST_FRAME_MS]
    first.save(file, format="GIF", save_all=True, append_images=rest, duration=times, loop=0, optimize=True)
    return file.getvalue()


def _indexed(image_HxWx3: np.ndarray) -> "Image":
    """Rounds to a palette of our colours mixed with white; one chosen from an image would lose the thin lines' hues.

    Each colour becomes the nearest of the palette. Pillow's own rounding is coarser, and tints white.
    """
    from matplotlib.colors import to_rgb
    from PIL import Image

    mixed = [np.linspace(to_rgb(colour), (1, 1, 1), 16, endpoint=False) for colour in (*HUES, INK, QUIET)]
    greys = np.repeat(np.linspace(0.75, 1, 40), 3).reshape(-1, 3)
    palette_Px3 = (255 * np.concatenate([*mixed, greys])).round()
    packed = image_HxWx3 @ np.array([1 << 16, 1 << 8, 1])
    found = np.unique(packed)
    colours_Nx3 = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
    distances = (palette_Px3**2).sum(
        axis=1
    ) - 2 * colours_Nx3 @ palette_Px3.T  # squared, but for a constant of each row
    nearest = np.empty(1 << 24, np.uint8)
    nearest[found] = distances.argmin(axis=1)
    image = Image.fromarray(nearest[packed], "P")
    image.putpalette(palette_Px3.astype(np.uint8).tobytes())
    return image


class _Scene:
    """The figure of a race, whose moving parts can be set to any step."""

    def __init__(self, race: Race):
        self.race = race
        self.figure, grid = new_axes(9.0, 5.2, ncols=2, width_ratios=(1.1, 1))
        self.map, right = grid
        cell = right.get_subplotspec().subgridspec(2, 1, height_ratios=(1, 1.05))
        right.remove()
        self.curve, table = (self.figure.add_subplot(part) for part in cell)
        _draw_surface(self.map, race.surface, race.start)
        lowest = _lowest(race.surface)
        self.heights = [np.maximum(path.values - lowest, FLOOR) for path in race.paths]
        _draw_table(table, race, [float(heights[-1]) for heights in self.heights])
        self._prepare_curve()
        self.title = self.map.set_title("", loc="left", fontweight="bold")
        self.figure.supxlabel(_caption(race), fontsize=7.5, color=QUIET, x=0.01, ha="left")
        looks = [_look(i) for i in range(len(race.paths))]
        self.trails = [self.map.plot([], [], linewidth=1.3, **_line(look))[0] for look in looks]
        self.heads = [self.map.plot([], [], markersize=7, **_marker(look))[0] for look in looks]
        self.curves = [self.curve.plot([], [], linewidth=1.2, **_line(look))[0] for look in looks]
        self.exits = [_draw_exit(self.map, race.surface, path, look) for path, look in zip(race.paths, looks)]
        self.show(race.steps)

    def _prepare_curve(self) -> None:
        axes, finite = self.curve, np.concatenate(self.heights)
        finite = finite[np.isfinite(finite)]
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlim(0, self.race.steps)
        start = self.heights[0][0] if self.heights else 1.0
        axes.set_ylim(max(finite.min(), FLOOR) / 2, max(min(finite.max(), 100 * start), FLOOR) * 2)
        axes.set_xlabel("step")
        axes.set_title("f above its minimum", loc="left")

    def show(self, step: int) -> None:
        """Sets the moving parts to the state after `step` updates."""
        race = self.race
        for path, heights, trail, head, curve, end in zip(
            race.paths, self.heights, self.trails, self.heads, self.curves, self.exits, strict=True
        ):
            trail.set_data(*path.points[: step + 1].T)
            head.set_data(*path.points[step : step + 1].T)
            curve.set_data(np.arange(step + 1), heights[: step + 1])
            if end is not None:
                end.set_visible(step >= (_left_at(race.surface, path) or 0))
        self.title.set_text(f"{race.surface.name.replace('_', ' ')}, step {step} of {race.steps}")

    def frames(self, steps: Sequence[int], dpi: int) -> list[np.ndarray]:
        """Draws the figure at each of these steps, uint8 (height, width, 3); what does not move is drawn once."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        self.figure.set_dpi(dpi)
        canvas: Any = FigureCanvasAgg(self.figure)
        exits = [end for end in self.exits if end is not None]
        moving = [*self.trails, *self.curves, *exits, *self.heads, self.title]
        for artist in moving:
            artist.set_animated(True)
        canvas.draw()
        self.figure.set_layout_engine("none")
        still, drawn = canvas.copy_from_bbox(self.figure.bbox), []
        for step in steps:
            self.show(step)
            canvas.restore_region(still)
            for artist in moving:
                self.figure.draw_artist(artist)
            drawn.append(np.array(canvas.buffer_rgba())[..., :3])
        return drawn


def _look(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of the optimizer of this number."""
    around, hue = divmod(number, len(HUES))
    return {"color": HUES[hue], "marker": MARKERS[hue], "linestyle": DASHES[around % len(DASHES)]}


def _line(look: dict[str, Any]) -> dict[str, Any]:
    return {"color": look["color"], "linestyle": look["linestyle"], "solid_joinstyle": "round"}


def _marker(look: dict[str, Any]) -> dict[str, Any]:
    return {
        "color": look["color"],
        "marker": look["marker"],
        "linestyle": "none",
        "markeredgecolor": "white",
        "markeredgewidth": 0.8,
        "zorder": 4,
    }


def _draw_surface(axes: Any, surface: Surface, start: tuple[float, float]) -> None:
    """Contours that enclose equal areas, but denser near the minimum; stars at minima and a ring at the start.

    The stars of local minima are hollow.
    """
    from matplotlib.colors import BoundaryNorm

    x, y = np.meshgrid(np.linspace(*surface.x_range, 300), np.linspace(*surface.y_range, 300))
    height = np.asarray(surface.value(x, y), np.float64)
    levels = np.quantile(height, np.linspace(0, 1, LEVELS + 1) ** 1.5)
    shades = {"cmap": "Greys", "norm": BoundaryNorm(levels, 3 * LEVELS)}  # the lightest third of the greys
    axes.contourf(x, y, height, levels=levels, zorder=0, **shades)
    axes.contour(x, y, height, levels=levels, colors=QUIET, linewidths=0.4, linestyles="solid", alpha=0.7, zorder=1)
    axes.set_xlim(*surface.x_range)
    axes.set_ylim(*surface.y_range)
    axes.set_xlabel("x")
    axes.set_ylabel("y", rotation=0)
    axes.grid(False)
    star = {"marker": "*", "linestyle": "none", "markersize": 15, "markeredgecolor": INK, "zorder": 3}
    axes.plot(*np.transpose(surface.minima), color=INK, **star)
    if surface.local_minima:
        axes.plot(*np.transpose(surface.local_minima), color="white", **star)
    ring = {"marker": "o", "markersize": 9, "markeredgecolor": INK, "markerfacecolor": "none", "zorder": 5}
    axes.plot(*start, linestyle="none", **ring)


def _draw_table(axes: Any, race: Race, heights: Sequence[float]) -> None:
    """The legend: optimizer, rate, last f above its minimum, and what became of a path that left the picture."""
    axes.axis("off")
    rows = len(race.paths)
    axes.set_xlim(0, 1)
    axes.set_ylim(max(rows, 9) - 0.4, -1.4)
    size = min(8.0, 8.0 * 11 / max(rows, 1))
    for (x, side), text in zip(COLUMNS, ("optimizer", "rate", "last f"), strict=False):
        axes.text(x, -1, text, fontsize=size, color=QUIET, ha=side, va="center")
    for i, (path, last) in enumerate(zip(race.paths, heights, strict=True)):
        look = _look(i)
        axes.plot([0, 0.07], [i, i], **_line(look))
        axes.plot(0.035, i, markersize=6, **_marker(look))
        rate = "its own" if path.learning_rate is None else f"{path.learning_rate:.3g}"
        cells = (shorten(path.optimizer, LONGEST), rate, _height(last), _note(race.surface, path))
        for (x, side), text in zip(COLUMNS, cells, strict=True):
            axes.text(x, i, text, fontsize=size, ha=side, va="center")


def _draw_exit(axes: Any, surface: Surface, path: Path, look: dict[str, Any]) -> Any:
    """Draws the cross where a path leaves the picture, and returns it; None for one that stays."""
    step = _left_at(surface, path)
    if step is None:
        return None
    x, y = crossing(surface, path.points[step - 1], path.points[step])
    style = {"marker": "X", "markersize": 9, "markeredgecolor": "white", "markeredgewidth": 0.8}
    return axes.plot(x, y, linestyle="none", color=look["color"], clip_on=False, zorder=6, **style)[0]


def crossing(surface: Surface, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Returns the point of the picture's edge on the way from a point inside (2,) to one outside.

    It is `inside` if the other is not finite.
    """
    if not np.isfinite(outside).all():
        return inside
    low, high = np.transpose([surface.x_range, surface.y_range])
    way = outside - inside
    edge = np.where(way > 0, high, low)
    shares = np.divide(edge - inside, way, out=np.ones(2), where=way != 0)
    return inside + np.min(shares) * way


def _left_at(surface: Surface, path: Path) -> int | None:
    """The first step whose point is not in the picture."""
    outside = ~surface.contains(path.points)
    return int(np.argmax(outside)) if outside.any() else None


def _note(surface: Surface, path: Path) -> str:
    """What the table says of a path that does not stay in the picture."""
    if (step := path.diverged_at) is not None:
        return f"diverged at {step}"
    step = _left_at(surface, path)
    return "" if step is None else f"out at {step}"


def _height(value: float) -> str:
    """A height above the minimum, as printed."""
    if not math.isfinite(value):
        return "–"
    return f"< {FLOOR:g}" if value <= FLOOR else f"{value:.2g}"


def _lowest(surface: Surface) -> float:
    """The value of f at its minimum."""
    return min(float(surface.value(np.float64(x), np.float64(y))) for x, y in surface.minima)


def _caption(race: Race) -> str:
    """The formula, start, steps and where the rates come from."""
    x, y = (f"{value:g}".replace("-", "−") for value in race.start)
    given = [path.optimizer for path in race.paths if not path.chosen]
    rule = f"Rates: {RULE}" + (f" (given: {', '.join(given)})" if given else "")
    if len(given) == len(race.paths):
        rule = "Rates: given"
    minima = "minimum ★" if len(race.surface.minima) == 1 else "minima ★"
    if race.surface.local_minima:
        minima += "; local minimum ☆"
    return (
        f"f = {race.surface.formula}.  Start ({x}, {y}), ○; {minima}; {race.steps} steps.  "
        f"× the path leaves the picture, at the step in the table.\n{rule}."
    )
