"""Exact evaluation: every example exactly once on any number of devices; the count is checked."""

import itertools
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from cnn_jax.data.pipeline import Item, Items, Pipeline
from cnn_jax.training.compiled import EvalProgram, mean_metrics, means_of_each
from cnn_jax.training.parallel import Parallel, Tree
from cnn_jax.training.step import EvalStep


class Evaluator:
    """Evaluates variables on one split; repeated evaluations share one reader.

    Args:
        step: from `make_eval_step`.
        pipeline: the split's pipeline; its batch size must be a multiple of the number of devices.
        parallel: the devices.
    """

    def __init__(self, step: EvalStep, pipeline: Pipeline, parallel: Parallel):
        self._program, self._pipeline, self._parallel = EvalProgram(step, pipeline, parallel), pipeline, parallel
        self._reader: Items | None = None

    def close(self) -> None:
        """Stops the worker processes that read for `metrics`."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _batches(self, variables: Tree, items: Iterator[Item]) -> Iterator[tuple[Any, Any, Item]]:
        """Yields (sums, collected, item) of each batch, dispatching one batch ahead."""
        ahead = None
        for item in items:
            out = (*self._program(variables, item), item)
            if ahead is not None:
                yield ahead
            ahead = out
        if ahead is not None:
            yield ahead

    def prepare(self, variables: Tree) -> None:
        """Compiles, if that has not been done, so that it can be left out of a time."""
        self._program.prepare(variables, self._pipeline.sample_eval_item())

    def metrics(self, variables: Tree) -> dict[str, float]:
        """Returns the means of the task's metrics over the split. The reader stays ready until `close`."""
        (means,) = self.each(variables)
        return means

    def each(self, variables: Tree) -> list[dict[str, float]]:
        """Returns the metrics of each network whose sums the step keeps apart; see `evaluate_members`."""
        if self._reader is None:
            self._reader = self._pipeline.eval_items(repeat=True)
        items = itertools.islice(self._reader, self._pipeline.eval_steps)
        seen = [jax.device_get(sums) for sums, _, _ in self._batches(variables, items)]
        for count in np.sum([np.asarray(sums["loss"]).reshape(-1, 2)[:, 1] for sums in seen], axis=0):
            self._check(float(count))
        return means_of_each(seen)

    def predictions(self, variables: Tree) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Returns the metrics, and what the task collects of each example: host arrays (N, …) in the split's order."""
        collected, seen = [], []
        for sums, kept, item in self._batches(variables, self._pipeline.eval_items()):
            seen.append(jax.device_get(sums))
            collected.append({name: self._parallel.fetch_rows(rows)[item["mask"]] for name, rows in kept.items()})
        arrays = {name: np.concatenate([part[name] for part in collected]) for name in collected[0]}
        self._check(len(next(iter(arrays.values()))))
        return mean_metrics(seen), arrays

    def timed_predictions(self, variables: Tree) -> tuple[dict[str, float], dict[str, np.ndarray], float]:
        """Returns `predictions`, and the seconds that they took, without compilation."""
        self.prepare(variables)
        start = time.perf_counter()
        means, arrays = self.predictions(variables)
        return means, arrays, time.perf_counter() - start

    def _check(self, count: float) -> None:
        expected = self._pipeline.num_examples
        assert count == expected, f"evaluation saw {count} examples of {expected}"
