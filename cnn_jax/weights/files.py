"""Reads weights files: `.safetensors`, and PyTorch's `.pth` without PyTorch and without executing any code in them.

A `.pth` file is a pickle, which can call arbitrary code. This reader knows only about a dozen globals (ordered
dictionaries and tensor descriptions). In place of any other it puts an object that does nothing, so that a training
script's arguments or counters beside the weights do no harm; weights that need one are rejected. It reads both formats:
the zip archive that `torch.save` writes since PyTorch 1.6 (`data.pkl` and one file per storage) and the older one
(pickles, then the storages), still used by some well-known weights.
"""

import functools
import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cnn_jax.errors import UserError
from cnn_jax.storage.weights_file import load_weights
from cnn_jax.weights.wrappers import unwrapped

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
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
}
# Checkpoint keys under which training scripts store a state dict: that of the network, and that of its moving average.
_PLAIN = ("state_dict", "model_state_dict", "model", "net", "network")
_EMA = ("state_dict_ema", "ema_state_dict", "model_ema", "model_ema_state_dict", "ema_model", "ema")

Which = Literal["auto", "ema", "plain"]


class WeightsFile(NamedTuple):
    """Contents of a weights file.

    Attributes:
        state: arrays by name, without the parts of names that wrappers add, see `unwrapped`.
        metadata: that of `.safetensors`; empty for other files.
        ema: whether `state` is a moving average of the weights; None if the file has weights of one kind and does not
            say.
    """

    state: State
    metadata: dict[str, str]
    ema: bool | None = None


def read_state(path: str | Path, which: Which = "auto") -> WeightsFile:
    """Reads the arrays of a weights file.

    Args:
        path: `.safetensors`, or a state dict saved by `torch.save`, bare or in a checkpoint.
        which: weights to take from a checkpoint that holds both: "plain", or their moving average.

    Raises:
        UserError: the file is missing, truncated or in another format, or its state dict holds more than tensors. No
            code in it runs.
    """
    path = Path(path)
    if path.suffix in _SAFETENSORS:
        tree, metadata = load_weights(path)
        flat: Any = traverse_util.flatten_dict(tree, sep="/")
        return _weights_file(flat, metadata, None)
    if path.suffix not in _PICKLES:
        raise UserError(f"{path} is not a weights file: its name must end in {', '.join(SUFFIXES)}")
    return _read_pickled(path, which)


def _weights_file(state: State, metadata: dict[str, str], ema: bool | None) -> WeightsFile:
    short = unwrapped(state)
    return WeightsFile(short, metadata, True if "n_averaged" in short else ema)  # of PyTorch's `AveragedModel`


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
        if self.storage.type.kind == "c":
            raise _Damaged("complex numbers")
        numbers = self.storage.numbers()[self.offset :]
        strides = tuple(stride * numbers.itemsize for stride in self.strides)
        # Not a copy: the names of a small file may declare any number of tensors in one storage.
        return np.lib.stride_tricks.as_strided(numbers, self.shape, strides)


class _Damaged(Exception):
    """The file is not in a format that `torch.save` writes."""


class _Foreign:
    """Stands for an object other than a tensor; does nothing, whatever a pickle calls, sets or adds to it.

    Each unknown global becomes a subclass, since a pickle may call a class, or ask for an instance.
    """

    __slots__ = ()
    origin = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Foreign":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "_Foreign":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    extend = add = append


