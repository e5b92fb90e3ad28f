"""A public PyTorch script as a contender: run unmodified, in a process of its own, a training run at a time."""

import contextlib
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np

from cnn_jax.errors import UserError
from cnn_jax.speedrun.contest import Run
from cnn_jax.speedrun.data import Data


class TorchScript:
    """A PyTorch script in a process of its own, which waits while others run. To be used in a `with` statement.

    Attributes:
        name: of its file.
        versions: of PyTorch and cuDNN.
    """

    def __init__(self, script: Path, data: Data, python: str = sys.executable):
        """Starts the script, and waits for its first run, which is not counted: in it, it compiles and warms up.

        Args:
            script: its path.
            data: what it reads instead of downloading CIFAR-10.
            python: the Python that has PyTorch.

        Raises:
            UserError: there is no such file or Python, or it ends early, for want of PyTorch or of a GPU for example.
        """
        if not script.is_file():
            raise UserError(f"given --torch-script {script}; expected a file; check the path")
        self.name, self.versions = script.name, ""
        self._columns: list[str] = []
        self._folder = TemporaryDirectory(prefix="cnn_jax-torch-")
        folder = Path(self._folder.name)
        parts = {"train": data.train, "test": data.test}
        arrays: dict[str, Any] = {"classes": np.array(data.class_names)}
        for name, (images, labels) in parts.items():
            arrays |= {f"{name}_images": images, f"{name}_labels": labels}
        np.savez(folder / "data.npz", **arrays)
        worker, self._errors = Path(__file__).with_name("torch_worker.py"), folder / "errors.txt"
        try:
            with self._errors.open("w") as errors:
                self._process = subprocess.Popen(
                    [python, "-u", str(worker), str(script.resolve())],
                    cwd=folder,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
        except OSError as error:
            self._folder.cleanup()
            raise UserError(f"given --torch-python {python}: {error.strerror}; expected a Python; check it") from error
        try:
            self._finished()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process, which takes the end of its input for the end of the contest."""
        try:
            self._process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def run(self) -> Run:
        """Lets it train once more.

        Raises:
            UserError: it ended instead.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; why, is said below
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self._finished()

    def _finished(self) -> Run:
        """Reads on to the end of a run."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("versions: "):
                self.versions = line.removeprefix("versions: ").strip()
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if "epoch" in cells:
                self._columns = cells
            elif "eval" in cells and len(cells) == len(self._columns):
                return parse_row(dict(zip(self._columns, cells)))
        said = self._errors.read_text().strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"given --torch-script {self.name}, which ended early: {said[-1][:200]}; expected a script that trains on "
            "CIFAR-10 with PyTorch on a GPU and prints a table; run it by itself, and give --torch-python the Python "
            "that has torch and torchvision (pip install torch torchvision)"
        )


def parse_row(row: Mapping[str, str]) -> Run:
    """Reads the last row of a run in a script's table, by the names of its columns.

    >>> parse_row({"run": "", "epoch": "eval", "tta_val_acc": "0.9402", "time_seconds": "2.5871"})
    Run(seconds=2.5871, accuracy=0.9402, beside=None, losses=())

    Raises:
        UserError: there are other columns.
    """
    try:
        seconds = row["time_seconds"] if "time_seconds" in row else row["total_time_seconds"]
        return Run(float(seconds), float(row["tta_val_acc"]))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"given a script whose table has the columns {', '.join(row)}; expected numbers in tta_val_acc and "
            "time_seconds; choose another script"
        ) from error
