"""Lists the models, or prints the layers of one: `python -m cnn_jax.models [NAME] [--input HxWxC] [--classes K]`."""

import re
import sys
from collections.abc import Sequence

from cnn_jax.cli import ArgumentParser, guard
from cnn_jax.errors import UserError
from cnn_jax.models import MODELS, build, default_input_shape
from cnn_jax.models.summary import LayerRow, layer_table

_HE = "He et al. 2015, Deep residual learning"
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
}


def main(argv: Sequence[str]) -> None:
    """Prints what the arguments ask for.

    Raises:
        UserError: an argument is wrong.
    """
    parser = ArgumentParser(prog="python -m cnn_jax.models", description=__doc__)
    parser.add_argument("name", nargs="?", help="a model; default: list all")
    parser.add_argument("--input", help="image size, such as 32x32x3; default: the published one")
    parser.add_argument("--classes", type=int, help="number of classes; default: the published one")
    parser.add_argument("--model-args", nargs="*", default=[], metavar="KEY=VALUE", help="such as shortcut=B")
    arguments = parser.parse_args(argv)
    if arguments.name is None:
        if arguments.input or arguments.classes or arguments.model_args:
            raise UserError("given options without a model; expected NAME; see python -m cnn_jax.models --help")
        print(model_list())
    else:
        print(model_table(arguments.name, arguments.input, arguments.classes, arguments.model_args))


def model_list() -> str:
    """A line for each model: name, input, classes, parameters, forward FLOPs, paper."""
    lines = [f"{'model':<20} {'input':>10} {'classes':>7} {'parameters':>11} {'FLOPs':>8}  source"]
    for name in MODELS:
        model, shape = build(name), default_input_shape(name)
        rows = layer_table(model, shape)
        parameters = sum(row.parameters for row in rows)
        flops = sum(row.flops for row in rows)
        size = "x".join(map(str, shape))
        lines.append(f"{name:<20} {size:>10} {model.num_classes:>7} {parameters:>11,} {si(flops):>8}  {SOURCES[name]}")
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
        raise UserError(f"given --input {text}; expected HEIGHTxWIDTHxCHANNELS, such as 32x32x3")
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


if __name__ == "__main__":
    guard(lambda: main(sys.argv[1:]))
