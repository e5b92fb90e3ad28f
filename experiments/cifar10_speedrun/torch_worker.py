"""Runs a public PyTorch script, unmodified, one training run at a time. Started by `torch_script.TorchScript`.

    python torch_worker.py SCRIPT, in a folder that holds data.npz

It needs PyTorch and NumPy and nothing of this package, so it can run in another Python. It writes the images to the
files that the scripts look for before they download: cifar10/train.pt and cifar10/test.pt. The scripts print a table
with a row for each run that has the word "eval", after they have stopped their clock. There the worker waits for a line
on its input before it lets the script continue, so the device is idle between runs. The line "end" ends it.
"""

import builtins
import importlib
import os
import runpy
import shutil
import sys
import threading
import time
from typing import Any

import numpy as np


def save_data() -> None:
    """Writes the images of data.npz to the files that the scripts read."""
    torch: Any = importlib.import_module("torch")  # may be missing where types are checked

    os.makedirs("cifar10", exist_ok=True)
    with np.load("data.npz") as data:
        for part in ("train", "test"):
            images, labels = torch.from_numpy(data[f"{part}_images"]), torch.from_numpy(data[f"{part}_labels"]).long()
            content = {"images": images, "labels": labels, "classes": data["classes"].tolist()}
            torch.save(content, os.path.join("cifar10", f"{part}.pt"))


def leave(folder: str) -> None:
    """Removes the folder and exits; the process that should have removed it is gone."""
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def watch(parent: int, folder: str) -> None:
    """Exits when the parent process has died, even in the middle of a run."""
    while os.getppid() == parent:
        time.sleep(0.5)
    leave(folder)


def main() -> None:
    """Runs the script whose path is the first argument."""
    torch: Any = importlib.import_module("torch")  # may be missing where types are checked

    script = sys.argv[1]
    folder = os.getcwd()
    threading.Thread(target=watch, args=(os.getppid(), folder), daemon=True).start()
    save_data()
    plain = builtins.print

    def gate(*values: object, **how: object) -> None:
        plain(*values, **{**how, "flush": True})
        if any(word == "eval" for value in values for word in str(value).split()):
            line = sys.stdin.readline()
            if not line:
                leave(folder)
            if line.strip() == "end":
                raise SystemExit(0)

    plain(f"versions: torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}", flush=True)
    builtins.print = gate
    sys.path[0] = os.path.dirname(script)  # as Python does for a script; our own folder would expose our modules
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
