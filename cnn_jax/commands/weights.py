"""Lists torchvision's public weights, or exports the weights of a run for PyTorch.

python -m cnn_jax weights list
python -m cnn_jax weights export runs/digits_lenet5 lenet5.safetensors
"""

import argparse
from collections.abc import Sequence

from cnn_jax.commands.parser import ArgumentParser, file_path


def main(argv: Sequence[str]) -> None:
    """Lists public weights, or exports those of a run.

    Raises:
        UserError: a wrong argument, or a run that cannot be exported.
    """
    parser = ArgumentParser(
        prog="python -m cnn_jax weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="public weights of torchvision, with their accuracy on ImageNet")
    export_parser = commands.add_parser("export", help="write a run's weights as a PyTorch state dict")
    export_parser.add_argument("run", type=file_path, metavar="RUN", help="folder of a finished run")
    export_parser.add_argument("file", type=file_path, metavar="FILE", help="the .safetensors file to write")
    export_parser.add_argument("--names", help="torchvision, timm or plain; default: the first available")
    arguments = parser.parse_args(argv)
    if arguments.command == "list":
        print(_list())
    else:
        from cnn_jax.weights.export import export

        print(export(arguments.run, arguments.file, arguments.names))


def _list() -> str:
    """Formats the table of torchvision's weights."""
    from cnn_jax.weights.catalog import TORCHVISION

    lines = [f"{'torchvision/NAME':<20} {'top-1 %':>7} {'top-5 %':>7} {'resize':>6} {'crop':>4}  file"]
    for name, entry in TORCHVISION.items():
        preprocess = entry.preprocess
        accuracy = f"{entry.top1:>7.3f} {entry.top5:>7.3f}"
        lines.append(f"{name:<20} {accuracy} {preprocess.resize:>6} {preprocess.image_shape[0]:>4}  {entry.file}")
    return "\n".join([*lines, "Accuracy: torchvision's own, on ImageNet's validation images."])
