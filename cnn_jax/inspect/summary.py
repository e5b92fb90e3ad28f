"""What a model is made of: layers with shapes, parameters, FLOPs and receptive fields. Computes no activations."""

import math
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cnn_jax.inspect.receptive_field import receptive_fields
from cnn_jax.ops.plain import plain_operations


@dataclass(frozen=True)
class LayerRow:
    """One layer of a model.

    Attributes:
        name: path of the module, such as stage1_block1/conv1.
        kind: name of its class.
        output_shape: of one example.
        parameters: number of its trainable numbers.
        flops: of its kernel, trained or not, in one forward pass of one image, two a multiply-add; biases, norms,
            activations and poolings, a few per cent together, are not counted. Those of auxiliary heads count only in
            training.
        receptive_field: side in pixels of the square of the image that one output sees; None where it sees the whole
            image. Gates that see all of it, such as those of squeeze and excitation, are not counted.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    flops: int
    receptive_field: int | None


def layer_table(model: nn.Module, input_shape_HWC: tuple[int, int, int]) -> list[LayerRow]:
    """Lists the layers of a model in the order in which they are called.

    Raises:
        UserError: the model does not take images of this size.

    >>> from cnn_jax.models import build
    >>> layer_table(build("softmax_regression", 10), (28, 28, 1))[0].parameters
    7850
    """
    rows: list[LayerRow] = []

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
        # A kernel that is no parameter is a statistic of the data: the whitening of `speednet`.
        kernel = {**module.variables.get("batch_stats", {}), **own}.get("kernel")
        rows.append(
            LayerRow(
                name=name,
                kind=type(module).__name__,
                output_shape=y.shape[1:],
                parameters=count_parameters(own),
                flops=0 if kernel is None else _flops(module, kernel, y.shape),
                receptive_field=None,
            )
        )
        return checkpoint_name(y, name)  # by which its receptive field is found

    def init(x_1xHxWxC: jax.Array) -> Any:
        with nn.intercept_methods(watch), plain_operations():  # one in tiles is not followed
            return model.init(jax.random.key(0), x_1xHxWxC, train=False)

    fields = receptive_fields(jax.make_jaxpr(init)(jax.ShapeDtypeStruct((1, *input_shape_HWC), jnp.float32)))
    return [replace(row, receptive_field=fields.get(row.name)) for row in rows]


def _flops(layer: nn.Module, kernel: jax.Array, output_shape: tuple[int, ...]) -> int:
    # Each weight of a shared kernel is used once at every position; those of a locally connected layer once in all.
    positions = 1 if isinstance(layer, nn.ConvLocal) else math.prod(output_shape[1:-1])
    return 2 * kernel.size * positions


def count_parameters(params: Any) -> int:
    """Numbers in a tree of arrays or of their shapes.

    >>> count_parameters({"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)})
    12
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_flops(model: nn.Module, input_shape_HWC: tuple[int, int, int]) -> int:
    """FLOPs of the forward pass of one image, two a multiply-add, convolutions and dense layers only."""
    return sum(row.flops for row in layer_table(model, input_shape_HWC))
