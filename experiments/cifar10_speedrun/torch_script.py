"""A public PyTorch script as a contender: unmodified, in its own process, one training run at a time."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, Self

import numpy as np

from cnn_jax.errors import UserError
from experiments.cifar10_speedrun.contest import Run
from experiments.cifar10_speedrun.data import Data


class TorchScript:
    """A PyTorch script in its own process, which waits while others run. Use it in a `with` statement.

    Attributes:
        name: of its file.
        versions: of PyTorch and cuDNN.
    """

    def __init__(self, script: Path, data: Data, python: str = sys.executable):
        """Starts the script and waits for its first run, in which it compiles and warms up; that run does not count.

        Args:
            script: its path.
            data: what it reads instead of downloading CIFAR-10.
            python: an interpreter that has PyTorch.

        Raises:
            UserError: there is no such file or interpreter, or the script ends early, for example without a GPU.
        """
        if not script.is_file():
            raise UserError(f"no file {script}: check `torch_script`")
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
        self._command = [python, "-u", str(worker), str(script.resolve())]
        self._process: subprocess.Popen[str] | None = None
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        """Starts the script and waits for its first run, which does not count."""
        try:
            with self._errors.open("w") as errors:
                self._process = subprocess.Popen(
                    self._command,
                    cwd=self._folder.name,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                )
        except OSError as error:
            python = self._command[0]
            raise UserError(f"cannot run the Python {python} ({error.strerror}): check `torch_python`") from error
        if self._finished() is None:
            self._fail()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._end()
        self._folder.cleanup()

    def _end(self) -> int | None:
        """Ends the process, if one is running; returns its exit status."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        try:
            process.communicate("end\n", timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        return process.returncode

    def run(self) -> Run:
        """Trains once more. A script that has used up its runs is restarted and warmed up with a run first.

        Raises:
            UserError: the script failed.
        """
        run = self._next()
        if run is None and self._end() == 0:
            self._start()
            run = self._next()
        return self._fail() if run is None else run

    def _next(self) -> Run | None:
        """Trains once more; returns None if the script has ended."""
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self._finished()

    def _finished(self) -> Run | None:
        """Reads the output up to the end of a run; returns None if the script ends before that."""
        assert self._process is not None and self._process.stdout is not None
        started = time.perf_counter()
        for line in self._process.stdout:
            if line.startswith("versions: "):
                self.versions = line.removeprefix("versions: ").strip()
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if "epoch" in cells:
                self._columns = cells
            elif "eval" in cells and len(cells) == len(self._columns):
                return parse_row(dict(zip(self._columns, cells)), time.perf_counter() - started)
        return None

    def _fail(self) -> NoReturn:
        said = self._errors.read_text().strip().splitlines() or ["it said nothing"]
        raise UserError(
            f"the script {self.name} ended early ({said[-1][:200]}): run it by itself to see why; it needs a GPU, must "
            "print a table, and `torch_python` must name a Python that has NumPy, torch and torchvision (pip install "
            "numpy torch torchvision)"
        )


def parse_row(row: Mapping[str, str], wall: float | None = None) -> Run:
    """Parses the last row of a run in a script's table.

    Args:
        row: column → cell.
        wall: see `Run`.

    >>> parse_row({"run": "", "epoch": "eval", "tta_val_acc": "0.9402", "time_seconds": "2.5871"}, wall=2.75)
    Run(seconds=2.5871, accuracy=0.9402, extra_accuracy=None, losses=(), wall=2.75)

    Raises:
        UserError: a column is missing, or not a number.
    """
    try:
        seconds = row["time_seconds"] if "time_seconds" in row else row["total_time_seconds"]
        return Run(float(seconds), float(row["tta_val_acc"]), wall=wall)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"the script's table has the columns {', '.join(row)}, without numbers in tta_val_acc and time_seconds: "
            "choose another script"
        ) from error
