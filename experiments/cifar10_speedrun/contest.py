"""Alternating timed runs of our program and PyTorch scripts, on the same images and the same device.

Our clock starts with the images as bytes on the device, or on the host if they do not fit there, and stops with the
accuracy on the host; compilation and a first run on random labels come before. A script's time is the one it prints.
Those of github.com/KellerJordan/cifar10-airbench and github.com/hiverge/cifar10-speedrun count with CUDA events and
leave out the validation after every epoch and the creation of the network, so our clock covers no less than theirs.
"""

import contextlib
import gc
import importlib.metadata
import math
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.errors import UserError
from experiments.cifar10_speedrun.data import Data
from experiments.cifar10_speedrun.program import Resident, Runner, count_run_flops
from experiments.cifar10_speedrun.recipe import Recipe
from experiments.cifar10_speedrun.streaming import Streamed, chunk_steps

_BLOCK = 10  # runs of one contender before the next one takes its turn


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        seconds: see the module's docstring.
        accuracy: share of the test images.
        extra_accuracy: share of `Data.extra`; None if it was not scored.
        losses: mean training loss of each epoch, if known.
        wall: for a script, seconds by our clock from the start signal to its accuracy, including validation after every
            epoch and creation of the network.
    """

    seconds: float
    accuracy: float
    extra_accuracy: float | None = None
    losses: tuple[float, ...] = ()
    wall: float | None = None


class Contender(Protocol):
    """A program that can train again and again."""

    @property
    def name(self) -> str: ...

    def run(self) -> Run:
        """Trains once more, with other random numbers."""
        ...


class DoesNotFit(UserError):
    """The device does not have enough memory for a run."""


class Program:
    """Our program, compiled and warmed up.

    Attributes:
        name: the recipe's name.
        ready_seconds: seconds of tracing, compilation and a first run.
        flops: FLOPs per run, see `program.count_run_flops`.
        streamed: number of steps whose images are sent from the host at a time; None if all are on the device.
    """

    def __init__(self, name: str, recipe: Recipe, data: Data, seed: int, *, unroll: int = 1, stream: int | None = None):
        """Compiles and runs once.

        Args:
            name: the recipe's name.
            recipe: what to train, and how.
            data: images to train and test on.
            seed: seed of the first run that counts.
            unroll: steps per iteration of the compiled loop.
            stream: number of steps whose images are sent at a time; default: stream only if the device cannot hold all.

        Raises:
            UserError: too few images for a batch, or the device cannot even hold the activations of one.
        """
        self.name = name
        self._seed, self._extra = seed, data.extra
        self._steps_per_epoch = recipe.plan(len(data.train[0])).steps_per_epoch
        height, width, channels = data.train[0].shape[1:]
        self.flops = count_run_flops(recipe, (height, width, channels), len(data.train[0]), len(data.test[0]))
        began = time.perf_counter()
        self._runner, self.streamed = _warm_runner(recipe, data, seed, unroll, stream)
        self.ready_seconds = time.perf_counter() - began

    def run(self) -> Run:
        """Trains with the next seed."""
        seed = jax.block_until_ready(jnp.uint32(self._seed))
        self._seed += 1
        began = time.perf_counter()
        outcome = self._runner(seed)
        accuracy = float(outcome.accuracy)
        seconds = time.perf_counter() - began
        losses = np.asarray(outcome.losses_S)
        epochs = (losses[i : i + self._steps_per_epoch] for i in range(0, len(losses), self._steps_per_epoch))
        extra_accuracy = None if self._extra is None else self._runner.score(outcome.variables, self._extra)
        return Run(seconds, accuracy, extra_accuracy, tuple(float(epoch.mean()) for epoch in epochs))


def _warm_runner(recipe: Recipe, data: Data, seed: int, unroll: int, stream: int | None) -> tuple[Runner, int | None]:
    """Returns a runner warmed up on random labels, and how many steps of images it streams at a time, if it does."""
    noise = np.random.default_rng(seed).integers(0, 10, data.train[1].shape, np.int32)

    def warm(make: Callable[[], Runner]) -> Runner:
        with enough_memory(recipe):
            runner = make()
            jax.block_until_ready(runner(jnp.uint32(seed), noise))
        return runner

    if stream is None:
        with contextlib.suppress(DoesNotFit):
            return warm(lambda: Resident(recipe, data.train, data.test, unroll)), None
        gc.collect()  # frees what the failed attempt left on the device
    steps = stream or chunk_steps(recipe, data.train[0])
    return warm(lambda: Streamed(recipe, data.train, data.test, steps, unroll)), steps


@contextlib.contextmanager
def enough_memory(recipe: Recipe) -> Iterator[None]:
    """Context that turns the device's lack of memory into `DoesNotFit`."""
    try:
        yield
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(
            f"the device cannot hold the activations of a batch of {recipe.batch_size}: lower `batch_size` or "
            "`width_factor`"
        ) from error


