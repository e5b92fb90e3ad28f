"""Which pixels of the image an activation depends on, found by following a traced forward pass.

All paths from the image count: branches, shortcuts, slices, space-to-depth. For the arithmetic of a plain stack of
layers see `cnn_jax.arithmetic.receptive_field`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import Jaxpr, Literal


@dataclass(frozen=True)
class Sight:
    """Receptive field along one axis: output i depends on pixels low + i·step up to but not including high + i·step."""

    low: int = 0
    high: int = 1
    step: int = 1

    def window(self, size: int, stride: int, padding: int, dilation: int = 1) -> "Sight":
        """Returns the field after a window that starts `padding` elements before the first."""
        low = self.low - padding * self.step
        return Sight(low, self.high + ((size - 1) * dilation - padding) * self.step, self.step * stride)


# By axis: the array axes that run along image rows or columns. Empty if each element may depend on every pixel.
Sights = Mapping[int, Sight]
EVERYTHING: Sights = {}


def receptive_fields(traced: Any) -> dict[str, int | None]:
    """Follows the first argument, images (B, H, W, C), through a computation.

    Args:
        traced: a jaxpr from `jax.make_jaxpr`, with values named by `jax.ad_checkpoint.checkpoint_name`.

    Returns:
        For each named value the side in pixels of the square that one element depends on, or None for the whole image.
        A value that depends on everything is ignored where it is combined with one that does not, such as the gate of
        squeeze-and-excitation. Values that do not depend on the image are left out.

    >>> import jax, jax.ad_checkpoint
    >>> pool = lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    >>> named = lambda x: jax.ad_checkpoint.checkpoint_name(pool(x), "y")
    >>> receptive_fields(jax.make_jaxpr(named)(jax.ShapeDtypeStruct((1, 9, 9, 1), "float32")))
    {'y': 3}
    """
    named: dict[str, int | None] = {}
    _follow(traced.jaxpr, [{1: Sight(), 2: Sight()}] + [None] * (len(traced.jaxpr.invars) - 1), named)
    return named


def _follow(jaxpr: Jaxpr, given: Sequence[Sights | None], named: dict[str, int | None]) -> list[Sights | None]:
    """Returns the fields of a computation's results; None where a value does not depend on the image."""
    known = {variable: sights for variable, sights in zip(jaxpr.invars, given, strict=True) if sights is not None}

    def read(variable: Any) -> Sights | None:
        return None if isinstance(variable, Literal) else known.get(variable)

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        if all(sights is None for sights in inputs):
            continue
        inner = _inner(equation)
        if inner is not None:
            outputs = _follow(inner, inputs, named)
        else:
            outputs = [_through(equation, inputs, _shape(out)) for out in equation.outvars]
        known.update((v, sights) for v, sights in zip(equation.outvars, outputs, strict=True) if sights is not None)
        if equation.primitive.name == "name" and outputs[0] is not None:
            sides = [sight.high - sight.low for sight in outputs[0].values()]
            named[equation.params["name"]] = max(sides, default=None)
    return [read(variable) for variable in jaxpr.outvars]


def _inner(equation: Any) -> Jaxpr | None:
    """Returns the computation inside an operation such as `jit` or `checkpoint`."""
    for value in equation.params.values():
        jaxpr: Any = getattr(value, "jaxpr", value)  # older JAX wraps it with its constants
        if isinstance(jaxpr, Jaxpr):
            # The bodies of loops and reductions have other shapes.
            same = [*map(_shape, jaxpr.invars)] == [*map(_shape, equation.invars)]
            return jaxpr if same else None
    return None


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _through(equation: Any, inputs: Sequence[Sights | None], shape: tuple[int, ...]) -> Sights:
    """Returns the field of an operation's result of this shape. Operations without a rule are elementwise."""
    name, params = equation.primitive.name, equation.params
    shapes = [_shape(variable) for variable in equation.invars]
    sights = inputs[0]
    if name == "dot_general":
        return _dot_general(params["dimension_numbers"], inputs, [len(s) for s in shapes])
    if sights is None:
        return _merge(inputs, shapes, shape)
    if name == "conv_general_dilated":
        return _convolution(params, shapes[1], sights)
    if name.startswith("reduce_window"):
        size, strides, dilation = (params[f"window_{what}"] for what in ("dimensions", "strides", "dilation"))
        pads = [before for before, _ in params["padding"]]
        return {a: sight.window(size[a], strides[a], pads[a], dilation[a]) for a, sight in sights.items()}
    if name == "slice":
        starts, strides = params["start_indices"], params["strides"] or (1,) * len(shape)
        return {a: sight.window(1, strides[a], -starts[a]) for a, sight in sights.items()}
    if name == "pad":
        pads = params["padding_config"]
        # Interior padding, as in a transposed convolution, is not followed.
        between = any(pads[a][2] for a in sights)
        return EVERYTHING if between else {a: sight.window(1, 1, pads[a][0]) for a, sight in sights.items()}
    if name == "reshape":
        return _reshape(shapes[0], shape, sights)
    if name == "transpose":
        return {params["permutation"].index(a): sight for a, sight in sights.items()}
    if name == "broadcast_in_dim":
        return {params["broadcast_dimensions"][a]: sight for a, sight in sights.items()}
    if name == "squeeze" or "axes" in params:  # the latter: sums, maxima, argmax
        return _without(sights, params["dimensions"] if name == "squeeze" else params["axes"])
    return _merge(inputs, shapes, shape)


