"""Convolution layers."""

from typing import Any

import flax.linen as nn
import jax

from cnn_jax import ops
from cnn_jax.layers.initializers import Initializer
from cnn_jax.layers.sizes import check_fits, pair


class Conv(nn.Conv):
    """`flax.linen.Conv` with the fast gradient of `cnn_jax.ops`; the error for too small an image names the layer."""

    conv_general_dilated: Any = ops.conv_general_dilated

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H', W', F); raises UserError if the filter does not fit."""
        _check_fits(self, inputs)
        return super().__call__(inputs)


class LocallyConnected(nn.ConvLocal):
    """Convolution with unshared weights: each output position has its own filters (DeepFace 2014, §3.1).

    The kernel is (H', W', C·kh·kw, F), input channels slowest, and the bias (H', W', F), so the layer only accepts the
    input size it was initialised with. A `kernel_init` that scales by fan-in must exclude the two position axes, as the
    default does; otherwise the weights start far too small.
    """

    kernel_init: Initializer = nn.initializers.lecun_normal(batch_axis=(0, 1))

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H', W', F); raises UserError if the filter does not fit."""
        _check_fits(self, inputs)
        return super().__call__(inputs)


def _check_fits(conv: nn.Conv | nn.ConvLocal, inputs: jax.Array) -> None:
    dilated = ((k - 1) * d + 1 for k, d in zip(pair(conv.kernel_size), pair(conv.kernel_dilation), strict=True))
    rows, columns = dilated
    check_fits(conv, inputs.shape[1:3], (rows, columns), pair(conv.strides), conv.padding)
