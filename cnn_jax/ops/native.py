"""CPU convolutions in C++, `convolution.cc`, compiled on first use.

A convolution y = conv(x, k) belongs to a trilinear form: for any g of y's shape, sum(g·conv(x, k)) is linear in x, in k
and in g. Its derivative with respect to one of them is a bilinear function of the other two: y itself (for g), the
input's gradient (for x), the kernel's gradient (for k). Each is the transpose of the others, so one JAX primitive with
three parts is closed under differentiation of any order and mode.

The system's C++ compiler builds the code for this machine's processor, into the cache folder (`$CNN_JAX_CACHE`).
Without a compiler, `available` returns False and convolutions fall back on `cnn_jax.ops.portable`.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cnn_jax.ops.pool import Pads
from cnn_jax.storage import durable
from cnn_jax.storage.cache import cache_folder

_SOURCE = Path(__file__).with_name("convolution.cc")
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
# Operands of each part of the trilinear form.
_OPERANDS = {"output": ("input", "kernel"), "input": ("output", "kernel"), "kernel": ("input", "output")}


def convolve(
    x_BxHxWxC: jax.Array, kernel_HxWxCxF: jax.Array, strides: tuple[int, int], pads: Pads, groups: int = 1
) -> jax.Array:
    """Cross-correlates images with a kernel.

    Args:
        x_BxHxWxC: images or maps, float32.
        kernel_HxWxCxF: filters, float32.
        strides: rows and columns between neighbouring outputs.
        pads: zeros added (above, below) and (left, right).
        groups: number of feature groups: the kernel has C / groups channels, and its features are ordered by group.

    Returns:
        Maps of shape (B, (H + pads - kernel) // stride + 1, …, F).

    Raises:
        RuntimeError: `available()` is False.
        ValueError: the kernel's channels do not match the maps, or `groups` does not divide its features.
    """
    if not available():
        raise RuntimeError(f"no compiled convolutions: {status()}")
    channels, features = kernel_HxWxCxF.shape[2:]
    if x_BxHxWxC.shape[3] != channels * groups or features % groups:
        raise ValueError(f"maps {x_BxHxWxC.shape} and kernel {kernel_HxWxCxF.shape} do not fit in {groups} groups")
    size = [(x_BxHxWxC.shape[1 + a] + sum(pads[a]) - kernel_HxWxCxF.shape[a]) // strides[a] + 1 for a in (0, 1)]
    shape = (1, len(x_BxHxWxC), *size, kernel_HxWxCxF.shape[3])
    window = (*strides, *pads[0], *pads[1], groups)
    return _convolution.bind(x_BxHxWxC[None], kernel_HxWxCxF[None], part="output", shape=shape, window=window)[0]


def available() -> bool:
    """Whether the compiled code can be used; the first call compiles it if necessary."""
    return _load()[0]


def status() -> str:
    """Returns the compiler and its version, or the reason why there is no compiled code."""
    return _load()[1]


def _lower(context: Any, one: Any, other: Any, *, part: str, window: tuple[int, ...], **static: Any) -> Any:
    if any(0 in aval.shape for aval in (*context.avals_in, *context.avals_out)):  # from a vmap over an empty axis
        return _lower_by_xla(context, one, other, part=part, window=window, **static)
    return jax.ffi.ffi_lowering(_target(part))(context, one, other, window=np.array(window, np.int64))


def _by_xla(one: Any, other: Any, *, part: str, shape: tuple[int, ...], window: tuple[int, ...]) -> jax.Array:
    sy, sx, top, bottom, left, right, groups = window

    def output(x: Any, kernel: Any) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (sy, sx),
            ((top, bottom), (left, right)),
            dimension_numbers=numbers,
            feature_group_count=groups,
        )

    def member(one: Any, other: Any) -> Any:
        wanted = jax.ShapeDtypeStruct(shape[1:], one.dtype)
        if part == "input":
            return jax.linear_transpose(lambda x: output(x, other), wanted)(one)[0]
        if part == "kernel":
            return jax.linear_transpose(lambda kernel: output(one, kernel), wanted)(other)[0]
        return output(one, other)

    return jax.vmap(member)(one, other)


_lower_by_xla = mlir.lower_fun(_by_xla, multiple_results=False)


def _transpose(
    index: int,
    cotangent: jax.Array,
    one: Any,
    other: Any,
    *,
    part: str,
    shape: tuple[int, ...],
    window: tuple[int, ...],
) -> jax.Array:
    wanted, given = _OPERANDS[part][index], _OPERANDS[part][1 - index]
    unknown, known = (one, other) if index == 0 else (other, one)
    arrays = {part: cotangent, given: known}
    operands = (arrays[operand] for operand in _OPERANDS[wanted])
    return _convolution.bind(*operands, part=wanted, shape=unknown.aval.shape, window=window)


def _batch(
    arrays: tuple[jax.Array, jax.Array],
    axes: tuple[int | None, int | None],
    *,
    part: str,
    shape: tuple[int, ...],
    window: tuple[int, ...],
) -> tuple[jax.Array, int]:
    (size,) = {x.shape[axis] for x, axis in zip(arrays, axes) if axis is not None}
    if part != "kernel" and axes[0] is not None and axes[1] is None:  # shared kernel: the axis becomes more images
        images = jnp.moveaxis(arrays[0], axes[0], 1)
        merged = images.reshape(images.shape[0], -1, *images.shape[3:])
        more = (shape[0], size * shape[1], *shape[2:])
        result = _convolution.bind(merged, arrays[1], part=part, shape=more, window=window)
        return result.reshape(shape[0], size, *shape[1:]), 1
    stacked = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in zip(arrays, axes)
    )
    one, other = (x.reshape(-1, *x.shape[2:]) for x in stacked)
    merged = (size * shape[0], *shape[1:])
    result = _convolution.bind(one, other, part=part, shape=merged, window=window)
    return result.reshape(size, *shape), 0


def _make_primitive() -> Primitive:
    primitive = Primitive("cnn_jax_convolution")
    compiled = jax.jit(primitive.bind, static_argnames=("part", "shape", "window"))

    def evaluate(one: jax.Array, other: jax.Array, **static: Any) -> jax.Array:
        with jax.disable_jit(False):  # else `compiled` would call `evaluate` again
            return compiled(one, other, **static)

    primitive.def_impl(evaluate)
    primitive.def_abstract_eval(lambda one, other, *, shape, **_: one.update(shape=shape, weak_type=False))
    ad.defbilinear(primitive, functools.partial(_transpose, 0), functools.partial(_transpose, 1))
    batching.primitive_batchers[primitive] = _batch
    mlir.register_lowering(primitive, _lower, platform="cpu")
    mlir.register_lowering(primitive, _lower_by_xla)  # for programs lowered for other platforms
    return primitive


_convolution = _make_primitive()


@functools.cache
def _target(part: str) -> str:
    return f"cnn_jax_{part}_{_hash(_SOURCE.read_bytes())}"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@functools.cache
def _load() -> tuple[bool, str]:
    """Compiles and registers the code, once per process; returns (available, status)."""
    if os.environ.get("CNN_JAX_NATIVE") == "0":
        return False, "CNN_JAX_NATIVE=0"
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return False, "no C++ compiler found"
    functions, description = _functions(compiler)
    for part, function in functions.items():
        jax.ffi.register_ffi_target(_target(part), jax.ffi.pycapsule(function), platform="cpu")
    return bool(functions), description


def _functions(compiler: str) -> tuple[dict[str, Any], str]:
    """Returns the compiled function of each part, or none if compilation fails, and the status."""
    try:
        path, version = _build(compiler)
        try:
            library = ctypes.CDLL(str(path))
        except OSError:  # damaged by a full disk or a crash
            path.unlink(missing_ok=True)  # another process may have removed it
            path, version = _build(compiler)
            library = ctypes.CDLL(str(path))
        return {part: getattr(library, f"convolution_{part}") for part in _OPERANDS}, f"{compiler} {version}"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {error.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[0])
    except (OSError, ValueError, AttributeError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    return {}, f"{compiler} failed: {reason}"


def _build(compiler: str) -> tuple[Path, str]:
    """Returns the library, compiled unless it is in the cache, and the compiler's version."""
    command = [*shlex.split(compiler), *_FLAGS, "-I", jax.ffi.include_dir()]
    run = functools.partial(subprocess.run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True, timeout=300)
    # These macros identify the compiler and the processor's features, so machines can share a folder.
    macros = run([*command, "-dM", "-E", "-x", "c++", os.devnull]).stdout
    key = _hash(_SOURCE.read_bytes() + macros + " ".join([*command, jax.__version__]).encode())
    path = cache_folder() / "native" / f"convolution-{key}" / "convolution.so"
    if durable.verify(path.parent):  # absent or damaged
        target = _folder() / path.parent.name
        path = target / path.name
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            unfinished = Path(folder) / target.name
            unfinished.mkdir()
            run([*command, str(_SOURCE), "-o", str(unfinished / path.name)])
            durable.seal(unfinished)
            with contextlib.suppress(FileNotFoundError):  # a damaged one; processes that use it keep their files
                target.rename(Path(folder) / "damaged")
            try:
                unfinished.rename(target)
            except OSError:  # another process was faster
                if durable.verify(target):
                    raise
    version = re.search(rb'#define __VERSION__ "(.*?)"', macros)
    return path, version[1].decode() if version else ""


def _folder() -> Path:
    """Returns the library's folder in the cache or, if that is not writable, a temporary one."""
    folder = cache_folder() / "native"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return _temporary_folder()
    return folder if os.access(folder, os.W_OK) else _temporary_folder()


def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="cnn_jax-native-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
