"""The protocol of the speed run: alternating timed runs, scripts in separate processes, and the command line."""

import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import speed, speedrun
from cnn_jax.data import ArraySource
from cnn_jax.errors import UserError
from experiments.cifar10_speedrun import command, contest, program, torch_script
from experiments.cifar10_speedrun import data as speedrun_data
from experiments.cifar10_speedrun.__main__ import PRESETS, RECIPE, main
from experiments.cifar10_speedrun.contest import Program, Run, alternate, p_below, ratios
from experiments.cifar10_speedrun.data import Data, load_data
from experiments.cifar10_speedrun.program import Outcome
from experiments.cifar10_speedrun.recipe import RECIPES

pytestmark = pytest.mark.usefixtures("one_device")

SCRIPT = """
import torch
data = {part: torch.load(f"cifar10/{part}.pt", weights_only=True) for part in ("train", "test")}
assert data["train"]["images"].dtype == torch.uint8 and data["train"]["labels"].dtype == torch.int64
assert data["train"]["classes"] == ["cat", "dog"]
print("---")
print("|  run   |  epoch  |  train_acc  |  val_acc  |  tta_val_acc  |  time_seconds  |")

def main(run):
    print("|  %6s  |      0  |  0.5  |  0.4  |    |  1.0000  |" % run)
    print("|          |   eval  |  0.5  |  0.4  |  0.%d%d  |  %.4f  |" % (*data["test"]["images"].shape[:2], run))
    open("runs.txt", "a").write(f"{run}\\n")

for run in range(4):
    main(run)
raise ValueError("no more runs")
"""


def arrays(count: int, size: int = 5) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.random.default_rng(count)
    return numbers.integers(0, 256, (count, size, size, 3), np.uint8), (np.arange(count) % 2).astype(np.int32)


DATA = Data(arrays(8), arrays(6), None, ("cat", "dog"))


class Counting:
    """A contender that records when it ran."""

    def __init__(self, name: str, seconds: float, order: list[str]):
        self.name, self._seconds, self._order = name, seconds, order

    def run(self) -> Run:
        self._order.append(self.name)
        return Run(self._seconds * (1 + len(self._order) / 100), 0.9)


def test_contenders_take_turns_in_blocks():
    order: list[str] = []
    ours, theirs = alternate([Counting("a", 1.0, order), Counting("b", 2.0, order)], runs=5, block=2)
    assert "".join(order) == "aabb" + "bbaa" + "ab"
    assert len(ours) == len(theirs) == 5


def test_ratio_is_between_the_medians_of_each_block():
    ours = [Run(seconds, 0.9) for seconds in (1.0, 1.0, 9.0, 2.0)]
    theirs = [Run(seconds, 0.9) for seconds in (2.0, 2.0, 2.0, 8.0)]
    assert ratios(ours, theirs, block=3) == [0.5, 0.25]


def test_t_test_is_one_sided():
    values = [94.1, 93.9, 94.2, 94.0, 94.05]
    t = (statistics.mean(values) - 94) / (statistics.stdev(values) / 5**0.5)
    from scipy.stats import t as student  # SciPy is a dependency of JAX

    assert p_below(values, 94.0) == pytest.approx(student.sf(t, 4), abs=1e-5)
    assert p_below(values, 94.3) == pytest.approx(1 - p_below([188.6 - v for v in values], 94.3), abs=1e-5)
    assert p_below([95.0, 95.0], 94.0) == 0.0


# PyTorch scripts


def test_script_runs_on_request_and_its_first_run_does_not_count(tmp_path):
    pytest.importorskip("torch")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with torch_script.TorchScript(script, DATA) as other:
        folder = Path(other._folder.name)
        assert other.name == "script.py" and other.versions.startswith("torch ")
        assert not (folder / "runs.txt").exists(), "it went on after its first run"
        first = other.run()
        assert (first.seconds, first.accuracy) == (1.0, 0.65) and first.wall is not None and first.wall > 0
        assert (folder / "runs.txt").read_text() == "0\n"
        assert other.run().seconds == 2.0
        assert other.run().seconds == 3.0
        with pytest.raises(UserError, match=r"script.py ended early \(ValueError: no more runs\): run it"):
            other.run()
    assert not folder.exists()


def test_script_is_ended_before_its_last_run(tmp_path):
    pytest.importorskip("torch")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with torch_script.TorchScript(script, DATA) as other:
        other.run()
        process = other._process
    assert process is not None and process.returncode == 0


def test_script_is_restarted_after_all_its_runs(tmp_path):
    pytest.importorskip("torch")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.partition("raise")[0])
    with torch_script.TorchScript(script, DATA) as other:
        assert [other.run().seconds for _ in range(5)] == [1.0, 2.0, 3.0, 1.0, 2.0]


