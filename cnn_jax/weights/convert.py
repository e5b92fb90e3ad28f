"""Converts weights between PyTorch's names and axis order and ours.

A family's naming (`cnn_jax/weights/names/FAMILY.py`) is a pure function from the path of our module, such as
"stage1_block1/conv1", to PyTorch's, such as "layer1.0.conv1". The leaves are the same for all families:

| ours | PyTorch's | order of the axes |
|---|---|---|
| kernel | weight | H, W, in, out ← out, in, H, W; in, out ← out, in |
| scale, bias | weight, bias | |
| mean, var | running_mean, running_var | |

For any other leaf (ConvNeXt's layer scale), the naming function gets the full path and returns the full name. PyTorch
flattens maps channels first, we flatten them channels last: `flattened_maps` finds the affected layers.
`num_batches_tracked` and `n_averaged`, which count steps, are dropped: nothing here needs them.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cnn_jax.errors import UserError
from cnn_jax.inspect.tracer import trace_layers
from cnn_jax.storage.weights_file import check_same_structure

Names = Callable[[str], str]
Map = tuple[int, int, int]  # (channels, height, width)

_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_COUNTER = r"(^|\.)(num_batches_tracked|n_averaged)$"


def from_torch(
    state: Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    names: Names,
    *,
    flattened: Mapping[str, Map] = {},
    ignore: Sequence[str] = (),
    given: str = "weights",
    wanted: str = "weights in PyTorch's form",
) -> dict[str, Any]:
    """Converts a PyTorch state dict.

    Args:
        state: arrays by PyTorch name; any floating type.
        like: our variables, or their shapes, such as `jax.eval_shape` of a model's `init`.
        names: maps our module paths to PyTorch's.
        flattened: our dense layers that read a flattened map, with its (C, H, W); see `flattened_maps`.
        ignore: regular expressions searched in PyTorch's names; matching arrays that the model lacks are skipped.
        given, wanted: names for `state` and `like` in messages.

    Returns:
        Nested dictionaries of NumPy arrays, with the names, shapes and types of `like`.

    Raises:
        UserError: the names or shapes differ, or a value is not finite in the model's dtype; one message lists all
            differences.
    """
    leaves = traverse_util.flatten_dict(dict(like), sep="/")
    wants = {name: path for path, name in _torch_names(leaves, names, given).items()}
    unused = [name for name in state if name not in wants and any(re.search(p, name) for p in (_COUNTER, *ignore))]
    have = {name: array for name, array in state.items() if name not in unused}
    form = {name: _torch_form(path, leaves[path], flattened) for name, path in wants.items()}
    # A dense layer may be stored as its equivalent convolution, or vice versa: the flattened values are the same.
    other = [n for n in form if n in have and _squeezed(have[n], form[n]) and have[n].ndim != form[n].ndim]
    form |= {n: jax.ShapeDtypeStruct(have[n].shape, form[n].dtype) for n in other}
    check_same_structure(have, form, given=given, wanted=wanted)
    arrays = {path: _ours(have[name], path, leaves[path], flattened) for name, path in wants.items()}
    return traverse_util.unflatten_dict(arrays, sep="/")


def to_torch(
    variables: Mapping[str, Any],
    names: Names,
    *,
    flattened: Mapping[str, Map] = {},
    convolutions: Sequence[str] = (),
    flat_scales: bool = False,
    given: str = "weights",
) -> dict[str, np.ndarray]:
    """Converts our variables to a PyTorch state dict: the inverse of `from_torch`.

    Dense layers become PyTorch's `Linear`, except `convolutions`. ConvNeXt's layer scales have the shape (C, 1, 1), or
    (C,) with `flat_scales`. The counters `num_batches_tracked` are omitted: `load_state_dict` starts
    them at 0, and they matter only with `momentum=None`.

    Raises:
        UserError: two arrays get the same name, as in a network deeper than the published one.
    """
    leaves = traverse_util.flatten_dict(dict(variables), sep="/")
    named = _torch_names(leaves, names, given)
    state = {path: _theirs(np.asarray(leaves[path]), path, flattened) for path in named}
    for path, array in state.items():
        module, _, leaf = path.partition("/")[2].rpartition("/")
        if leaf == "kernel" and module in convolutions:
            state[path] = array.reshape(len(array), *flattened.get(module, (array.shape[1], 1, 1)))
        if leaf == "layer_scale" and flat_scales:
            state[path] = array.reshape(-1)
    return {name: state[path] for path, name in named.items()}


def _torch_names(paths: Iterable[str], names: Names, given: str) -> dict[str, str]:
    """Maps each of our paths to PyTorch's name; names must be unique."""
    named = {path: torch_name(path, names) for path in paths}
    ours: dict[str, str] = {}
    for path, name in named.items():
        if (first := ours.setdefault(name, path)) != path:
            raise UserError(
                f"{first} and {path} of {given} get the same name {name}, because PyTorch's names cover only the "
                "published depth: set `names` to plain"
            )
    return named


