"""Callbacks: what people hang on the loop."""

import math
from collections.abc import Mapping
from typing import Any, Protocol

from cnn_jax.errors import UserError


class Callback(Protocol):
    """Called after each validation.

    A run that resumes calls it first for the validations before, with state None, so that one that counts or remembers
    ends up as if the run had not been interrupted.
    """

    def on_evaluation(self, step: int, metrics: Mapping[str, float], state: Any) -> bool | None:
        """Looks at the validation metrics after `step` updates; True asks the run to stop, which saves and finishes it.

        Args:
            step: number of updates done.
            metrics: of the validation split.
            state: the `TrainState`; its arrays are reused by the next step, so copy what you keep.
        """
        ...


class EarlyStopping:
    """Stops when a metric has not improved on its best for `patience` validations in a row.

    A tie is no improvement, and neither is NaN.

    Args:
        metric: its name.
        higher_is_better: which way is better.
        patience: at least 1.

    Raises:
        UserError: patience below 1.

    >>> stopping = EarlyStopping("loss", higher_is_better=False, patience=2)
    >>> [stopping.on_evaluation(step, {"loss": loss}, None) for step, loss in enumerate([3.0, 2.0, 2.0, 2.5])]
    [False, False, False, True]
    """

    def __init__(self, metric: str, higher_is_better: bool, patience: int):
        if patience < 1:
            raise UserError(f"`patience` is {patience}: set it to 1 or more")
        self._metric, self._sign, self._patience = metric, 1.0 if higher_is_better else -1.0, patience
        self._best, self._waited = -math.inf, 0

    def on_evaluation(self, step: int, metrics: Mapping[str, float], state: Any) -> bool:
        """Counts the validations since the best one."""
        score = self._sign * metrics[self._metric]
        if score > self._best:
            self._best, self._waited = score, 0
        else:
            self._waited += 1
        return self._waited >= self._patience
