"""The list of models: sizes measured once, and sources."""

import csv
from collections.abc import Mapping
from pathlib import Path

TABLE = Path(__file__).parent / "table.csv"


COLUMNS: tuple[str, ...] = ("model", "input", "classes", "parameters", "without_heads", "flops")


_HE = "He et al. 2015, Deep residual learning"


_ABLATIONS = ("fc7", "fc6_fc7", "conv3_conv4", "conv3_conv4_fc6_fc7")


_VGG = {11: "A", 13: "B", 16: "D", 19: "E"}


SOURCES = {
    "softmax_regression": "TensorFlow tutorial, MNIST for beginners",
    "mlp": "any dense network: --model-args hidden=500/500",
    "mlp_500_500": "Keras lectures",
    "lenet5": "LeCun et al. 1998, in today's form",
    "lenet5_1998": "LeCun et al. 1998",
    "mnist_cnn": "TensorFlow tutorial, deep MNIST for experts",
    "tf_cnn": "TensorFlow-Examples, convolutional_network",
    "keras_cifar_cnn": "Keras example cifar10_cnn",
    "kaggle_lenet": "kaggle.com/ftence/keras-cnn-inspired-by-lenet-5",
    "xo_cnn": "this project",
    **{f"resnet{depth}": f"{_HE}, table 6" for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}": f"{_HE}, table 1" for depth in (18, 34, 50, 101, 152)},
    **{f"resnext{kind}": "Xie et al. 2016, table 1" for kind in ("50_32x4d", "101_32x8d")},
    **{f"wide_resnet{depth}_2": "Zagoruyko and Komodakis 2016, as torchvision has it" for depth in (50, 101)},
    **{f"preact_resnet{depth}": "He et al. 2016, Identity mappings" for depth in (110, 164, 1001, 18, 50)},
    **{name: "Zagoruyko and Komodakis 2016, table 4" for name in ("wrn16_4", "wrn28_10", "wrn40_2")},
    "alexnet": "Krizhevsky et al. 2012",
    "alexnet_ungrouped": "Krizhevsky et al. 2012, without groups",
    "alexnet_one_tower": "Krizhevsky 2014, One weird trick, torchvision's",
    **{f"alexnet_no_{parts}": "Zeiler and Fergus 2013, table 3" for parts in _ABLATIONS},
    "zfnet": "Zeiler and Fergus 2013, figure 3",
    **{f"vgg{depth}": f"Simonyan and Zisserman 2014, table 1 {row}" for depth, row in _VGG.items()},
    **{f"vgg{depth}_bn": f"Simonyan and Zisserman 2014, table 1 {row}, with BN" for depth, row in _VGG.items()},
    **{f"all_cnn_{row}": "Springenberg et al. 2014, tables 1 and 2" for row in "abc"},
    "googlenet": "Szegedy et al. 2014, table 1",
    "googlenet_torchvision": "Szegedy et al. 2014, as torchvision has it",
    "bn_inception": "Ioffe and Szegedy 2015, figure 5",
    "inception_v3": "Szegedy et al. 2015, as torchvision has it",
    **{f"densenet{depth}": "Huang et al. 2016, table 1" for depth in (121, 161, 169, 201)},
    "densenet_bc100": "Huang et al. 2016, table 2",
    "mobilenet_v2": "Sandler et al. 2018, table 2",
    "efficientnet_b0": "Tan and Le 2019, table 1",
    **{f"convnext_{size}": "Liu et al. 2022, section 3" for size in ("tiny", "small", "base")},
    **{f"speednet{kind}": "Jordan 2024, CIFAR-10 speed records" for kind in ("94", "94_muon", "95", "96")},
    "pattern": "any network of the lectures' pattern: --model-args pattern=…",
    "conv_autoencoder": "Masci et al. 2011, stacked convolutional auto-encoders; no classes",
}


def read_table() -> list[dict[str, str]]:
    """The rows of table.csv, in the order of `MODELS`."""
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def source(row: Mapping[str, str]) -> str:
    """Where the model of a row of the table comes from, and its parameters without side heads if it has any."""
    heads = row["without_heads"] != row["parameters"]
    note = f"; without side heads {int(row['without_heads']):,} parameters" if heads else ""
    return SOURCES[row["model"]] + note


def si(number: int) -> str:
    """Three digits and a unit.

    >>> si(81_000_000)
    '81.0 M'
    """
    for factor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}" if number >= 100 * factor else f"{number / factor:.1f} {unit}"
    return str(number)
