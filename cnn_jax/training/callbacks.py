"""Callbacks of the training loop, and early stopping."""

from collections.abc import Mapping
from typing import Any, Protocol

from cnn_jax.errors import UserError


class Callback(Protocol):
    """Called after each validation."""

    def on_evaluation(self, step: int, metrics: Mapping[str, float], state: Any) -> bool | None:
        """Returns True to stop training; the state of this step is saved.

        Args:
            step: number of updates so far.
            metrics: metrics on the validation split, such as {"loss": 0.3, "accuracy": 0.9}.
            state: the `TrainState`; None when a resumed run replays the validations of earlier processes.
        """
        ...


class EarlyStopping:
    """Stops when a validation metric has not improved for `patience` evaluations in a row.

    Neither a tie nor NaN counts as an improvement.

    Args:
        metric: name of a validation metric.
        higher_is_better: whether larger values of it are better.
        patience: at least 1.

    Raises:
        UserError: `patience` is less than 1.

    >>> stopping = EarlyStopping("accuracy", higher_is_better=True, patience=2)
    >>> tuple(stopping.on_evaluation(step, {"accuracy": a}, None) for step, a in enumerate((0.5, 0.6, 0.6, 0.55)))
    (False, False, False, True)
    """

    def __init__(self, metric: str, higher_is_better: bool, patience: int):
        if patience < 1:
            raise UserError(f"`patience` is {patience}: set 1 or more, or leave it out")
        self.metric, self.higher_is_better, self.patience = metric, higher_is_better, patience
        self._best = float("-inf") if higher_is_better else float("inf")
        self._since = 0  # evaluations since the best

    def on_evaluation(self, step: int, metrics: Mapping[str, float], state: Any) -> bool:
        """Returns whether to stop; see `Callback`.

        Raises:
            UserError: validation does not report the metric.
        """
        if self.metric not in metrics:
            raise UserError(
                f"validation does not report the metric {self.metric!r}: choose one of {', '.join(sorted(metrics))}"
            )
        value = metrics[self.metric]
        if value > self._best if self.higher_is_better else value < self._best:
            self._best, self._since = value, 0
        else:
            self._since += 1
        return self._since >= self.patience
