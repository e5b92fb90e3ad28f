"""Convolutions."""

from typing import Any

import flax.linen as nn
import jax

from cnn_jax import ops
from cnn_jax.layers.initializers import Initializer
from cnn_jax.layers.sizes import check_fits, pair


class Conv(nn.Conv):
    """`flax.linen.Conv` with the fast gradient of `cnn_jax.ops`; it names itself when an image is too small for it."""

    conv_general_dilated: Any = ops.conv_general_dilated

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Convolves (B, H, W, C) maps; raises UserError if the filter does not fit into them."""
        _check_fits(self, inputs)
        return super().__call__(inputs)


class LocallyConnected(nn.ConvLocal):
    """Convolution whose weights are not shared: every output position has filters of its own (DeepFace 2014, §3.1).

    The kernel is (H', W', C·kh·kw, F), input maps slowest, and the bias (H', W', F): the layer takes maps of the size
    that it was initialised for only. A `kernel_init` that scales by the fan-in must leave out the two axes of
    positions, as the default does; otherwise the weights start far too small.
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
