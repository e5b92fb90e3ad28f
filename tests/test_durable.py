"""Files are written in an order that survives power loss, and any damage to them is noticed."""

import json
import os
import random
from pathlib import Path

import pytest

from cnn_jax.storage import durable


@pytest.fixture
def calls(monkeypatch):
    """Records syncs, by the path of what is synced, and renames, in order."""
    seen: list[tuple[str, str]] = []
    sync, replace = os.fsync, os.replace

    def watched_sync(descriptor: int) -> None:
        seen.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def watched_replace(source, target) -> None:
        seen.append(("rename", f"{target}"))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "replace", watched_replace)
    return seen


def test_a_file_is_synced_before_its_name_and_the_name_before_it_returns(tmp_path, calls):
    durable.write(tmp_path / "a.txt", b"data")
    partial = str(tmp_path / f".a.txt.{os.getpid()}")
    assert calls == [("sync", partial), ("rename", str(tmp_path / "a.txt")), ("sync", str(tmp_path))]


def test_the_checksum_is_safe_before_the_file(tmp_path, calls):
    durable.write_checked(tmp_path / "a.txt", b"data")
    renames = [path for call, path in calls if call == "rename"]
    assert renames == [str(tmp_path / durable.CHECKSUMS), str(tmp_path / "a.txt")]
    assert calls[2] == ("sync", str(tmp_path)), "the name of the checksums"


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    durable.write_checked(tmp_path / "a.txt", b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        durable.write_checked(tmp_path / "a.txt", b"new")
    monkeypatch.undo()
    durable.check(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["a.txt", durable.CHECKSUMS]


def test_a_crash_between_checksum_and_file_damages_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    durable.write_checked(path, b"first")
    for content in (b"second", b"third"):
        with monkeypatch.context() as patch:
            patch.setattr(durable, "write", _stop_at(path))
            with pytest.raises(KeyboardInterrupt):
                durable.write_checked(path, content)
        durable.check(path)
        assert path.read_bytes() == b"first"
    durable.write_checked(path, b"fourth")
    durable.check(path)
    path.write_bytes(b"second")
    with pytest.raises(durable.Damaged, match="a.txt is damaged"):
        durable.check(path)


def test_a_file_without_a_checksum_is_not_damaged_by_a_crash_while_it_is_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes(b"of an earlier version")
    with monkeypatch.context() as patch:
        patch.setattr(durable, "write", _stop_at(path))
        with pytest.raises(KeyboardInterrupt):
            durable.write_checked(path, b"second")
    durable.check(path)
    assert path.read_bytes() == b"of an earlier version"
    durable.write_checked(path, b"second")
    durable.check(path)


def test_a_file_without_a_checksum_gets_one_even_if_its_content_stays(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"same")
    durable.write_checked(path, b"same")
    path.write_bytes(b"damaged")
    with pytest.raises(durable.Damaged):
        durable.check(path)
    durable.write_checked(path, b"new")
    path.write_bytes(b"damaged")
    with pytest.raises(durable.Damaged):
        durable.check(path)


def _stop_at(path: Path):
    write = durable.write

    def stopped(target: Path, data: bytes) -> None:
        if target == path:
            raise KeyboardInterrupt
        write(target, data)

    return stopped


def test_a_missing_file_and_unreadable_checksums_are_noticed(tmp_path):
    path = tmp_path / "a.txt"
    durable.check(path)  # none was recorded
    durable.write_checked(path, b"data")
    path.unlink()
    with pytest.raises(durable.Damaged, match="missing"):
        durable.check(path)
    durable.write(path, b"data")
    (tmp_path / durable.CHECKSUMS).write_bytes(b"\0" * 40)
    with pytest.raises(durable.Damaged, match=r"checksums.json is damaged"):
        durable.check(path)
    durable.write_checked(path, b"data")
    durable.check(path)


def test_no_damage_to_a_sealed_folder_goes_unnoticed(tmp_path):
    rng = random.Random(0)
    (tmp_path / "inner").mkdir()
    contents = {
        f"{parent}{i}": rng.randbytes(rng.choice([1, 100, 5000, 20000])) for parent in ("", "inner/") for i in range(5)
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    durable.seal(tmp_path)
    assert durable.verify(tmp_path) is None
    for _ in range(600):
        name = rng.choice([*contents, durable.CHECKSUMS])
        path = tmp_path / name
        before = path.read_bytes()
        data = bytearray(before)
        match rng.choice(["bit", "zeros", "cut", "longer", "swap"]):
            case "bit":
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            case "zeros":
                start = rng.randrange(len(data))
                data[start : start + 4096] = bytes(len(data[start : start + 4096]))
            case "cut":
                del data[rng.randrange(len(data)) :]
            case "longer":
                data += rng.randbytes(7)
            case "swap":
                half = len(data) // 2
                data = data[half:] + data[:half]
        if bytes(data) == before or (name == durable.CHECKSUMS and _same_json(bytes(data), before)):
            continue
        path.write_bytes(data)
        assert durable.verify(tmp_path) is not None, name
        path.write_bytes(before)
    assert durable.verify(tmp_path) is None


def _same_json(data: bytes, before: bytes) -> bool:
    """Whether only white space was damaged."""
    try:
        return json.loads(data) == json.loads(before)
    except ValueError:
        return False


def test_files_that_may_still_change_are_synced_but_not_compared(tmp_path, calls):
    for name in ("data", "times"):
        (tmp_path / name).write_text(name)
    durable.seal(tmp_path, but=["times"])
    assert ("sync", str(tmp_path / "times")) in calls
    (tmp_path / "times").write_text("later")
    assert durable.verify(tmp_path) is None
    assert durable.verify(tmp_path / "elsewhere") == "it was not finished: it has no checksums.json"
