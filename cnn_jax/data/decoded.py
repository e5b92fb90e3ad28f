"""Decoding a whole source once, to arrays that are kept on disk: reading them again takes no time."""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from cnn_jax.data.sources import ArraySource, Source
from cnn_jax.errors import UserError
from cnn_jax.storage.cache import cache_folder

MAX_DECODED_BYTES = 2**30  # of a source that is decoded whole, unless the user asks for it
_ROWS_A_TASK = 100  # that a thread decodes at a time

_DECODING = 1  # to be raised when the same file is decoded to other pixels than before


def materialize(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Decodes every example of `source`.

    Arrays of a source with a fingerprint are kept in CNN_JAX_CACHE, else ~/.cache/cnn_jax, under `decoded`, and mapped
    from there the next time. A cache that cannot be written is done without.

    Returns:
      (images uint8 NxHxWxC, labels int32 N), perhaps read-only.

    Raises:
      UserError: when an example cannot be read, or has no label among the source's classes.
    """
    if isinstance(source, ArraySource):
        return source.images, check_labels(source, source.labels)
    if source.fingerprint is None:
        return _decode(source)
    folder = _cache_folder(source)
    cached = _load(folder, source)
    if cached is not None:
        return cached
    images, labels = _decode(source)
    with contextlib.suppress(OSError):  # a full or read-only disk costs the cache, not the run
        _save(folder, images, labels)
    return images, labels


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


def _decode(source: Source) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(source), *source.image_shape), np.uint8)
    labels = np.empty(len(source), np.int64)

    def read(start: int) -> None:
        for index in range(start, min(start + _ROWS_A_TASK, len(source))):
            example = source[index]
            images[index], labels[index] = example["image"], example["label"]

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # image decoders release the interpreter lock
        for _ in pool.map(read, range(0, len(source), _ROWS_A_TASK)):
            pass
    return images, check_labels(source, labels)


def _cache_folder(source: Source) -> Path:
    root = cache_folder()
    key = f"{_DECODING} {source.fingerprint} {source.image_shape} {source.split} {len(source)}"
    label = re.sub(r"[^\w.-]+", "-", f"{source.name}-{source.split}")[-60:].strip("-")
    return root / "decoded" / f"{label}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _load(folder: Path, source: Source) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns the arrays in `folder`, or None where they are absent or damaged."""
    try:
        images = np.load(folder / "images.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
    except (OSError, ValueError, EOFError):
        return None
    whole = images.shape == (len(source), *source.image_shape) and labels.shape == (len(source),)
    return (images, labels) if whole else None


def _save(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes both arrays, or nothing: another process never sees a part of them."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        np.save(scratch / "images.npy", images)
        np.save(scratch / "labels.npy", labels)
        shutil.rmtree(folder, ignore_errors=True)  # damaged, or it would have been used
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
