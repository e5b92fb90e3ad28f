"""Reads weights files: `.safetensors`, and PyTorch's `.pth` without PyTorch and without executing any code in them.

A `.pth` file is a pickle, which can call arbitrary code. This reader allows only about a dozen globals (ordered
dictionaries and tensor descriptions) and rejects all others. It reads both formats: the zip archive that `torch.save`
writes since PyTorch 1.6 (`data.pkl` and one file per storage) and the older one (pickles, then the storages), still
used by some well-known weights.
"""

import functools
import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cnn_jax.errors import UserError
from cnn_jax.storage.weights_file import load_weights

State = dict[str, np.ndarray]

_SAFETENSORS = (".safetensors",)
_PICKLES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
SUFFIXES = (*_SAFETENSORS, *_PICKLES)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_TYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Checkpoint keys under which training scripts store the state dict, and name prefixes added by wrappers.
_INSIDE = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")


def read_state(path: str | Path) -> tuple[State, dict[str, str]]:
    """Returns the arrays of a weights file by name, and its metadata (empty except for `.safetensors`).

    Args:
        path: `.safetensors`, or a state dict saved by `torch.save`, bare or in a checkpoint under "state_dict",
            "model_state_dict" or "model"; a prefix "module." or "_orig_mod." of all names is removed.

    Raises:
        UserError: the file is missing, truncated, in another format, or holds more than tensors. No code in it runs.
    """
    path = Path(path)
    if path.suffix in _SAFETENSORS:
        tree, metadata = load_weights(path)
        flat: Any = traverse_util.flatten_dict(tree, sep="/")
        return flat, metadata
    if path.suffix not in _PICKLES:
        raise UserError(f"{path} is not a weights file: its name must end in {', '.join(SUFFIXES)}")
    return _state_dict(_read_pickled(path), path), {}


class _Storage(NamedTuple):
    """A flat buffer of one element type."""

    type: np.dtype
    count: int
    numbers: Callable[[], np.ndarray]


class _Tensor(NamedTuple):
    """A view of a storage. Not yet an array, since the pickle must not be able to modify it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        whole = (self.offset, *self.shape, *self.strides)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if not all(type(n) is int and n >= 0 for n in whole) or math.prod(self.shape) > self.storage.count:
            raise _Damaged("tensor outside its storage")
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, self.storage.type)
        if last >= self.storage.count:
            raise _Damaged("tensor outside its storage")
        numbers = self.storage.numbers()[self.offset :]
        strides = tuple(stride * numbers.itemsize for stride in self.strides)
        return np.array(np.lib.stride_tricks.as_strided(numbers, self.shape, strides), order="C")


class _Damaged(Exception):
    """The file is not in a format that `torch.save` writes."""


class _Forbidden(Exception):
    """The file calls a global that no tensor needs."""


class _Callable:
    """A function that a pickle may call but not modify: it has no writable attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Damaged(f"attempt to set {name}")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise _Damaged("tensor without a storage")
    return _Tensor(storage, offset, shape, strides)


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


_WORDS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _Callable(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_parameter),
    **{("torch", name): name for name in _TYPES},  # strings, not callables
}


class _Reader(pickle.Unpickler):
    """An unpickler that allows only the globals in `_WORDS`."""

    def __init__(self, file: Any, storage: Callable[[Any], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _WORDS:
            raise _Forbidden(f"{module}.{name}")
        return _WORDS[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[1] not in _TYPES:
            raise _Damaged("storage of unknown type")
        if type(pid[4]) is not int or pid[4] < 0:
            raise _Damaged("storage without a size")
        return self._storage(pid)


def _read_pickled(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            read = _read_zip if file.read(4) == b"PK\x03\x04" else _read_legacy
            file.seek(0)
            return _arrays(read(file))
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): check the path") from error
    except _Forbidden as error:
        raise UserError(
            f"{path} would run {error} when loaded (nothing was run): save only model.state_dict(), or use a "
            ".safetensors file"
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a readable torch.save file ({reason}): copy or save it again") from error


def _arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _arrays(inside) for key, inside in value.items()}
    return value.array() if isinstance(value, _Tensor) else value


def _read_zip(file: BinaryIO) -> Any:
    """Reads the zip format: NAME/data.pkl, and NAME/data/KEY for each storage."""
    if not zipfile.is_zipfile(file):  # the member list at the end is missing
        raise _Damaged("cut short")
    with zipfile.ZipFile(file) as archive:
        members = {name.partition("/")[2]: archive.getinfo(name) for name in archive.namelist()}
        if "data.pkl" not in members:
            raise _Damaged("no data.pkl")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise _Damaged("written by a big-endian machine")
        read = functools.cache(archive.read)  # tensors may share a storage

        def storage(pid: Any) -> _Storage:
            _, kind, key, _, count = pid[:5]
            dtype = np.dtype(_TYPES[kind])
            member = members.get(f"data/{key}")
            if member is None or member.file_size != count * dtype.itemsize:
                raise _Damaged(f"storage {key} is missing or has another size")
            numbers = np.frombuffer(read(member.filename), dtype)
            return _Storage(dtype, count, lambda: numbers)

        return _Reader(io.BytesIO(archive.read(members["data.pkl"])), storage).load()


def _read_legacy(file: BinaryIO) -> Any:
    """Reads the older format: pickles of magic number, version, machine, object and storage keys, then the storages."""
    kinds: dict[str, tuple[np.dtype, int]] = {}
    storages: dict[str, np.ndarray] = {}

    def storage(pid: Any) -> _Storage:
        _, kind, key, _, count = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise _Damaged("storage that is a view of another")
        dtype = np.dtype(_TYPES[kind])
        if kinds.setdefault(key, (dtype, count)) != (dtype, count):
            raise _Damaged(f"storage {key} has two types or sizes")
        return _Storage(dtype, count, lambda: storages[key])

    def pickled() -> Any:
        return _Reader(file, storage).load()

    if pickled() != _LEGACY_MAGIC or pickled() != _LEGACY_PROTOCOL:
        raise _Damaged("not a PyTorch file")
    if not pickled().get("little_endian", True):
        raise _Damaged("written by a big-endian machine")
    value, keys = pickled(), pickled()
    for key in keys:
        dtype, count = kinds[key]
        size, data = file.read(8), file.read(count * dtype.itemsize)
        if size != count.to_bytes(8, "little") or len(data) != count * dtype.itemsize:
            raise _Damaged("cut short")
        storages[key] = np.frombuffer(data, dtype)
    return value


def _state_dict(value: Any, path: Path) -> State:
    """Finds the state dict in a file's contents and removes wrappers' prefixes."""
    for name in _INSIDE:
        if isinstance(value, dict) and isinstance(value.get(name), dict):
            value = value[name]
            break
    arrays = value.items() if isinstance(value, dict) else ()
    if not arrays or not all(isinstance(name, str) and isinstance(array, np.ndarray) for name, array in arrays):
        raise UserError(
            f"{path} holds no state dict, at the top level or under {', '.join(_INSIDE)}: save model.state_dict()"
        )
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in value):
            value = {name.removeprefix(prefix): array for name, array in value.items()}
    return value
