"""Turns a trained classifier into a fully convolutional network that slides over larger images.

A dense layer on a flattened h×w×C map is an h×w convolution that fits the map exactly once; the dense layers after it
are 1×1 convolutions. The same weights, reshaped to filters, give the same logits, and on a larger image a map of
logits, one vector per window position, in a single pass that shares the computation of overlapping windows
(Sermanet et al. 2013, "OverFeat", §3.5; Long, Shelhamer and Darrell 2014, "Fully convolutional networks for semantic
segmentation", §3.1). A head with global pooling pools over each window instead.

How the map relates to the classifier:
- On images of the training size: the same logits, at a single position.
- Network without padding: each position equals the classifier on the crop at that multiple of the total stride (the
  product of all layers' strides).
- Network with padding ("SAME"): close to the crops but not equal, since a crop is padded with zeros where the larger
  image has real pixels. In the interior, out of reach of the padding, the map depends on the pixels alone.
- Layers that use the whole image (squeeze-and-excitation) use the whole larger image.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import errors, traverse_util
from flax.linen.dtypes import promote_dtype

from cnn_jax import ops
from cnn_jax.errors import UserError
from cnn_jax.inspect.tracer import trace_layers
from cnn_jax.layers import GlobalPool, check_fits
from cnn_jax.layers.pooling import AdaptiveAvgPool

Path = tuple[str, ...]


class Convolutional(nn.Module):
    """A classifier whose head slides, made by `to_convolutional`. Its other variables and taps are the classifier's.

    Attributes:
        model: the classifier.
        input_shape: (H, W, C) of the images it was trained on, the smallest that it takes.
        entry: path of the head's first layer: a dense layer on a flattened map, or a global pooling layer.
        window: height and width of that layer's input map for an image of `input_shape`.
        averaged: whether an `AdaptiveAvgPool` resizes the maps of such images; if so, larger images are refused.
    """

    model: nn.Module
    input_shape: tuple[int, int, int]
    entry: Path
    window: tuple[int, int]
    averaged: bool = False

    def setup(self) -> None:
        """Keeps the classifier's variable names."""
        nn.share_scope(self, self.model)

    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, H', W', K), float32; H' = W' = 1 for images of `input_shape`.

        Raises:
            UserError: the images are smaller, or the network cannot take larger ones.
        """
        height, width, channels = self.input_shape
        given = x_BxHxWxC.shape[1:]
        if x_BxHxWxC.ndim == 4 and (given[0] < height or given[1] < width or given[2] != channels):
            raise UserError(
                f"images are {_size(given)}, but {type(self.model).__name__} was trained on {height}x{width} with "
                f"{channels} channels: pass images at least that large"
            )
        averages = self.averaged if given != self.input_shape else None
        slide = _Slide(self.entry, self.window, root=self.path, map_shape=given, averages=averages)
        try:
            with nn.intercept_methods(slide):
                return self.model(x_BxHxWxC, train=train)  # type: ignore[operator]  # a module is called
        except errors.ScopeParamShapeError as error:
            raise UserError(
                f"images are {_size(given)}, but a layer has weights for {_size(self.input_shape)} only ({error}): "
                f"evaluate crops one by one"
            ) from error


def to_convolutional(
    model: nn.Module, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> tuple[Convolutional, dict[str, Any]]:
    """Turns the dense layers of a classifier's head into convolutions of the same weights.

    The head begins with the last flattening or the last global pooling (`layers.GlobalAvgPool`, `GlobalMaxPool`). Its
    `nn.Dense`s become convolutions; its other layers act on each position separately.

    Args:
        model: a classifier, called as model(x_BxHxWxC, train=…).
        variables: trained, as from `cnn_jax.load`.
        image_shape: (H, W, C) of the training images.

    Returns:
        The convolutional network, whose logits are (B, H', W', K), and its variables: the same values and names, with
        the kernels of the head's dense layers reshaped to (rows, columns, inputs, outputs).

    Raises:
        UserError: the variables do not fit images of this shape, or the model has no such head.
    """
    height, width, channels = image_shape
    head = _find_head(model, variables, (height, width, channels))
    leaves: dict[Path, Any] = traverse_util.flatten_dict(variables)
    for path, shape in head.kernels.items():
        leaves["params", *path, "kernel"] = leaves["params", *path, "kernel"].reshape(shape)
    sliding = Convolutional(model, (height, width, channels), head.entry, head.window, head.averaged)
    return sliding, traverse_util.unflatten_dict(leaves)


def heat_map(model: Convolutional, variables: Mapping[str, Any], image_HxWxC: jax.Array) -> jax.Array:
    """Returns class probabilities at each position, (H', W', K), float32; each K sum to 1.

    Args:
        model: from `to_convolutional`.
        variables: its variables.
        image_HxWxC: one normalized image, at least as large as in training.

    Raises:
        UserError: the model is not convolutional, or the image has another rank.
    """
    if not isinstance(model, Convolutional):
        raise UserError(f"{type(model).__name__} is not a converted network: call to_convolutional first")
    if image_HxWxC.ndim != 3:
        raise UserError(f"the image has shape {image_HxWxC.shape}: pass (height, width, channels)")
    return _probabilities(model, variables, jnp.asarray(image_HxWxC))


@partial(jax.jit, static_argnames="model")
def _probabilities(model: Convolutional, variables: Mapping[str, Any], image_HxWxC: jax.Array) -> jax.Array:
    logits: Any = model.apply(variables, image_HxWxC[None], train=False)
    return jax.nn.softmax(logits[0], axis=-1)


class _Head(NamedTuple):
    entry: Path
    window: tuple[int, int]
    kernels: dict[Path, tuple[int, ...]]  # shapes as convolutions
    averaged: bool


def _find_head(model: nn.Module, variables: Mapping[str, Any], image_shape: tuple[int, int, int]) -> _Head:
    """Finds where the head begins: after the last map."""
    map_shape = image_shape
    entry: tuple[Path, tuple[int, int]] | None = None  # with the window
    kernels: dict[Path, tuple[int, ...]] = {}
    averaged = False
    no_head = "no dense layer and no global pooling layer after its last map"
    problem = ""  # of the layers after the last map
    try:
        calls = trace_layers(model, image_shape, variables)
    except errors.FlaxError as error:
        raise UserError(
            f"the variables do not fit images of {_size(image_shape)} ({error}): pass the image_shape of training"
        ) from error
    for call in calls:
        averaged |= issubclass(call.kind, AdaptiveAvgPool) and call.output_shape != call.input_shape
        if len(call.output_shape) == 4:
            map_shape, entry, kernels, problem = call.output_shape[1:], None, {}, ""
        elif issubclass(call.kind, GlobalPool):
            entry = call.path, (call.input_shape[1], call.input_shape[2])
        elif issubclass(call.kind, nn.Dense):
            inputs, features = call.input_shape[-1], call.output_shape[-1]
            if entry is not None:
                kernels.setdefault(call.path, (1, 1, inputs, features))
            elif inputs == math.prod(map_shape):
                entry, kernels = (call.path, (map_shape[0], map_shape[1])), {call.path: (*map_shape, features)}
            else:
                problem = _no_flattened_map(call.path, inputs, map_shape)
    if entry is None or problem:  # both: the head reads several maps
        raise UserError(
            f"{type(model).__name__} has {problem or no_head}: pass a classifier whose head is dense layers on a "
            f"flattened map, or on a GlobalAvgPool or GlobalMaxPool"
        )
    return _Head(*entry, kernels, averaged)


class _Slide:
    """Interceptor that replaces the head's layers: from the first one on, each position is computed separately.

    It keeps the shape of the last map (H, W, C), which flattening loses. `averages` is None for images of the training
    size; for others it says whether an `AdaptiveAvgPool` resizes the maps of training images.
    """

    def __init__(
        self, entry: Path, window: tuple[int, int], root: Path, map_shape: tuple[int, ...], averages: bool | None
    ):
        self.entry, self.window, self.root, self.map_shape = entry, window, root, map_shape
        self.averages = averages
        self.inside = False

    def __call__(self, next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, path = context.module, context.module.path[len(self.root) :]
        if context.method_name != "__call__" or not path:
            return next_function(*args, **kwargs)
        if path == self.entry:
            self.inside = True
            y = self._enter(module, args[0])
        elif isinstance(module, AdaptiveAvgPool) and self.averages is not None:
            y = self._unaveraged(module, args[0])
        elif self.inside and isinstance(module, nn.Dense):
            y = _convolve(module, self._unflatten(args[0]), (1, 1))
        elif self.inside and args and getattr(args[0], "ndim", 0) == 4:
            rows = next_function(args[0].reshape(-1, args[0].shape[-1]), *args[1:], **kwargs)
            y = rows.reshape(*args[0].shape[:3], -1)
        else:
            y = next_function(*args, **kwargs)
        if getattr(y, "ndim", 0) == 4:
            self.map_shape = y.shape[1:]
        return y

    def _unaveraged(self, module: AdaptiveAvgPool, x: jax.Array) -> jax.Array:
        """Returns larger maps unchanged, if the pooling was the identity on training-size maps."""
        if self.averages:
            raise UserError(
                f"the model averages its maps to {module.size}x{module.size}, so they do not grow with the image: "
                "build it without head_map"
            )
        return x

    def _enter(self, module: Any, x: jax.Array) -> jax.Array:
        """(B, H, W, C) or, flattened, (B, H·W·C) → (B, H', W', C')."""
        if isinstance(module, GlobalPool):
            check_fits(module, x.shape[1:3], self.window, (1, 1), "VALID")
            return module.slide(x, self.window)
        maps = self._unflatten(x)
        if maps.ndim != 4:
            raise UserError(
                f"the model has {_no_flattened_map(module.path, x.shape[-1], self.map_shape)}, so its input does not "
                f"grow with the image: build it without head_map"
            )
        return _convolve(module, maps, self.window)

    def _unflatten(self, x: jax.Array) -> jax.Array:
        """Restores a flattened map; returns anything else unchanged."""
        flattened = x.ndim == 2 and x.shape[-1] == math.prod(self.map_shape)
        return x.reshape(len(x), *self.map_shape) if flattened else x


def _convolve(dense: nn.Dense, x: jax.Array, window: tuple[int, int]) -> jax.Array:
    """Applies a dense layer, its kernel shaped as filters, at each position of (B, H, W, C) maps or to (B, C) rows."""
    maps = x.reshape(len(x), 1, 1, -1) if x.ndim == 2 else x
    check_fits(dense, maps.shape[1:3], window, (1, 1), "VALID")
    shape = (*window, x.shape[-1], dense.features)
    kernel = dense.param("kernel", dense.kernel_init, shape, dense.param_dtype)
    bias = dense.param("bias", dense.bias_init, shape[-1:], dense.param_dtype) if dense.use_bias else None
    maps, kernel, bias = promote_dtype(maps, kernel, bias, dtype=dense.dtype)
    y = ops.conv_general_dilated(
        maps, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision=dense.precision
    )
    y = y if bias is None else y + bias.reshape(1, 1, 1, -1)
    return y.reshape(len(x), -1) if x.ndim == 2 else y


def _no_flattened_map(path: Path, inputs: int, map_shape: tuple[int, ...]) -> str:
    return f"a dense layer {'/'.join(path)} on {inputs} numbers, not on the {_size(map_shape)} map before it"


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