def test_script_does_not_outlive_the_program_that_was_killed(tmp_path):
    pytest.importorskip("torch")
    script, program = tmp_path / "script.py", tmp_path / "program.py"
    script.write_text(SCRIPT)
    program.write_text(
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path; from experiments.cifar10_speedrun.torch_script import TorchScript\n"
        "from tests.test_speedrun_contest import DATA\n"
        "other = TorchScript(Path(sys.argv[1]), DATA)\n"
        "print(other._process.pid, other._folder.name, flush=True); os._exit(1)\n"
    )
    root = str(Path(__file__).parents[1])
    said = subprocess.run([sys.executable, program, script, root], capture_output=True, text=True).stdout.split()
    deadline = time.monotonic() + 30
    while Path(said[1]).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(said[1]).exists()


def test_interval_contains_the_ratio():
    ours, theirs = ([Run(mean + 0.01 * (i % 5 - 2), 0.9) for i in range(20)] for mean in (1.0, 2.0))
    low, high = contest.interval(ours, theirs)
    assert 0.49 < low < 0.5 < high < 0.51


def test_what_cannot_run_is_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no file .*absent.py: check `torch_script`"):
        torch_script.TorchScript(tmp_path / "absent.py", DATA)
    script = tmp_path / "script.py"
    script.write_text("")
    with pytest.raises(UserError, match=r"cannot run the Python .*python \(.*\): check `torch_python`"):
        torch_script.TorchScript(script, DATA, python=str(tmp_path / "python"))
    bare = tmp_path / "bare"  # a Python without site-packages
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"No module named .*\(pip install numpy torch torchvision\)") as caught:
        torch_script.TorchScript(script, DATA, python=str(bare))
    assert "\n" not in str(caught.value)


def test_table_of_another_form_is_refused():
    row = {"run": "", "epoch": "eval", "tta_val_acc": "0.9402", "total_time_seconds": "3.8"}
    assert torch_script.parse_row(row) == Run(3.8, 0.9402)
    with pytest.raises(UserError, match="script's table has the columns run, epoch"):
        torch_script.parse_row({"run": "", "epoch": "eval", "seconds": "1"})


# Data


@pytest.fixture
def small_cifar10(monkeypatch):
    """Replaces CIFAR-10 by splits of 40, 20 and 12 images."""
    sizes = {"train": 60, "train[:45000]": 40, "train[45000:]": 20, "test": 12}

    def source(name: str, split: str, **_: Any) -> ArraySource:
        assert name == "cifar10"
        return ArraySource(name, split, tuple("0123456789"), *arrays(sizes[split], 20))

    monkeypatch.setattr(speedrun_data, "open_source", source)


def test_tuning_tests_on_training_images_and_scores_the_others_as_extra(small_cifar10):
    data = load_data("tune", None)
    assert [len(part[0]) for part in (data.train, data.test, data.extra or ((), ()))] == [40, 20, 12]
    assert len(load_data("tune", None, train_images=7, test_images=3).train[1]) == 7


def test_official_figure_needs_the_official_test_set(small_cifar10, monkeypatch):
    with pytest.raises(UserError, match="the test split has 12 images, and the split full needs 10,000"):
        load_data("full", None)
    monkeypatch.setattr(speedrun_data, "TEST_IMAGES", 12)
    data = load_data("full", None)
    assert len(data.train[0]) == 60 and len(data.test[0]) == 12 and data.extra is None


def test_too_little_memory_is_said_in_one_line():
    with pytest.raises(UserError, match="the device cannot hold the activations") as caught:
        with contest.enough_memory(RECIPES["muon94"]):
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nand more")
    assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="something else"):
        with contest.enough_memory(RECIPES["muon94"]):
            raise RuntimeError("something else")


# The command


def parsed(*argv: str) -> Any:
    parser = command.make_parser(None, RECIPE, PRESETS)
    return command.parse(parser, PRESETS, argv)


def test_preset_gives_defaults_and_flags_win():
    arguments = parsed("--preset", "smoke", "--batch-size", "7")
    assert arguments.runs == 1 and command.changes(arguments)["batch_size"] == 7
    assert command.changes(parsed()) == {}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--runs", "0"), "--runs is 0: it must be a finite number above 0"),
        (("--epochs", "-1"), "--epochs is -1.0: it must be a finite number above 0"),
        (("--epochs", "nan"), "--epochs is nan: it must be a finite number above 0"),
        (("--width-factor", "inf"), "--width-factor is inf: it must be a finite number above 0"),
        (("--seed", "-1"), "--seed is -1: it must be at least 0"),
        (("--recipe", "muon95"), "muon95.*see"),
        (("--torch-script", "a/s.py", "b/s.py"), "two files of the same name"),
    ],
)
def test_wrong_flags_are_refused(argv, message):
    with pytest.raises(UserError, match=message):
        parsed(*argv)


