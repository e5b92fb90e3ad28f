"""What the two sides of `benchmarks.versus_torch` share: the batch, the optimizer's numbers, and timing in turns.

Nothing here imports JAX, PyTorch or the rest of the package.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

Image = tuple[int, int, int]
Array = np.ndarray

LEARNING_RATE, MOMENTUM = 1e-3, 0.9  # a large rate would blow the last digit, in which the two differ, up
CHECKED = 3  # steps whose losses must agree
SETTLE, PAUSE = 0.05, 0.2  # seconds before a block: until all threads sleep, and in which others are watched


@dataclass(frozen=True)
class Batch:
    """What both train on: images float32 (B, H, W, C), of mean 0 and variance 1; labels int32 (B,)."""

    images: Array
    labels: Array


@dataclass(frozen=True)
class Side:
    """One of the two, in training.

    Attributes:
        train: runs so many steps, waits for them and returns the loss of the last.
        losses: of the first steps.
        compile_seconds: until the first step can run (PyTorch's: until it has run).
        cached_seconds: the same with the program in the cache; None where there is no such thing.
        peak_bytes: of device memory so far; None where it is not known.
    """

    train: Callable[[int], float]
    losses: tuple[float, ...]
    compile_seconds: float
    cached_seconds: float | None
    peak_bytes: Callable[[], int | None]


def make_batch(size: int, image: Image, classes: int) -> Batch:
    """Random images and labels, always the same."""
    numbers = np.random.default_rng(0)
    images = numbers.standard_normal((size, *image), dtype=np.float32)
    return Batch(images, numbers.integers(0, classes, size, dtype=np.int32))


def fastest(run: Callable[[int], object], seconds: float = 0.2, trials: int = 5) -> float:
    """Calls a second, the most of some trials of about so many seconds."""
    pause()
    times = _repeats(run, seconds)
    return max(times / _seconds(run, times) for _ in range(trials))


def _seconds(run: Callable[[int], object], times: int) -> float:
    start = time.perf_counter()
    run(times)
    return time.perf_counter() - start


def _repeats(run: Callable[[int], object], seconds: float) -> int:
    """How often it can run in about so many seconds, at least once; leaves it warm."""
    run(1)
    times = max(1, round(seconds / _seconds(run, 1)))
    return max(1, round(seconds * times / _seconds(run, times)))


def alternate(
    ours: Callable[[int], float], torch: Callable[[int], float], batch_size: int, blocks: int, seconds: float
) -> tuple[list[float], list[float], list[float]]:
    """Times blocks of about so many seconds in turns, each pair the other way round than the one before.

    Returns:
        Images a second of each block of ours, and of PyTorch's; the shares of the processor that others took before.
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
    """Sleeps until threads that wait actively have given up.

    Returns:
        Share of the processor's time, of all cores, that others took meanwhile; None where the system does not say.
    """
    time.sleep(SETTLE)
    before = _processor_ticks()
    time.sleep(PAUSE)
    after = _processor_ticks()
    if before is None or after is None or after[0] == before[0]:
        return None
    return 1 - (after[1] - before[1]) / (after[0] - before[0])


def _processor_ticks() -> tuple[int, int] | None:
    """All and idle, of all cores since the start; Linux only."""
    try:
        ticks = [int(number) for number in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    except OSError:
        return None
    return sum(ticks[:8]), ticks[3] + ticks[4]  # guests' are in users'; waiting for a disk is idle, too
