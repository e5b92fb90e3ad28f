"""The figures of a report other than curves. Each function draws one matplotlib figure, all in one `style`.

matplotlib is imported with the first figure, and only its object interface is used: no windows, no global state.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_jax.report import fonts
from cnn_jax.report.filters import Filters, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The two hues also differ in brightness, so that they can be told apart in print and by the colour-blind.
BLUE, ORANGE, INK, QUIET, GRID = "#2b6cb0", "#dd6b20", "#1a202c", "#718096", "#e2e8f0"
DPI = 160
STYLE: Any = {
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5"
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}
MOST_FILTERS = 96


@contextlib.contextmanager
def style(names: Sequence[str] = ()) -> Iterator[None]:
    """Context in which figures are drawn and saved, in fonts that have the letters of `names`, see `fonts.drawable`."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # in names that are not drawable
        if (families := fonts.families(names)) is not None:
            matplotlib.rcParams["font.family"] = families
        yield


def png(figure: "Figure") -> bytes:
    """Returns the figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.06)
    return file.getvalue()


def image_png(image_HxWxC: np.ndarray) -> bytes:
    """Returns an image as a PNG file, without rescaling."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(displayable(image_HxWxC)).save(file, format="PNG")
    return file.getvalue()


def new_axes(width: float, height: float, **subplots: Any) -> tuple["Figure", Any]:
    """Returns an empty figure of a size in inches, and its axes as from `Figure.subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**subplots)


def gallery(images: Sequence[tuple[np.ndarray, Sequence[str]]]) -> "Figure":
    """Draws uint8 images (H, W, C), six per row, each under its lines of text."""
    rows = math.ceil(len(images) / 6)
    figure, grid = new_axes(9.0, 1.85 * rows, nrows=rows, ncols=6, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (image, lines) in zip(grid.flat, images, strict=False):
        axes.imshow(displayable(image), cmap="gray", vmin=0, vmax=255)
        axes.set_title("\n".join(lines), fontsize=7)
    return figure


def image_rows(rows: Sequence[np.ndarray], titles: Sequence[str]) -> "Figure":
    """Draws rows of float images one above the other, eight per line, all on the same scale of brightness.

    Args:
        rows: corresponding images, such as inputs and outputs; each (N, H, W, C).
        titles: one title per row.
    """
    low, high = (float(bound([bound(row) for row in rows])) for bound in (np.min, np.max))
    scaled = [np.clip((row - low) / max(high - low, 1e-12) * 255, 0, 255).astype(np.uint8) for row in rows]
    count, across = len(rows[0]), min(8, len(rows[0]))
    lines = math.ceil(count / across)
    figure, grid = new_axes(
        1.05 * across + 0.4, 1.05 * lines * len(rows), nrows=lines * len(rows), ncols=across, squeeze=False
    )
    for axes in grid.flat:
        axes.axis("off")
    for row, images in enumerate(scaled):
        for i, image in enumerate(images):
            axes = grid[i // across * len(rows) + row, i % across]
            axes.imshow(displayable(image), cmap="gray", vmin=0, vmax=255)
            if i % across == 0:
                axes.text(-0.08, 0.5, titles[row], transform=axes.transAxes, rotation=90, ha="right", va="center")
    return figure


def filters(found: Filters, titles: Sequence[str]) -> "Figure":
    """Draws the first `MOST_FILTERS` filters; non-RGB ones run from blue (negative) through white to red."""
    cells = pictures(found)[:MOST_FILTERS]
    columns = min(12 if len(cells) > 32 else 8 if len(cells) != 10 else 5, len(cells))
    rows = math.ceil(len(cells) / columns)
    side = min(8.4 / columns, 1.3)
    height = rows * (side + (0.2 if titles else 0.0))
    figure, grid = new_axes(columns * side, height, nrows=rows, ncols=columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for i, (axes, cell) in enumerate(zip(grid.flat, cells, strict=False)):
        axes.imshow(cell, cmap="RdBu_r", vmin=-1, vmax=1)
        if titles:
            axes.set_title(shorten(titles[i]), fontsize=8, pad=2)
    return figure


def displayable(image_HxWxC: np.ndarray) -> np.ndarray:
    """Returns (H, W, 3) or (H, W), which every image library accepts: the first channel unless the image is RGB."""
    return image_HxWxC if image_HxWxC.shape[-1] == 3 else image_HxWxC[..., 0]


def shorten(name: str, most: int = 18) -> str:
    """Cuts a name to at most `most` characters."""
    return name if len(name) <= most else name[: most - 1] + "…"
