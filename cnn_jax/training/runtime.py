"""The machine: platform checks, XLA's settings, and the facts recorded about it."""

import ctypes
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from cnn_jax.config import TrainConfig
from cnn_jax.errors import UserError, counted
from cnn_jax.native import build
from cnn_jax.ops.conv import form_of_convolutions
from cnn_jax.storage.cache import cache_folder

# For programs that run once, for milliseconds: optimizing one that draws random numbers takes seconds.
COMPILE_QUICKLY: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def prepare(config: TrainConfig) -> None:
    """Applies settings that must precede the first use of a device.

    Raises:
        UserError: JAX did not find the platform of `require`, or the cluster of `distributed`.
    """
    if config.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    if config.distributed:
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"`distributed` is set, but JAX found no cluster ({reason}): start the command on every host of Slurm, "
                "Open MPI, GKE or a TPU pod, or drop `distributed`"
            ) from error
        if config.parallel == "pmap" and jax.process_count() > 1:
            raise UserError("`parallel` pmap works on a single host: use jit")
    keep_memory()
    _keep_programs(cache_folder() / "xla")
    try:
        found = jax.default_backend()
    except (RuntimeError, AssertionError) as error:  # JAX_PLATFORMS names one that is not there
        reason = " ".join(str(error).split())[:160] or "found no such platform"
        raise UserError(f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')} failed ({reason}): unset it") from error
    if found == "cpu":
        build.start()
    if config.require is not None and config.require != found:
        raise UserError(
            f"`require` is {config.require}, but JAX found {found} ({counted(jax.device_count(), 'device')}): install "
            "the accelerator build (pip install -e '.[cuda13]', '.[cuda12]' or '.[tpu]') or drop `require`"
        )


def keep_memory() -> bool:
    """Makes glibc keep freed memory for the next allocation; call it before JAX finds its devices.

    On CPU, each call of a compiled program allocates all its intermediate values anew. By default glibc returns blocks
    of that size to the system, which must then supply zeroed pages one by one at every step: a fifth of the step time
    of ResNet-20. In exchange, the process never shrinks.

    Returns:
        Whether the C library supports this.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # M_ARENA_MAX, … of malloc.h
    # One arena, because any other takes large blocks from the system each time; never mmap; never trim (-1).
    return all(mallopt(option, value) for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, -1)))


def _keep_programs(folder: Path) -> None:
    """Lets XLA cache compiled programs in `folder`, if it can be written, or wherever the user has said."""
    if jax.config.values.get("jax_compilation_cache_dir"):
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # Even those that compile fast: initialisation consists of many small programs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def environment(command: str) -> dict[str, Any]:
    """Describes the software and hardware of a run, for environment.json."""
    kinds = sorted({d.device_kind for d in jax.devices()})
    return {
        "command": command,
        "commit": _commit(),
        "cnn_jax": importlib.metadata.version("cnn_jax"),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "device": f"{jax.device_count()} x {', '.join(kinds)}" + _processor(),
        "convolutions": form_of_convolutions(),
        "hosts": jax.process_count(),
        "system": platform.platform(),
    }


def _processor() -> str:
    """Model and number of cores of a CPU, for which JAX reports only "cpu"; "" on other platforms."""
    if jax.default_backend() != "cpu":
        return ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f" ({model}, {cores} cores)"


def _commit() -> str | None:
    """Short hash of the checkout that this package runs from, with + if it has changes; None outside git."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def command_line() -> str:
    """Returns the command line in a form that can be typed again."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    start = f"python -m {spec.name.removesuffix('.__main__')}" if spec is not None else f"python {sys.argv[0]}"
    return f"{start} {shlex.join(sys.argv[1:])}".strip()


# Dense bf16 peak of one chip in FLOP/s, from the vendors' data sheets; for MFU (model FLOPs utilisation).
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "V100": 125e12,
    "L4": 121e12,
    "T4": 65e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
}


def peak_flops(devices: int) -> float | None:
    """Returns the combined peak of `devices` devices in FLOP/s; None for unknown chips, and CPUs."""
    kind = jax.devices()[0].device_kind
    for name, peak in PEAK_FLOPS.items():
        if re.search(rf"\b{name}\b", kind):
            return peak * devices
    return None
