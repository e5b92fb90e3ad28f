"""A trained classifier as a fully convolutional network, which slides over larger images.

A dense layer on a flattened h×w×C map is an h×w convolution that fits the map exactly once; the dense layers after it
are 1×1 convolutions. The same numbers in the shape of filters give the same logits, and on a larger image a map of
logits, one vector for each position of the window, in one pass that shares all that the windows have in common
(Sermanet et al. 2013, "OverFeat", §3.5; Long, Shelhamer and Darrell 2014, "Fully convolutional networks for semantic
segmentation", §3.1). A head that pools each map over all positions pools over each window instead.

What the map equals:
- On images of the training size: the classifier's logits, at the one position there is.
- Without padding in the network: exactly the classifier on every crop whose corner lies a multiple of the total stride
  from the image's. The total stride is the product of the strides of all layers.
- With padding ("SAME"): not quite the crops, for a crop ends in zeros where a window goes on into the pixels around it.
  In the interior, where no padding reaches, the scores of a place depend on the pixels there alone: a part of an image
  gets the scores that the whole image gets at the same pixels.
- Layers that look at the whole image (squeeze-and-excitation) look at the whole larger image.
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
from cnn_jax.layers import GlobalPool, check_fits
from cnn_jax.layers.pooling import AdaptiveAvgPool

Path = tuple[str, ...]


class Convolutional(nn.Module):
    """A classifier whose head slides; `to_convolutional` makes it. Stages and other variables are the classifier's.

    Attributes:
        model: the classifier.
        input_shape: (H, W, C) of the images it was trained on, the smallest that it takes.
        entry: path of the layer where its head begins, a dense layer on a flattened map or a global pooling.
        window: rows and columns of the map which that layer sees in an image of `input_shape`.
        averaged: whether an `AdaptiveAvgPool` changes the maps of such images; then it takes no larger ones.
    """

    model: nn.Module
    input_shape: tuple[int, int, int]
    entry: Path
    window: tuple[int, int]
    averaged: bool = False

    def setup(self) -> None:
        """Gives the variables the names that they have in the classifier."""
        nn.share_scope(self, self.model)

    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits (B, H', W', K), float32; H' = W' = 1 for images of `input_shape`.

        Raises:
            UserError: smaller images, or a network that takes no larger ones.
        """
        height, width, channels = self.input_shape
        given = x_BxHxWxC.shape[1:]
        if x_BxHxWxC.ndim == 4 and (given[0] < height or given[1] < width or given[2] != channels):
            raise UserError(
                f"given images of {_size(given)}; expected at least {height}x{width} and {channels} channels, as "
                f"{type(self.model).__name__} was trained on; enlarge them"
            )
        averages = self.averaged if given != self.input_shape else None
        slide = _Slide(self.entry, self.window, root=self.path, map_shape=given, averages=averages)
        try:
            with nn.intercept_methods(slide):
                return self.model(x_BxHxWxC, train=train)  # type: ignore[operator]  # a module is called
        except errors.ScopeParamShapeError as error:
            raise UserError(
                f"given images of {_size(given)}; expected {_size(self.input_shape)}, since a layer has weights for "
                f"that size alone ({error}); evaluate crops one by one"
            ) from error


def to_convolutional(
    model: nn.Module, variables: Mapping[str, Any], image_shape: tuple[int, int, int]
) -> tuple[Convolutional, dict[str, Any]]:
    """Turns the dense layers of a classifier's head into convolutions.

    The head begins with the last flattening or the last global pooling (`layers.GlobalAvgPool`, `GlobalMaxPool`). Its
    `nn.Dense`s become convolutions; any other layer of it acts on each position by itself.

    Args:
        model: a classifier, called as model(x_BxHxWxC, train=…).
        variables: trained, as from `cnn_jax.load`.
        image_shape: (H, W, C) of the images that they were trained on.

    Returns:
        The convolutional network, whose logits have the shape (B, H', W', K), and its variables: the same numbers
        under the same names, the kernels of the head's dense layers in the shape (rows, columns, inputs, outputs).

    Raises:
        UserError: the variables are not of images of this shape, or the model has no such head.
    """
    height, width, channels = image_shape
    head = _find_head(model, variables, (height, width, channels))
    leaves: dict[Path, Any] = traverse_util.flatten_dict(variables)
    for path, shape in head.kernels.items():
        leaves["params", *path, "kernel"] = leaves["params", *path, "kernel"].reshape(shape)
    sliding = Convolutional(model, (height, width, channels), head.entry, head.window, head.averaged)
    return sliding, traverse_util.unflatten_dict(leaves)


