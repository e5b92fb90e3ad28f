"""The network of the CIFAR-10 speed records: Jordan 2024, "94% on CIFAR-10 in 3.29 seconds on a single GPU", and later.

A frozen 2×2 whitening convolution with a trained bias, GELU, three groups (convolution, 2×2 max pooling, norm, GELU;
then convolution, norm, GELU), 3×3 max pooling, a linear layer without bias, logits divided by 9 (the paper's appendix A
and released code). Published mean accuracies with that code's recipes, on an A100:

    name              group widths     depth   trainable    accuracy   time
    speednet94        64 256 256       2       1,971,352    94.01 %    3.83 s
    speednet94_muon   64 256 256       2       1,971,352    94.01 %    2.59 s    other initialisation, logits / 256
    speednet95        128 384 384      2       4,604,440    95.01 %    10.4 s
    speednet96        128 384 512      3       9,915,416    96.03 %    34.7 s    the third convolution is residual

The 288 whitening weights are in the collection "batch_stats", not among the parameters: they are data statistics, no
optimizer touches them, and they are saved with the rest. `model.init` fills in a random rotation, which is correct for
white noise; `whitened(variables, images)` replaces it by the filters for the data, before training:

    variables = whitened(model.init(key, images[:1], train=False), images[:5000])

Initialised as in the released code: convolutions uniform within ±1/sqrt(fan-in), with the first filters, one per input
channel (in most layers all of them), set to the identity; the scale of the norms is fixed at 1.

Differences from the released code:
- The running variance averages uncorrected batch variances, without the factor n/(n - 1), where n exceeds 9,000.
- The last pooling takes the maximum of the whole map (3×3 for 32×32 images), so that images of any size work.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax import ops
from cnn_jax.errors import UserError
from cnn_jax.layers import (
    ACTIVATIONS,
    GlobalMaxPool,
    Initializer,
    MaxPool,
    activation,
    check_fits,
    dirac,
    images,
    tap,
)
from cnn_jax.models.base import Entry, NormalizedClassifier

_uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # ±1/sqrt(fan-in)
_SIDE = 2  # of the whitening filters, in pixels


def whitening(images_BxHxWxC: jax.Array, epsilon: float = 5e-4) -> jax.Array:
    """Returns filters that whiten 2×2 patches: uncorrelated outputs with second moment 1 (paper, §3.2).

    They are the eigenvectors of the patches' second moments (means are not subtracted), each divided by the square root
    of its eigenvalue.

    Args:
        images_BxHxWxC: normalized images to take the statistics from; the records use the first 5,000.
        epsilon: added to the eigenvalues, so that noise is not amplified.

    Returns:
        Kernel (2, 2, C, 8·C), float32: 4·C filters, largest eigenvalue first, followed by their negatives.
    """
    x, channels = images_BxHxWxC.astype(jnp.float32), images_BxHxWxC.shape[-1]
    height, width = x.shape[1] - _SIDE + 1, x.shape[2] - _SIDE + 1
    corners = [x[:, i : i + height, j : j + width] for i in range(_SIDE) for j in range(_SIDE)]
    patches_NxD = jnp.concatenate(corners, axis=-1).reshape(-1, len(corners) * channels)
    moments_DxD = jnp.matmul(patches_NxD.T, patches_NxD, precision="highest") / len(patches_NxD)
    eigenvalues_D, eigenvectors_DxD = jnp.linalg.eigh(moments_DxD)
    filters_DxD = (eigenvectors_DxD / jnp.sqrt(eigenvalues_D + epsilon).reshape(1, -1))[:, ::-1]
    return _with_negatives(filters_DxD).reshape(_SIDE, _SIDE, channels, -1)


def whitened(variables: Mapping[str, Any], images_BxHxWxC: jax.Array) -> dict[str, Any]:
    """Returns a SpeedNet's variables with the whitening filters of these normalized images (see `whitening`).

    Raises:
        UserError: the variables are not a SpeedNet's, or the images have a different number of channels.
    """
    statistics = variables.get("batch_stats", {})
    old = statistics.get("whiten", {}).get("kernel")
    if old is None:
        raise UserError("the variables have no whitening filters: pass variables of a SpeedNet")
    if old.shape[2] != images_BxHxWxC.shape[-1]:
        raise UserError(
            f"images of shape {images_BxHxWxC.shape} cannot whiten this model: pass images with {old.shape[2]} channels"
        )
    kernel = whitening(images_BxHxWxC).astype(old.dtype)
    return {**variables, "batch_stats": {**statistics, "whiten": {"kernel": kernel}}}


def _with_negatives(filters_DxF: jax.Array) -> jax.Array:
    return jnp.concatenate([filters_DxF, -filters_DxF], axis=1)


def partial_dirac(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns a kernel (h, w, C, F): the first C filters copy their channel, others are uniform in ±1/sqrt(h·w·C)."""
    copies = jnp.arange(shape[-1]) < shape[-2]
    return jnp.where(copies.reshape(1, 1, 1, -1), dirac(key, shape, dtype), _uniform_fan_in(key, shape, dtype))


def _uniform(limit: float) -> Initializer:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)


