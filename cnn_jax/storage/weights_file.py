"""Saves and loads weights as one `.safetensors` file, with keys such as `params/conv1/kernel`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
import safetensors
import safetensors.numpy

from cnn_jax.errors import UserError
from cnn_jax.storage import durable

Tree = Mapping[str, Any]  # nested mappings whose leaves are arrays or anything with a shape
LISTED = 12  # differences of one kind that an error lists; the rest are counted


def save_weights(path: str | Path, variables: Tree, metadata: Mapping[str, str]) -> None:
    """Writes `variables` to a file, whole or not at all.

    Args:
        path: the file; an existing one is replaced.
        variables: `{"params": …, "batch_stats": …}`, arrays of NumPy or JAX.
        metadata: strings stored in the file's header.
    """
    # Not `safetensors.save_file`, which makes the file readable only by its owner, whatever the umask.
    durable.write(Path(path), to_bytes(variables, metadata))


def to_bytes(variables: Tree, metadata: Mapping[str, str]) -> bytes:
    """Returns the content of a `.safetensors` file."""
    # safetensors stores memory as it is laid out: transposed arrays must be made contiguous first.
    arrays = {key: np.asarray(leaf, order="C") for key, leaf in _leaves(variables)}
    return safetensors.numpy.save(arrays, metadata=dict(metadata))


def load_weights(path: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the variables as nested dictionaries of NumPy arrays, and the metadata.

    Raises:
        UserError: the file is missing, damaged or in another format, or has a dtype that NumPy does not support.
    """
    durable.check(Path(path))
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}
    except OSError as error:
        raise UserError(f"cannot read weights {path} ({error.strerror or error}): check the path") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a complete .safetensors file ({error}): copy or save it again") from error
    except (AttributeError, TypeError) as error:  # from looking up the dtype in NumPy
        raise UserError(
            f"weights {path} have a type that NumPy lacks ({error}): convert them to float32, float16, bfloat16 or "
            "integers"
        ) from error
    if clashing := sorted(arrays.keys() & {key[:end] for key in arrays for end, c in enumerate(key) if c == "/"}):
        raise UserError(
            f"in weights {path}, {clashing[0]!r} is an array and holds others: write the file again with other names"
        )
    return _nest(arrays), metadata


def check_same_structure(
    variables: Tree, expected: Tree, *, given: str = "weights", wanted: str = "the model's variables"
) -> None:
    """Checks that `variables` has exactly the leaves of `expected`: same names and shapes, and finite values.

    Floating types may differ, as long as the values stay finite in the expected type.

    Args:
        variables: nested arrays, as from `load_weights`.
        expected: nested arrays or `jax.ShapeDtypeStruct`s, as from `jax.eval_shape` of a model's `init`.
        given, wanted: names of the two in messages.

    Raises:
        UserError: they differ; the message lists differences of every kind.
    """
    have, want = dict(_leaves(variables)), dict(_leaves(expected))
    common = sorted(have.keys() & want.keys())
    wrong = [key for key in common if tuple(have[key].shape) != tuple(want[key].shape)]
    differences = {
        "missing": sorted(want.keys() - have.keys()),
        "extra": sorted(have.keys() - want.keys()),
        "wrong shape": [f"{key} {have[key].shape} instead of {want[key].shape}" for key in wrong],
        "whole numbers": [key for key in common if _whole(have[key]) and not _whole(want[key])],
        "not finite": [key for key in common if not _finite(have[key], want[key].dtype)],
    }
    told = [f"{kind}: {_listed(names)}" for kind, names in differences.items() if names]
    if told:
        raise UserError(f"cannot use {given} as {wanted}: {'; '.join(told)}; take the weights of exactly this model")


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _nest(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, array in arrays.items():
        *parents, name = key.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = array
    return tree


def _whole(array: Any) -> bool:
    return np.dtype(array.dtype).kind in "biu"


def _finite(array: Any, dtype: Any) -> bool:
    with np.errstate(over="ignore"):  # values that are too large become infinite
        return bool(np.isfinite(np.asarray(array).astype(dtype, copy=False)).all())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