def torch_name(path: str, names: Names) -> str:
    """Returns PyTorch's name of one of our arrays; `path` is such as "params/stage1_block1/conv1/kernel".

    >>> torch_name("params/fc/kernel", lambda module: f"head.{module}")
    'head.fc.weight'
    """
    inside = path.partition("/")[2]
    module, _, leaf = inside.rpartition("/")
    return f"{names(module)}.{_LEAVES[leaf]}" if leaf in _LEAVES else names(inside)


def flattened_maps(model: nn.Module, input_shape_HWC: tuple[int, int, int]) -> dict[str, Map]:
    """Finds the dense layers that read a flattened map, and the (C, H, W) of that map.

    >>> from cnn_jax.models import build
    >>> flattened_maps(build("lenet5", 10), (28, 28, 1))
    {'fc1': (16, 5, 5)}
    """
    last, found = input_shape_HWC, {}
    for call in trace_layers(model, input_shape_HWC):
        if issubclass(call.kind, nn.Dense) and call.input_shape == (1, math.prod(last)) and math.prod(last[:2]) > 1:
            found[call.name] = (last[2], last[0], last[1])
        if len(call.output_shape) == 4:
            last = call.output_shape[1:]
    return found


def _torch_form(path: str, leaf: Any, flattened: Mapping[str, Map]) -> Any:
    """Returns shape and dtype of `leaf` in PyTorch."""
    return jax.eval_shape(lambda: _theirs(jnp.zeros(leaf.shape, leaf.dtype), path, flattened))


def _theirs(array: Any, path: str, flattened: Mapping[str, Map]) -> Any:
    module, _, leaf = path.partition("/")[2].rpartition("/")
    if leaf == "layer_scale":  # torchvision's ConvNeXt scales channels-first maps
        return array.reshape(-1, 1, 1)
    if leaf != "kernel":
        return array
    if module in flattened:
        c, h, w = flattened[module]
        return array.reshape(h, w, c, -1).transpose(3, 2, 0, 1).reshape(-1, c * h * w)
    *spatial, inputs, outputs = range(array.ndim)
    return array.transpose(outputs, inputs, *spatial)


def _ours(array: np.ndarray, path: str, leaf: Any, flattened: Mapping[str, Map]) -> np.ndarray:
    module, _, name = path.partition("/")[2].rpartition("/")
    if name == "kernel":
        if module in flattened and array.ndim == 2:
            array = array.reshape(-1, *flattened[module])
        outputs, inputs, *spatial = range(array.ndim)
        array = array.transpose(*spatial, inputs, outputs)
    return np.asarray(array.reshape(leaf.shape), leaf.dtype, order="C")


def _squeezed(a: Any, b: Any) -> bool:
    """Whether two kernels have equally many values per output, whatever their shapes."""
    return a.ndim > 0 and a.shape[:1] == b.shape[:1] and math.prod(a.shape) == math.prod(b.shape)
