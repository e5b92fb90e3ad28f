"""Lists the models, or prints the layers of one.

python -m cnn_jax models
python -m cnn_jax models vgg16 --input 224x224x3

The list is read from a table in the package; `--measure` recomputes that table, which takes about a minute.
"""

import argparse
from collections.abc import Sequence

from cnn_jax.commands.parser import ArgumentParser
from cnn_jax.errors import UserError


def main(argv: Sequence[str]) -> None:
    """Prints the list of models, or the layers of one.

    Raises:
        UserError: an unknown model or a wrong argument.
    """
    parser = ArgumentParser(
        prog="python -m cnn_jax models", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="a model, or package.module:attribute; default: list all")
    parser.add_argument("--input", help="image size, such as 32x32x3; default: the published one")
    parser.add_argument("--classes", type=int, help="number of classes; default: the published one")
    parser.add_argument("--model-args", nargs="*", default=[], metavar="KEY=VALUE", help="such as shortcut=B")
    parser.add_argument("--measure", action="store_true", help="recompute the list")
    arguments = parser.parse_args(argv)
    if arguments.name is None and (arguments.input or arguments.classes is not None or arguments.model_args):
        raise UserError("these options need a model: add its NAME (see python -m cnn_jax models --help)")
    from cnn_jax.inspect.tables import measure_all, model_list, model_table  # imports JAX

    if arguments.measure:
        measure_all()
    if arguments.name is None:
        print(model_list())
    else:
        print(model_table(arguments.name, arguments.input, arguments.classes, arguments.model_args))
