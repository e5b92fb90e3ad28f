"""The pictures of a report but the curves. Each function draws one `matplotlib` figure, all in one `style`.

matplotlib is imported when the first figure is drawn, and only its object interface is used: no window, no state.
"""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cnn_jax.report.filters import Filters, pictures
from cnn_jax.tasks.measures import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Two hues that also differ in brightness, so that they stay apart in print and for the colour-blind.
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
FEW = 20  # a bin of fewer images is drawn faintly


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw and save inside this context."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # class names in scripts the font lacks
        yield


def png(figure: "Figure") -> bytes:
    """Returns the figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.06)
    return file.getvalue()


def image_png(image_HxWxC: np.ndarray) -> bytes:
    """Returns an image as a PNG file, pixel by pixel."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(_displayable(image_HxWxC)).save(file, format="PNG")
    return file.getvalue()


def new_axes(width: float, height: float, **subplots: Any) -> tuple["Figure", Any]:
    """Returns an empty figure, sizes in inches, and what `Figure.subplots` returns."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**subplots)


def confusion(confusion_KxK: np.ndarray, classes: Sequence[str]) -> "Figure":
    """Draws the matrix, coloured by the share of the row; up to 20 classes the counts are printed."""
    count = len(classes)
    size = min(2.6 + 0.36 * count, 9.0)
    figure, axes = new_axes(size + 0.6, size)
    share = confusion_KxK / np.maximum(confusion_KxK.sum(axis=1, keepdims=True), 1)
    # The square root keeps a mistake of 1 % visible beside a diagonal of 99 %.
    image = axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    names = [_short(name) for name in classes]
    upright = max(map(len, names)) <= 3
    axes.set_xticks(range(count), names, rotation=0 if upright else 60, ha="center" if upright else "right")
    if not upright:
        for label in axes.get_xticklabels():
            label.set_rotation_mode("anchor")
    axes.set_yticks(range(count), names)
    axes.tick_params(length=0, labelsize=8 if count <= 20 else 7)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    bar = figure.colorbar(image, cax=axes.inset_axes((1.03, 0.0, 0.03, 1.0)))
    bar.set_ticks([math.sqrt(s) for s in (0, 0.01, 0.1, 0.25, 0.5, 1)], labels=["0", "1", "10", "25", "50", "100"])
    bar.set_label("share of the true class (%)")
    bar.outline.set_visible(False)
    if count <= 20:
        for (i, j), n in np.ndenumerate(confusion_KxK):
            colour = "white" if share[i, j] > 0.35 else INK if n else "#cbd5e0"
            axes.text(j, i, str(n), ha="center", va="center", fontsize=7.5, color=colour)
    return figure


def reliability(calibration: Calibration) -> "Figure":
    """Draws accuracy over confidence above the histogram of the confidences."""
    figure, (upper, lower) = new_axes(5.0, 5.0, nrows=2, sharex=True, height_ratios=[3, 1])
    bins = len(calibration.count)
    left, width = np.arange(bins) / bins * 100, 100 / bins
    many, few = calibration.count >= FEW, (calibration.count > 0) & (calibration.count < FEW)
    accuracy, bar = calibration.accuracy * 100, {"width": width * 0.94, "align": "edge", "color": BLUE}
    upper.bar(left[many], accuracy[many], **bar, label="accuracy")
    if few.any():
        upper.bar(left[few], accuracy[few], **bar, alpha=0.3, label=f"of fewer than {FEW} images")
    upper.plot(calibration.confidence * 100, accuracy, "o", color=ORANGE, markersize=4, label="mean confidence")
    upper.plot([0, 100], [0, 100], color=INK, linestyle="--", linewidth=1, label="perfect calibration")
    upper.set_ylim(0, 104)
    upper.set_ylabel("accuracy (%)")
    upper.set_title(f"expected calibration error {calibration.error:.2%}", loc="left")
    lower.bar(left, calibration.count / calibration.count.sum() * 100, width * 0.94, align="edge", color=QUIET)
    lower.set_ylabel("images (%)")
    lower.set_xlabel("confidence: probability of the predicted class (%)")
    lower.set_xlim(0, 100)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def gallery(images: Sequence[tuple[np.ndarray, Sequence[str]]]) -> "Figure":
    """Draws uint8 images (H, W, C) six a row, each under its lines of text."""
    rows = math.ceil(len(images) / 6)
    figure, grid = new_axes(9.0, 1.85 * rows, nrows=rows, ncols=6, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (image, lines) in zip(grid.flat, images, strict=False):
        axes.imshow(_displayable(image), cmap="gray", vmin=0, vmax=255)
        axes.set_title("\n".join(lines), fontsize=7)
    return figure


def filters(found: Filters, titles: Sequence[str]) -> "Figure":
    """Draws the first filters; those that are not RGB from blue (negative) over white (zero) to red (positive)."""
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
            axes.set_title(_short(titles[i]), fontsize=8, pad=2)
    return figure


def _displayable(image_HxWxC: np.ndarray) -> np.ndarray:
    """Returns uint8 (H, W, 3) or (H, W), which every picture library takes; of other images the first channel."""
    return image_HxWxC if image_HxWxC.shape[-1] == 3 else image_HxWxC[..., 0]


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
