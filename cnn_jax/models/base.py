"""Base classes of the classifiers: shared fields, and layer factories configured by them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers import BatchNorm, Conv, Initializer, initializer


class Entry(NamedTuple):
    """A model of the catalogue.

    Attributes:
        make: builds the model; its keyword arguments are the model's fields.
        source: paper and table, or reference code.
    """

    make: Callable[..., nn.Module]
    source: str


class Classifier(nn.Module):
    """Base of the image classifiers: __call__(x_BxHxWxC, *, train) returns logits (B, K), float32.

    The methods return or apply ordinary Flax layers, which become children of the calling module.

    Attributes:
        num_classes: K.
        activation: a key of `layers.ACTIVATIONS`, after each hidden layer unless the subclass says otherwise.
        kernel_init: a key of `layers.INITIALIZERS` for every layer, or "published" for the one that the model's
            module docstring describes, if any.
        input_shape: (H, W, C) of the paper; other sizes work if the maps stay large enough for the filters.
        dtype: computation type (normalisation statistics are always float32).
        param_dtype: parameter type.
    """

    num_classes: int = 10
    activation: str = "relu"
    kernel_init: str = "published"
    input_shape: tuple[int, int, int] = (32, 32, 3)
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @property
    def types(self) -> dict[str, Any]:
        """`dtype` and `param_dtype` as keyword arguments for a layer."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    @nn.nowrap
    def kernel_initializer(self, published: Initializer | None = None) -> Initializer:
        """Returns the initialiser that `kernel_init` names; "published" is valid only if `published` is given."""
        return initializer(self.kernel_init, published)

    @nn.nowrap
    def conv(self, published: Initializer | None = None, make: Callable[..., nn.Module] = Conv, **settings: Any) -> Any:
        """Returns a factory of convolutions (`make`) with this model's types and initialiser."""
        return partial(make, kernel_init=self.kernel_initializer(published), **self.types, **settings)

    @nn.nowrap
    def fully_connected(self, published: Initializer | None = None, **settings: Any) -> Any:
        """Returns a factory of dense layers with this model's types and initialiser."""
        return partial(nn.Dense, kernel_init=self.kernel_initializer(published), **self.types, **settings)

    @nn.nowrap
    def head(self, x: jax.Array, published: Initializer | None = None, **settings: Any) -> jax.Array:
        """Applies the dense layer "output": features (B, D) → logits (B, K), float32."""
        return self.fully_connected(published, **settings)(self.num_classes, name="output")(x).astype(jnp.float32)


class NormalizedClassifier(Classifier):
    """Base of the classifiers with batch normalisation; training updates the collection "batch_stats".

    Attributes:
        axis_name: `pmap` or `shard_map` axis over which batch statistics are also taken.
    """

    axis_name: str | None = None

    @nn.nowrap
    def norm(self, train: bool, *, momentum: float = 0.9, epsilon: float = 1e-5, **settings: Any) -> Any:
        """Returns a factory of `BatchNorm` layers with this model's types and axis."""
        return partial(
            BatchNorm,
            use_running_average=not train,
            momentum=momentum,
            epsilon=epsilon,
            axis_name=self.axis_name,
            **self.types,
            **settings,
        )
