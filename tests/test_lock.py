"""One process at a time writes to a run folder, and never over files that are not a run's."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cnn_jax.commands.experiment import parse
from cnn_jax.config import Config
from cnn_jax.errors import UserError
from cnn_jax.storage import lock
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.lock import LOCK, is_locked, locked
from cnn_jax.training import run

CONFIG = Config("locked").override(
    dataset="synthetic:8x8x1:3:60", model="softmax_regression", steps=2, batch_size=8, devices=1
)
HOLD = (
    "import os, sys, time; from pathlib import Path; from cnn_jax.storage.lock import locked\n"
    "with locked(Path(sys.argv[1])):\n"
    "    if sys.argv[2:] == ['leave']: os.wait() if os.fork() else sys.exit()\n"
    "    parent = sys.argv[2:] != ['fork'] or os.fork()\n"
    "    if not parent or sys.argv[2:] != ['fork']: print('held', flush=True)\n"  # the child, once it has let go
    "    if not parent: time.sleep(60)\n"
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


def refused(folder) -> bool:
    """Whether another process is refused the lock."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    return b"in use by process" in subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).stderr


def test_the_lock_outlives_whoever_opens_its_file(tmp_path):
    with locked(tmp_path / "run"):
        assert refused(tmp_path / "run")
        (tmp_path / "run" / LOCK).read_bytes()
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        assert is_locked(tmp_path / "run") and not is_locked(tmp_path / "copy")
        assert refused(tmp_path / "run")
    assert not is_locked(tmp_path / "run")


def test_asking_takes_no_lock(tmp_path, holder, monkeypatch):
    assert is_locked(tmp_path / "run")
    holder.kill()
    holder.wait()
    taken = []
    monkeypatch.setattr(lock.fcntl, "lockf", lambda *arguments: taken.append(arguments))
    assert not is_locked(tmp_path / "run")
    assert taken == []


def test_a_forked_child_that_leaves_the_context_removes_nothing(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), "leave"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as p:
        assert p.stdout is not None and p.stdout.readline() == "held\n"
        assert is_locked(tmp_path / "run")
        p.kill()
    assert not is_locked(tmp_path / "run") and (tmp_path / "run" / LOCK).exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EROFS])
def test_a_folder_that_cannot_be_locked_is_used_without(tmp_path, monkeypatch, capsys, number):
    def fail(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(*((lock.fcntl, "fcntl") if number == errno.ENOLCK else (os, "open")), fail)
    with locked(tmp_path), locked(tmp_path / "other"):
        pass
    assert os.listdir(tmp_path) == []
    assert ("cannot be locked (No locks available)" in capsys.readouterr().err) == (number == errno.ENOLCK)


def test_a_system_without_open_file_description_locks_has_record_locks(tmp_path, monkeypatch):
    real = lock.fcntl.fcntl

    def fail(descriptor, command, argument):
        if command == lock.fcntl.F_OFD_SETLK:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, command, argument)

    monkeypatch.setattr(lock.fcntl, "fcntl", fail)
    with locked(tmp_path / "run"):
        assert is_locked(tmp_path / "run") and refused(tmp_path / "run")


def test_a_folder_that_others_remove_is_created_again(tmp_path, monkeypatch):
    folder, count = tmp_path / "run", iter(range(100))
    names = os.listdir

    def listed(path):
        found = names(path)
        if next(count) < 3:
            os.rmdir(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", listed)
        with locked(folder):
            assert (folder / LOCK).exists()


def test_the_error_is_not_hidden_by_another_process_that_writes_there(tmp_path, monkeypatch):
    rmdir = os.rmdir

    def write_and_rmdir(path, **settings):
        (tmp_path / "run" / "theirs").touch()
        rmdir(path, **settings)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="mine"), locked(tmp_path / "run"):
        patch.setattr(os, "rmdir", write_and_rmdir)
        raise UserError("mine")
    assert os.listdir(tmp_path / "run") == ["theirs"]


def test_folders_that_were_created_above_it_go_too(tmp_path, monkeypatch):
    def fail(path):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="mine"), locked(Path("there/new/run")):
        raise UserError("mine")
    assert os.listdir("there") == []
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(lock, "_open", fail)
        with locked(Path("there/new/run")):
            pass
    assert os.listdir("there") == []
    with locked(Path("there/new/run")):
        Path("there/new/file").touch()
    assert os.listdir("there/new") == ["file"]


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


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_a_folder_that_cannot_be_made_is_not_said_to_be_removed():
    with pytest.raises(UserError, match="/proc/x cannot be created in that file system: set another `workdir`"):
        with locked(Path("/proc/x")):
            pass
