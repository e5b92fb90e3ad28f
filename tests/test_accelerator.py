"""The session on an accelerator: its order, its time, what it does after failures, and all of it on a CPU."""

import argparse
import importlib
import importlib.util
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import accelerator, convolution_check, convolutions, flags, growth, speed
from benchmarks.accelerator import Part, read_session, run_part, run_session
from cnn_jax.errors import TrainingStopped, UserError

SCRIPT = """
import torch
data = torch.load("cifar10/train.pt", weights_only=True)
assert data["images"].shape == (40, 32, 32, 3)
print("|  epoch  |  tta_val_acc  |  time_seconds  |")
for run in range(10):
    print("|   eval  |  0.1000  |  0.5  |")
"""


class Stub:
    """Stands in for `run_part`: each part takes its `takes` seconds by a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, takes: dict[str, float], states: dict[str, str] | None = None):
        self.now, self.ran, self._takes, self._states = 0.0, [], takes, states or {}
        monkeypatch.setattr(accelerator, "run_part", self)
        monkeypatch.setattr(accelerator.time, "perf_counter", lambda: self.now)

    def __call__(self, part: Part, python: str, output: Path, seconds: float, log: Any) -> dict[str, Any]:
        self.ran.append(part.name)
        self.now += self._takes[part.name]
        state = self._states.get(part.name, "done")
        return {"state": state, "seconds": self._takes[part.name], "said": f"error: {part.name} said this"}


def parts(**seconds: float) -> list[Part]:
    return [Part(name, ("module",), least) for name, least in seconds.items()]


def test_a_part_that_would_not_end_in_time_is_left_for_the_next_call(tmp_path, monkeypatch, capsys):
    wanted = parts(first=10, long=200, short=20)
    stub = Stub(monkeypatch, {"first": 10, "long": 150, "short": 20})
    run_session(wanted, tmp_path, end=100)
    assert stub.ran == ["first", "short"]
    assert "long: not started: 90 s left, and it needs about 200" in capsys.readouterr().out
    results = run_session(wanted, tmp_path, end=stub.now + 300)
    assert stub.ran == ["first", "short", "first", "long"], "what is done is not done again"
    assert {result["state"] for result in results.values()} == {"done"} and read_session(tmp_path) == results


def test_the_pace_of_the_parts_before_counts(tmp_path, monkeypatch, capsys):
    stub = Stub(monkeypatch, {"first": 30, "second": 60})
    run_session(parts(first=10, second=20), tmp_path, end=100)  # three times as slow as estimated: 60 of 70 s left
    assert stub.ran == ["first"]
    assert "second: not started: 70 s left, and it needs about 60" in capsys.readouterr().out


def test_others_run_after_a_failure_and_it_is_tried_again_last(tmp_path, monkeypatch):
    wanted = parts(first=1, bad=1, slow=1, good=1, late=100)
    takes = dict.fromkeys(("first", "bad", "slow", "good"), 1.0) | {"late": 50.0}
    stub = Stub(monkeypatch, takes, {"bad": "failed", "slow": "ended"})
    results = run_session(wanted, tmp_path, end=60)
    assert stub.ran == ["first", "bad", "slow", "good"]
    assert [results[name]["state"] for name in stub.ran] == ["done", "failed", "ended", "done"]
    again = Stub(monkeypatch, takes)
    results = run_session(wanted, tmp_path, end=600)
    assert again.ran == ["first", "late", "bad", "slow"]
    assert {result["state"] for result in results.values()} == {"done"}


def test_what_is_absent_is_left_out_and_tried_again_once_it_is_there(tmp_path, monkeypatch):
    wanted, takes = parts(first=1, torch=1, data=1), {"first": 1.0, "torch": 1.0, "data": 1.0}
    stub = Stub(monkeypatch, takes, {"data": "left out"})
    results = run_session(wanted, tmp_path, end=100, absent=frozenset(["torch"]))
    assert stub.ran == ["first", "data"]
    assert results["torch"]["said"] == "PyTorch is not installed"
    assert Stub(monkeypatch, takes) and run_session(wanted, tmp_path, end=100)["torch"]["state"] == "done"


def test_without_the_device_nothing_else_starts(tmp_path, monkeypatch):
    stub = Stub(monkeypatch, {"first": 1.0}, {"first": "left out"})
    with pytest.raises(UserError, match=r"^first said this$"):
        run_session(parts(first=1, second=1), tmp_path, end=100)
    assert stub.ran == ["first"]


@pytest.fixture
def shell(tmp_path):
    """Makes an interpreter that runs these lines of a shell script instead."""

    def make(lines: str) -> str:
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize(("code", "state"), [(0, "done"), (1, "failed"), (2, "left out"), (137, "failed")])
def test_how_a_part_ended(shell, tmp_path, code, state, capsys):
    part = Part("name", ("module", "--seconds", accelerator.LEFT), 1.0)
    with (tmp_path / "log.txt").open("w") as log:
        result = run_part(part, shell(f'echo "$@"; echo last >&2; echo; exit {code}'), tmp_path / "t.csv", 50.0, log)
    assert (result["state"], result["said"]) == (state, "last")
    said = f"-u -m benchmarks.module --seconds 30 --output {tmp_path / 't.csv'}"
    assert said in capsys.readouterr().out and said in (tmp_path / "log.txt").read_text()


def test_a_part_that_takes_too_long_is_ended_with_what_it_started(shell, tmp_path):
    start = time.perf_counter()
    with (tmp_path / "log.txt").open("w") as log:
        result = run_part(Part("name", ("module",), 1.0), shell("sleep 60 & sleep 60"), tmp_path / "t.csv", 0.5, log)
    assert result["state"] == "ended" and time.perf_counter() - start < 20


class Parsed(Exception):
    """Raised instead of measuring."""


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_benchmarks_accept_the_arguments_of_the_session(device, monkeypatch):
    original = argparse.ArgumentParser.parse_args

    def parse(self: Any, args: Any = None, namespace: Any = None) -> Any:
        original(self, args, namespace)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    contest = ["--split", "full", "--random-images", "--torch-script", "a.py", "b.py"]
    found = accelerator.session_parts(device, contest)
    for part in found:
        name, *arguments = part.arguments
        if name != "versus_torch" or importlib.util.find_spec("torch"):
            with pytest.raises(Parsed):
                importlib.import_module(f"benchmarks.{name}").main(
                    ["100" if word == accelerator.LEFT else word for word in arguments]
                )
    rehearsed = accelerator.rehearsal_parts(contest)
    assert [part.name for part in rehearsed if device == "gpu" or not part.needs_torch] == [p.name for p in found]
    assert [part.elastic for part in found if part.name in ("contest", "flags", "members")] == [True] * 3
    (least,) = [part.seconds for part in found if part.name == "contest"]
    assert least == 120 + 2 * 90, "each script compiles, too"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes is 0: it must be a number greater than 0"),
        (["--torch-script", "absent.py"], "no file absent.py: check `torch_script`"),
    ],
)
def test_mistakes_are_reported_before_the_session(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        accelerator.main(["--output", str(tmp_path / "new"), *arguments])


def test_another_folder_is_refused(tmp_path):
    (tmp_path / accelerator.SESSION).write_text('{"a": 1}')
    with pytest.raises(UserError, match=r"session.json is not the record of a session \(.*\): choose another folder"):
        accelerator.main(["--output", str(tmp_path)])


def test_a_rehearsal_runs_every_part(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.chdir(Path(__file__).parents[1])
    script, folder = tmp_path / "script.py", tmp_path / "session"
    script.write_text(SCRIPT)
    accelerator.main(["--rehearse", "--output", str(folder), "--torch-script", str(script)])
    said = capfd.readouterr().out
    has_torch = importlib.util.find_spec("torch") is not None
    results = read_session(folder)
    assert list(results) == [part.name for part in accelerator.rehearsal_parts([])]
    for name, result in results.items():
        assert result["state"] == ("left out" if "PyTorch" in name and not has_torch else "done"), result
    rows = speed.read(folder / accelerator.TABLE)
    expected = {"device", "convolution_check", "speedrun", "flags", "members", "growth"}
    assert {row["benchmark"] for row in rows} == expected | ({"versus_torch"} if has_torch else set())
    assert any("time / script.py" in row["measure"] for row in rows) == has_torch
    assert all(row["command"].startswith("python -m benchmarks.") for row in rows)
    assert "random images" in said and (folder / accelerator.LOG).read_text().count("done after") == sum(
        result["state"] == "done" for result in results.values()
    )


def test_a_failure_ends_the_session_with_1(tmp_path, monkeypatch):
    Stub(monkeypatch, dict.fromkeys([part.name for part in accelerator.rehearsal_parts([])], 1.0), {"flags": "failed"})
    monkeypatch.setattr(accelerator, "_has", lambda *given: True)
    with pytest.raises(TrainingStopped, match="not finished: flags; see .*log.txt"):
        accelerator.main(["--rehearse", "--output", str(tmp_path)])
    assert json.loads((tmp_path / accelerator.SESSION).read_text())["flags"]["state"] == "failed"


# The benchmarks that came with it


@pytest.mark.parametrize(
    ("size", "channels", "features", "width", "stride", "groups", "dilation"),
    [(7, 3, 4, 3, 2, 1, 1), (6, 4, 8, 3, 1, 4, 1), (5, 6, 6, 5, 1, 6, 1), (4, 2, 3, 1, 1, 1, 1), (9, 2, 3, 3, 1, 1, 2)],
)
def test_convolution_by_definition(size, channels, features, width, stride, groups, dilation):
    random, pad = np.random.default_rng(0), width // 2 * dilation
    rows = (size + 2 * pad - (width - 1) * dilation - 1) // stride + 1
    x = random.normal(size=(2, size, size, channels))
    kernel = random.normal(size=(width, width, channels // groups, features))
    g = random.normal(size=(2, rows, rows, features))
    y, dx, dkernel = convolution_check.reference(x, kernel, g, stride, pad, groups, dilation)
    padded, group = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), features // groups
    for b, i, j, f in ((0, 0, 0, 0), (1, rows - 1, 0, features - 1), (1, rows // 2, rows - 1, features // 2)):
        maps = slice(f // group * (channels // groups), (f // group + 1) * (channels // groups))
        patch = padded[b, i * stride :, j * stride :, maps][
            : width * dilation : dilation, : width * dilation : dilation
        ]
        assert y[b, i, j, f] == pytest.approx((patch * kernel[..., f]).sum())
    # y is linear in each operand, so that the gradients' products with them are that of y with g
    assert (dx * x).sum() == pytest.approx((y * g).sum())
    assert (dkernel * kernel).sum() == pytest.approx((y * g).sum())


def test_a_wrong_convolution_is_found(tmp_path, monkeypatch):
    table, small = tmp_path / "speed.csv", ["--images", "1", "--cases", "lenet5 conv1", "--types", "float32"]
    monkeypatch.setitem(convolutions.CASES, "lenet5 conv1", convolutions.Shape(1, 6, 1, 2, 3, 1, 1))
    convolution_check.main([*small, "--output", str(table)])
    errors = {row["measure"]: float(row["value"]) for row in speed.read(table)}
    assert set(errors) == {"output, error", "input gradient, error", "kernel gradient, error"}
    assert max(errors.values()) < 1e-6
    original = convolution_check.conv_general_dilated
    monkeypatch.setattr(
        convolution_check, "conv_general_dilated", lambda *given, **more: 1.001 * original(*given, **more)
    )
    with pytest.raises(TrainingStopped, match="not what float64 says: lenet5 conv1 float32: output, error 0.001"):
        convolution_check.main(small)


def test_flags_are_compared_with_the_defaults(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(growth, "BASE", growth.BASE.override(devices=1))
    table = tmp_path / "speed.csv"
    small = "--model lenet5 --image 12 --batch 2 --blocks 2 --block-seconds 0.01".split()
    flags.main([*small, "--output", str(table), "--flags", "xla_cpu_enable_fast_math=True", "xla_nonsense=1"])
    values = {row["measure"]: float(row["value"]) for row in speed.read(table)}
    assert set(values) == {"default / with the flag", "step with the flag", "default step"}
    assert all(math.isfinite(value) and value > 0 for value in values.values())
    assert "left out xla_nonsense=1: " in capsys.readouterr().out
    flags.main([*small, "--seconds", "1e-9", "--flags", "xla_a=1", "xla_b=2"])
    assert "ends before xla_a=1, xla_b=2: no time left" in capsys.readouterr().out
    with pytest.raises(UserError, match="--flags xla_a is not NAME=VALUE"):
        flags.main(["--flags", "xla_a"])


def test_rows_of_another_table_are_taken_over(tmp_path, monkeypatch):
    one, other, page = tmp_path / "one.csv", tmp_path / "other.csv", tmp_path / "page.md"
    speed.record(one, "b", [speed.Figure("kept", "step", 1.0, "ms"), speed.Figure("new", "step", 2.0, "ms")])
    speed.record(other, "b", [speed.Figure("new", "step", 3.0, "ms"), speed.Figure("more", "step", 4.0, "ms")])
    page.write_text("<!-- speed -->\n<!-- /speed -->\n")
    speed.main(["--table", str(one), "--page", str(page), "--add", str(other)])
    assert {row["case"]: row["value"] for row in speed.read(one)} == {"kept": "1", "new": "3", "more": "4"}
    assert "| more | step | 4 ms |" in page.read_text()
