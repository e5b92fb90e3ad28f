"""What a model is made of: layers with shapes, parameters, FLOPs and receptive fields. Computes no activations."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers import AvgPool, MaxPool


@dataclass(frozen=True)
class LayerRow:
    """One layer of a model.

    Attributes:
        name: path of the module, such as stage1_block1/conv1.
        kind: name of its class.
        output_shape: of one example.
        parameters: number of its trainable numbers.
        flops: of its kernel in one forward pass of one image, two a multiply-add; biases, norms, activations and
            poolings, a few per cent together, are not counted.
        receptive_field: side in pixels of the square of the image that one output sees, on the longest path; None where
            an output sees the whole map.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    flops: int
    receptive_field: int | None


def layer_table(model: nn.Module, input_shape_HWC: tuple[int, int, int]) -> list[LayerRow]:
    """Lists the layers of a model in the order in which they are called.

    Layers whose name begins with "shortcut" lie beside the main path, and do not change the receptive field.

    Raises:
        UserError: the model does not take images of this size.

    >>> from cnn_jax.models import build
    >>> layer_table(build("softmax_regression", 10), (28, 28, 1))[0].parameters
    7850
    """
    rows: list[LayerRow] = []
    field = _ReceptiveField()

    def watch(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, before = context.module, len(rows)
        y = next_function(*args, **kwargs)
        if context.method_name != "__call__" or not module.path:
            return y
        parameters = module.variables.get("params", {})
        name, inner = "/".join(module.path), [row.name for row in rows[before:]]
        own = {k: v for k, v in parameters.items() if isinstance(v, jax.Array)}
        if name in inner or (inner and not own):
            return y  # the call of a base class is listed already, or the layers that this one is made of
        field.see(module, y)
        rows.append(
            LayerRow(
                name=name,
                kind=type(module).__name__,
                output_shape=y.shape[1:],
                parameters=count_parameters(own),
                flops=2 * math.prod(own["kernel"].shape) * math.prod(y.shape[1:-1]) if "kernel" in own else 0,
                receptive_field=field.size,
            )
        )
        return y

    def init() -> Any:
        with nn.intercept_methods(watch):
            return model.init(jax.random.key(0), jnp.zeros((1, *input_shape_HWC)), train=False)

    jax.eval_shape(init)
    return rows


class _ReceptiveField:
    """Size and step, in pixels of the image, of what neighbouring outputs see; grows layer by layer."""

    def __init__(self) -> None:
        self.size: int | None = 1
        self.step = 1

    def see(self, module: nn.Module, y: Any) -> None:
        if y.ndim < 4:
            self.size = None
        window = _window(module)
        if self.size is None or window is None or module.path[-1].startswith("shortcut"):
            return
        size, stride = window
        self.size += (size - 1) * self.step
        self.step *= stride


def _window(module: nn.Module) -> tuple[int, int] | None:
    """Side and stride of the window of a layer that has one; square ones only, as all of ours are."""
    if isinstance(module, nn.Conv):
        strides = module.strides or 1
        size = module.kernel_size
        return _first(size), _first(strides)
    if isinstance(module, MaxPool | AvgPool):
        return module.window[0], (module.strides or module.window)[0]
    kernel = module.variables.get("params", {}).get("kernel")
    return (kernel.shape[0], 1) if kernel is not None and kernel.ndim > 2 else None


def _first(value: Any) -> int:
    return value if isinstance(value, int) else value[0]


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays or of their shapes.

    >>> count_parameters({"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)})
    12
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_flops(model: nn.Module, input_shape_HWC: tuple[int, int, int]) -> int:
    """FLOPs of the forward pass of one image, two a multiply-add, convolutions and dense layers only."""
    return sum(row.flops for row in layer_table(model, input_shape_HWC))
