"""What can be hung on the training loop, and early stopping, its first user."""

from collections.abc import Mapping
from typing import Any, Protocol

from cnn_jax.errors import UserError


class Callback(Protocol):
    """Called after each validation."""

    def on_evaluation(self, step: int, metrics: Mapping[str, float], state: Any) -> bool | None:
        """Returns True to stop training; the state of this step is saved.

        Args:
            step: number of updates done.
            metrics: of the validation split, such as {"loss": 0.3, "accuracy": 0.9}.
            state: the `TrainState`; None for the validations of earlier processes, of which a resumed run tells
                before it goes on.
        """
        ...


class EarlyStopping:
    """Stops when a validation metric has not improved for `patience` evaluations in a row.

    A tie is no improvement, and neither is NaN.

    Args:
        metric: name of a validation metric.
        higher_is_better: its direction.
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
            UserError: no such metric.
        """
        if self.metric not in metrics:
            raise UserError(f"early stopping on {self.metric!r}: choose one of {', '.join(sorted(metrics))}")
        value = metrics[self.metric]
        if value > self._best if self.higher_is_better else value < self._best:
            self._best, self._since = value, 0
        else:
            self._since += 1
        return self._since >= self.patience
