"""Everything that is worth measuring on an accelerator, in one command that keeps to a time.

    python -m benchmarks.accelerator --minutes 9 --output DIR --torch-script ~/cifar10-airbench/airbench94_muon.py
    python -m benchmarks.accelerator --minutes 9 --output DIR    # again: goes on with what is missing
    python -m benchmarks.accelerator --rehearse --output DIR     # all of it at the smallest size, on a CPU
    python -m benchmarks.speed --add DIR/speed.csv               # takes the figures over into results/speed.csv

The parts, most valuable first: facts about the device and its ceilings; convolutions against float64; the training step
of ResNet-50 and ResNet-20 against PyTorch's; CIFAR-10 to 94 % against the public scripts, as many runs as the time
allows; XLA's flags; many networks at once; growth with batch, image size, depth and number of classes. Each is a
benchmark of this folder in a process of its own, so that memory and flags do not mix.

A part starts only if it should end in time, by its estimate and by how long the parts before it took against theirs. If
it fails, or has to be ended, that is recorded and the others run. What is not there (PyTorch, CIFAR-10) is said and
left out; without CIFAR-10 the contest runs on random images, for its times alone.

DIR holds speed.csv, with the figures as they come; session.json, with what became of each part; log.txt, with all that
was printed. The command exits with 1 if a part failed.
"""

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from benchmarks.speed import table
from cnn_jax.commands.parser import ArgumentParser, file_path, guard, positive_number
from cnn_jax.errors import TrainingStopped, UserError
from cnn_jax.storage import durable

TABLE, SESSION, LOG = "speed.csv", "session.json", "log.txt"
LEFT = "{left}"  # in arguments: the seconds that the part may take
RESERVE = 20.0  # seconds of a part's time that it cannot plan with: start, end, the last block
SETTLED = ("done", "left out")


