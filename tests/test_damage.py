"""Random damage to checkpoints, caches and records: it is noticed, and what is used instead is right."""

import random
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cnn_jax.config import Config
from cnn_jax.data import decoded as decoded_module
from cnn_jax.data import open_source
from cnn_jax.data.decoded import materialize
from cnn_jax.errors import UserError
from cnn_jax.native import build
from cnn_jax.storage import durable
from cnn_jax.storage import run_folder as files
from cnn_jax.tasks import Selection
from cnn_jax.training import run
from cnn_jax.training.checkpoint import Checkpoints
from cnn_jax.training.state import TrainState

pytestmark = pytest.mark.usefixtures("one_device")

SELECTION = Selection("accuracy", True)
SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def state(step: int) -> TrainState:
    """A state whose every number depends on the step."""
    kernel = jnp.arange(5000, dtype=jnp.float32) / (step + 1)
    return TrainState(
        step=jnp.int32(step),
        seed=jnp.uint32(0),
        learning_rate=jnp.float32(0.1),
        params={"layer": {"kernel": kernel, "bias": jnp.full(3, step, jnp.float32)}},
        batch_stats={},
        opt_state=(jnp.int32(step), {"layer": kernel * 2}),
        ema={},
    )


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """Checkpoints of steps 1 to 3; that of step 1 is the best."""
    folder = tmp_path_factory.mktemp("run") / files.CHECKPOINTS
    with Checkpoints(folder, SELECTION) as saved:
        for step, accuracy in ((1, 0.9), (2, 0.5), (3, 0.7)):
            saved.save(step, state(step), {"accuracy": accuracy})
            saved.wait()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]
    return folder


