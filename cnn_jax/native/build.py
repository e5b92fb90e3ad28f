"""Compiles `convolution.cc` with the system's C++ compiler, for this machine's processor, into `$CNN_JAX_CACHE`."""

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
import threading
from importlib.metadata import version as version_of
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cnn_jax.storage import durable
from cnn_jax.storage.cache import cache_folder

SOURCE = Path(__file__).with_name("convolution.cc")
FUNCTIONS = ("output", "input", "kernel", "moments")  # convolution_output and so on
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
_ACCELERATORS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm60_plugin", "jax_rocm7_plugin", "libtpu")

_lock = threading.Lock()
_found: list[tuple[dict[str, Any], str]] = []  # what `library` returns, once it is known


def start() -> None:
    """Starts compiling in the background, for commands that will need the code on a CPU."""
    if not any(map(find_spec, _ACCELERATORS)):
        threading.Thread(target=library, daemon=True).start()


def library() -> tuple[dict[str, Any], str]:
    """Returns the compiled functions by name, waiting until they are compiled, and the compiler and its version.

    If they cannot be compiled, returns none and the reason.
    """
    with _lock:
        if not _found:
            _found.append(_library())
    return _found[0]


def key() -> str:
    """Returns a text that changes with the code."""
    return _hash(SOURCE.read_bytes())


def _library() -> tuple[dict[str, Any], str]:
    if os.environ.get("CNN_JAX_NATIVE") == "0":
        return {}, "CNN_JAX_NATIVE=0"
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    return ({}, "no C++ compiler found") if compiler is None else _functions(compiler)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _functions(compiler: str) -> tuple[dict[str, Any], str]:
    """Returns the compiled function of each part, or none if compilation fails, and the status."""
    try:
        path, version = _build(compiler)
        try:
            loaded = ctypes.CDLL(str(path))
        except OSError:  # damaged by a full disk or a crash
            path.unlink(missing_ok=True)  # another process may have removed it
            path, version = _build(compiler)
            loaded = ctypes.CDLL(str(path))
        return {part: getattr(loaded, f"convolution_{part}") for part in FUNCTIONS}, f"{compiler} {version}"
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {error.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[0])
    except (OSError, ValueError, AttributeError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    return {}, f"{compiler} failed: {reason}"


def _build(compiler: str) -> tuple[Path, str]:
    """Returns the library, compiled unless it is in the cache, and the compiler's version."""
    command = [*shlex.split(compiler), *_FLAGS, "-I", str(_include_folder())]
    run = functools.partial(subprocess.run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True, timeout=300)
    # These macros identify the compiler and the processor's features, so machines can share a folder.
    macros = run([*command, "-dM", "-E", "-x", "c++", os.devnull]).stdout
    digest = _hash(SOURCE.read_bytes() + macros + " ".join([*command, version_of("jax")]).encode())
    path = cache_folder() / "native" / f"convolution-{digest}" / "convolution.so"
    if durable.verify(path.parent):  # absent or damaged
        target = _folder() / path.parent.name
        path = target / path.name
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            unfinished = Path(folder) / target.name
            unfinished.mkdir()
            run([*command, str(SOURCE), "-o", str(unfinished / path.name)])
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


def _include_folder() -> Path:
    """That of `jax.ffi.include_dir()`, found without importing JAX."""
    spec = find_spec("jaxlib")
    if spec is None or not spec.submodule_search_locations:
        raise OSError("jaxlib is not installed as a folder")
    return Path(spec.submodule_search_locations[0]) / "include"


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
