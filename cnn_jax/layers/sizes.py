"""Checks that a layer's window fits its input."""

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
    """Raises UserError if a layer's window does not fit its input.

    Args:
        layer: the layer, named in the message.
        size: rows and columns of the input.
        window: rows and columns of the window.
        strides: rows and columns between neighbouring windows.
        padding: "VALID", "SAME", or the padding at both ends of both axes: a number or a pair of numbers or pairs.
        ceil_mode: whether windows may extend past the bottom and right edges.

    Raises:
        UserError: the message names the layer and shows the arithmetic.
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
                f"{'.'.join([type(top).__name__, *layer.path])}: a {size[0]}x{size[1]} map is too small for "
                f"a {window[0]}x{window[1]} filter with stride {stride} and total padding {total}, as "
                f"({length} + {total} - {k})/{stride} + 1 {'<= 0' if ceil_mode else '< 1'}: use larger images{hint}"
            )


def pair(value: Any) -> tuple[Any, Any]:
    """Returns a value per axis: a single number (or None, meaning 1) repeated, a pair as it is."""
    if value is None:
        return 1, 1
    return (value, value) if isinstance(value, int) else tuple(value)
