"""Weights round-trip through files; problems are reported in one line."""

import json
import os
import stat
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.errors import UserError
from cnn_jax.storage.weights_file import check_same_structure, load_weights, save_weights

VARIABLES = {
    "params": {
        "conv1": {"kernel": np.arange(18, dtype=np.float32).reshape(3, 3, 1, 2), "bias": np.array([-1.5, 2.5])},
        "block": {"norm": {"scale": np.float32(3.0)}},
    },
    "batch_stats": {"norm": {"mean": np.array([1, 2, 3], np.int32)}},
}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_round_trip_keeps_names_values_shapes_and_types(tmp_path):
    save_weights(tmp_path / "w.safetensors", VARIABLES, {"model": "lenet5"})
    read, metadata = load_weights(tmp_path / "w.safetensors")
    assert metadata == {"model": "lenet5"}
    assert jax.tree.structure(read) == jax.tree.structure(VARIABLES)
    for ours, theirs in zip(jax.tree.leaves(read), jax.tree.leaves(VARIABLES), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)


def test_arrays_in_any_memory_order_and_on_device(tmp_path):
    transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T  # column-major: bytes in a different order
    bfloat = jnp.array([0.5, -2.0], jnp.bfloat16)
    save_weights(tmp_path / "w.safetensors", {"params": {"t": transposed, "b": bfloat}}, {})
    params = load_weights(tmp_path / "w.safetensors")[0]["params"]
    np.testing.assert_array_equal(params["t"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(params["b"].astype(np.float32), [0.5, -2.0])


def test_keys_are_paths_and_other_readers_may_read(tmp_path):
    from safetensors.numpy import load_file

    path = tmp_path / "w.safetensors"
    save_weights(path, VARIABLES, {})
    expected = {"params/conv1/kernel", "params/conv1/bias", "params/block/norm/scale", "batch_stats/norm/mean"}
    assert set(load_file(path)) == expected
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(path, VARIABLES, {})
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_weights(path, {"params": {"x": np.zeros(3)}}, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("content", [b"", b"not weights at all, just some words in a file", None])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "w.safetensors"
    save_weights(path, VARIABLES, {})
    path.write_bytes(path.read_bytes()[:-8] if content is None else content)
    with pytest.raises(UserError) as error:
        load_weights(path)
    assert str(path) in one_line(error) and "complete .safetensors" in one_line(error)


def test_absent_file(tmp_path):
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "none.safetensors")
    assert "none.safetensors" in one_line(error)


def write_raw(path, dtype: str, content: bytes) -> None:
    """Writes a file with one array "x" of two numbers; `dtype` is safetensors' name of their type."""
    about = {"dtype": dtype, "shape": [2], "data_offsets": [0, len(content)]}
    header = json.dumps({"x": about}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + content)


def test_bfloat16_is_read_without_jax(tmp_path):
    write_raw(tmp_path / "w.safetensors", "BF16", b"\x00\x3f\x00\xc0")
    code = "import sys; from cnn_jax.storage.weights_file import load_weights; "
    code += "print(load_weights(sys.argv[1])[0]['x'].tolist())"
    command = [sys.executable, "-c", code + "; assert 'jax' not in sys.modules", tmp_path / "w.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "[0.5, -2.0]\n", done.stderr


def test_types_that_numpy_lacks(tmp_path):
    write_raw(tmp_path / "w.safetensors", "F8_E5M2", b"\x00\x00")
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "w.safetensors")
    assert "float8_e5m2" in one_line(error) and "bfloat16" in one_line(error)


def test_an_array_inside_an_array_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"conv": np.ones(1), "conv/bias": np.ones(1), "fc": np.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UserError) as error:
        load_weights(tmp_path / "w.safetensors")
    assert "'conv' is an array and holds others" in one_line(error)


def test_check_same_structure_accepts_equal_names_and_shapes_only():
    wanted = jax.eval_shape(lambda: {"params": {"a": jnp.zeros((2, 3)), "deep": {"b": jnp.zeros(())}}})
    a, deep = np.ones((2, 3)), {"b": np.float32(1)}
    for same in (
        {"params": {"deep": deep, "a": a}},
        {"params": {"a": a.astype(np.float16), "deep": deep}},
        {"params": {"a": jnp.ones((2, 3), jnp.bfloat16), "deep": {"b": np.float64(1)}}},
    ):
        check_same_structure(same, wanted)  # does not raise; each of the cases below does
    for other, said in (
        ({"a": a}, "missing: params/deep/b"),
        ({"a": a, "deep": deep, "c": a}, "extra: params/c"),
        ({"a": a.T, "deep": deep}, "wrong shape: params/a"),
        ({"a": a, "deep": {"b": np.ones(1)}}, "wrong shape: params/deep/b"),
        ({"a": a, "deep": {"b": np.int8(1)}}, "whole numbers: params/deep/b"),
        ({"a": a, "deep": {"b": np.float16(np.inf)}}, "not finite: params/deep/b"),
        ({"a": a, "deep": {"b": np.float64(1e300)}}, "not finite: params/deep/b"),
        ({"a": jnp.full((2, 3), jnp.nan, jnp.bfloat16), "deep": deep}, "not finite: params/a"),
    ):
        with pytest.raises(UserError, match=said):
            check_same_structure({"params": other}, wanted)


def test_check_same_structure_reports_all_differences_in_one_line():
    have = {"params": {"a": np.ones((3, 2)), "b": np.array([1.0, np.nan]), "extra": np.ones(1), "ok": np.ones(4)}}
    want = {"params": {"a": np.ones((2, 3)), "b": np.ones(2), "ok": np.ones(4)}, "batch_stats": {"m": np.ones(1)}}
    with pytest.raises(UserError) as error:
        check_same_structure(have, want, given="w.safetensors", wanted="lenet5")
    message = one_line(error)
    assert "missing: batch_stats/m;" in message
    assert "extra: params/extra;" in message
    assert "wrong shape: params/a (3, 2) instead of (2, 3);" in message
    assert "not finite: params/b;" in message
    assert "ok" not in message
    assert message.startswith("cannot use w.safetensors as lenet5: ")


def test_check_same_structure_counts_the_names_it_omits():
    with pytest.raises(UserError, match=r"missing: p/00, .*, p/11 and 18 more;"):
        check_same_structure({}, {"p": {f"{i:02}": np.ones(1) for i in range(30)}})
