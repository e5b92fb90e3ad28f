"""Weight files are read bit for bit without PyTorch; code inside them is never run."""

import argparse
import copy
import io
import os
import pickle
import tracemalloc
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.errors import UserError
from cnn_jax.storage.weights_file import save_weights
from cnn_jax.weights.files import read_state
from cnn_jax.weights.wrappers import unwrapped

KINDS = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(jnp.bfloat16): "BFloat16Storage",
    np.dtype(np.int64): "LongStorage",
}
STATE = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) - 7.5,
    "half": np.array([0.5, -2.0, np.inf], np.float16),
    "bfloat": np.array([[1.5], [3.0]], jnp.bfloat16),
    "bn.num_batches_tracked": np.array(12, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


class Program:
    """Builds pickles like those of `torch.save`, by hand so that the tests need no PyTorch."""

    def __init__(self) -> None:
        self.storages: list[np.ndarray] = []

    def global_(self, module: str, name: str) -> bytes:
        return pickle.GLOBAL + f"{module}\n{name}\n".encode()

    def plain(self, value: Any) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    def tuple(self, *parts: bytes) -> bytes:
        return pickle.MARK + b"".join(parts) + pickle.TUPLE

    def call(self, module: str, name: str, *parts: bytes) -> bytes:
        return self.global_(module, name) + self.tuple(*parts) + pickle.REDUCE

    def storage(self, array: np.ndarray, legacy: bool = False, count: int | None = None) -> bytes:
        self.storages.append(array.ravel())
        key, count = str(len(self.storages) - 1), array.size if count is None else count
        last = [self.plain(None)] if legacy else []
        parts = [self.plain("storage"), self.global_("torch", KINDS[array.dtype]), self.plain(key), self.plain("cpu")]
        return self.tuple(*parts, self.plain(count), *last) + pickle.BINPERSID

    def tensor(self, storage: bytes, offset: int, shape: Any, strides: Any) -> bytes:
        hooks = self.call("collections", "OrderedDict")
        parts = [storage, self.plain(offset), self.plain(shape), self.plain(strides), self.plain(False), hooks]
        return self.call("torch._utils", "_rebuild_tensor_v2", *parts)

    def array(self, array: np.ndarray, legacy: bool = False) -> bytes:
        strides = tuple(stride // array.itemsize for stride in np.asarray(array, order="C").strides)
        return self.tensor(self.storage(array, legacy), 0, array.shape, strides)

    def mapping(self, items: dict[str, bytes]) -> bytes:
        inside = b"".join(self.plain(name) + value for name, value in items.items())
        return self.call("collections", "OrderedDict") + pickle.MARK + inside + pickle.SETITEMS


def whole(code: bytes) -> bytes:
    return pickle.PROTO + b"\x02" + code + pickle.STOP


def zipped(path: Path, code: bytes, storages: Sequence[np.ndarray] = (), byteorder: str = "little") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", whole(code))
        archive.writestr("archive/byteorder", byteorder)
        for key, array in enumerate(storages):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def legacy(path: Path, code: bytes, storages: Sequence[np.ndarray] = ()) -> Path:
    file = io.BytesIO()
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    for part in (0x1950A86A20F9469CFC6C, 1001, system):
        file.write(pickle.dumps(part, 2))
    file.write(whole(code) + pickle.dumps([str(key) for key in range(len(storages))], 2))
    for array in storages:
        file.write(array.size.to_bytes(8, "little") + array.tobytes())
    path.write_bytes(file.getvalue())
    return path


def saved(path: Path, state: dict[str, np.ndarray], old: bool = False) -> Path:
    program = Program()
    code = program.mapping({name: program.array(array, old) for name, array in state.items()})
    return (legacy if old else zipped)(path, code, program.storages)


def assert_same(read: dict[str, np.ndarray], state: dict[str, np.ndarray]) -> None:
    assert list(read) == list(state)
    for name, array in state.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)


def message(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read_state(path)
    said = str(error.value)
    assert "\n" not in said and str(path) in said
    return said


@pytest.mark.parametrize("old", [False, True])
def test_state_dict_of_every_type(tmp_path, old):
    assert_same(read_state(saved(tmp_path / "w.pth", STATE, old))[0], STATE)


def test_safetensors_and_their_metadata(tmp_path):
    save_weights(tmp_path / "w.safetensors", STATE, {"format": "pt"})
    state, metadata, _ = read_state(tmp_path / "w.safetensors")
    assert_same(dict(sorted(state.items())), dict(sorted(STATE.items())))
    assert metadata == {"format": "pt"}


@pytest.mark.parametrize("old", [False, True])
def test_files_written_by_pytorch(tmp_path, old):
    torch = pytest.importorskip("torch")
    base = torch.arange(60, dtype=torch.float32)
    state = OrderedDict(
        transposed=base[:6].reshape(2, 3).T,
        part=base[10:20],
        again=base[12:24].reshape(3, 4),
        channels_last=base.reshape(1, 5, 3, 4).contiguous(memory_format=torch.channels_last),
        scalar=torch.tensor(3),
        bfloat=torch.tensor([1.5], dtype=torch.bfloat16),
        truth=torch.tensor([True, False]),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    read = read_state(path).state
    expected = {name: tensor.detach() for name, tensor in state.items()}
    assert_same({n: a.astype(np.float32) for n, a in read.items()}, {n: t.float().numpy() for n, t in expected.items()})
    assert read["bfloat"].dtype == jnp.bfloat16 and read["scalar"].dtype == np.int64


@pytest.mark.parametrize("old", [False, True])
def test_state_dict_of_a_pytorch_network(tmp_path, old):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save({"epoch": 3, "state_dict": net.state_dict()}, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    assert_same(read_state(tmp_path / "w.pt")[0], {name: t.numpy() for name, t in net.state_dict().items()})


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_checkpoints_and_wrappers(tmp_path, key):
    program = Program()
    state = program.mapping({f"module.{name}": program.array(array) for name, array in STATE.items()})
    checkpoint = program.mapping({"epoch": program.plain(4), key: state})
    assert_same(read_state(zipped(tmp_path / "w.tar", checkpoint, program.storages))[0], STATE)


def test_tensors_of_early_pytorch(tmp_path):
    program = Program()
    storage = program.storage(np.arange(6, dtype=np.float32), legacy=True)
    parts = [storage, program.plain(1), program.plain((2, 2)), program.plain((1, 2))]
    code = program.mapping({"w": program.call("torch._utils", "_rebuild_tensor", *parts)})
    read = read_state(legacy(tmp_path / "w.pth", code, program.storages))[0]
    assert_same(read, {"w": np.array([[1, 3], [2, 4]], np.float32)})


class Evil:
    """Calls a function when unpickled the ordinary way."""

    def __init__(self, function: Any, *args: Any):
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_runs_a_program_is_refused_and_not_run(tmp_path, old, protocol):
    mark = tmp_path / "it was run"
    evil = Evil(os.system, f"touch '{mark}'")
    pickle.loads(pickle.dumps(evil, protocol))
    assert mark.exists(), "the pickle would do nothing anyway"
    mark.unlink()
    code = pickle.dumps({"weight": evil}, protocol)
    path = tmp_path / "w.pth"
    (legacy if old else zipped)(path, code.removeprefix(b"\x80\x02").removesuffix(b"."))
    assert f"would run {os.system.__module__}.system when loaded (nothing was run)" in message(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("__builtin__", "exec"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("torch._utils", "__builtins__"),
        ("collections", "namedtuple"),
        ("numpy", "FloatStorage"),
        ("cnn_jax.weights.files", "read_state"),
    ],
)
def test_unknown_globals_are_refused(tmp_path, module, name):
    path = zipped(tmp_path / "w.pth", Program().call(module, name, Program().plain("1")))
    assert f"would run {module}.{name} when loaded" in message(path)


def test_a_bare_pickle_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "it was run"
    path = tmp_path / "w.bin"
    path.write_bytes(pickle.dumps(Evil(os.mkdir, str(mark))))
    assert "would run" in message(path)
    assert not mark.exists()


def test_allowed_globals_cannot_be_modified(tmp_path):
    """BUILD sets attributes of the object on the stack, even of a function or class."""
    program = Program()
    change = program.plain((None, {"_function": 1}))
    rebuild = program.global_("torch._utils", "_rebuild_tensor_v2") + change + pickle.BUILD
    message(zipped(tmp_path / "w.pth", rebuild))
    message(zipped(tmp_path / "w.pth", program.global_("torch", "FloatStorage") + change + pickle.BUILD))
    message(zipped(tmp_path / "w.pth", program.global_("collections", "OrderedDict") + change + pickle.BUILD))
    assert_same(read_state(saved(tmp_path / "w.pth", STATE))[0], STATE)


def test_a_whole_network_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 3), tmp_path / "w.pth")
    assert "would run torch.nn.modules.linear.Linear" in message(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (3, (2,), (-1,)),
        (0, (10**9, 10**9), (0, 0)),
        (0, (2,), (2.0,)),
        (0, (2, 2), (1,)),
        (True, (2,), (1,)),
        (0, [2], (1,)),
    ],
)
def test_a_tensor_never_reaches_beyond_its_storage(tmp_path, offset, shape, strides):
    program = Program()
    tensor = program.tensor(program.storage(np.zeros(4, np.float32)), offset, shape, strides)
    assert "not a readable" in message(zipped(tmp_path / "w.pth", program.mapping({"w": tensor}), program.storages))


def test_damaged_archives(tmp_path):
    path = tmp_path / "w.pth"
    program = Program()
    short = program.mapping({"w": program.tensor(program.storage(np.zeros(4, np.float32), count=5), 0, (4,), (1,))})
    assert "storage 0 is missing or has another size" in message(zipped(path, short, program.storages))
    assert "storage 0 is missing" in message(zipped(path, short))
    assert "big-endian" in message(zipped(path, short, program.storages, byteorder="big"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("words.txt", "no weights")
    assert "no data.pkl" in message(path)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_truncated_files(tmp_path, old, kept):
    path = saved(tmp_path / "w.pth", STATE, old)
    path.write_bytes(path.read_bytes()[:kept])
    said = message(path)
    assert "is not a readable torch.save file" in said and said.endswith("copy or save it again")
    assert old or kept in (0, 1) or "(cut short)" in said


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_of_something_else(tmp_path, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(b"not weights at all, just some words in a file")
    said = message(path)
    assert str(path) in said and "copy or save it again" in said


def test_absent_files_and_other_endings(tmp_path):
    assert "No such file" in message(tmp_path / "absent.pth")
    assert "No such file" in message(tmp_path / "absent.safetensors")
    (tmp_path / "w.h5").write_bytes(b"")
    assert "its name must end in .safetensors, .pth" in message(tmp_path / "w.h5")


def test_no_state_dict(tmp_path):
    program = Program()
    path = tmp_path / "w.pth"
    assert "holds no state dict" in message(zipped(path, program.plain([1, 2])))
    assert "holds no state dict" in message(zipped(path, program.mapping({})))
    assert "holds no state dict" in message(zipped(path, program.mapping({"epoch": program.plain(3)})))
    numbered: Any = {0: program.array(np.zeros(2, np.float32))}
    assert "holds no state dict" in message(zipped(path, program.mapping(numbered), program.storages))


def foreign(program: Program, mark: Path) -> dict[str, bytes]:
    """What training scripts store beside the weights, as `torch.save` writes it."""
    namespace = program.call("argparse", "Namespace") + program.plain({"lr": 0.1, "device": "cuda"}) + pickle.BUILD
    counter = program.call("collections", "Counter", program.plain({30: 1, 60: 1}))
    default = program.call("collections", "defaultdict", program.global_("__builtin__", "list"))
    default += pickle.MARK + program.plain("a") + program.plain([1]) + pickle.SETITEMS
    dtype = program.call("numpy", "dtype", program.plain("f8"), program.plain(False), program.plain(True))
    dtype += program.plain((3, "<", None, None, None, -1, -1, 0)) + pickle.BUILD
    scalar = program.call("numpy.core.multiarray", "scalar", dtype, program.call("_codecs", "encode"))
    settings = program.global_("mycode", "Settings") + program.tuple(program.plain(1)) + pickle.NEWOBJ
    settings += program.plain("lr") + program.plain(0.1) + pickle.SETITEM
    queue = program.call("collections", "deque") + pickle.MARK + program.plain(1) + pickle.APPENDS
    return {
        "args": namespace,
        "lr_scheduler": counter,
        "log": default,
        "best_acc1": scalar,
        "output_dir": program.call("pathlib", "PosixPath", program.plain("out")),
        "size": program.call("torch", "Size", program.plain((1, 2))),
        "dtype": program.global_("torch", "float32"),
        "hyper_parameters": settings,
        "queue": queue,
        "seen": program.call("__builtin__", "set", program.plain([1, 2])),
        "bound": program.call("mycode", "method") + program.tuple(program.plain(1)) + pickle.REDUCE,
        "evil": program.call("posix", "system", program.plain(f"touch '{mark}'")),
    }


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_objects_beside_the_state_dict_do_no_harm(tmp_path, old, key):
    program, mark = Program(), tmp_path / "it was run"
    state = program.mapping({name: program.array(array, old) for name, array in STATE.items()})
    code = program.mapping({**foreign(program, mark), key: state})
    path = (legacy if old else zipped)(tmp_path / "w.pth", code, program.storages)
    assert_same(read_state(path).state, STATE)
    assert not mark.exists()


def test_objects_inside_the_state_dict_are_refused(tmp_path):
    for name, code in foreign(program := Program(), tmp_path / "it was run").items():
        inside = program.mapping({"w": program.array(np.zeros(2, np.float32)), name: code})
        for whole_code in (inside, program.mapping({"state_dict": inside})):
            assert " when loaded (nothing was run): " in message(
                zipped(tmp_path / "w.pth", whole_code, program.storages)
            )


@pytest.mark.parametrize("old", [False, True])
def test_checkpoints_written_by_training_scripts(tmp_path, old):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    counts: Any = defaultdict(list, a=[1])
    checkpoint = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [30, 60]).state_dict(),
        "args": argparse.Namespace(lr=0.1),
        "best": np.float64(71.2),
        "array": np.ones(3),
        "folder": Path("out"),
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "complex": torch.tensor([1j]),
        "log": counts,
        "seen": {1, 2},
        "network": torch.nn.Linear(2, 3),
    }
    torch.save(checkpoint, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    expected = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    assert_same(read_state(tmp_path / "w.pth").state, expected)


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "_orig_mod._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_in_any_order_and_depth(tmp_path, prefix):
    wrapped = {prefix + name: array for name, array in STATE.items()}
    assert_same(read_state(saved(tmp_path / "w.pth", wrapped)).state, STATE)
    save_weights(tmp_path / "w.safetensors", wrapped, {})
    assert_same(dict(sorted(read_state(tmp_path / "w.safetensors").state.items())), dict(sorted(STATE.items())))


def test_wrappers_inside_names():
    assert unwrapped({"features.module.0._orig_mod.weight": 1, "conv.bias": 2}) == {
        "features.0.weight": 1,
        "conv.bias": 2,
    }
    clashing = {"module.weight": 1, "weight": 2}
    assert unwrapped(clashing) == clashing


PLAIN, AVERAGE = ({"w": np.full(2, value, np.float32)} for value in (1, 2))


@pytest.mark.parametrize(("plain", "ema"), [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("model", "ema")])
def test_the_moving_average_is_taken_if_there_is_one(tmp_path, plain, ema):
    program, path = Program(), tmp_path / "w.pth"
    codes = {
        plain: program.mapping({name: program.array(array) for name, array in PLAIN.items()}),
        ema: program.mapping({name: program.array(array) for name, array in AVERAGE.items()}),
    }
    zipped(path, program.mapping(codes), program.storages)
    choices: Any = (("auto", AVERAGE), ("ema", AVERAGE), ("plain", PLAIN))
    for which, expected in choices:
        read = read_state(path, which)
        assert_same(read.state, expected)
        assert read.ema == (which != "plain")
    zipped(path, program.mapping({plain: codes[plain], ema: program.plain(None)}), program.storages)
    assert read_state(path).ema is None
    zipped(path, program.mapping({ema: codes[ema]}), program.storages)
    assert read_state(path).ema is True
    assert_same(read_state(path).state, AVERAGE)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_an_averaged_model_is_a_moving_average(tmp_path, suffix):
    state = {"n_averaged": np.array(5, np.int64), **{f"module.{name}": array for name, array in AVERAGE.items()}}
    path = tmp_path / f"w.{suffix}"
    if suffix == "pth":
        saved(path, state)
    else:
        save_weights(path, state, {})
    read = read_state(path)
    assert read.ema is True and set(read.state) == {"n_averaged", "w"}


def refused_in_little_memory(path: Path) -> str:
    tracemalloc.start()
    said = message(path)
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    return said


def test_bombs_are_refused_before_they_are_unpacked(tmp_path):
    path = tmp_path / "w.pth"
    zeros = np.zeros(2**24, np.float32)  # 64 MB
    program = Program()
    code = program.mapping({"w": program.array(zeros)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", whole(code))
        archive.writestr("archive/data/0", zeros.tobytes())
    assert path.stat().st_size < 100_000
    assert "compressed, or damaged: 67,1" in refused_in_little_memory(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    assert "compressed, or damaged: 67,108,864 bytes" in refused_in_little_memory(path)
    with zipfile.ZipFile(path, "w") as archive:  # the same bytes under many names
        archive.writestr("archive/data/0", bytes(100_000))
        for key in range(1, 300):
            again = copy.copy(archive.filelist[0])
            again.filename = f"archive/data/{key}"
            archive.filelist.append(again)
    assert "compressed, or damaged: 30,000,000 bytes" in refused_in_little_memory(path)


@pytest.mark.parametrize("old", [False, True])
def test_declared_sizes_are_checked_first(tmp_path, old):
    save = legacy if old else zipped
    huge = pickle.EMPTY_LIST + pickle.LONG_BINPUT + (2**32 - 1).to_bytes(4, "little")
    assert "object number 4,294,967,295" in refused_in_little_memory(save(tmp_path / "w.pth", huge))
    program = Program()
    storage = program.storage(np.zeros(2, np.float32), old, count=10**10)
    code = program.mapping({"w": program.tensor(storage, 0, (10**10,), (1,))})
    said = refused_in_little_memory(save(tmp_path / "w.pth", code, program.storages))
    assert ("cut short" if old else "has another size") in said


def test_many_tensors_in_one_storage_need_no_memory(tmp_path):
    program = Program()
    storage, tensors = program.storage(np.zeros(250_000, np.float32)), {}
    for number in range(200):  # 200 MB, if each were a copy
        tensors[str(number)] = program.tensor(storage, 0, (500, 500), (1, 500))
    path = zipped(tmp_path / "w.pth", program.mapping(tensors), program.storages)
    tracemalloc.start()
    assert len(read_state(path).state) == 200
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
