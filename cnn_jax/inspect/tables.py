"""The list of models, and the layer table of one model, as text."""

import csv
import re
from collections.abc import Sequence
from typing import Any

from cnn_jax.errors import UserError
from cnn_jax.inspect.summary import LayerRow, layer_table
from cnn_jax.models import MODELS, build, default_input_shape
from cnn_jax.models.catalogue import COLUMNS, TABLE, read_table, si, source
from cnn_jax.models.named import make_model


def measure_all() -> None:
    """Measures every model and rewrites the package's table.csv."""
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(measure, MODELS))


def measure(name: str) -> dict[str, Any]:
    """Returns a model's row of table.csv."""
    model, shape = build(name), default_input_shape(name)
    rows = layer_table(model, shape)
    parameters = sum(row.parameters for row in rows)
    heads = sum(row.parameters for row in rows if row.name.startswith("aux"))
    totals = (parameters, parameters - heads, sum(row.flops for row in rows))
    return dict(
        zip(COLUMNS, (name, "x".join(map(str, shape)), getattr(model, "num_classes", None), *totals), strict=True)
    )


def model_list() -> str:
    """One line per model: name, input, classes, parameters, forward FLOPs, paper."""
    width = max(map(len, MODELS))
    lines = [f"{'model':<{width}} {'input':>10} {'classes':>7} {'parameters':>11} {'FLOPs':>8}  source"]
    for row in read_table():
        numbers = f"{row['classes']:>7} {int(row['parameters']):>11,} {si(int(row['flops'])):>8}"
        lines.append(f"{row['model']:<{width}} {row['input']:>10} {numbers}  {source(row)}")
    return "\n".join([*lines, "FLOPs: forward pass of one image, two per multiply-add."])


def model_table(name: str, size: str | None, classes: int | None, args: Sequence[str]) -> str:
    """One line per layer of a model, and the totals.

    Args:
        name: a name in the catalogue, or `package.module:attribute` (see `make_model`).
        size: HEIGHTxWIDTHxCHANNELS; default: the published input.
        classes: default: the published number.
        args: the model's arguments, each key=value.

    Raises:
        UserError: unknown name or argument, or a size that the model does not take.
    """
    model = make_model(name, classes, args=args)
    if size is None and ":" in name:
        raise UserError(f"{name} has no published input: set `input`, such as 32x32x3")
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
    notes = "FLOPs: forward pass of one image, two per multiply-add. sees: side of the receptive field in pixels."
    return "\n".join([*(line.rstrip() for line in lines), notes])


def _cells(row: LayerRow) -> tuple[str, ...]:
    field = "all" if row.receptive_field is None else str(row.receptive_field)
    output = "x".join(map(str, row.output_shape))
    parameters = f"{row.parameters:,}" if row.parameters else ""
    return (row.name, row.kind, output, parameters, si(row.flops) if row.flops else "", field)


def _shape(text: str) -> tuple[int, int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise UserError(f"`input` is {text!r}: write HEIGHTxWIDTHxCHANNELS, such as 32x32x3")
    height, width, channels = map(int, match.groups())
    return height, width, channels
