"""Whether a layer's window fits into the maps that it is given."""

from typing import Any

import flax.linen as nn

from cnn_jax.arithmetic import ends, output_size
from cnn_jax.errors import UserError


def check_fits(
    layer: nn.Module,
    size: tuple[int, ...],
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Any,
    ceil_mode: bool = False,
) -> None:
    """Refuses maps into which the layer's window does not fit.

    Args:
        layer: for its name.
        size: rows and columns of the maps.
        window: rows and columns of the window.
        strides: between neighbouring windows.
        padding: "VALID", "SAME", or what is added at both ends of both axes: a number or a pair of numbers or pairs.
        ceil_mode: whether windows may overhang the lower and right edge.

    Raises:
        UserError: names the layer and shows the arithmetic.
    """
    if padding == "SAME" and min(size) > 0:
        return
    pads = (0, 0) if isinstance(padding, str) else pair(padding)
    for length, k, stride, pad in zip(size, window, strides, pads, strict=True):
        if output_size(length, k, stride, pad, rounding="ceil" if ceil_mode else "floor") < 1:
            top = layer
            while isinstance(top.parent, nn.Module):
                top = top.parent
            usual = getattr(top, "input_shape", None)
            hint = f" (the usual size is {usual[0]}x{usual[1]})" if usual else ""
            total = sum(ends(pad))
            raise UserError(
                f"{'.'.join([type(top).__name__, *layer.path])}: given a {size[0]}x{size[1]} map; "
                f"a {window[0]}x{window[1]} filter with stride {stride} and padding {total} in all needs "
                f"({length} + {total} - {k})/{stride} + 1 {'> 0' if ceil_mode else '>= 1'}; use larger images{hint}"
            )


def pair(value: Any) -> tuple[Any, Any]:
    """What Flax takes as one number for both axes, or none for 1, as two."""
    if value is None:
        return 1, 1
    return (value, value) if isinstance(value, int) else tuple(value)
