"""Decodes a source once into memory-mapped arrays, cached on disk."""

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.data.memory import check_memory
from cnn_jax.data.sources import ArraySource, Source, example_spec
from cnn_jax.errors import UserError
from cnn_jax.storage import durable
from cnn_jax.storage.cache import entry_folder, remove_least_recent, touch

MAX_DECODED_BYTES = 2**30  # largest source that is decoded in full unless the user asks for it
_ROWS_PER_TASK = 100  # examples that a thread decodes at a time

_DECODING = 4  # increment when the same file decodes to different pixels


def materialize(source: Source) -> dict[str, np.ndarray]:
    """Decodes every example of `source`.

    Arrays of a source with a fingerprint are cached in `decoded` under CNN_JAX_CACHE, or ~/.cache/cnn_jax, and
    memory-mapped on later calls. If the cache cannot be written, it is skipped. The entries that were not used for
    longest go when it is full, see `storage.cache`.

    Returns:
      Arrays of all N examples, keyed as in `example_spec`, possibly read-only: "image" uint8 NxHxWxC, "label" int32 N.

    Raises:
      UserError: an example cannot be read, or its label is not one of the source's classes.
    """
    if isinstance(source, ArraySource):
        return {"image": source.images, "label": check_labels(source, source.labels)}
    if source.fingerprint is None:
        return _decode(source)
    folder = _cache_folder(source)
    cached = _load(folder, source)
    if cached is not None:
        touch(folder)
        return cached
    arrays = _decode(source)
    with contextlib.suppress(OSError):  # a full or read-only disk must not stop the run
        _save(folder, arrays, source)
    return arrays


def check_labels(source: Source, labels: np.ndarray, first_index: int = 0) -> np.ndarray:
    """Returns the labels as int32.

    Raises:
      UserError: a label is not a class; examples are counted from `first_index`.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= len(source.class_names)))
    if len(wrong):
        index, label = first_index + wrong[0], labels[wrong[0]]
        raise UserError(
            f"{source.name} {source.split!r}: example {index} has label {label}, not 0 to "
            f"{len(source.class_names) - 1}: correct it, or choose a split that has labels"
        )
    return labels.astype(np.int32)


def _decode(source: Source) -> dict[str, np.ndarray]:
    spec = example_spec(source)
    example = sum(math.prod(array.shape) * np.dtype(array.dtype).itemsize for array in spec.values())
    check_memory(
        len(source) * example,
        f"{source.name} {source.split}, decoded,",
        "lower `image_size`, or set `pipeline` to stream",
    )
    arrays: dict[str, np.ndarray] = {
        name: np.empty((len(source), *array.shape), array.dtype) for name, array in spec.items()
    }
    if "label" in arrays:  # wide enough for any label until they are checked
        arrays["label"] = arrays["label"].astype(np.int64)

    def read(start: int) -> None:
        for index in range(start, min(start + _ROWS_PER_TASK, len(source))):
            example: Any = source[index]
            for name, array in arrays.items():
                array[index] = example[name]

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # image decoders release the GIL
        for _ in pool.map(read, range(0, len(source), _ROWS_PER_TASK)):
            pass
    if "label" in arrays:
        arrays["label"] = check_labels(source, arrays["label"])
    return arrays


def _cache_folder(source: Source) -> Path:
    key = f"{_DECODING} {source.fingerprint} {source.image_shape} {source.split} {len(source)}"
    return entry_folder("decoded", f"{source.name}-{source.split}", key.encode())


def _load(folder: Path, source: Source) -> dict[str, np.ndarray] | None:
    """Returns the arrays in `folder`, or None if they are missing or damaged."""
    if not folder.is_dir():
        return None
    try:
        return _open(folder, source)
    except (OSError, ValueError, EOFError, durable.Damaged) as error:
        print(f"warning: the decoded images in {folder} are damaged ({error}); decoding again", file=sys.stderr)
        return None


def _open(folder: Path, source: Source) -> dict[str, np.ndarray]:
    """Opens the arrays in `folder`; raises one of several errors if they are damaged."""
    if problem := durable.verify(folder):
        raise durable.Damaged(problem)
    arrays = {}
    for name, spec in example_spec(source).items():
        array = np.load(folder / f"{name}.npy", mmap_mode="r")
        if array.shape != (len(source), *spec.shape) or array.dtype != spec.dtype:
            raise durable.Damaged(f"{name} has another shape or type")
        arrays[name] = array
    return arrays


def _save(folder: Path, arrays: Mapping[str, np.ndarray], source: Source) -> None:
    """Writes the arrays atomically: other processes see all of them or none."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder.parent) as scratch:
        unfinished = Path(scratch, "arrays")
        unfinished.mkdir()  # unlike `scratch`, it is open to other users
        for name, array in arrays.items():
            np.save(unfinished / f"{name}.npy", array)
        durable.seal(unfinished)
        with contextlib.suppress(OSError, ValueError, EOFError, durable.Damaged):
            _open(folder, source)
            return  # another process was faster
        with contextlib.suppress(FileNotFoundError):  # a damaged one; processes that use it keep their files
            folder.rename(Path(scratch, "damaged"))
        unfinished.rename(folder)
        durable.sync_folder(folder.parent)
    remove_least_recent(folder)
