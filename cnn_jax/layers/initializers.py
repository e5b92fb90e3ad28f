"""Weight initialisers by name."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.errors import unknown

Initializer = Callable[..., jax.Array]


def dirac(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Returns a kernel (…, C, F) that copies channel i to channel i: 1 at the centre of filter i, 0 elsewhere.

    If F > C, the remaining outputs are 0 (Zagoruyko and Komodakis 2017, "DiracNets", §2, without its normalisation).
    """
    del key  # not random
    *size, inputs, outputs = shape
    centre = tuple(side // 2 for side in size)
    return jnp.zeros(shape, dtype).at[centre].set(jnp.eye(inputs, outputs, dtype=dtype))


def uniform_005(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    """Draws uniformly from [−0.05, 0.05) (Cireşan et al. 2010, "Deep, big, simple neural nets", §3).

    Flax's uniform(scale) draws from [0, scale).
    """
    return jax.random.uniform(key, shape, dtype, -0.05, 0.05)


INITIALIZERS: dict[str, Initializer] = {
    "zeros": nn.initializers.zeros,
    "normal_0.01": nn.initializers.normal(0.01),
    "normal_0.05": nn.initializers.normal(0.05),
    "uniform_0.05": uniform_005,
    # Xavier: Glorot and Bengio 2010, "Understanding the difficulty of training deep feedforward networks", eq. 16.
    "glorot_normal": nn.initializers.glorot_normal(),
    "glorot_uniform": nn.initializers.glorot_uniform(),
    # MSRA: He et al. 2015, "Delving deep into rectifiers", eq. 10. As in Keras, truncated at two standard deviations.
    "he_normal": nn.initializers.he_normal(),
    "he_uniform": nn.initializers.he_uniform(),
    # Eq. 14 of that paper, which preserves the gradient's variance; not truncated, like PyTorch's
    # kaiming_normal_(mode="fan_out").
    "he_normal_fan_out": nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
    # LeCun et al. 1998, "Efficient BackProp", eq. 16.
    "lecun_normal": nn.initializers.lecun_normal(),
    "lecun_uniform": nn.initializers.lecun_uniform(),
    "dirac": dirac,
}


def initializer(name: str, published: Initializer | None = None) -> Initializer:
    """Looks up a weight initialiser.

    Args:
        name: a key of `INITIALIZERS`; "published" as well if `published` is set.
        published: the initialiser of the layer's paper or reference implementation.

    Raises:
        UserError: unknown name.
    """
    known = INITIALIZERS if published is None else {**INITIALIZERS, "published": published}
    if name not in known:
        raise unknown("initializer", name, known)
    return known[name]
