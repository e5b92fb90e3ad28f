"""One process at a time writes to a run folder, and never over files that are not a run's."""

import os
import signal
import subprocess
import sys

import pytest

from cnn_jax.commands.experiment import parse
from cnn_jax.config import Config
from cnn_jax.errors import UserError
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.lock import LOCK, locked
from cnn_jax.training import run

CONFIG = Config("locked").override(
    dataset="synthetic:8x8x1:3:60", model="softmax_regression", steps=2, batch_size=8, devices=1
)
HOLD = (
    "import os, sys, time; from pathlib import Path; from cnn_jax.storage.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    if len(sys.argv) > 2 and os.fork() == 0: time.sleep(60)\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


@pytest.fixture
def holder(tmp_path):
    """A process that holds the lock of tmp_path / "run"."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_named_and_nothing_is_touched(tmp_path, holder):
    (tmp_path / "run" / files.CONFIG).write_text(CONFIG.to_json())
    for fresh in (False, True):
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on .*, since 20.*another `workdir`"):
            run.train(CONFIG.override(workdir=str(tmp_path / "run"), fresh=fresh))
    assert sorted(os.listdir(tmp_path / "run")) == sorted([LOCK, files.CONFIG])


def test_the_default_folder_of_another_run_that_is_starting_is_left_alone(tmp_path, monkeypatch, holder):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "locked").symlink_to(tmp_path / "run")
    (tmp_path / "run" / files.CONFIG).write_text(CONFIG.override(steps=3).resolve().to_json())
    monkeypatch.chdir(tmp_path)
    assert parse([], CONFIG).train.workdir == "runs/locked-2"
    holder.kill()
    holder.wait()
    assert parse([], CONFIG).train.workdir == "runs/locked"


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK).read_text()


def test_forked_children_do_not_keep_the_lock(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), "fork"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as p:
        assert p.stdout is not None and p.stdout.readline() == "held\n"
        p.kill()
        p.wait()
        with locked(tmp_path / "run"):
            pass
        os.killpg(p.pid, signal.SIGKILL)


def test_the_same_process_cannot_lock_twice(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(UserError, match="in use by this process"):
        with locked(tmp_path / "link"):
            pass
    assert not (tmp_path / "run").exists(), "it was new and nothing was written"
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert sorted(os.listdir(tmp_path / "run")) == [LOCK, "file"]


@pytest.mark.parametrize("name", [files.CONFIG, files.METRICS, files.PLOTS, files.CHECKPOINTS])
def test_a_users_own_files_are_not_overwritten(tmp_path, name):
    if name in (files.PLOTS, files.CHECKPOINTS):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.png").write_text("mine")
    else:
        (tmp_path / name).write_text('{"mine": 1}')
    for fresh in (False, True):
        with pytest.raises(UserError, match=f"not a run folder, but has {name}"):
            run.train(CONFIG.override(workdir=str(tmp_path), fresh=fresh))
    assert os.listdir(tmp_path) == [name]


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    run.train(CONFIG.override(workdir=str(tmp_path)))
    run.train(CONFIG.override(workdir=str(tmp_path), fresh=True))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_the_default_folder_gets_a_number_if_another_run_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first = parse([], CONFIG)
    assert first.train.workdir == "runs/locked" and capsys.readouterr().out == ""
    second = first
    for _ in range(2):  # the second time it is there already
        folder = tmp_path / str(second.train.workdir)
        folder.mkdir(parents=True)
        (folder / files.CONFIG).write_text(second.to_json())
        assert parse(["--seed", "1"], CONFIG).train.workdir == second.train.workdir, "nothing was trained there"
        (folder / files.SUMMARY).touch()
        second = parse(["--seed", "1"], CONFIG)
        assert second.train.workdir == "runs/locked-2"
        told = capsys.readouterr().out
        assert "runs/locked holds another run (seed: 1 here, 0 there)" in told and "using runs/locked-2" in told
    assert parse(["--seed", "2"], CONFIG).train.workdir == "runs/locked-3"
    assert parse([], CONFIG).train.workdir == "runs/locked"
    assert parse(["--seed", "2", "--fresh"], CONFIG).train.workdir == "runs/locked"
