"""The order in which examples are seen: an endless stream, N of them per epoch, that depends only on the seed.

Batch k is rows k·B to (k+1)·B of the stream, so checkpoints need no position.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

Order = Callable[[int, int, int], np.ndarray]  # (seed, epoch, N) → the N examples of that epoch, int32


@lru_cache(maxsize=4)
def shuffled(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order of an epoch in which every example occurs once, int32 N.

    Sorts raw Philox words, which NumPy guarantees never to change; `Generator.permutation` has no such guarantee. Ties,
    whose order a sort leaves open, are not expected within 10^7 epochs of ImageNet.
    """
    order = _permutation(seed, epoch, num_examples)
    order.setflags(write=False)
    return order


def _permutation(seed: int, stream: int, count: int) -> np.ndarray:
    key = np.array([seed % 2**64, stream], np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(count)).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Balanced:
    """An order in which all classes occur equally often, whatever their sizes.

    Place j of the endless stream is for class j mod K, and the places of an epoch are then shuffled as by `shuffled`:
    each class has ⌊N/K⌋ or ⌈N/K⌉ of them. A class fills its places with one permutation of its examples after another,
    so within a class each example is seen equally often, in a large class not in every epoch.

    Attributes:
        members: the examples of each class, int32; classes without any are left out.
    """

    members: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, labels: np.ndarray) -> "Balanced":
        """Returns the order for examples with these labels, integers (N,)."""
        return cls(tuple(np.flatnonzero(labels == label).astype(np.int32) for label in np.unique(labels)))

    def __call__(self, seed: int, epoch: int, num_examples: int) -> np.ndarray:
        """Returns the examples of an epoch, int32 N."""
        return _balanced(self, seed, epoch, num_examples)


@lru_cache(maxsize=4)
def _balanced(order: Balanced, seed: int, epoch: int, num_examples: int) -> np.ndarray:
    places = epoch * num_examples + shuffled(seed, epoch, num_examples).astype(np.int64)
    turns, classes = np.divmod(places, len(order.members))
    rows = np.empty(num_examples, np.int32)
    for number, members in enumerate(order.members):
        mine = np.flatnonzero(classes == number)
        passes, within = np.divmod(turns[mine], len(members))
        for one in np.unique(passes):
            now, stream = passes == one, int(one) + (number + 1) * 2**48  # epochs are fewer than 2^48
            rows[mine[now]] = members[_permutation(seed, stream, len(members))[within[now]]]
    rows.setflags(write=False)
    return rows


def batch_indices(seed: int, step: int, num_examples: int, batch_size: int, order: Order = shuffled) -> np.ndarray:
    """Returns the examples of batch `step`, int32 (batch_size,).

    They are rows [step * batch_size, (step + 1) * batch_size) of the endless stream of epochs, so a batch may span two.
    In the usual order, each example occurs once per epoch.

    >>> sorted(np.concatenate([batch_indices(0, step, 6, 4) for step in range(3)]).tolist())
    [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    """
    start, stop = step * batch_size, (step + 1) * batch_size
    parts = []
    while start < stop:
        epoch, row = divmod(start, num_examples)
        parts.append(order(seed, epoch, num_examples)[row : row + stop - start])
        start += len(parts[-1])
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
