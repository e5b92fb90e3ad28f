"""The layer calls of one forward pass, found from shapes alone: no activation is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from cnn_jax.inspect.receptive_field import receptive_fields
from cnn_jax.ops.plain import plain_operations


@dataclass(frozen=True)
class LayerCall:
    """One call of a named module.

    Attributes:
        path: the module's path, such as ("stage1_block1", "conv1").
        kind: the module's class.
        input_shape: shape of its first argument, batch axis included; () if that is not an array.
        output_shape: shape of its result, likewise.
        own: shapes of its own variables, not those of modules inside it, by collection and name.
        inner: how many calls were made inside this one. They directly precede it in the list.
        receptive_field: side in pixels of the image square that one output depends on; None for the whole image.
    """

    path: tuple[str, ...]
    kind: type[nn.Module]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    own: Mapping[str, Mapping[str, tuple[int, ...]]]
    inner: int
    receptive_field: int | None = None

    @property
    def name(self) -> str:
        """The path as text, such as "stage1_block1/conv1"."""
        return "/".join(self.path)


def trace_layers(model: nn.Module, input_shape_HWC: tuple[int, int, int], variables: Any = None) -> list[LayerCall]:
    """Lists the calls of one evaluation of a network, each after the calls inside it.

    Args:
        model: called as model(x_BxHxWxC, train=False).
        input_shape_HWC: shape of one image.
        variables: the model's variables; default: freshly initialized ones.

    Raises:
        UserError: the model does not take images of this size.
        flax.errors.FlaxError: the variables do not fit the model.
    """
    calls: list[LayerCall] = []

    def watch(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, before = context.module, len(calls)
        y = next_function(*args, **kwargs)
        if context.method_name != "__call__" or not module.path:
            return y
        own = {
            collection: {name: leaf.shape for name, leaf in entries.items() if isinstance(leaf, jax.Array)}
            for collection, entries in module.variables.items()
        }
        inputs = _shape(args[0]) if args else ()
        calls.append(LayerCall(module.path, type(module), inputs, _shape(y), own, len(calls) - before))
        # The name by which the receptive field is found below.
        return checkpoint_name(y, str(len(calls) - 1)) if isinstance(y, jax.Array) else y

    def forward(x_1xHxWxC: jax.Array, variables: Any) -> Any:
        with nn.intercept_methods(watch), plain_operations():  # a tiled operation hides its receptive field
            if variables is None:
                return model.init(jax.random.key(0), x_1xHxWxC, train=False)
            return model.apply(variables, x_1xHxWxC, train=False)

    image = jax.ShapeDtypeStruct((1, *input_shape_HWC), jnp.float32)
    fields = receptive_fields(jax.make_jaxpr(forward)(image, variables))
    return [replace(call, receptive_field=fields.get(str(i))) for i, call in enumerate(calls)]


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))
