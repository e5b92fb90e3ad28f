"""What the models share: activations and initialisers by name, layers that check that images fit, stage recording."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax import ops
from cnn_jax.errors import UserError, unknown

Activation = Callable[[jax.Array], jax.Array]
Initializer = Callable[..., jax.Array]


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """Piecewise linear sigmoid max(0, min(1, 0.2·x + 0.5)), Keras's; Flax's has slope 1/6."""
    return jnp.clip(0.2 * x + 0.5, 0, 1)


def scaled_tanh(x: jax.Array) -> jax.Array:
    """1.7159·tanh(2x/3), so that f(±1) = ±1 where the curvature is largest (LeCun et al. 1998, LeNet-5, appendix A)."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def linear(x: jax.Array) -> jax.Array:
    """No activation."""
    return x


ACTIVATIONS: dict[str, Activation] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": nn.sigmoid,
    "softplus": nn.softplus,
    "softsign": nn.soft_sign,
    "hard_sigmoid": hard_sigmoid,
    "linear": linear,
    "softmax": nn.softmax,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "scaled_tanh": scaled_tanh,
}

INITIALIZERS: dict[str, Initializer] = {
    "zeros": nn.initializers.zeros,
    "normal_0.05": nn.initializers.normal(0.05),
    # Xavier: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward networks", eq. 16.
    "glorot_normal": nn.initializers.glorot_normal(),
    "glorot_uniform": nn.initializers.glorot_uniform(),
    # MSRA: He et al. 2015, "Delving deep into rectifiers", eq. 10. Like Keras's, the normal is cut at two deviations.
    "he_normal": nn.initializers.he_normal(),
    "he_uniform": nn.initializers.he_uniform(),
    # LeCun et al. 1998, "Efficient BackProp", eq. 16.
    "lecun_normal": nn.initializers.lecun_normal(),
    "lecun_uniform": nn.initializers.lecun_uniform(),
}


def activation(name: str) -> Activation:
    """Looks an activation up.

    >>> activation("relu")(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]

    Raises:
        UserError: no activation has this name.
    """
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def initializer(name: str) -> Initializer:
    """Looks an initialiser up.

    Raises:
        UserError: no initialiser has this name.
    """
    if name not in INITIALIZERS:
        raise unknown("initializer", name, INITIALIZERS)
    return INITIALIZERS[name]


class Conv(nn.Conv):
    """`flax.linen.Conv` with the fast gradient of `cnn_jax.ops`; it names itself when an image is too small for it."""

    conv_general_dilated: Any = ops.conv_general_dilated

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolves (B, H, W, C) maps; raises UserError if the filter does not fit into them."""
        check_fits(self, inputs.shape[1:3], _pair(self.kernel_size), _pair(self.strides), self.padding)
        return super().__call__(inputs)


class BatchNorm(nn.BatchNorm):
    """`flax.linen.BatchNorm` (Ioffe and Szegedy 2015) that also computes in bfloat16 where type promotion is strict."""

    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        """Normalizes each channel; Flax mixes activations of any type with float32 statistics, on purpose."""
        with jax.numpy_dtype_promotion("standard"):
            return super().__call__(x, *args, **kwargs)


class _Pool(nn.Module):
    """One number for each window of (B, H, W, C) maps; `strides` default to the window."""

    window: tuple[int, int] = (2, 2)
    strides: tuple[int, int] | None = None
    padding: str | Sequence[tuple[int, int]] = "VALID"

    def _reduce(self, *arguments: Any) -> jax.Array:
        raise TypeError("use MaxPool or AvgPool")

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Pools; raises UserError if the window does not fit."""
        strides = self.strides or self.window
        check_fits(self, x_BxHxWxC.shape[1:3], self.window, strides, self.padding)
        return self._reduce(x_BxHxWxC, self.window, strides, self.padding)


class MaxPool(_Pool):
    """The maximum of each window."""

    def _reduce(self, *arguments: Any) -> jax.Array:
        return ops.max_pool(*arguments)


class AvgPool(_Pool):
    """The mean of each window, padding counted as zeros."""

    def _reduce(self, *arguments: Any) -> jax.Array:
        return ops.avg_pool(*arguments)


class GlobalAvgPool(nn.Module):
    """(B, H, W, C) → (B, C): the mean of each map (Lin et al. 2013, "Network in network", §3.2)."""

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Averages over rows and columns."""
        return jnp.mean(x_BxHxWxC, axis=(1, 2))


POOLS: dict[str, type[MaxPool] | type[AvgPool]] = {"max": MaxPool, "average": AvgPool}


def flatten(x: jax.Array) -> jax.Array:
    """(B, H, W, C) → (B, H·W·C), channels fastest."""
    return x.reshape(len(x), -1)


def images(x_BxHxWxC: jax.Array, dtype: Any) -> jax.Array:
    """Casts a batch of images to the type a model computes in.

    Raises:
        UserError: no batch of images, or raw bytes.
    """
    if x_BxHxWxC.ndim != 4:
        raise UserError(
            f"given images of shape {x_BxHxWxC.shape}; expected (batch, height, width, channels); "
            "add a batch axis to a single image"
        )
    if not jnp.issubdtype(x_BxHxWxC.dtype, jnp.floating):
        raise UserError(f"given {x_BxHxWxC.dtype} images; expected normalized floats; call Preprocess.normalize first")
    return x_BxHxWxC.astype(dtype)


def record(module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Exposes `x` as the stage `name` to `cnn_jax.models.stages`, and returns it. Costs nothing in any other call."""
    # Not `sow`: it refuses a stage that is named as a layer.
    if module.is_mutable_collection("stages") and not module.is_initializing():
        module.put_variable("stages", name, x)
    return x


def output_size(size: int, filter_size: int, stride: int = 1, padding: int = 0) -> int:
    """Outputs of a filter along one axis; `padding` counts both ends together. Not positive: it does not fit.

    >>> output_size(227, 11, stride=4)
    55
    >>> output_size(32, 3, padding=2)
    32
    """
    return (size + padding - filter_size) // stride + 1


def check_fits(
    layer: nn.Module,
    size: tuple[int, ...],
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: Any,
) -> None:
    """Refuses maps into which the layer's window does not fit.

    Raises:
        UserError: names the layer and shows the arithmetic.
    """
    if padding == "SAME" and min(size) > 0:
        return
    pads = (0, 0) if isinstance(padding, str) else tuple(map(_both_ends, _pair(padding)))
    for length, k, stride, pad in zip(size, window, strides, pads, strict=True):
        if output_size(length, k, stride, pad) < 1:
            top = layer
            while isinstance(top.parent, nn.Module):
                top = top.parent
            usual = getattr(top, "input_shape", None)
            hint = f" (the usual size is {usual[0]}x{usual[1]})" if usual else ""
            raise UserError(
                f"{'.'.join([type(top).__name__, *layer.path])}: given a {size[0]}x{size[1]} map; "
                f"a {window[0]}x{window[1]} filter with stride {stride} and padding {pad} in all needs "
                f"({length} + {pad} - {k})/{stride} + 1 >= 1; use larger images{hint}"
            )


def _pair(value: Any) -> tuple[Any, Any]:
    """What Flax takes as one number for both axes, or none for 1, as two."""
    if value is None:
        return 1, 1
    return (value, value) if isinstance(value, int) else tuple(value)


def _both_ends(pad: int | tuple[int, int]) -> int:
    return 2 * pad if isinstance(pad, int) else sum(pad)
