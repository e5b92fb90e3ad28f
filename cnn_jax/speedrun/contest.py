"""Timed runs in turns: our program and PyTorch scripts, on the same images and the same device.

Our clock starts with the bytes on the device and stops with the accuracy on the host; compilation, and a first run with
random labels, come before. A script's time is the one it prints. Those of github.com/KellerJordan/cifar10-airbench and
github.com/hiverge/cifar10-speedrun count with CUDA events, and leave out the validation after every epoch and making
the network, so theirs is not the wider measure.
"""

import contextlib
import importlib.metadata
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.errors import UserError
from cnn_jax.speedrun.data import Data
from cnn_jax.speedrun.program import count_run_flops, evaluate, speedrun
from cnn_jax.speedrun.recipe import Recipe

_BLOCK = 10  # runs of one contender before the next one's turn


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        seconds: see the head of this module.
        accuracy: share of the test images.
        beside: share of `Data.beside`, None where it was not scored.
        losses: mean training loss of each epoch, where it is known.
    """

    seconds: float
    accuracy: float
    beside: float | None = None
    losses: tuple[float, ...] = ()


class Contender(Protocol):
    """What can run again and again."""

    @property
    def name(self) -> str: ...

    def run(self) -> Run:
        """Trains once more, from other random numbers."""
        ...


class Program:
    """Our program, compiled and warmed up.

    Attributes:
        name: of the recipe.
        compile_seconds: of tracing and compilation.
        flops: of a run, see `program.count_run_flops`.
    """

    def __init__(self, name: str, recipe: Recipe, data: Data, seed: int, unroll: int = 1):
        self.name = name
        self._seed, self._steps_per_epoch = seed, recipe.plan(len(data.train[0])).steps_per_epoch
        height, width, channels = data.train[0].shape[1:]
        self.flops = count_run_flops(recipe, (height, width, channels), len(data.train[0]), len(data.test[0]))
        with enough_memory(recipe, data):
            self._arrays = jax.device_put((*data.train, *data.test))
            self._beside = jax.device_put(data.beside)
            began = time.perf_counter()
            program = partial(speedrun, recipe, unroll=unroll)
            self._compiled = jax.jit(program).lower(jnp.uint32(seed), *self._arrays).compile()
            self._score = jax.jit(partial(evaluate, recipe))
            self.compile_seconds = time.perf_counter() - began
            images, labels, *test = self._arrays
            noise = np.random.default_rng(seed).integers(0, 10, labels.shape, np.int32)
            jax.block_until_ready(self._compiled(jnp.uint32(seed), images, jax.device_put(noise), *test))

    def run(self) -> Run:
        """The next seed's run."""
        seed = jax.block_until_ready(jnp.uint32(self._seed))
        self._seed += 1
        began = time.perf_counter()
        outcome = self._compiled(seed, *self._arrays)
        accuracy = float(outcome.accuracy)
        seconds = time.perf_counter() - began
        losses = np.asarray(outcome.losses_S)
        epochs = (losses[i : i + self._steps_per_epoch] for i in range(0, len(losses), self._steps_per_epoch))
        beside = None if self._beside is None else float(self._score(outcome.variables, *self._beside))
        return Run(seconds, accuracy, beside, tuple(float(epoch.mean()) for epoch in epochs))


@contextlib.contextmanager
def enough_memory(recipe: Recipe, data: Data) -> Iterator[None]:
    """Says in one line, as a UserError, that the device has not enough memory."""
    try:
        yield
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        megabytes = sum(part[0].nbytes for part in (data.train, data.test)) / 1e6
        raise UserError(
            f"given {megabytes:.0f} MB of images and batches of {recipe.batch_size}; expected a device that holds them "
            "and the activations of a batch; lower --batch-size, --train-images or --width-factor"
        ) from error


def alternate(contenders: Sequence[Contender], runs: int, block: int = _BLOCK) -> list[list[Run]]:
    """So many runs of each, in blocks in turns; in every second turn the order is reversed."""
    results: list[list[Run]] = [[] for _ in contenders]
    for turn, done in enumerate(range(0, runs, block)):
        pairs = list(zip(contenders, results))
        for contender, found in reversed(pairs) if turn % 2 else pairs:
            found += [contender.run() for _ in range(min(block, runs - done))]
    return results


def ratios(ours: Sequence[Run], theirs: Sequence[Run], block: int = _BLOCK) -> list[float]:
    """Our seconds over theirs, of the medians of each block."""
    medians = [
        [statistics.median(run.seconds for run in runs[i : i + block]) for i in range(0, len(runs), block)]
        for runs in (ours, theirs)
    ]
    return [one / other for one, other in zip(*medians)]


def spread(values: Sequence[float]) -> float:
    """Standard deviation (n - 1 below); 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def p_below(values: Sequence[float], target: float) -> float:
    """One-sided t-test: chance of a mean at least this high if the true one were `target`. Needs two values or more.

    >>> round(p_below([94.1, 94.0, 94.2, 94.1], 94.0), 3)
    0.046
    """
    error, degrees = spread(values) / len(values) ** 0.5, len(values) - 1
    if error == 0:
        return float(statistics.mean(values) <= target)
    t = (statistics.mean(values) - target) / error
    tail = 0.5 * float(jax.scipy.special.betainc(degrees / 2, 0.5, degrees / (degrees + t * t)))
    return tail if t > 0 else 1 - tail


def describe(name: str, runs: Sequence[Run]) -> str:
    """Times and accuracies in one line.

    >>> describe("muon94", [Run(0.8, 0.94), Run(0.9, 0.942)])
    'muon94: 0.85 s (std 0.071, median 0.85, least 0.8), accuracy 94.10 % (std 0.14), 2 runs'
    """
    seconds, percent = [run.seconds for run in runs], [100 * run.accuracy for run in runs]
    if len(runs) == 1:
        return f"{name}: {seconds[0]:.4g} s, accuracy {percent[0]:.2f} %, 1 run"
    return (
        f"{name}: {statistics.mean(seconds):.4g} s (std {spread(seconds):.2g}, median "
        f"{statistics.median(seconds):.4g}, least {min(seconds):.4g}), accuracy {statistics.mean(percent):.2f} % "
        f"(std {spread(percent):.2f}), {len(runs)} runs"
    )


def machine() -> str:
    """What the times depend on: device, versions, XLA's flags, driver and state of the GPU."""
    parts = [f"{len(jax.devices())} x {jax.devices()[0].device_kind}"]
    for package in ("jax", "jaxlib", "flax", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{package} {importlib.metadata.version(package)}")
    parts.append(f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')}")
    query = "driver_version,utilization.gpu,memory.used,clocks.sm,power.limit"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
        parts.append(f"{query}: {said.splitlines()[0]}")
    return ", ".join(parts)