def heat_map(model: Convolutional, variables: Mapping[str, Any], image_HxWxC: jax.Array) -> jax.Array:
    """Returns the probabilities of the classes at each position: (H', W', K), K numbers that sum to 1.

    Args:
        model: the module of `to_convolutional`.
        variables: its variables.
        image_HxWxC: one normalised image, at least as large as those of training.

    Raises:
        UserError: another model, or no such image.
    """
    if not isinstance(model, Convolutional):
        raise UserError(
            f"given a {type(model).__name__}; expected a convolutional network; call to_convolutional first"
        )
    if image_HxWxC.ndim != 3:
        raise UserError(f"given an image of shape {image_HxWxC.shape}; expected (height, width, channels); give one")
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
    """Watches the layers at work, on shapes alone: the head is what comes after the last map."""
    map_shape = image_shape
    entry: tuple[Path, tuple[int, int]] | None = None  # with the window
    kernels: dict[Path, tuple[int, ...]] = {}
    averaged = False
    problem = "no dense layer and no global pooling layer after its last map"

    def watch(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        nonlocal map_shape, entry, kernels, problem, averaged
        module, y = context.module, next_function(*args, **kwargs)
        if context.method_name != "__call__" or not module.path:
            return y
        averaged |= isinstance(module, AdaptiveAvgPool) and y.shape != args[0].shape
        if getattr(y, "ndim", 0) == 4:
            map_shape, entry, kernels = y.shape[1:], None, {}
        elif isinstance(module, GlobalPool):
            entry = module.path, args[0].shape[1:3]
        elif isinstance(module, nn.Dense):
            inputs = args[0].shape[-1]
            if entry is not None:
                kernels.setdefault(module.path, (1, 1, inputs, module.features))
            elif inputs == math.prod(map_shape):
                entry, kernels = (module.path, map_shape[:2]), {module.path: (*map_shape, module.features)}
            else:
                problem = _no_flattened_map(module, inputs, map_shape)
        return y

    def evaluate(variables: Any) -> Any:
        with nn.intercept_methods(watch):
            return model.apply(variables, jnp.zeros((1, *image_shape)), train=False)

    try:
        jax.eval_shape(evaluate, variables)
    except errors.FlaxError as error:
        raise UserError(
            f"given variables that do not fit images of {_size(image_shape)} ({error}); expected image_shape as in "
            f"training; give that"
        ) from error
    if entry is None:
        raise UserError(
            f"given a {type(model).__name__} with {problem}; expected a head of dense layers on a flattened map, or on "
            f"its GlobalAvgPool or GlobalMaxPool; take such a classifier"
        )
    return _Head(*entry, kernels, averaged)


class _Slide:
    """Interceptor of the calls of layers: from the head's first layer on, everything happens at each position.

    It remembers the shape of the last map (H, W, C), which flattening forgets. `averages` is None for images of the
    training size, and for others tells whether an `AdaptiveAvgPool` changes the maps of images of that size.
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
        """Larger maps as they are, if a window of them is what the head was trained on."""
        if self.averages:
            raise UserError(
                f"given larger images for a model that averages its maps to {module.size}x{module.size}; expected maps "
                "that grow with the image; make the model without head_map"
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
                f"given larger images for a model with {_no_flattened_map(module, x.shape[-1], self.map_shape)}; "
                f"expected a flattened map that grows with the image; make the model without head_map"
            )
        return _convolve(module, maps, self.window)

    def _unflatten(self, x: jax.Array) -> jax.Array:
        """A flattened map as a map again; anything else as it is."""
        flattened = x.ndim == 2 and x.shape[-1] == math.prod(self.map_shape)
        return x.reshape(len(x), *self.map_shape) if flattened else x


def _convolve(dense: nn.Dense, x: jax.Array, window: tuple[int, int]) -> jax.Array:
    """What the dense layer does at each position of (B, H, W, C) maps, or to (B, C) rows, with a kernel of filters."""
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


def _no_flattened_map(layer: nn.Module, inputs: int, map_shape: tuple[int, ...]) -> str:
    return f"a dense layer {'/'.join(layer.path)} on {inputs} numbers, not on the {_size(map_shape)} map before it"


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
