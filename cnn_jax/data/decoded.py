"""Decoding a whole source once, to arrays that are kept on disk: reading them again takes no time."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.data.sources import ArraySource, Source, example_spec
from cnn_jax.errors import UserError
from cnn_jax.storage.cache import cache_folder

MAX_DECODED_BYTES = 2**30  # of a source that is decoded whole, unless the user asks for it
_ROWS_A_TASK = 100  # that a thread decodes at a time

_DECODING = 2  # to be raised when the same file is decoded to other pixels than before


def materialize(source: Source) -> dict[str, np.ndarray]:
    """Decodes every example of `source`.

    Arrays of a source with a fingerprint are kept in CNN_JAX_CACHE, else ~/.cache/cnn_jax, under `decoded`, and mapped
    from there the next time. A cache that cannot be written is done without.

    Returns:
      The arrays of all N examples by the names of `example_spec`, perhaps read-only: "image" uint8 NxHxWxC, "label"
      int32 N.

    Raises:
      UserError: when an example cannot be read, or has no label among the source's classes.
    """
    if isinstance(source, ArraySource):
        return {"image": source.images, "label": check_labels(source, source.labels)}
    if source.fingerprint is None:
        return _decode(source)
    folder = _cache_folder(source)
    cached = _load(folder, source)
    if cached is not None:
        return cached
    arrays = _decode(source)
    with contextlib.suppress(OSError):  # a full or read-only disk costs the cache, not the run
        _save(folder, arrays)
    return arrays


def check_labels(source: Source, labels: np.ndarray, first_index: int = 0) -> np.ndarray:
    """Returns `labels`, of examples from `first_index` on, as int32; raises UserError where one is not a class."""
    wrong = np.flatnonzero((labels < 0) | (labels >= len(source.class_names)))
    if len(wrong):
        index, label = first_index + wrong[0], labels[wrong[0]]
        raise UserError(
            f"given {source.name} {source.split!r}, whose example {index} has label {label}; expected "
            f"labels 0 to {len(source.class_names) - 1}; choose a split that has labels"
        )
    return labels.astype(np.int32)


def _decode(source: Source) -> dict[str, np.ndarray]:
    spec = example_spec(source)
    arrays = {name: np.empty((len(source), *array.shape), array.dtype) for name, array in spec.items()}
    if "label" in arrays:  # wide enough for whatever the source has, until it has been checked
        arrays["label"] = arrays["label"].astype(np.int64)

    def read(start: int) -> None:
        for index in range(start, min(start + _ROWS_A_TASK, len(source))):
            example: Any = source[index]
            for name, array in arrays.items():
                array[index] = example[name]

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # image decoders release the interpreter lock
        for _ in pool.map(read, range(0, len(source), _ROWS_A_TASK)):
            pass
    if "label" in arrays:
        arrays["label"] = check_labels(source, arrays["label"])
    return arrays


def _cache_folder(source: Source) -> Path:
    root = cache_folder()
    key = f"{_DECODING} {source.fingerprint} {source.image_shape} {source.split} {len(source)}"
    label = re.sub(r"[^\w.-]+", "-", f"{source.name}-{source.split}")[-60:].strip("-")
    return root / "decoded" / f"{label}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _load(folder: Path, source: Source) -> dict[str, np.ndarray] | None:
    """Returns the arrays in `folder`, or None where they are absent or damaged."""
    arrays = {}
    for name, spec in example_spec(source).items():
        try:
            array = np.load(folder / f"{name}.npy", mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        if array.shape != (len(source), *spec.shape) or array.dtype != spec.dtype:
            return None
        arrays[name] = array
    return arrays


def _save(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes all arrays, or nothing: another process never sees a part of them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array)
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been used
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
