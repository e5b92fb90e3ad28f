"""LeNet-5: LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning applied to document recognition", §II-B.

`lenet5` is the form used in textbooks and frameworks today: 61,706 parameters. C3 is connected to all six maps of S2
(the paper's only to some), pooling has no parameters, the activation can be chosen, the output is linear.

`lenet5_1998` is the paper's: 60,000 trainable parameters (C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164) and an
output layer of 84·K fixed ones. The published test error is 0.95 %, or 0.8 % with distorted training images.
Differences from the paper:
- The fixed output prototypes are random ±1 codes of 84 bits. The paper's are 7×12 drawings of the characters, which
  help with classes that look alike (O and 0).
- Weights start uniform with standard deviation 1/sqrt(fan-in) (LeCun et al. 1998, "Efficient BackProp", eq. 16); the
  paper's ±2.4/fan-in needs its second-order training. Sub-sampling starts as the mean.
- Logits are the negated output units, so that softmax cross-entropy is the paper's discriminative loss (eq. 9) without
  its constant `j`.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import ops
from cnn_jax.layers import POOLS, AvgPool, activation, check_fits, flatten, images, initializer, tap
from cnn_jax.models.base import Classifier, Entry

# Paper, table I: the maps of S2 connected to each of the sixteen maps of C3.
C3_TABLE = (
    *((0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (0, 4, 5), (0, 1, 5)),
    *((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (0, 3, 4, 5), (0, 1, 4, 5), (0, 1, 2, 5)),
    *((0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)),
)


def _first_padding(x_BxHxWxC: jax.Array) -> int:
    """Returns 2 for images below the paper's 32×32, which lack its margin of background, 0 for others."""
    return 2 if min(x_BxHxWxC.shape[1:3]) < 32 else 0


class LeNet5(Classifier):
    """LeNet-5 in its modern form.

    Attributes:
        pool: "max" or "average", 2×2.
        input_shape: 28×28 or 32×32 gives the published parameter count; any other size from 12×12 works.
    """

    pool: Literal["max", "average"] = "max"
    kernel_init: str = "lecun_normal"
    input_shape: tuple[int, int, int] = (28, 28, 1)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32."""
        del train  # training and evaluation are the same
        conv, dense = self.conv(), self.fully_connected()
        activate, pool = activation(self.activation), POOLS[self.pool]
        x = images(x_BxHxWxC, self.dtype)
        x = tap(self, "conv1", activate(conv(6, (5, 5), padding=_first_padding(x), name="conv1")(x)))
        x = tap(self, "pool1", pool(name="pool1")(x))
        x = tap(self, "conv2", activate(conv(16, (5, 5), padding="VALID", name="conv2")(x)))
        x = tap(self, "pool2", pool(name="pool2")(x))
        x = tap(self, "fc1", activate(dense(120, name="fc1")(flatten(x))))
        x = tap(self, "fc2", activate(dense(84, name="fc2")(x)))
        return self.head(x)


class SubSampling(nn.Module):
    """Mean over 2×2 windows, times a trainable coefficient, plus a trainable bias, one of each per map."""

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """(B, H, W, C) → (B, H/2, W/2, C)."""
        maps = x_BxHxWxC.shape[-1]
        coefficient = self.param("coefficient", nn.initializers.ones, (maps,), self.param_dtype).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (maps,), self.param_dtype).astype(self.dtype)
        mean = AvgPool(name="pool")(x_BxHxWxC)
        return mean * coefficient.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)


class PartialConv(nn.Module):
    """5×5 convolution whose output maps see only some input maps (`C3_TABLE`): 60 filters instead of 96.

    The kernel parameter (5, 5, 60) has only the connected filters; they are scattered into a dense kernel of zeros.

    Attributes:
        kernel_init: a key of `layers.INITIALIZERS`; or "published", see the module docstring.
        dtype: computation type.
        param_dtype: parameter type.
    """

    kernel_init: str = "published"
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BxHxWx6: jax.Array) -> jax.Array:
        """(B, H, W, 6) → (B, H-4, W-4, 16)."""
        check_fits(self, x_BxHxWx6.shape[1:3], (5, 5), (1, 1), "VALID")
        outputs = np.repeat(np.arange(16), [len(seen) for seen in C3_TABLE])
        inputs = np.concatenate(C3_TABLE)
        fan_in = np.array([25 * len(C3_TABLE[o]) for o in outputs])

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            limit = jnp.asarray(np.sqrt(3 / fan_in), dtype).reshape(1, 1, -1)
            return limit * jax.random.uniform(key, shape, dtype, -1, 1)

        def connected(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return initializer(self.kernel_init)(key, (5, 5, 6, 16), dtype)[:, :, inputs, outputs]

        init = uniform if self.kernel_init == "published" else connected
        filters = self.param("kernel", init, (5, 5, len(inputs)), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (16,), self.param_dtype).astype(self.dtype)
        kernel = jnp.zeros((5, 5, 6, 16), self.dtype).at[:, :, inputs, outputs].set(filters.astype(self.dtype))
        y = ops.conv_general_dilated(x_BxHxWx6, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + bias.reshape(1, 1, 1, -1)


class RbfOutput(nn.Module):
    """Euclidean radial basis units: the negated squared distance to each class's fixed ±1 code (paper, eq. 7)."""

    num_classes: int

    @nn.compact
    def __call__(self, x_BxD: jax.Array) -> jax.Array:
        """(B, 84) → (B, K), at most 0."""
        codes_KxD = jnp.asarray(prototypes(self.num_classes, x_BxD.shape[-1]), x_BxD.dtype)
        return -jnp.sum(jnp.square(x_BxD[:, None] - codes_KxD[None]), axis=-1)


