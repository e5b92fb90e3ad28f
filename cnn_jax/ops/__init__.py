"""Convolution, pooling and batch normalisation: faster than XLA where it is slow, with its values and gradients."""

from cnn_jax.ops.conv import conv_general_dilated
from cnn_jax.ops.pool import avg_pool, max_pool

__all__ = ["avg_pool", "conv_general_dilated", "max_pool"]
