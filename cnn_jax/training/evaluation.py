"""Exact evaluation: every example once, on any number of devices, and the count is checked."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from cnn_jax.data.pipeline import Item, Items, Pipeline
from cnn_jax.training.parallel import Parallel, Step, mean_metrics
from cnn_jax.training.state import Tree


class Evaluator:
    """One split, ready to be evaluated again and again with other variables; compiled once, its reader started once.

    Args:
        step: of `make_eval_step`.
        pipeline: of the split; its batch size must be a multiple of the number of devices.
        parallel: the devices.
    """

    def __init__(self, step: Step, pipeline: Pipeline, parallel: Parallel):
        self._step, self._pipeline, self._parallel = step, pipeline, parallel
        self._arrays: Tree = None
        self._compiled: Any = None
        self._reader: Items | None = None

    def close(self) -> None:
        """Ends the processes that read for `metrics`."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _batches(self, variables: Tree, items: Iterator[Item]) -> Iterator[tuple[Any, Any, Item]]:
        """Yields (metrics, logits, item) of each batch; dispatches a batch ahead of the one that is read."""
        if self._arrays is None:
            self._arrays = self._parallel.place(self._pipeline.arrays)
        ahead = None
        for item in items:
            placed = self._parallel.place_item(item)
            if self._compiled is None:
                self._compiled = self._parallel.compile_eval(
                    self._step, self._pipeline.gather, variables, self._arrays, placed
                )
            out = (*self._compiled(variables, self._arrays, placed), item)
            if ahead is not None:
                yield ahead
            ahead = out
        if ahead is not None:
            yield ahead

    def metrics(self, variables: Tree) -> dict[str, float]:
        """Mean "loss" and "accuracy" over the split. What reads it waits for the next time, until `close`."""
        if self._reader is None:
            self._reader = self._pipeline.eval_items(repeat=True)
        items = itertools.islice(self._reader, self._pipeline.eval_steps)
        seen = [jax.device_get(metrics) for metrics, _, _ in self._batches(variables, items)]
        self._check(sum(float(np.asarray(m["accuracy"][1])) for m in seen))
        return mean_metrics(seen)

    def predictions(self, variables: Tree) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
        """The same metrics, labels_N (int32) and logits_NxK (float32), on the host, in the order of the split."""
        labels, logits, seen = [], [], []
        for metrics, batch_logits, item in self._batches(variables, self._pipeline.eval_items()):
            seen.append(jax.device_get(metrics))
            logits.append(self._parallel.fetch_rows(batch_logits)[item["mask"]])
            labels.append(self._pipeline.gather(self._pipeline.arrays, item)["label"][item["mask"]])
        self._check(sum(len(rows) for rows in logits))
        return mean_metrics(seen), np.concatenate(labels), np.concatenate(logits)

    def _check(self, count: float) -> None:
        expected = self._pipeline.num_examples
        assert count == expected, f"evaluation saw {count} examples of {expected}"