def test_other_platform_is_refused(small_cifar10):
    with pytest.raises(UserError, match="`require` is gpu, but JAX found cpu"):
        main(["--require", "gpu"])


@pytest.fixture
def tiny_run(small_cifar10):
    """Flags of a run that compiles in seconds."""
    return ["--runs", "2", "--epochs", "2", "--batch-size", "8", "--width-factor", "0.04", "--precision", "float32"]


def test_command_measures_prints_and_records(tiny_run, monkeypatch, tmp_path, capsys):
    def script(path: Path, data: Data, python: str) -> Any:
        assert python == sys.executable
        return _Stub(path.name, len(data.test[0]))

    monkeypatch.setattr(torch_script, "TorchScript", script)
    table = tmp_path / "speed.csv"
    speedrun.main([*tiny_run, "--torch-script", "other.py", "--output", str(table)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "muon94, tune split: 40 training and 20 test images"
    assert any(line.startswith("training loss by epoch: ") and len(line.split()) == 8 for line in lines)
    assert any("on the first 12 official test images" in line for line in lines)
    assert lines[-1].startswith("muon94 / other.py: time ratio ")
    rows = {(row["case"].split(",")[0], row["measure"]): row for row in speed.read(table)}
    assert {measure for case, measure in rows if case == "other.py"} == {
        "run",
        "accuracy",
        "mean accuracy",
        "standard deviation of the accuracy",
    }
    ratio = rows["muon94", "time / other.py"]
    assert ratio["unit"] == "x" and "width_factor 0.04" in ratio["case"]
    assert float(ratio["value"]) == pytest.approx(float(rows["muon94", "run"]["value"]) / 20, rel=1e-2)


class _Stub:
    """Stands in for a script that takes one second per test image."""

    def __init__(self, name: str, seconds: float):
        self.name, self.versions, self._seconds = name, "torch 0", seconds

    def __enter__(self) -> "_Stub":
        return self

    def __exit__(self, *exception: object) -> None: ...

    def run(self) -> Run:
        return Run(self._seconds, 0.5)


def test_program_takes_the_next_seed_each_time(small_cifar10, monkeypatch):
    seen = []

    def run(recipe: Any, seed: Any, *arrays: Any, unroll: int) -> Any:
        seen.append(arrays)
        losses = jnp.arange(6.0) + seed.astype(jnp.float32)
        return Outcome(jnp.float32(0.25), losses, {})

    monkeypatch.setattr(program, "speedrun", run)
    monkeypatch.setattr(program, "evaluate", lambda recipe, variables, images, labels: images.shape[0] / 100)
    recipe = replace(RECIPES["muon94"], batch_size=20)
    ours = Program("muon94", recipe, load_data("tune", None), seed=5)
    first, second = ours.run(), ours.run()
    assert len(seen) == 1, "traced more than once"
    assert first.losses == (5.5, 7.5, 9.5) and second.losses == (6.5, 8.5, 10.5)  # two steps per epoch
    assert first.accuracy == 0.25 and first.extra_accuracy == pytest.approx(0.12) and first.seconds > 0
    assert ours.streamed is None


class _Runner:
    """A streamed-run stand-in whose accuracy is 1% per image."""

    def __init__(self, recipe: Any, train: Any, test: Any, steps: int, unroll: int):
        self._accuracy = len(test[1]) / 100

    def __call__(self, seed: Any, labels: Any = None) -> Outcome:
        return Outcome(jnp.float32(self._accuracy), jnp.zeros(2), {})

    def score(self, variables: Any, split: Any) -> float:
        return len(split[1]) / 100


def test_images_that_the_device_cannot_hold_are_streamed(small_cifar10, monkeypatch, capsys):
    def resident(*arguments: Any) -> Any:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.")

    monkeypatch.setattr(contest, "Resident", resident)
    monkeypatch.setattr(contest, "Streamed", _Runner)
    tiny = ["--runs", "1", "--batch-size", "20", "--width-factor", "0.04"]
    main(tiny)
    said = capsys.readouterr().out
    assert "muon94: the device cannot hold all images: streaming them from the host, 2796 steps at a time" in said
    assert "accuracy 20.00 %" in said and "12.00 %" in said
    main([*tiny, "--stream", "7"])
    assert "muon94: as --stream says: streaming them from the host, 7 steps at a time" in capsys.readouterr().out
    monkeypatch.setattr(contest, "Streamed", resident)
    with pytest.raises(UserError, match="the device cannot hold the activations of a batch of 20: lower"):
        main(tiny)
