"""CIFAR-10 in seconds: the recipes of the speed records as one compiled program, timed by the records' protocol.

    python -m experiments.cifar10_speedrun --preset smoke       # a tiny network, about a minute on two CPU cores
    python -m experiments.cifar10_speedrun --require gpu        # 50 runs of muon94, on 45,000 of the training images
    python -m experiments.cifar10_speedrun --require gpu --split full --recipe sgd96
    python -m experiments.cifar10_speedrun --require gpu --torch-script ~/cifar10-airbench/airbench94_muon.py

Recipes, with their published mean accuracy and time on an A100: muon94 (94.01 %, 2.59 s), hiverge94 (94.01 %, 2.02 s),
sgd94 (94.01 %, 3.83 s), sgd95 (95.01 %, 10.4 s), sgd96 (96.03 %, 34.7 s), hardest96 (96.00 %, 27.3 s); see
`experiments.cifar10_speedrun.recipe`. Here every recipe computes in bfloat16 with float32 weights.

The clock starts with the images as bytes on the device and stops with the accuracy on the host. Before that, the
program is compiled and warmed up by a run on random labels. Images that do not fit on the device are streamed from the
host; the command says so. `--split tune` trains on 45,000 training images and tests on the other 5,000: use it to make
choices, and where the test set is incomplete. `--split full` gives the official figure, with a t-test against the
target.

`--torch-script` takes the paths of scripts from github.com/KellerJordan/cifar10-airbench or
github.com/hiverge/cifar10-speedrun. Each runs unmodified in its own process, on the same images and device, alternating
with our program.
"""

from collections.abc import Sequence

from cnn_jax.commands.parser import guard
from experiments.cifar10_speedrun import command

RECIPE = "muon94"
PRESETS = {
    "smoke": {
        "runs": 1,
        "train_images": 1000,
        "test_images": 250,
        "epochs": 4,
        "batch_size": 50,
        "width_factor": 0.125,
        "precision": "float32",
    }
}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, measures and prints."""
    parser = command.make_parser(__doc__, RECIPE, PRESETS)
    command.contest(command.parse(parser, PRESETS, argv))


if __name__ == "__main__":
    guard(main)