@dataclass(frozen=True)
class Part:
    """A benchmark to run.

    Attributes:
        name: unique.
        arguments: module of this folder and its arguments, without --output.
        seconds: estimate; for a part that takes what time there is, the least that is worth starting.
        needs_torch: whether this Python must have PyTorch.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: float
    needs_torch: bool = False

    @property
    def elastic(self) -> bool:
        """Whether it takes what time there is."""
        return LEFT in self.arguments


def session_parts(device: str, contest: Sequence[str]) -> list[Part]:
    """Returns the parts for a "gpu" or "tpu", with seconds estimated for one H200.

    Args:
        device: the platform.
        contest: more arguments for the contest.
    """
    large = "--model resnet50 --image 224 --batch 256 --classes 1000 --precision bfloat16"
    growth = f"growth {large} --blocks 3 --seconds 1"

    def part(name: str, arguments: str, seconds: float, *more: str, needs_torch: bool = False) -> Part:
        return Part(name, (*arguments.split(), *more), seconds, needs_torch)

    against = "versus_torch --device gpu --blocks 5 --seconds 2 --model"
    scripts = max(0, len(contest) - contest.index("--torch-script") - 1) if "--torch-script" in contest else 0
    found = [
        part("device", f"device --require {device}", 30),
        part("convolutions", f"convolution_check --require {device}", 75),
        part("resnet50 against PyTorch", f"{against} resnet50", 180, needs_torch=True),
        part("resnet20 against PyTorch", f"{against} resnet20", 110, needs_torch=True),
        part("contest", f"speedrun --require {device} --runs 200 --seconds {LEFT}", 120 + 90 * scripts, *contest),
        part("flags", f"flags {large} --blocks 3 --seconds {LEFT}", 120),
        part("members", f"members --models resnet20 --members 1 4 16 64 --blocks 3 --seconds {LEFT}", 60),
        part("growth with batch", f"{growth} --axes batch --batches 16 32 64 128 256 512", 120),
        part("growth with image", f"{growth} --axes image --images 64 96 128 160 192 224 256", 120),
        part("growth with depth", f"{growth} --axes depth --depths 18 34 50 101 152", 150),
        part("growth with classes", f"{growth} --axes classes --class-counts 10 100 1000 10000", 80),
    ]
    return [part for part in found if device == "gpu" or not part.needs_torch]


def rehearsal_parts(contest: Sequence[str]) -> list[Part]:
    """Returns the same parts at the smallest size, for a CPU."""
    small = "--model resnet20 --image 8 --batch 2 --classes 2"
    growth = f"growth {small} --blocks 1 --seconds 0.01"
    run = "--epochs 1 --batch-size 20 --width-factor 0.04 --precision float32 --train-images 40 --test-images 20"
    sizes: Mapping[str, str] = {
        "device": "device --require cpu --side 64 --mebibytes 1",
        "convolutions": "convolution_check --require cpu --images 1 --cases",
        "resnet50 against PyTorch": "versus_torch --device cpu --model resnet50 --image-size 64 --batch-size 2",
        "resnet20 against PyTorch": "versus_torch --device cpu --model resnet20 --image-size 8 --batch-size 2",
        "contest": f"speedrun --require cpu --runs 2 --seconds {LEFT} {run}",
        "flags": f"flags {small} --blocks 1 --block-seconds 0.01 --seconds {LEFT}",
        "members": f"members --models lenet5 --members 1 2 --batch 2 --images 16 --blocks 1 --block-seconds 0.01 "
        f"--seconds {LEFT}",
        "growth with batch": f"{growth} --axes batch --batches 2 3 4",
        "growth with image": f"{growth} --axes image --images 8 12",
        "growth with depth": f"{growth} --axes depth --depths 20 32",
        "growth with classes": f"{growth} --axes classes --class-counts 2 3",
    }
    blocks = {"resnet50 against PyTorch", "resnet20 against PyTorch"}
    more = {
        "convolutions": ("lenet5 conv2", "mobilenet depthwise"),
        "contest": tuple(contest),
    } | dict.fromkeys(blocks, ("--blocks", "1", "--seconds", "0.01"))
    return [Part(name, (*line.split(), *more.get(name, ())), 5.0, name in blocks) for name, line in sizes.items()]


def pace(parts: Sequence[Part], results: Mapping[str, Mapping[str, Any]]) -> float:
    """Returns how long the finished parts took, as a multiple of their estimates; 1 if there are none.

    >>> parts = [Part("a", (), 10.0), Part("b", (), 30.0), Part("c", (), 10.0)]
    >>> pace(parts, {"a": {"state": "done", "seconds": 20.0}, "b": {"state": "done", "seconds": 40.0}})
    1.5
    """
    done = [part for part in parts if not part.elastic and results.get(part.name, {}).get("state") == "done"]
    if not done:
        return 1.0
    return sum(results[part.name]["seconds"] for part in done) / sum(part.seconds for part in done)


def run_part(part: Part, python: str, output: Path, seconds: float, log: TextIO) -> dict[str, Any]:
    """Runs a part in a new process; prints and logs what it says.

    Args:
        part: what to run.
        python: the interpreter.
        output: table for its figures.
        seconds: time after which it is ended.
        log: where its output is written as well.

    Returns:
        "state" ("done"; "left out" if something that it needs is missing; "failed"; "ended" if it took too long),
        "seconds", and "said", its last line.
    """
    module, *arguments = part.arguments
    given = (f"{max(1.0, seconds - RESERVE):.0f}" if word == LEFT else word for word in arguments)
    command = [python, "-u", "-m", f"benchmarks.{module}", *given, "--output", str(output)]
    began, said, late = time.perf_counter(), "", threading.Event()

    def say(line: str) -> None:
        print(line, flush=True)
        print(line, file=log, flush=True)

    say(f"--- {part.name}: at most {seconds:.0f} s: {shlex.join(command[2:])}")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    ) as process:

        def end() -> None:
            late.set()
            _kill(process)

        limit = threading.Timer(seconds, end)
        limit.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said = line.strip() or said
                say(line.rstrip("\n"))
            code = process.wait()
        finally:
            limit.cancel()
            _kill(process)  # also what it has started, and if we are interrupted
    state = "ended" if late.is_set() else {0: "done", 2: "left out"}.get(code, "failed")
    took = time.perf_counter() - began
    say(f"--- {part.name}: {state} after {took:.0f} s")
    return {"state": state, "seconds": round(took, 1), "said": said[-300:]}


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def run_session(
    parts: Sequence[Part],
    folder: Path,
    end: float,
    *,
    python: str = sys.executable,
    absent: frozenset[str] = frozenset(),
) -> dict[str, dict[str, Any]]:
    """Runs the parts that are missing in `folder`, in order; those that failed before come last.

    Args:
        parts: all parts of the session; the first says whether the device is there, so it always runs.
        folder: see the module's docstring.
        end: time of `time.perf_counter` at which everything must have ended.
        python: the interpreter.
        absent: names of parts that cannot run.

    Returns:
        What became of each part, see `run_part`; of those in earlier calls, too.

    Raises:
        UserError: the first part says that something is missing.
    """
    results = read_session(folder)

    def keep(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        durable.write(folder / SESSION, (json.dumps(results, indent=2) + "\n").encode())

    first, *others = parts
    fresh = [part for part in others if results.get(part.name, {}).get("state") in (None, "left out")]
    again = [part for part in others if results.get(part.name, {}).get("state") in ("failed", "ended")]
    this_call: dict[str, dict[str, Any]] = {}
    with (folder / LOG).open("a", encoding="utf-8") as log:
        for part in (first, *fresh, *again):
            if part.name in absent:
                keep(part.name, {"state": "left out", "seconds": 0.0, "said": "PyTorch is not installed"})
                continue
            left, needed = end - time.perf_counter(), part.seconds * pace(parts, this_call)
            if left < needed + RESERVE:
                print(f"--- {part.name}: not started: {max(left, 0):.0f} s left, and it needs about {needed:.0f}")
                continue
            this_call[part.name] = run_part(part, python, folder / TABLE, left, log)
            keep(part.name, this_call[part.name])
            if part is first and results[part.name]["state"] == "left out":
                raise UserError(results[part.name]["said"].removeprefix("error: "))
    return results


def read_session(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what became of each part in earlier calls.

    Raises:
        UserError: the file is not one of ours.
    """
    path = folder / SESSION
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all({"state", "seconds", "said"} <= set(result) for result in found.values()):
            raise ValueError("a part has no state")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is not the record of a session ({error}): choose another folder") from error
    return found


