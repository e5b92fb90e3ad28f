"""What both sides of `benchmarks.versus_torch` share: the batch, the optimizer's numbers, and alternating timing.

Nothing here imports JAX, PyTorch or the rest of the package.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Image = tuple[int, int, int]
Array = np.ndarray

LEARNING_RATE, MOMENTUM = 1e-3, 0.9  # a large rate would amplify differences of rounding between the two
CHECKED = 3  # steps whose losses must agree
SETTLE, PAUSE = 0.05, 0.2  # seconds before each block: wait for threads to sleep, then measure other load


@dataclass(frozen=True)
class Batch:
    """The batch that both sides train on: images float32 (B, H, W, C), mean 0 and variance 1; labels int32 (B,)."""

    images: Array
    labels: Array


@dataclass(frozen=True)
class Side:
    """One side, ready to train.

    Attributes:
        train: runs the given number of steps, waits for them and returns the last loss.
        losses: losses of the first steps.
        compile_seconds: until the first step can run (PyTorch: until it has run).
        cached_seconds: the same with the program in the cache; None without such a cache.
        peak_bytes: returns the peak device memory so far; None where it is unknown.
    """

    train: Callable[[int], float]
    losses: tuple[float, ...]
    compile_seconds: float
    cached_seconds: float | None
    peak_bytes: Callable[[], int | None]


def make_batch(size: int, image: Image, classes: int) -> Batch:
    """Makes random images and labels, the same in every call."""
    numbers = np.random.default_rng(0)
    images = numbers.standard_normal((size, *image), dtype=np.float32)
    return Batch(images, numbers.integers(0, classes, size, dtype=np.int32))


def fastest(run: Callable[[int], object], seconds: float = 0.2, trials: int = 5) -> float:
    """Returns calls per second: the highest rate of several trials of about `seconds` each."""
    pause()
    times = _repeats(run, seconds)
    return max(times / _seconds(run, times) for _ in range(trials))


def _seconds(run: Callable[[int], object], times: int) -> float:
    start = time.perf_counter()
    run(times)
    return time.perf_counter() - start


def _repeats(run: Callable[[int], object], seconds: float) -> int:
    """Returns how many runs take about `seconds`, at least one; it is warm afterwards."""
    run(1)
    times = max(1, round(seconds / _seconds(run, 1)))
    return max(1, round(seconds * times / _seconds(run, times)))


def alternate(
    ours: Callable[[int], float], torch: Callable[[int], float], batch_size: int, blocks: int, seconds: float
) -> tuple[list[float], list[float], list[float]]:
    """Times blocks of about `seconds` alternately, reversing the order in every pair.

    Returns:
        Images per second of each of our blocks, and of PyTorch's; the share of the processor that other programs used
        before each block.
    """
    sides = (ours, torch)
    steps = [_repeats(train, seconds) for train in sides]
    rates: tuple[list[float], list[float]] = ([], [])
    others: list[float | None] = []
    for block in range(blocks):
        for side in (0, 1) if block % 2 == 0 else (1, 0):
            others.append(pause())
            rates[side].append(batch_size * steps[side] / _seconds(sides[side], steps[side]))
    return *rates, [share for share in others if share is not None]


def pause() -> float | None:
    """Sleeps until spinning threads have gone to sleep.

    Returns:
        Share of the time of all cores that other programs used meanwhile; None where the system does not say.
    """
    time.sleep(SETTLE)
    before = _processor_ticks()
    time.sleep(PAUSE)
    after = _processor_ticks()
    if before is None or after is None or after[0] == before[0]:
        return None
    return 1 - (after[1] - before[1]) / (after[0] - before[0])


def _processor_ticks() -> tuple[int, int] | None:
    """Returns total and idle ticks of all cores since boot; None except on Linux."""
    try:
        ticks = [int(number) for number in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    except OSError:
        return None
    return sum(ticks[:8]), ticks[3] + ticks[4]  # guest time is part of user time; waiting for a disk counts as idle