def prototypes(num_classes: int, size: int = 84) -> np.ndarray:
    """Returns a (K, size) array of ±1, the same in every version of NumPy; a larger K only appends rows."""
    return np.where(np.random.RandomState(1998).random_sample((num_classes, size)) < 0.5, -1.0, 1.0).astype(np.float32)


class LeNet5Of1998(Classifier):
    """LeNet-5 as published, with an activation after every layer up to F6.

    Attributes:
        kernel_init: a key of `layers.INITIALIZERS` for every layer with a kernel; or "published", see the module
            docstring.
        input_shape: 28×28 or 32×32 gives the published parameter count; any other size from 12×12 works.
    """

    activation: str = "scaled_tanh"
    input_shape: tuple[int, int, int] = (32, 32, 1)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32, at most 0."""
        del train  # training and evaluation are the same
        published, types = initializer("lecun_uniform"), self.types
        conv, dense, activate = self.conv(published), self.fully_connected(published), activation(self.activation)
        x = images(x_BxHxWxC, self.dtype)
        c1 = conv(6, (5, 5), padding=_first_padding(x), name="c1")
        x = tap(self, "c1", activate(c1(x)))
        x = tap(self, "s2", activate(SubSampling(name="s2", **types)(x)))
        x = tap(self, "c3", activate(PartialConv(self.kernel_init, name="c3", **types)(x)))
        x = tap(self, "s4", activate(SubSampling(name="s4", **types)(x)))
        # A 5×5 convolution in the paper. On 5×5 maps a dense layer is equivalent, and it accepts other sizes too.
        x = tap(self, "c5", activate(dense(120, name="c5")(flatten(x))))
        x = tap(self, "f6", activate(dense(84, name="f6")(x)))
        return RbfOutput(self.num_classes, name="output")(x.astype(jnp.float32))


lenet5 = LeNet5
lenet5_1998 = LeNet5Of1998

MODELS = {
    "lenet5": Entry(lenet5, "LeCun et al. 1998, in today's form"),
    "lenet5_1998": Entry(lenet5_1998, "LeCun et al. 1998"),
}