class _Callable:
    """A function that a pickle may call but not modify: it has no writable attributes."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]):
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        raise _Damaged(f"attempt to set {name}")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor | _Foreign:
    if isinstance(storage, _Foreign):
        return storage
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
    """An unpickler for which all globals but those in `_WORDS` are `_Foreign`."""

    def __init__(self, file: Any, storage: Callable[[Any], _Storage]):
        super().__init__(file, encoding="utf-8")
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        origin = f"{module}.{name}"
        return _WORDS.get((module, name)) or type("_Foreign", (_Foreign,), {"__slots__": (), "origin": origin})

    def persistent_load(self, pid: Any) -> _Storage | _Foreign:
        if isinstance(pid, tuple) and pid[:1] == ("module",) and len(pid) > 1 and _is_foreign(pid[1]):
            return pid[1]  # the class of a network, with its source
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise _Damaged("storage of unknown type")
        if _is_foreign(pid[1]):
            return pid[1]()
        if pid[1] not in _TYPES:
            raise _Damaged("storage of unknown type")
        if type(pid[4]) is not int or pid[4] < 0:
            raise _Damaged("storage without a size")
        return self._storage(pid)


def _load(file: Any, storage: Callable[[Any], _Storage]) -> Any:
    """Reads one pickle.

    The unpickler makes room for as many objects as the highest number that the pickle gives to one, so that 9 bytes can
    take all memory; numbers must therefore not exceed the count of instructions.
    """
    start = file.tell()
    for count, (instruction, number, _) in enumerate(pickletools.genops(file)):
        if instruction.name in ("PUT", "LONG_BINPUT") and isinstance(number, int) and number > count:
            raise _Damaged(f"object number {number:,}")
    file.seek(start)
    return _Reader(file, storage).load()


def _is_foreign(value: Any) -> bool:
    return isinstance(value, _Foreign) or isinstance(value, type) and issubclass(value, _Foreign)


def _read_pickled(path: Path, which: Which) -> WeightsFile:
    try:
        with open(path, "rb") as file:
            read = _read_zip if file.read(4) == b"PK\x03\x04" else _read_legacy
            file.seek(0)
            tensors, ema = _choose(read(file), path, which)
            return _weights_file({name: tensor.array() for name, tensor in tensors.items()}, {}, ema)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror or error}): check the path") from error
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is not a readable torch.save file ({reason}): copy or save it again") from error


def _choose(value: Any, path: Path, which: Which) -> tuple[Mapping[str, _Tensor], bool | None]:
    """Finds the state dict in a file's contents; returns it, and whether it is a moving average, if that is known."""
    inside = value if isinstance(value, dict) else {}
    plain, ema = ([inside[key] for key in keys if _is_state(inside.get(key))] for keys in (_PLAIN, _EMA))
    if _is_state(value):
        plain = [value]
    if not plain and not ema:
        parts = [value, *(inside.get(key) for key in (*_PLAIN, *_EMA)), *inside.values()]
        parts += [entry for part in parts if isinstance(part, dict) for entry in part.values()]
        for part in filter(_is_foreign, parts):
            raise UserError(
                f"{path} would run {part.origin} when loaded (nothing was run): save only model.state_dict(), or use a "
                ".safetensors file"
            )
        raise UserError(
            f"{path} holds no state dict, at the top level or under {', '.join((*_PLAIN, *_EMA))}: save "
            "model.state_dict()"
        )
    average = not plain or bool(ema) and which != "plain"
    return (ema if average else plain)[0], average if ema else None


def _is_state(value: Any) -> bool:
    """Whether a value is a state dict: tensors by name, at least one."""
    items = value.items() if isinstance(value, dict) else ()
    return bool(items) and all(isinstance(name, str) and isinstance(part, _Tensor) for name, part in items)


def _read_zip(file: BinaryIO) -> Any:
    """Reads the zip format: NAME/data.pkl, and NAME/data/KEY for each storage. Storages are read when they are used."""
    if not zipfile.is_zipfile(file):  # the member list at the end is missing
        raise _Damaged("cut short")
    archive = zipfile.ZipFile(file)
    _check_sizes(archive.infolist(), file.seek(0, io.SEEK_END))
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
        return _Storage(dtype, count, lambda: np.frombuffer(read(member.filename), dtype))

    return _load(io.BytesIO(archive.read(members["data.pkl"])), storage)


def _check_sizes(members: list[zipfile.ZipInfo], size: int) -> None:
    """Rejects an archive that would need more memory than its size: `torch.save` does not compress."""
    declared = sum(max(member.file_size, member.compress_size) for member in members)
    if declared > size or any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _Damaged(f"compressed, or damaged: {declared:,} bytes in a file of {size:,}")


def _read_legacy(file: BinaryIO) -> Any:
    """Reads the older format: pickles of magic number, version, machine, object and storage keys, then the storages."""
    kinds: dict[str, tuple[np.dtype, int]] = {}
    storages: dict[str, np.ndarray] = {}
    end = file.seek(0, io.SEEK_END)
    file.seek(0)

    def storage(pid: Any) -> _Storage:
        _, kind, key, _, count = pid[:5]
        if len(pid) > 5 and pid[5] is not None:
            raise _Damaged("storage that is a view of another")
        dtype = np.dtype(_TYPES[kind])
        if kinds.setdefault(key, (dtype, count)) != (dtype, count):
            raise _Damaged(f"storage {key} has two types or sizes")
        return _Storage(dtype, count, lambda: storages[key])

    def pickled() -> Any:
        return _load(file, storage)

    first = pickled()
    if not isinstance(first, int):  # of `pickle.dump`: it can hold no tensors
        return first
    if first != _LEGACY_MAGIC or pickled() != _LEGACY_PROTOCOL:
        raise _Damaged("not a PyTorch file")
    if not pickled().get("little_endian", True):
        raise _Damaged("written by a big-endian machine")
    value, keys = pickled(), pickled()
    for key in keys:
        if key not in kinds:
            raise _Damaged("storage of unknown type")
        dtype, count = kinds[key]
        if file.tell() + 8 + count * dtype.itemsize > end:
            raise _Damaged("cut short")
        if file.read(8) != count.to_bytes(8, "little"):
            raise _Damaged("cut short")
        storages[key] = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return value