def damage(path: Path, rng: random.Random) -> str:
    """Damages a file as disks and crashes do; returns how."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(["bit", "bits", "zeros", "cut", "empty", "gone"])
    match kind:
        case "bit" | "bits":
            for _ in range(1 if kind == "bit" else 3):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "zeros":
            start = rng.randrange(len(data)) // 4096 * 4096
            data[start : start + 4096] = bytes(len(data[start : start + 4096]))
        case "cut":
            del data[rng.randrange(len(data)) :]
        case "empty":
            data = bytearray()
    path.write_bytes(data)
    if kind == "gone":
        path.unlink()
    return kind


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 3))])
def test_a_damaged_checkpoint_is_never_restored(checkpoints, tmp_path, seed):
    """What is restored is bit for bit what was saved at that step."""
    rng = random.Random(seed)
    for number in range(10 if seed == 0 else 100):
        folder = tmp_path / str(number) / files.CHECKPOINTS
        shutil.copytree(checkpoints, folder)
        step = rng.choice([1, 3])
        path = rng.choice([path for path in sorted((folder / str(step)).rglob("*")) if path.is_file()])
        before, name = path.read_bytes(), path.relative_to(folder)
        how = damage(path, rng)
        harmless = path.exists() and path.read_bytes() == before
        with Checkpoints(folder, SELECTION) as saved:
            best = saved.best_step()
            restored = saved.restore(state(0), SHARDING, best if step == 1 else None)
            assert restored is not None, (name, how)
        if not harmless and path.name not in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            assert restored[0] == (3 if step == 1 else 2), (name, how)  # the next best, or the one before
        jax.tree.map(np.testing.assert_array_equal, restored[1], state(restored[0]))
        shutil.rmtree(tmp_path / str(number))


def test_a_step_that_is_damaged_again_is_set_aside_again(checkpoints, tmp_path):
    folder = tmp_path / files.CHECKPOINTS
    shutil.copytree(checkpoints, folder)
    for _ in range(3):
        (folder / "3" / "metrics" / "metrics").write_text("{")
        with Checkpoints(folder, SELECTION) as saved:
            assert saved.steps() == [1, 2]
            saved.save(3, state(3), {"accuracy": 0.7})
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["1", "2", "3", "damaged-3", "damaged-3-2", "damaged-3-3"]


def test_a_state_that_is_not_finite_is_not_resumed_from(tmp_path, capsys):
    folder = tmp_path / files.CHECKPOINTS
    bad = state(2)
    bad.params["layer"]["bias"] = jnp.array([0, jnp.nan, 1])
    with Checkpoints(folder, SELECTION) as saved:
        for step, saved_state in ((1, state(1)), (2, bad)):
            saved.save(step, saved_state, {"accuracy": 0.5})
            saved.wait()
        restored = saved.restore(state(0), SHARDING)
        assert restored is not None and restored[0] == 1
    assert "not finite" in capsys.readouterr().err
    with Checkpoints(tmp_path / "sweep", SELECTION) as saved:
        saved.save(2, bad, {"accuracy": 0.5})
        saved.wait()
        restored = saved.restore(state(0), SHARDING, finite=False)
        assert restored is not None and restored[0] == 2, "a network of a sweep may diverge"


def test_checkpoints_are_synced_before_older_ones_go(tmp_path, monkeypatch):
    """Everything in a checkpoint, then its checksums, then its final name; at that time the older ones are there."""
    calls: list[str] = []
    seal, sync_folder = durable.seal, durable.sync_folder
    folder = tmp_path / files.CHECKPOINTS

    def watched_seal(path, but=()):
        seal(path, but)
        assert (path / durable.CHECKSUMS).is_file() and not (folder / path.name.partition(".")[0]).exists()
        calls.append(f"seal {path.name.partition('.')[0]}")

    def watched_sync(path):
        sync_folder(path)
        if path == folder:
            calls.append(f"names {' '.join(sorted(p.name for p in folder.iterdir() if p.name.isdigit()))}")

    monkeypatch.setattr(durable, "seal", watched_seal)
    monkeypatch.setattr(durable, "sync_folder", watched_sync)
    with Checkpoints(folder, SELECTION) as saved:
        for step in (1, 2, 3, 4):
            saved.save(step, state(step), {"accuracy": step / 10})
            saved.wait()
    assert calls == ["seal 1", "names 1", "seal 2", "names 1 2", "seal 3", "names 1 2 3", "seal 4", "names 2 3 4"]


def test_damaged_decoded_images_are_decoded_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path))
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    source = open_source(f"folder:{tmp_path / 'images'}", "train")
    right = {name: np.array(array) for name, array in materialize(source).items()}
    [folder] = (tmp_path / "decoded").iterdir()
    rng = random.Random(0)
    for _ in range(30):
        path = rng.choice(sorted(folder.iterdir()))
        before = path.read_bytes()
        how = damage(path, rng)
        changed = not path.exists() or path.read_bytes() != before
        jax.tree.map(np.testing.assert_array_equal, materialize(source), right)
        assert ("damaged" in capsys.readouterr().err) == changed, (path.name, how)
    assert durable.verify(folder) is None, "mended"


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    """A source and the folder of its decoded images."""
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path))
    images(tmp_path / "images", 3)
    source = open_source(f"folder:{tmp_path / 'images'}", "train", image_size=12)
    materialize(source)
    [folder] = (tmp_path / "decoded").iterdir()
    return source, folder


def test_decoded_images_are_open_to_other_users(decoded, tmp_path):
    _, folder = decoded
    (tmp_path / "usual").mkdir()
    assert folder.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_decoded_images_that_cannot_be_read_are_decoded_again(decoded, monkeypatch, capsys):
    source, folder = decoded

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(durable, "_digest", fail)
    assert len(materialize(source)["image"]) == len(source)
    assert "are damaged ([Errno 5] Input/output error); decoding again" in capsys.readouterr().err


def test_decoded_images_that_another_process_has_just_written_stay(decoded, monkeypatch):
    source, folder = decoded
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(decoded_module, "_load", lambda *arguments: None)  # it was missing or damaged then
        materialize(source)
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]


def test_damaged_compiled_code_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path))
    built: list[str] = []

    def compile_(command, **settings):
        if "-o" in command:
            Path(command[-1]).write_bytes(b"machine code" * 1000)
            built.append(command[-1])
        return type("Done", (), {"stdout": b'#define __VERSION__ "1"'})()

    monkeypatch.setattr(build.subprocess, "run", compile_)
    path, _ = build._build("c++")
    assert build._build("c++")[0] == path and len(built) == 1
    for number, change in enumerate((lambda: path.write_bytes(path.read_bytes()[:600]), path.unlink), start=2):
        change()
        assert build._build("c++")[0] == path and len(built) == number
        assert path.read_bytes() == b"machine code" * 1000


def test_compiled_code_that_another_process_removes_is_compiled_again(tmp_path, monkeypatch):
    loaded = []

    def load(path):
        loaded.append(path)
        if len(loaded) == 1:  # damaged, and removed by another process that noticed first
            raise OSError("file too short")
        return type("Library", (), {f"convolution_{part}": part for part in build.FUNCTIONS})

    monkeypatch.setattr(build, "_build", lambda compiler: (tmp_path / "convolution.so", "1"))
    monkeypatch.setattr(build.ctypes, "CDLL", load)
    assert build._functions("c++")[1] == "c++ 1" and len(loaded) == 2


def test_a_damaged_row_of_metrics_is_named(tmp_path):
    for step in (1, 2):
        files.append_metrics(tmp_path, {"kind": "train", "step": step, "loss": 0.5})
    path = tmp_path / files.METRICS
    assert [row["loss"] for row in files.read_metrics(tmp_path)] == [0.5, 0.5]
    assert all("crc" not in row for row in files.read_metrics(tmp_path))
    path.write_text(path.read_text().replace('"loss": 0.5', '"loss": 0.4', 1))
    with pytest.raises(UserError, match=r"line 1 of .*metrics.jsonl .* damaged: delete that line"):
        files.read_metrics(tmp_path)


def images(folder: Path, count: int) -> None:
    """Writes images of two classes."""
    for name in "ab":
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")


@pytest.mark.parametrize("change", ["added", "removed", "resized", "nothing", "moved"])
def test_a_run_is_not_resumed_on_other_data(tmp_path, change):
    images(tmp_path / "images", 30)
    config = Config("changed").override(
        dataset=f"folder:{tmp_path / 'images'}",
        model="softmax_regression",
        batch_size=8,
        steps=4,
        eval_every=0.25,
        image_size=8,
        devices=1,
        workdir=str(tmp_path / "run"),
    )
    run.train(config)
    (tmp_path / "run" / files.SUMMARY).unlink()  # as if it had been stopped
    path = next((tmp_path / "images" / "a").glob("*5.png"))
    match change:
        case "added":
            images(tmp_path / "images", 40)
        case "removed":
            path.unlink()
        case "resized":
            Image.new("RGB", (64, 64)).save(path)
        case "moved":
            (tmp_path / "images").rename(tmp_path / "elsewhere")
            (tmp_path / "images").symlink_to(tmp_path / "elsewhere")
    if change in ("nothing", "moved"):
        assert run.train(config)["finished"]
    else:
        with pytest.raises(UserError, match="data of .* has changed since it was started .*: restore it, set `fresh`"):
            run.train(config)
        assert run.train(config.override(fresh=True))["finished"]
