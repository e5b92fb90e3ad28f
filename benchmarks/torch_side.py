"""PyTorch's side of `benchmarks.versus_torch`: channels_last, one thread per core, the fused optimizer."""

import importlib
import os
import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from benchmarks.sides import CHECKED, LEARNING_RATE, MOMENTUM, Array, Batch, Side, fastest
from cnn_jax.errors import UserError


def import_torch(device: str) -> Any:
    """Imports PyTorch and lets it use every core, or on a GPU the fastest algorithms.

    Raises:
        UserError: it is not installed, or finds no GPU.
    """
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UserError("PyTorch is not installed: pip install torch") from None
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if device == "gpu":
        if not torch.cuda.is_available():
            raise UserError(
                f"PyTorch {torch.__version__} found no GPU: install a build for this one "
                "(https://pytorch.org/get-started), or use --device cpu"
            )
        torch.backends.cudnn.benchmark = True
    return torch


def check_compiler(device: str) -> None:
    """Checks for the compiler that torch.compile needs: C++ on a CPU, C (for Triton) on a GPU.

    Raises:
        UserError: there is none.
    """
    variable, usual = ("CXX", ("g++",)) if device == "cpu" else ("CC", ("gcc", "clang", "cc"))
    wanted = (os.environ[variable],) if variable in os.environ else usual
    if not any(map(shutil.which, wanted)):
        raise UserError(f"torch.compile needs a compiler ({' or '.join(wanted)}): install one, or use --no-compile")


def theirs(net: Any, variables: Mapping[str, Any], batch: Batch, device: str, dtype: str, compiled: bool) -> Side:
    """Loads our weights into PyTorch's network and runs the first `CHECKED` steps.

    Args:
        net: the same network from `benchmarks.torch_networks`, on the CPU.
        variables: our initial weights.
        batch: the batch to train on.
        device: "cpu" or "gpu".
        dtype: "float32", or "bfloat16" for autocast.
        compiled: whether to use torch.compile.
    """
    torch: Any = importlib.import_module("torch")
    gpu = device == "gpu"
    place = "cuda" if gpu else "cpu"
    net.load_state_dict({path: torch.from_numpy(array) for path, array in torch_weights(variables).items()})
    net = net.to(place, memory_format=torch.channels_last).train()
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2).to(place)  # stays channels last
    labels = torch.from_numpy(batch.labels).long().to(place)
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, MOMENTUM, nesterov=True, fused=True)

    def loss_of(images: Any, labels: Any) -> Any:
        with torch.autocast(place, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = net(images)
        return torch.nn.functional.cross_entropy(logits.float(), labels)

    forward = torch.compile(loss_of, mode="max-autotune" if gpu else "default") if compiled else loss_of

    def train(steps: int) -> float:
        loss: Any = None
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = forward(images, labels)
            loss.backward()
            optimizer.step()
        return loss.detach().item()  # waits for the device

    def peak() -> int | None:
        return torch.cuda.max_memory_allocated() if gpu else None

    start = time.perf_counter()
    first = train(1)
    seconds = time.perf_counter() - start
    losses = (first, *(train(1) for _ in range(CHECKED - 1)))
    if gpu:
        torch.cuda.reset_peak_memory_stats()  # do not count the search for the fastest algorithms
    return Side(train, losses, seconds, None, peak)


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def torch_weights(variables: Mapping[str, Any]) -> dict[str, Array]:
    """Converts our variables to a state dict of `benchmarks.torch_networks`, whose layers have our names.

    >>> kernel = np.zeros((5, 5, 1, 6), np.float32)
    >>> {name: array.shape for name, array in torch_weights({"params": {"conv1": {"kernel": kernel}}}).items()}
    {'conv1.weight': (6, 1, 5, 5)}
    """
    state = {}
    leaves: dict[Any, Any] = traverse_util.flatten_dict(dict(variables))
    for path, array in leaves.items():
        *modules, leaf = path[1:]  # without the name of the collection
        if leaf == "kernel":
            *spatial, inputs, outputs = range(array.ndim)
            array = array.transpose(outputs, inputs, *spatial)
        state[".".join((*modules, _LEAVES[leaf]))] = np.array(array)
    return state


def matmul(side: int, dtype: str, device: str) -> float:
    """Measures the FLOP/s of PyTorch's product of two square matrices."""
    torch: Any = importlib.import_module("torch")
    x = torch.randn(side, side, device="cuda" if device == "gpu" else "cpu", dtype=getattr(torch, dtype))

    def run(times: int) -> None:
        y = x
        for _ in range(times):
            y = x @ x
        y[0, 0].item()  # waits

    return 2 * side**3 * fastest(run)
