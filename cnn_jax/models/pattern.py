"""Plain networks from one line of text: INPUT → [[CONV → ReLU]·N → POOL?]·M → [FC → ReLU]·K → FC, the CS231n pattern.

    [[conv3-64]*2 pool]*3 [fc512]*1 fc10

The grammar is in `cnn_jax.models.pattern_parser`, with an explanation in docs/pattern.md.

Layers are named by kind and number: conv1, conv2, pool1, bn1, gap, fc1, drop1, and output for the classifier.
VGG-16 (Simonyan and Zisserman 2014, table 1, D; 138,357,544 parameters at 224×224×3) is

    [[conv3-64]*2 pool] [[conv3-128]*2 pool] [[conv3-256]*3 pool] [[conv3-512]*3 pool]*2 [fc4096 drop0.5]*2 fc1000
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cnn_jax.layers import POOLS, GlobalAvgPool, activation, flatten, images, tap
from cnn_jax.models.base import Entry, NormalizedClassifier
from cnn_jax.models.pattern_parser import (
    Convolution,
    Dense,
    Dropout,
    GlobalAverage,
    Layer,
    Normalization,
    Pooling,
    parse,
)

EXAMPLE = "[[conv3-64]*2 pool]*3 [fc512]*1 fc10"


class PatternNet(NormalizedClassifier):
    """The layers of a pattern in sequence; made by `from_pattern`.

    Attributes:
        layers: as returned by `parse`.
        num_classes: K; overrides the number in the classifier.
        activation: a key of `layers.ACTIVATIONS`, after each hidden convolution and dense layer.
        input_shape: usual (H, W, C), for tables and hints; any other that fits works.
    """

    layers: tuple[Layer, ...] = ()
    kernel_init: str = "he_normal"
    input_shape: tuple[int, int, int] | None = None

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, K), float32. With a drop layer, training draws from the rng stream "dropout"."""
        conv, dense, activate = self.conv(), self.fully_connected(), activation(self.activation)
        norm = self.norm(train)
        x = images(x_BxHxWxC, self.dtype)
        for i, (name, layer, normalized, activated) in enumerate(_plan(self.layers), start=1):
            weights: Any = {"use_bias": not normalized, "name": name}
            match layer:
                case Convolution(size, filters, stride, padding):
                    filters = self.num_classes if name == "output" else filters
                    x = conv(filters, (size, size), (stride, stride), padding=padding, **weights)(x)
                case Pooling(operation, size, stride):
                    x = POOLS[operation]((size, size), (stride, stride), name=name)(x)
                case GlobalAverage():
                    x = GlobalAvgPool(name=name)(x)
                case Dropout(rate):
                    x = nn.Dropout(rate, deterministic=not train, name=name)(x)
                case Normalization():
                    x = norm(name=name)(x)
                case Dense(units):
                    units = self.num_classes if name == "output" else units
                    x = dense(units, **weights)(flatten(x))
            x = activate(x) if activated else x
            if i < len(self.layers) and not isinstance(layer, Dropout):
                tap(self, name, x)
        return x.astype(jnp.float32)


def from_pattern(
    pattern: str = EXAMPLE,
    num_classes: int | None = None,
    *,
    activation: str = "relu",
    kernel_init: str = "he_normal",
    axis_name: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
) -> PatternNet:
    """Builds the network that a pattern describes; `cnn_jax.models.pattern_parser` has the grammar.

    Args:
        pattern: such as "[[conv3-64]*2 pool]*3 [fc512]*1 fc10".
        num_classes: K; default: the number in the pattern's classifier.
        activation, kernel_init, axis_name, input_shape, dtype, param_dtype: fields of `PatternNet`.

    Raises:
        UserError: the pattern is invalid; the message gives the character.

    >>> from_pattern("[conv5-6]*2 gap").layers[1:]
    (Convolution(size=5, filters=6, stride=1, padding='SAME'), GlobalAverage())
    """
    layers = parse(pattern)
    if input_shape is None and pattern == EXAMPLE:
        input_shape = (32, 32, 3)  # the example is for CIFAR-10; other patterns have no usual size
    return PatternNet(
        layers=layers,
        num_classes=_classes(layers) if num_classes is None else num_classes,
        activation=activation,
        kernel_init=kernel_init,
        axis_name=axis_name,
        input_shape=input_shape,
        dtype=dtype,
        param_dtype=param_dtype,
    )


def _plan(layers: Sequence[Layer]) -> list[tuple[str, Layer, bool, bool]]:
    """Returns (name, layer, whether a bn normalises it, whether the activation follows it) for each layer."""
    plan: list[tuple[str, Layer, bool, bool]] = []
    numbers: Counter[str] = Counter()
    classifier = max(i for i, layer in enumerate(layers) if isinstance(layer, Convolution | Dense))
    neighbours = zip((None, *layers), layers, (*layers[1:], None), strict=False)
    for i, (before, layer, after) in enumerate(neighbours):
        numbers[layer.kind] += 1
        name = "output" if i == classifier else "gap" if layer.kind == "gap" else f"{layer.kind}{numbers[layer.kind]}"
        if isinstance(layer, Convolution | Dense):
            normalized = isinstance(after, Normalization)
            activated = not normalized and i != classifier
        else:
            normalized = False
            activated = isinstance(layer, Normalization) and isinstance(before, Convolution | Dense)
        plan.append((name, layer, normalized, activated))
    return plan


def _classes(layers: Sequence[Layer]) -> int:
    match layers[-2:]:
        case (*_, Dense(units)):
            return units
        case (Convolution(filters=filters), GlobalAverage()):
            return filters
    raise TypeError("not the layers of a pattern")


MODELS = {
    "pattern": Entry(from_pattern, "any network of the lectures' pattern: --model-args pattern=…"),
}
