"""The layers of a model with their shapes, parameters, FLOPs and receptive fields."""

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax

from cnn_jax.inspect.tracer import LayerCall, trace_layers


@dataclass(frozen=True)
class LayerRow:
    """One layer of a model.

    Attributes:
        name: path of the module, such as stage1_block1/conv1.
        kind: name of its class.
        output_shape: output shape for one example.
        parameters: count of trainable weights.
        flops: FLOPs of the kernel in a forward pass of one image, two per multiply-add. Biases, norms, activations and
            pooling are left out; together they are a few per cent. Auxiliary heads count in training only.
        receptive_field: side in pixels of the image square that one output depends on; None for the whole image. Gates
            that see all of it, as in squeeze-and-excitation, are ignored.
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
    calls = trace_layers(model, input_shape_HWC)
    for i, call in enumerate(calls):
        inside = {inner.path for inner in calls[i - call.inner : i]}
        parameters = call.own.get("params", {})
        # Composite modules are listed by their parts, and a subclass's call by that of its base class.
        if call.path in inside or (inside and not parameters):
            continue
        # A kernel that is not a parameter holds statistics of the data: the whitening of `speednet`.
        kernel = {**call.own.get("batch_stats", {}), **parameters}.get("kernel")
        rows.append(
            LayerRow(
                name=call.name,
                kind=call.kind.__name__,
                output_shape=call.output_shape[1:],
                parameters=sum(map(math.prod, parameters.values())),
                flops=0 if kernel is None else _flops(call, kernel),
                receptive_field=call.receptive_field,
            )
        )
    return rows


def _flops(call: LayerCall, kernel: tuple[int, ...]) -> int:
    # A shared kernel is applied at every position; the weights of a locally connected layer are used once each.
    positions = 1 if issubclass(call.kind, nn.ConvLocal) else math.prod(call.output_shape[1:-1])
    return 2 * math.prod(kernel) * positions


def count_parameters(params: Any) -> int:
    """Counts the elements of a tree of arrays or shape structs.

    >>> import numpy as np
    >>> count_parameters({"kernel": np.zeros((3, 3)), "bias": np.zeros(3)})
    12
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def count_flops(model: nn.Module, input_shape_HWC: tuple[int, int, int]) -> int:
    """FLOPs of a forward pass of one image, two per multiply-add; convolutions and dense layers only."""
    return sum(row.flops for row in layer_table(model, input_shape_HWC))
