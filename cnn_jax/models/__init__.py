"""Models by name. `python -m cnn_jax models` lists them; `python -m cnn_jax models NAME` prints the layers of one."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util

from cnn_jax.models.alexnet import (
    alexnet,
    alexnet_no_conv3_conv4,
    alexnet_no_conv3_conv4_fc6_fc7,
    alexnet_no_fc6_fc7,
    alexnet_no_fc7,
    alexnet_one_tower,
    alexnet_ungrouped,
)
from cnn_jax.models.all_cnn import all_cnn_a, all_cnn_b, all_cnn_c
from cnn_jax.models.autoencoder import conv_autoencoder
from cnn_jax.models.catalogue import MODELS, build, create_model, default_input_shape, list_models, model_name
from cnn_jax.models.convnext import convnext_base, convnext_small, convnext_tiny
from cnn_jax.models.densenet import densenet121, densenet161, densenet169, densenet201, densenet_bc100
from cnn_jax.models.digits import ciresan_cnn, mcdnn_column, simard_cnn
from cnn_jax.models.efficientnet import efficientnet_b0
from cnn_jax.models.googlenet import googlenet, googlenet_torchvision
from cnn_jax.models.inception_bn import bn_inception
from cnn_jax.models.inception_v3 import inception_v3
from cnn_jax.models.lenet import lenet5, lenet5_1998
from cnn_jax.models.linear import ciresan_mlp, mlp, mlp_300, mlp_500_500, softmax_regression
from cnn_jax.models.mobilenet import mobilenet_v2
from cnn_jax.models.multiscale import multiscale_cnn
from cnn_jax.models.pattern import from_pattern as pattern
from cnn_jax.models.preact_resnet import (
    preact_resnet18,
    preact_resnet50,
    preact_resnet110,
    preact_resnet164,
    preact_resnet1001,
    wrn16_4,
    wrn28_10,
    wrn40_2,
)
from cnn_jax.models.resnet import (
    resnet18,
    resnet20,
    resnet32,
    resnet34,
    resnet44,
    resnet50,
    resnet56,
    resnet101,
    resnet110,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from cnn_jax.models.small import kaggle_lenet, keras_cifar_cnn, mnist_cnn, tf_cnn, xo_cnn
from cnn_jax.models.speednet import speednet94, speednet94_muon, speednet95, speednet96
from cnn_jax.models.vgg import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from cnn_jax.models.zfnet import zfnet

__all__ = [
    "MODELS",
    "alexnet",
    "alexnet_no_conv3_conv4",
    "alexnet_no_conv3_conv4_fc6_fc7",
    "alexnet_no_fc6_fc7",
    "alexnet_no_fc7",
    "alexnet_one_tower",
    "alexnet_ungrouped",
    "all_cnn_a",
    "all_cnn_b",
    "all_cnn_c",
    "bn_inception",
    "build",
    "ciresan_cnn",
    "ciresan_mlp",
    "conv_autoencoder",
    "convnext_base",
    "convnext_small",
    "convnext_tiny",
    "create_model",
    "default_input_shape",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "densenet_bc100",
    "efficientnet_b0",
    "pattern",
    "googlenet",
    "googlenet_torchvision",
    "inception_v3",
    "kaggle_lenet",
    "keras_cifar_cnn",
    "lenet5",
    "lenet5_1998",
    "list_models",
    "mcdnn_column",
    "mlp",
    "mlp_300",
    "mlp_500_500",
    "mnist_cnn",
    "mobilenet_v2",
    "model_name",
    "multiscale_cnn",
    "preact_resnet1001",
    "preact_resnet110",
    "preact_resnet164",
    "preact_resnet18",
    "preact_resnet50",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnext101_32x8d",
    "resnext50_32x4d",
    "simard_cnn",
    "softmax_regression",
    "speednet94",
    "speednet94_muon",
    "speednet95",
    "speednet96",
    "stages",
    "tf_cnn",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "wide_resnet101_2",
    "wide_resnet50_2",
    "wrn16_4",
    "wrn28_10",
    "wrn40_2",
    "xo_cnn",
    "zfnet",
]


def stages(model: nn.Module, variables: Mapping[str, Any], x_BxHxWxC: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """Evaluates a model and also returns its intermediate activations.

    Returns:
        Logits (B, K), and the tapped activations by stage name, first stage first, each with leading axis B.
    """
    logits, state = model.apply(variables, x_BxHxWxC, train=False, mutable=["stages"])  # type: ignore[misc]
    return logits, traverse_util.flatten_dict(state.get("stages", {}), sep="/")