def _merge(inputs: Sequence[Sights | None], shapes: Sequence[tuple[int, ...]], shape: tuple[int, ...]) -> Sights:
    """Returns the union of the inputs' fields, ignoring those of the whole image."""
    seen = [sights for sights, s in zip(inputs, shapes, strict=True) if sights and len(s) == len(shape)]
    axes = seen[0].keys() if seen else ()
    if any(sights.keys() != axes for sights in seen):
        return EVERYTHING
    return {a: _union([sights[a] for sights in seen]) for a in axes}


def _union(sights: Sequence[Sight]) -> Sight:
    return Sight(min(s.low for s in sights), max(s.high for s in sights), max(s.step for s in sights))


def _convolution(params: Mapping[str, Any], kernel_shape: tuple[int, ...], sights: Sights) -> Sights:
    numbers, result = params["dimension_numbers"], {}
    if any(dilation != 1 for dilation in params["lhs_dilation"]):
        return EVERYTHING  # a transposed convolution is not followed
    for i, (axis, out) in enumerate(zip(numbers.lhs_spec[2:], numbers.out_spec[2:], strict=True)):
        if axis in sights:
            size, stride = kernel_shape[numbers.rhs_spec[2 + i]], params["window_strides"][i]
            result[out] = sights[axis].window(size, stride, params["padding"][i][0], params["rhs_dilation"][i])
    return result if len(result) == len(sights) else EVERYTHING


def _dot_general(numbers: Any, inputs: Sequence[Sights | None], ranks: Sequence[int]) -> Sights:
    """Follows the one input that depends on the image, if its rows and columns are not summed over."""
    summed, batch = numbers
    side = 0 if inputs[0] is not None else 1
    sights = inputs[side]
    if sights is None or inputs[1 - side] is not None or any(axis in summed[side] for axis in sights):
        return EVERYTHING
    free = [axis for axis in range(ranks[side]) if axis not in summed[side] and axis not in batch[side]]
    others = ranks[0] - len(summed[0]) - len(batch[0]) if side == 1 else 0  # axes of the left input come first
    kept = [*batch[side], *[None] * others, *free]
    return {kept.index(axis): sight for axis, sight in sights.items()}


def _without(sights: Sights, axes: Sequence[int]) -> Sights:
    """Drops `axes`. Without its rows or columns an element may depend on all of them."""
    if any(axis in axes for axis in sights):
        return EVERYTHING
    return {axis - sum(gone < axis for gone in axes): sight for axis, sight in sights.items()}


def _reshape(old: tuple[int, ...], new: tuple[int, ...], sights: Sights) -> Sights:
    """Follows an axis that is split (r·b → r, b) in blocks of b; rows or columns merged with others are lost."""
    result = {}
    for axis, sight in sights.items():
        # The new axis with the same number of elements before it; axes of length 1 make this ambiguous but harmless.
        places = [
            i for i, n in enumerate(new) if math.prod(new[:i]) == math.prod(old[:axis]) and n and old[axis] % n == 0
        ]
        if not places:
            return EVERYTHING
        place = max(places, key=lambda i: (new[i], i == axis))
        block = old[axis] // new[place]
        result[place] = sight.window(block, block, 0)
    return result if len(result) == len(sights) else EVERYTHING
