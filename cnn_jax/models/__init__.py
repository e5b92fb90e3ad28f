"""The networks by name. `python -m cnn_jax models` lists them; `python -m cnn_jax models NAME` prints one's layers."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from cnn_jax.arguments import parse_arguments
from cnn_jax.errors import UserError, unknown
from cnn_jax.models import (
    alexnet,
    all_cnn,
    convnext,
    densenet,
    efficientnet,
    googlenet,
    inception_bn,
    inception_v3,
    lenet,
    linear,
    mobilenet,
    pattern,
    preact_resnet,
    resnet,
    small,
    speednet,
    vgg,
    zfnet,
)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "softmax_regression": linear.softmax_regression,
    "mlp": linear.mlp,
    "mlp_500_500": linear.mlp_500_500,
    "lenet5": lenet.lenet5,
    "lenet5_1998": lenet.lenet5_1998,
    "mnist_cnn": small.mnist_cnn,
    "tf_cnn": small.tf_cnn,
    "keras_cifar_cnn": small.keras_cifar_cnn,
    "kaggle_lenet": small.kaggle_lenet,
    "xo_cnn": small.xo_cnn,
    "resnet20": resnet.resnet20,
    "resnet32": resnet.resnet32,
    "resnet44": resnet.resnet44,
    "resnet56": resnet.resnet56,
    "resnet110": resnet.resnet110,
    "resnet18": resnet.resnet18,
    "resnet34": resnet.resnet34,
    "resnet50": resnet.resnet50,
    "resnet101": resnet.resnet101,
    "resnet152": resnet.resnet152,
    "resnext50_32x4d": resnet.resnext50_32x4d,
    "resnext101_32x8d": resnet.resnext101_32x8d,
    "wide_resnet50_2": resnet.wide_resnet50_2,
    "wide_resnet101_2": resnet.wide_resnet101_2,
    "preact_resnet110": preact_resnet.preact_resnet110,
    "preact_resnet164": preact_resnet.preact_resnet164,
    "preact_resnet1001": preact_resnet.preact_resnet1001,
    "preact_resnet18": preact_resnet.preact_resnet18,
    "preact_resnet50": preact_resnet.preact_resnet50,
    "wrn16_4": preact_resnet.wrn16_4,
    "wrn28_10": preact_resnet.wrn28_10,
    "wrn40_2": preact_resnet.wrn40_2,
    "alexnet": alexnet.alexnet,
    "alexnet_ungrouped": alexnet.alexnet_ungrouped,
    "alexnet_one_tower": alexnet.alexnet_one_tower,
    "alexnet_no_fc7": alexnet.alexnet_no_fc7,
    "alexnet_no_fc6_fc7": alexnet.alexnet_no_fc6_fc7,
    "alexnet_no_conv3_conv4": alexnet.alexnet_no_conv3_conv4,
    "alexnet_no_conv3_conv4_fc6_fc7": alexnet.alexnet_no_conv3_conv4_fc6_fc7,
    "zfnet": zfnet.zfnet,
    "vgg11": vgg.vgg11,
    "vgg13": vgg.vgg13,
    "vgg16": vgg.vgg16,
    "vgg19": vgg.vgg19,
    "vgg11_bn": vgg.vgg11_bn,
    "vgg13_bn": vgg.vgg13_bn,
    "vgg16_bn": vgg.vgg16_bn,
    "vgg19_bn": vgg.vgg19_bn,
    "all_cnn_a": all_cnn.all_cnn_a,
    "all_cnn_b": all_cnn.all_cnn_b,
    "all_cnn_c": all_cnn.all_cnn_c,
    "googlenet": googlenet.googlenet,
    "googlenet_torchvision": googlenet.googlenet_torchvision,
    "bn_inception": inception_bn.bn_inception,
    "inception_v3": inception_v3.inception_v3,
    "densenet121": densenet.densenet121,
    "densenet161": densenet.densenet161,
    "densenet169": densenet.densenet169,
    "densenet201": densenet.densenet201,
    "densenet_bc100": densenet.densenet_bc100,
    "mobilenet_v2": mobilenet.mobilenet_v2,
    "efficientnet_b0": efficientnet.efficientnet_b0,
    "convnext_tiny": convnext.convnext_tiny,
    "convnext_small": convnext.convnext_small,
    "convnext_base": convnext.convnext_base,
    "speednet94": speednet.speednet94,
    "speednet94_muon": speednet.speednet94_muon,
    "speednet95": speednet.speednet95,
    "speednet96": speednet.speednet96,
    "pattern": pattern.from_pattern,
}

# Set by `build`'s own parameters or by Flax; all other fields of a model are its arguments.
_HIDDEN = ("num_classes", "input_shape", "axis_name", "dtype", "param_dtype", "parent", "name")


def build(
    name: str,
    num_classes: int | None = None,
    *,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    args: Sequence[str] = (),
) -> nn.Module:
    """Makes a model.

    Args:
        name: a key of `MODELS`.
        num_classes: K, at least 1; default: the published number.
        dtype: of the computation; parameters and logits are float32 in any case.
        axis_name: `pmap` axis over which batch normalisation takes its statistics; ignored by models without.
        args: the model's other fields, each "key=value", such as "shortcut=B"; parts of a tuple are separated by "/".

    Raises:
        UserError: an unknown name or argument, or a value of the wrong type or out of range.

    >>> build("lenet5", 10, args=["activation=tanh"]).activation
    'tanh'
    """
    if name not in MODELS:
        raise unknown("model", name, MODELS)
    if num_classes is not None and num_classes < 1:
        raise UserError(f"given {num_classes} classes for {name}; expected at least 1; change it")
    factory = MODELS[name]
    fields = inspect.signature(factory).parameters
    values = parse_arguments(name, factory, args, hidden=_HIDDEN)
    for key, value in values.items():
        _check_range(name, key, value, fields[key].default)
    if num_classes is not None:
        values["num_classes"] = num_classes
    if "axis_name" in fields:
        values["axis_name"] = axis_name
    return factory(dtype=dtype, **values)


def _check_range(model: str, key: str, value: Any, default: Any) -> None:
    """Refuses sizes and counts below 1 (or 0, where that is the default), and shares to drop that are not in [0, 1)."""
    parts = value if isinstance(value, tuple) else (value,)
    given = "/".join(map(str, parts))
    for part in parts:
        if type(part) is int and part < (0 if default == 0 else 1):
            raise UserError(f"given {key}={given} for {model}; expected whole numbers of at least 1; correct it")
        if ("dropout" in key or key == "drop_path") and type(part) is float and not 0 <= part < 1:
            raise UserError(f"given {key}={given} for {model}; expected a share in [0, 1); correct it")


def default_input_shape(name: str) -> tuple[int, int, int]:
    """(H, W, C) of the images the model was published with.

    >>> default_input_shape("resnet50")
    (224, 224, 3)
    """
    return build(name).input_shape


def stages(model: nn.Module, variables: Mapping[str, Any], x_BxHxWxC: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """Evaluates a model and returns what happens inside, too.

    Returns:
        Logits (B, K) and the recorded activations by stage name, first stage first; their leading axis is B.
    """
    logits, state = model.apply(variables, x_BxHxWxC, train=False, mutable=["stages"])  # type: ignore[misc]
    return logits, traverse_util.flatten_dict(state.get("stages", {}), sep="/")
