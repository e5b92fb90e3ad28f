"""Activation functions by name."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import unknown

Activation = Callable[[jax.Array], jax.Array]


def hard_sigmoid(x: jax.Array) -> jax.Array:
    """Computes the piecewise linear sigmoid max(0, min(1, 0.2·x + 0.5)), as in Keras; Flax's has slope 1/6."""
    return jnp.clip(0.2 * x + 0.5, 0, 1)


def scaled_tanh(x: jax.Array) -> jax.Array:
    """Computes 1.7159·tanh(2x/3), so that f(±1) = ±1, where it curves most (LeCun et al. 1998, LeNet-5, app. A)."""
    return 1.7159 * jnp.tanh(2 / 3 * x)


def linear(x: jax.Array) -> jax.Array:
    """Returns `x` unchanged."""
    return x


ACTIVATIONS: dict[str, Activation] = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "tanh": jnp.tanh,
    "sigmoid": nn.sigmoid,
    "softplus": nn.softplus,
    "softsign": nn.soft_sign,
    "hard_sigmoid": hard_sigmoid,
    "linear": linear,
    "softmax": nn.softmax,
    # Hendrycks and Gimpel 2016, "Gaussian error linear units": x·Φ(x), and the approximation from their §2.
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": partial(nn.gelu, approximate=True),
    # x·sigmoid(x), also called swish: Ramachandran, Zoph and Le 2017, "Searching for activation functions".
    "silu": nn.silu,
    # x·relu6(x + 3)/6: Howard et al. 2019, "Searching for MobileNetV3", §5.2.
    "hard_swish": nn.hard_swish,
    "scaled_tanh": scaled_tanh,
}


def activation(name: str) -> Activation:
    """Looks up an activation in `ACTIVATIONS`.

    >>> activation("relu")(jnp.array([-1.0, 2.0])).tolist()
    [0.0, 2.0]

    Raises:
        UserError: unknown name.
    """
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
