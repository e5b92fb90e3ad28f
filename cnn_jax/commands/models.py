"""Lists the models, or prints the layers of one: `python -m cnn_jax models [NAME] [--input HxWxC] [--classes K]`.

The list is read from table.csv beside this file; `--measure` computes it anew (a minute) and writes it there.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cnn_jax.commands.parser import ArgumentParser
from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import LayerRow, layer_table
from cnn_jax.models import MODELS, build, default_input_shape

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
}


def main(argv: Sequence[str]) -> None:
    """Prints what the arguments ask for.

    Raises:
        UserError: an argument is wrong.
    """
    parser = ArgumentParser(prog="python -m cnn_jax models", description=__doc__)
    parser.add_argument("name", nargs="?", help="a model; default: list all")
    parser.add_argument("--input", help="image size, such as 32x32x3; default: the published one")
    parser.add_argument("--classes", type=int, help="number of classes; default: the published one")
    parser.add_argument("--model-args", nargs="*", default=[], metavar="KEY=VALUE", help="such as shortcut=B")
    parser.add_argument("--measure", action="store_true", help="compute the list anew")
    arguments = parser.parse_args(argv)
    if arguments.measure:
        with TABLE.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(measure, MODELS))
    if arguments.name is None:
        if arguments.input or arguments.classes is not None or arguments.model_args:
            raise UserError("given options without a model; expected NAME; see python -m cnn_jax models --help")
        print(model_list())
    else:
        print(model_table(arguments.name, arguments.input, arguments.classes, arguments.model_args))


def measure(name: str) -> dict[str, Any]:
    """One row of the table: name, input, classes, parameters, those without side heads, forward FLOPs of one image."""
    model, shape = build(name), default_input_shape(name)
    rows = layer_table(model, shape)
    parameters = sum(row.parameters for row in rows)
    heads = sum(row.parameters for row in rows if row.name.startswith("aux"))
    totals = (parameters, parameters - heads, sum(row.flops for row in rows))
    return dict(zip(COLUMNS, (name, "x".join(map(str, shape)), model.num_classes, *totals), strict=True))


def read_table() -> list[dict[str, str]]:
    """The rows of table.csv, in the order of `MODELS`."""
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def source(row: Mapping[str, str]) -> str:
    """Where the model of a row of the table comes from, and its parameters without side heads if it has any."""
    heads = row["without_heads"] != row["parameters"]
    note = f"; without side heads {int(row['without_heads']):,} parameters" if heads else ""
    return SOURCES[row["model"]] + note


def model_list() -> str:
    """A line for each model: name, input, classes, parameters, forward FLOPs, paper."""
    width = max(map(len, MODELS))
    lines = [f"{'model':<{width}} {'input':>10} {'classes':>7} {'parameters':>11} {'FLOPs':>8}  source"]
    for row in read_table():
        numbers = f"{row['classes']:>7} {int(row['parameters']):>11,} {si(int(row['flops'])):>8}"
        lines.append(f"{row['model']:<{width}} {row['input']:>10} {numbers}  {source(row)}")
    return "\n".join([*lines, "FLOPs: forward, one image, two a multiply-add."])


def model_table(name: str, size: str | None, classes: int | None, args: Sequence[str]) -> str:
    """A line for each layer of one model, and the totals."""
    model = build(name, classes, args=args)
    shape = default_input_shape(name) if size is None else _shape(size)
    rows = layer_table(model, shape)
    header = ("layer", "kind", "output", "parameters", "FLOPs", "sees")
    cells = [header, ("input", "", "x".join(map(str, shape)), "", "", "1"), *map(_cells, rows)]
    parameters, flops = sum(row.parameters for row in rows), sum(row.flops for row in rows)
    cells.append(("total", "", "", f"{parameters:,}", si(flops), ""))
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    notes = "FLOPs: forward, one image, two a multiply-add. sees: side of the receptive field in pixels."
    return "\n".join([*(line.rstrip() for line in lines), notes])


def _cells(row: LayerRow) -> tuple[str, ...]:
    field = "all" if row.receptive_field is None else str(row.receptive_field)
    output = "x".join(map(str, row.output_shape))
    parameters = f"{row.parameters:,}" if row.parameters else ""
    return (row.name, row.kind, output, parameters, si(row.flops) if row.flops else "", field)


def _shape(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UserError(f"given --input {text}; expected HEIGHTxWIDTHxCHANNELS; write such as 32x32x3")
    height, width, channels = map(int, match.groups())
    return height, width, channels


def si(number: int) -> str:
    """Three digits and a unit.

    >>> si(81_000_000)
    '81.0 M'
    """
    for factor, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}" if number >= 100 * factor else f"{number / factor:.1f} {unit}"
    return str(number)
