"""Runs a public PyTorch script, unmodified, one training run at a time. Started by `torch_script.TorchScript`.

    python torch_worker.py SCRIPT, in a folder that holds data.npz

It needs PyTorch and NumPy, and nothing of this package: it may run in another Python. The images become the files that
the scripts read instead of downloading: cifar10/train.pt and cifar10/test.pt. The scripts print a table; at the end of
a run, after they have stopped their clock, a row with the word "eval". There the worker waits for a line on its input
before it lets the script go on, so that between runs the device is idle. At the end of its input, it ends.
"""

import builtins
import importlib
import os
import runpy
import sys
from typing import Any

import numpy as np


def save_data() -> None:
    """Writes data.npz as the scripts want it."""
    torch: Any = importlib.import_module("torch")  # may be absent where this is checked

    os.makedirs("cifar10", exist_ok=True)
    with np.load("data.npz") as data:
        for part in ("train", "test"):
            images, labels = torch.from_numpy(data[f"{part}_images"]), torch.from_numpy(data[f"{part}_labels"]).long()
            content = {"images": images, "labels": labels, "classes": data["classes"].tolist()}
            torch.save(content, os.path.join("cifar10", f"{part}.pt"))


def main() -> None:
    """Runs the script whose path is the first argument."""
    torch: Any = importlib.import_module("torch")  # may be absent where this is checked

    script = sys.argv[1]
    save_data()
    plain = builtins.print

    def gate(*values: object, **how: object) -> None:
        plain(*values, **{**how, "flush": True})
        if any(word == "eval" for value in values for word in str(value).split()) and not sys.stdin.readline():
            raise SystemExit(0)

    plain(f"versions: torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}", flush=True)
    builtins.print = gate
    sys.path[0] = os.path.dirname(script)  # as Python does with a script; ours would lend it our modules
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