def alternate(
    contenders: Sequence[Contender],
    runs: int,
    block: int = _BLOCK,
    *,
    until: float = math.inf,
    seen: Callable[[list[list[Run]]], None] = lambda results: None,
) -> list[list[Run]]:
    """Makes `runs` runs of each contender in alternating blocks; every other turn reverses the order.

    Args:
        contenders: who takes turns.
        runs: of each.
        block: runs of one contender before the next one takes its turn.
        until: time of `time.perf_counter` after which no turn should end, judged by the longest so far; the first is
            always taken.
        seen: called after each turn with the runs so far.
    """
    results: list[list[Run]] = [[] for _ in contenders]
    longest = 0.0
    for turn, done in enumerate(range(0, runs, block)):
        began = time.perf_counter()
        if turn and began + longest > until:
            break
        pairs = list(zip(contenders, results))
        for contender, found in reversed(pairs) if turn % 2 else pairs:
            found += [contender.run() for _ in range(min(block, runs - done))]
        longest = max(longest, time.perf_counter() - began)
        seen(results)
    return results


def ratios(ours: Sequence[Run], theirs: Sequence[Run], block: int = _BLOCK) -> list[float]:
    """Returns our seconds over theirs for each block, by its medians."""
    medians = [
        [statistics.median(run.seconds for run in runs[i : i + block]) for i in range(0, len(runs), block)]
        for runs in (ours, theirs)
    ]
    return [one / other for one, other in zip(*medians)]


def interval(ours: Sequence[Run], theirs: Sequence[Run], draws: int = 2000) -> tuple[float, float]:
    """Returns the 95 % bootstrap interval of our mean seconds over theirs."""
    random = np.random.default_rng(0)
    means = [
        np.array([run.seconds for run in runs])[random.integers(len(runs), size=(draws, len(runs)))].mean(axis=1)
        for runs in (ours, theirs)
    ]
    low, high = np.quantile(means[0] / means[1], (0.025, 0.975))
    return float(low), float(high)


def spread(values: Sequence[float]) -> float:
    """Returns the standard deviation (divided by n - 1); 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def p_below(values: Sequence[float], target: float) -> float:
    """One-sided t-test: the probability of a mean at least this high if the true one were `target`.

    Needs at least two values.

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
    """Describes times and accuracies in one line.

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


def busy() -> bool:
    """Returns whether a GPU is in use; call it before using it ourselves. False if that is unknown."""
    with contextlib.suppress(ValueError):
        return any(int(said) > 5 for said in _ask_gpus("utilization.gpu", "csv,noheader,nounits"))  # per cent
    return False


def machine() -> str:
    """Describes what the times depend on: device, versions, XLA's flags, driver and state of the GPU."""
    parts = [f"{len(jax.devices())} x {jax.devices()[0].device_kind}", *_versions("jax", "jaxlib", "flax")]
    return ", ".join([*parts, f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')}", *accelerator()])


def accelerator() -> list[str]:
    """Returns what the table of speeds does not record anyway: cuDNN's version, driver and state of the first GPU."""
    query = "driver_version,utilization.gpu,memory.used,clocks.sm,power.limit"
    states = [f"{query}: {said}" for said in _ask_gpus(query, "csv,noheader")]
    return [*_versions("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"), *states[:1]]


def _versions(*packages: str) -> list[str]:
    """Returns names and versions of those packages that are installed."""
    found = []
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return found


def _ask_gpus(query: str, form: str) -> list[str]:
    """Returns a line of nvidia-smi for each GPU; empty without one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", f"--query-gpu={query}", f"--format={form}"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.splitlines()
    return []