def describe(parts: Sequence[Part], results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns a line for each part."""
    lines = []
    for part in parts:
        result = results.get(part.name, {"state": "missing", "seconds": 0.0, "said": ""})
        reason = "" if result["state"] in ("done", "missing") else f"  {result['said']}"
        lines.append(f"{part.name:<26}{result['state']:<10}{result['seconds']:>6.0f} s{reason}")
    return "\n".join(lines)


def _has(python: str, *modules: str) -> bool:
    """Whether an interpreter finds all of these modules."""
    look = f"import importlib.util as u; raise SystemExit(not all(map(u.find_spec, {modules!r})))"
    try:
        return subprocess.run([python, "-c", look], stderr=subprocess.DEVNULL).returncode == 0
    except OSError as error:
        raise UserError(f"cannot run the Python {python} ({error.strerror}): check `torch_python`") from error


def _has_cifar10(data_dir: str | None) -> bool:
    from cnn_jax.data.tfds_source import data_folder

    return any(data_folder(data_dir).glob("cifar10/*/dataset_info.json"))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the session and prints what became of each part.

    Raises:
        UserError: there is no such device, script or interpreter, or the folder holds something else.
        TrainingStopped: a part failed.
    """
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=file_path, required=True, metavar="DIR", help="folder for the figures")
    parser.add_argument("--minutes", type=positive_number, default=9.0, help="time for everything (default 9)")
    parser.add_argument("--device", choices=("gpu", "tpu"), default="gpu", help="default: gpu")
    parser.add_argument("--rehearse", action="store_true", help="run everything at the smallest size, on a CPU")
    parser.add_argument("--torch-script", type=Path, nargs="+", default=[], metavar="PATH", help="scripts to race")
    parser.add_argument(
        "--torch-python", default=sys.executable, metavar="PATH", help="Python for the scripts (default: this one)"
    )
    parser.add_argument("--split", choices=("tune", "full"), default="tune", help="of the contest; default: tune")
    parser.add_argument("--data-dir", type=file_path, help="folder of TFDS sets (default: TFDS_DATA_DIR)")
    arguments = parser.parse_args(argv)
    end = time.perf_counter() + 60 * arguments.minutes
    folder = Path(arguments.output)
    read_session(folder)
    table(str(folder / TABLE))
    scripts = [script.expanduser() for script in arguments.torch_script]
    for script in scripts:
        if not script.is_file():
            raise UserError(f"no file {script}: check `torch_script`")
    if scripts and not _has(arguments.torch_python, "torch", "torchvision"):
        print(f"{arguments.torch_python} has no torch and torchvision: the contest runs without the scripts")
        scripts = []
    contest = ["--split", arguments.split]
    if arguments.rehearse or not _has_cifar10(arguments.data_dir):
        print("CIFAR-10 is not used: the contest runs on random images" if arguments.rehearse else _NO_CIFAR10)
        contest.append("--random-images")
    elif arguments.split == "tune":
        contest += ["--test-images", "4000"]  # whole batches: the scripts compile again for an incomplete one
    contest += ["--data-dir", arguments.data_dir] if arguments.data_dir else []
    if scripts:
        contest += ["--torch-python", arguments.torch_python, "--torch-script", *map(str, scripts)]
    parts = rehearsal_parts(contest) if arguments.rehearse else session_parts(arguments.device, contest)
    absent: frozenset[str] = frozenset()
    if not _has(sys.executable, "torch"):
        print("PyTorch is not installed: our steps are not compared with its")
        absent = frozenset(part.name for part in parts if part.needs_torch)
    results = run_session(parts, folder, end, absent=absent)
    print(f"\n{describe(parts, results)}")
    missing = [part.name for part in parts if part.name not in results]
    if missing:
        print(f"{len(missing)} of {len(parts)} parts are missing: repeat the command to go on with them")
    print(f"the figures are in {folder / TABLE}: python -m benchmarks.speed --add {folder / TABLE}")
    failed = [part.name for part in parts if results.get(part.name, {}).get("state") not in (None, *SETTLED)]
    if failed:
        raise TrainingStopped(f"not finished: {', '.join(failed)}; see {folder / LOG}", code=1)


_NO_CIFAR10 = (
    "CIFAR-10 is not prepared (set --data-dir or TFDS_DATA_DIR): the contest runs on random images, for its times alone"
)

if __name__ == "__main__":
    guard(main)
