"""What training shows: lines that fit the terminal, and times that leave out compilation."""

import io
import re
import sys
import time

import pytest
from rich.console import Console

from cnn_jax.config import Config, Member
from cnn_jax.storage.run_folder import read_metrics
from cnn_jax.tasks import Metric
from cnn_jax.training import compiled, progress
from cnn_jax.training.progress import Clock, Display
from cnn_jax.training.run import train

METRICS = {"loss": Metric("cross-entropy (nats)"), "accuracy": Metric("accuracy", percent=True)}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def display(monkeypatch, columns=None, rates=(), steps=10_000, per_epoch=250.0):
    """A display whose clock advances by hand, and what it has printed so far; on a terminal if `columns` is set."""
    shown = io.StringIO() if columns is None else Terminal()
    monkeypatch.setattr(sys, "stdout", shown)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
    now = [0.0]
    monkeypatch.setattr(progress, "Clock", lambda: Clock(lambda: now[0]))
    made = Display(
        metrics=METRICS,
        total_steps=steps,
        first_step=0,
        steps_per_epoch=per_epoch,
        batch_size=200,
        flops=0.0,
        devices=1,
        compared=tuple(map(Member, rates)),
    )
    made.clock.start()
    return made, shown, now


def values(loss, accuracy):
    return {"loss": loss, "accuracy": accuracy}


@pytest.mark.parametrize("columns", [80, 100, 119, 140])
def test_lines_fit_the_terminal_and_stand_in_columns(columns, monkeypatch):
    made, shown, now = display(monkeypatch, columns)
    steps = (250, 9_000, 9_990)
    for step, accuracy in zip(steps, (0.0712, 0.9987, 1.0), strict=True):
        now[0] = step / 10
        made.validation(step, [values(2.3456, accuracy)], [values(0.0312, accuracy)], 123_456.7, now[0])
    lines = shown.getvalue().splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines}) == 1 and len(lines[0]) <= columns
    assert lines[0].startswith("epoch    1  ") and lines[1].startswith("epoch   36  ")
    assert lines[2].startswith("epoch   40  ")
    for line, accuracy in zip(lines, (" 7.12%", "99.87%", "100.0%"), strict=True):
        assert f"loss 2.3456 accuracy {accuracy}  validation loss 0.0312 accuracy {accuracy}" in line


def test_a_narrow_terminal_keeps_the_validation(monkeypatch):
    made, shown, _ = display(monkeypatch, 50)
    made.validation(250, [values(2.3456, 0.5)], [values(0.0312, 0.5)], 1e3, 1.0)
    assert shown.getvalue() == "epoch    1  validation loss 0.0312 accuracy 50.00%\n"


def test_a_file_gets_the_whole_line(monkeypatch):
    made, shown, now = display(monkeypatch)
    now[0] = 21.0
    made.validation(250, [values(2.3456, 0.5)], [values(0.0312, 0.5)], 1234.0, 30.0)
    left = 21 * (10_000 - 250) / 250
    assert shown.getvalue() == (
        "epoch    1  step   250  loss 2.3456 accuracy 50.00%  validation loss 0.0312 accuracy 50.00%  "
        f"    1,234 images/s     30 s  left {left:5.0f} s\n"
    )


def test_half_epochs_have_a_decimal(monkeypatch):
    made, shown, _ = display(monkeypatch, steps=500)
    for step in (125, 250):
        made.validation(step, [{}], [values(0.5, 0.5)], None, 1.0)
    assert [line[:9] for line in shown.getvalue().splitlines()] == ["epoch 0.5", "epoch   1"]


def test_each_learning_rate_has_a_line(monkeypatch):
    made, shown, _ = display(monkeypatch, 80, rates=(0.1, 0.001))
    each = [values(0.25, 0.9), values(float("nan"), 0.1)]
    made.validation(250, each, each, 1e3, 1.0)
    lines = shown.getvalue().splitlines()
    assert "rate 0.1 " in lines[0] and "validation loss 0.2500 accuracy 90.00%" in lines[0]
    assert "rate 0.001" in lines[1] and "validation loss    nan accuracy 10.00%" in lines[1]
    assert len(lines) == 2 and max(map(len, lines)) <= 80


@pytest.mark.parametrize("columns", [80, 120])
def test_the_bar_fits_the_terminal(columns, monkeypatch):
    made, _, now = display(monkeypatch, columns)
    now[0] = 65.0
    made.train(5_025, 0.1234, 123_456.7)
    assert made._bar is not None
    drawn = io.StringIO()
    console = Console(file=drawn, width=columns, force_terminal=True, color_system=None)
    console.print(made._bar.get_renderable())
    (line,) = drawn.getvalue().splitlines()
    assert len(line) <= columns and "…" not in line
    assert line.startswith("epoch 20.1/40 ") and "loss 0.1234  123,457 images/s 0:01:05 left" in line


def test_a_narrow_bar_leaves_out_the_speed(monkeypatch):
    made, _, now = display(monkeypatch, 60)
    now[0] = 65.0
    made.train(5_025, 0.1234, 123_456.7)
    assert made._bar is not None
    drawn = io.StringIO()
    Console(file=drawn, width=60, force_terminal=True, color_system=None).print(made._bar.get_renderable())
    (line,) = drawn.getvalue().splitlines()
    assert len(line) <= 60 and "…" not in line
    assert line.startswith("epoch 20.1/40 ") and "loss 0.1234 0:01:05 left " in line


def test_a_clock_stands_still_until_it_starts_and_while_it_is_paused():
    now = [5.0]
    clock = Clock(lambda: now[0])
    assert clock.seconds == 0
    clock.start()
    now[0] = 7.0
    with clock.paused():
        now[0] = 100.0
        assert clock.seconds == 2
    now[0] = 101.0
    clock.start()
    assert clock.seconds == 3


def test_times_leave_out_compilation(tmp_path, monkeypatch, capsys):
    original = compiled._compile

    def slow(*args, **settings):
        time.sleep(1.5)
        return original(*args, **settings)

    monkeypatch.setattr(compiled, "_compile", slow)
    config = Config("slow").override(
        dataset="synthetic:8x8x1:3:40", model="softmax_regression", batch_size=16, epochs=3, logger=()
    )
    summary = train(config.override(workdir=str(tmp_path / "run")))
    assert summary["seconds"] < 1.5, "two programs were compiled before or while it trained"
    assert summary["evaluation_seconds"] < 1.5, "the evaluation at the end includes its compilation"
    assert max(row["seconds"] for row in read_metrics(tmp_path / "run")) < 1.5
    first = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch"))
    left = re.search(r"left +(\d+) s", first)
    assert left is not None and int(left[1]) <= 2, first
