"""User-visible failures: exit code 2, one line on stderr, no traceback, nothing half-written."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cnn_jax.commands import experiment as cli
from cnn_jax.data import ArraySource, digits, memory, pipeline, preprocess
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.lock import LOCK
from experiments import digits_lenet5

pytestmark = pytest.mark.usefixtures("one_device")

SMALL = ["--model", "softmax_regression", "--image-size", "8", "--epochs", "2", "--eval-every", "0.5", "--workdir"]
COMMAND = [sys.executable, "-m", "experiments.digits_lenet5", *SMALL]


def assert_one_line(stderr: str, said: str) -> None:
    """Asserts that stderr is one line, `error: …`, that contains `said`."""
    assert stderr.startswith("error: ") and stderr.index("\n") == len(stderr) - 1 and said in stderr, stderr


def refused(argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs the command in this process, expects exit code 2, and returns its stderr."""
    monkeypatch.setattr(sys, "argv", ["digits_lenet5", *argv])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # restored afterwards: the command replaces it
    with pytest.raises(SystemExit) as left:
        cli.run(digits_lenet5.CONFIG, digits_lenet5.__doc__)
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--freeze", "("], "--freeze '(' is not a regular expression for parameter paths"),
        (["--freeze", "nope"], "--freeze 'nope' matches no parameter (paths: conv1/bias"),
        (["--freeze-until", "nope=1"], "--freeze-until 'nope' matches no parameter (paths: conv1/bias"),
        (
            ["--freeze-until", "conv1"],
            "--freeze-until 'conv1' is not regex=epochs with a number of at least 0: write it like stage1=3",
        ),
        (
            ["--rate-groups", "conv1=x"],
            "--rate-groups 'conv1=x' is not regex=multiplier with a number of at least 0: write it like",
        ),
        (
            ["--optimizer", "momentum", "--optimizer-args", "momentum=abc"],
            "--optimizer-args: momentum=abc for optimizer momentum: write momentum=NUMBER",
        ),
        (["--schedule-args", "peak=x"], "--schedule-args: peak=x for schedule one_cycle: write peak=NUMBER"),
        (["--model-args", "depth=x"], "--model-args: lenet5 has no argument 'depth'; choose"),
        (["--model", "mlp", "--model-args", "hidden=x"], "--model-args: hidden=x for mlp: write hidden="),
        (["--augment", "pad_crop:padding=-1"], "--augment: padding=-1 for pad_crop"),
        (["--augment", "affine:scale=0/0"], "--augment: scale=0.0/0.0 for affine"),
        (
            ["--augment", "pca_color"],
            "--augment: pca_color needs colour images, and these have 1 channels: leave it out, or set --channels to 3",
        ),
        (["--augment", "pad_crop:padding=x"], "--augment: padding=x for augmentation pad_crop: write padding"),
    ],
)
def test_a_mistake_is_reported_with_its_flag_before_any_image_is_read(argv, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(pipeline, "materialize", lambda source: pytest.fail("images were read"))
    monkeypatch.setattr(preprocess, "materialize", lambda source: pytest.fail("images were read"))
    assert_one_line(refused([*argv, "--workdir", str(tmp_path / "run")], monkeypatch, capsys), said)
    assert os.listdir(tmp_path) == []


def test_a_missing_platform_is_refused(monkeypatch, capsys, tmp_path):
    said = refused(["--require", "tpu", "--workdir", str(tmp_path / "run")], monkeypatch, capsys)
    assert_one_line(said, "--require is tpu, but JAX found cpu")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def run_with_label_10(monkeypatch, capsys):
    """Returns a function that gives example 7 of a split label 10, runs the command and returns its stderr."""

    def run(wrong_split: str, *argv: str) -> str:
        original = digits.open_digits

        def open_digits(argument: str, split: str, image_size: int | None) -> ArraySource:
            source = original(argument, split, image_size)
            labels = np.where((np.arange(len(source)) == 7) & (split == wrong_split), 10, source.labels)
            return dataclasses.replace(source, labels=labels)

        monkeypatch.setattr(digits, "open_digits", open_digits)
        return refused([*argv], monkeypatch, capsys)

    return run


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_label_out_of_range_is_found_before_anything_is_written(split, run_with_label_10, tmp_path):
    said = run_with_label_10(split, *SMALL, str(tmp_path / "run"))
    assert_one_line(said, f"digits {split!r}: example 7 has label 10, not 0 to 9")
    assert os.listdir(tmp_path) == []


def test_a_streamed_label_out_of_range_ends_the_run_where_it_is_read(run_with_label_10, tmp_path):
    options = ("--pipeline", "stream", "--normalize", "none")  # so that not even the mean reads the images
    said = run_with_label_10("validation", *options, *SMALL, str(tmp_path / "run"))
    assert_one_line(said, "digits 'validation': example 7 has label 10, not 0 to 9")
    assert not {files.WEIGHTS, files.SUMMARY, files.REPORT} & set(os.listdir(tmp_path / "run"))
    assert not files.has_checkpoint(tmp_path / "run")


@pytest.fixture
def restricted(tmp_path) -> list[str]:
    """Command prefix under which file permissions apply, even for root."""
    start = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if start and not shutil.which("setpriv"):
        pytest.skip("root ignores permissions, and there is no setpriv")
    (tmp_path / "trial").mkdir(mode=0o500)
    if subprocess.run([*start, "touch", tmp_path / "trial" / "written"], capture_output=True).returncode == 0:
        pytest.skip("this user ignores permissions")
    return start


@pytest.mark.parametrize("name", ["run", "."], ids=["below", "itself"])
def test_a_folder_without_permission(name, restricted, tmp_path):
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    done = subprocess.run([*restricted, *COMMAND, str(folder / name)], capture_output=True, text=True)
    assert done.returncode == 2
    assert_one_line(done.stderr, "Permission denied; check the path, its permissions")
    assert os.listdir(folder) == []


def test_checkpoints_without_permission_do_not_hang(restricted, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / files.CHECKPOINTS).mkdir(mode=0o500)
    (tmp_path / "run" / LOCK).touch()  # the folder of a run
    command = [*restricted, *COMMAND, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert_one_line(done.stderr, f"cannot write a checkpoint in {tmp_path / 'run'} (Permission denied)")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_stdout_on_a_full_device(tmp_path):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, str(tmp_path / "run")], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert_one_line(done.stderr, "No space left on device")
    assert os.listdir(tmp_path) == []


# Mounts a disk that only this process and its children see. At 150 KiB the second of four checkpoints does not fit; at
# 400 KiB the report does not.
FULL_DISK = """
disk=$1; shift
mount -t tmpfs tmpfs "$disk" || exit 77
for size in 150k 400k 64m; do
    mount -o remount,size=$size "$disk"
    "$@" >"$disk-$size.out" 2>"$disk-$size.err"
    echo "$size $?" $(find "$disk" -name '.*' ! -name .cnn_jax.lock -o -name summary.json)
done
"""


def test_a_full_disk_loses_only_unsaved_work_and_the_same_command_resumes(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    trial = [*alone, 'mount -t tmpfs tmpfs "$1"', "sh", str(disk)]
    if not shutil.which("unshare") or subprocess.run(trial, capture_output=True).returncode:
        pytest.skip("needs Linux and the right to mount a disk")
    command = [*alone, FULL_DISK, "sh", str(disk), *COMMAND, str(disk / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["150k 2", "400k 2", f"64m 0 {disk}/run/summary.json", ""]
    said = {size: (tmp_path / f"disk-{size}.out").read_text() for size in ("400k", "64m")}
    wrong = {size: (tmp_path / f"disk-{size}.err").read_text() for size in ("150k", "400k", "64m")}
    lost = re.compile(r"warning: the checkpoint of step \d+ is missing; falling back to step \d+\n")
    assert lost.match(wrong["400k"])
    wrong = {size: lost.sub("", text) for size, text in wrong.items()}
    assert_one_line(wrong["150k"], f"cannot write a checkpoint in {disk / 'run'} (No space left on device): make room")
    assert_one_line(wrong["400k"], "No space left on device; check the path")
    assert "resuming   from step 10\n" in said["400k"]
    assert "resuming   from step 40\n" in said["64m"] and "finished" in said["64m"] and wrong["64m"] == ""


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ["--image-size", "100000"],
            "an image of 100000 x 100000 pixels takes at least 120 GB of memory, and 2 GB are",
        ),
        (["--image-size", "2000"], "digits of 2000 x 2000 pixels takes at least 7.19 GB of memory, and 2 GB are free"),
        (
            ["--dataset", "synthetic:10000x10000x3:2"],
            "a batch of 64 images of 10000x10000x3 takes at least 76.8 GB of memory, and 2 GB are free: lower --image",
        ),
        (
            ["--dataset", "synthetic:2000x2000x1:2"],
            # 64 images and 4 times 474 million values: weights, two moments, gradients
            "training lenet5 on 2000x2000x1 images takes at least 8.61 GB of memory",
        ),
    ],
)
def test_what_does_not_fit_in_memory_is_refused(argv, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * 10**9)
    assert_one_line(refused([*argv, "--workdir", str(tmp_path / "run")], monkeypatch, capsys), said)
    assert os.listdir(tmp_path) == []