def _unit_deviation(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    kernel = _uniform_fan_in(key, shape, dtype)
    return kernel / jnp.std(kernel, ddof=1)


class Whitening(nn.Module):
    """2×2 convolution with a bias and fixed filters, which are in the collection "batch_stats".

    Attributes:
        bias_limit: the bias starts uniform within ± this.
        train_bias: whether the bias gets a gradient.
        dtype: computation type.
        param_dtype: type of the filters and the bias.
    """

    bias_limit: float
    train_bias: bool
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H-1, W-1, 8·C)."""
        check_fits(self, x_BxHxWxC.shape[1:3], (_SIDE, _SIDE), (1, 1), "VALID")
        channels = x_BxHxWxC.shape[-1]

        def rotation() -> jax.Array:
            size = _SIDE * _SIDE * channels
            square = nn.initializers.orthogonal()(self.make_rng("params"), (size, size), self.param_dtype)
            return _with_negatives(square).reshape(_SIDE, _SIDE, channels, -1)

        kernel: Any = self.variable("batch_stats", "kernel", rotation).value
        bias = self.param("bias", _uniform(self.bias_limit), (kernel.shape[-1],), self.param_dtype)
        bias = bias if self.train_bias else jax.lax.stop_gradient(bias)
        y = ops.conv_general_dilated(
            x_BxHxWxC,
            jax.lax.stop_gradient(kernel).astype(self.dtype),
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + bias.astype(self.dtype).reshape(1, 1, 1, -1)


class Group(nn.Module):
    """Convolution, 2×2 max pooling, norm, activation; then `depth` - 1 times convolution, norm, activation.

    Attributes:
        features: filters of each convolution.
        depth: number of convolutions.
        residual: whether to add the output of the first activation before the last one.
        activation: a key of `layers.ACTIVATIONS`.
        conv: convolution factory.
        norm: batch normalisation factory.
    """

    features: int
    depth: int
    residual: bool
    activation: str
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H/2, W/2, features)."""
        act = activation(self.activation)
        x = MaxPool(name="pool")(self.conv(self.features, name="conv1")(x_BxHxWxC))
        x = first = act(self.norm(name="bn1")(x))
        for i in range(2, self.depth + 1):
            x = self.norm(name=f"bn{i}")(self.conv(self.features, name=f"conv{i}")(x))
            x = act(x + first if self.residual and i == self.depth else x)
        return x


class SpeedNet(NormalizedClassifier):
    """Whitening, GELU, groups, global max pooling, linear classifier.

    Attributes:
        widths: filters of each group; each group halves the maps.
        depth: convolutions of each group.
        residual: see `Group`.
        activation: a key of `layers.ACTIVATIONS`, within the groups; after the whitening it is always the exact GELU.
        kernel_init: a key of `layers.INITIALIZERS` for every layer but the whitening; or "published", see the module
            docstring.
        logit_scale: factor of the logits.
        momentum: momentum of the running means and variances: running = momentum·running + (1 - momentum)·batch.
        unit_output: start the classifier's weights with standard deviation 1, not uniform within ±1/sqrt(fan-in).
        whitening_bias: the whitening's bias starts uniform within ± this.
        train_whitening_bias: whether that bias gets a gradient. The records freeze it after the first epochs, by
            `model.clone(train_whitening_bias=False)`, which saves the gradient of the largest maps.
        input_shape: (H, W, C) of the records; any other from 17×17 works.
    """

    widths: tuple[int, ...] = (64, 256, 256)
    depth: int = 2
    residual: bool = False
    activation: str = "gelu"
    logit_scale: float = 1 / 9
    momentum: float = 0.6
    unit_output: bool = False
    whitening_bias: float = 0.0
    train_whitening_bias: bool = True

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. Training updates the collection "batch_stats"."""
        conv = self.conv(partial_dirac, kernel_size=(3, 3), padding=((1, 1), (1, 1)), use_bias=False)
        norm = self.norm(train, momentum=self.momentum, epsilon=1e-12, use_scale=False)
        x = images(x_BxHxWxC, self.dtype)
        x = Whitening(self.whitening_bias, self.train_whitening_bias, name="whiten", **self.types)(x)
        x = tap(self, "whiten", ACTIVATIONS["gelu"](x))
        for g, width in enumerate(self.widths, start=1):
            group = Group(width, self.depth, self.residual, self.activation, conv, norm, name=f"group{g}")
            x = tap(self, f"group{g}", group(x))
        x = tap(self, "pool", GlobalMaxPool(name="pool")(x))
        published = _unit_deviation if self.unit_output else _uniform_fan_in
        return self.logit_scale * self.head(x, published, use_bias=False)


speednet94 = SpeedNet
speednet94_muon = partial(SpeedNet, logit_scale=1 / 256, unit_output=True, whitening_bias=1 / math.sqrt(12))
speednet95 = partial(SpeedNet, widths=(128, 384, 384))
speednet96 = partial(SpeedNet, widths=(128, 384, 512), depth=3, residual=True, momentum=0.9)

MODELS = {
    "speednet94": Entry(speednet94, "Jordan 2024, CIFAR-10 speed records"),
    "speednet94_muon": Entry(speednet94_muon, "Jordan 2024, CIFAR-10 speed records"),
    "speednet95": Entry(speednet95, "Jordan 2024, CIFAR-10 speed records"),
    "speednet96": Entry(speednet96, "Jordan 2024, CIFAR-10 speed records"),
}
