"""One-line constructors of the parts of a run."""

from collections.abc import Sequence
from typing import Any

from cnn_jax.config import OptimConfig
from cnn_jax.optim.optimizers import Optimizer, make_optimizer
from cnn_jax.tasks import Classification


def optimizer_of(
    name: str,
    *,
    total_steps: int = 1,
    args: Sequence[str] = (),
    warmup_steps: int = 0,
    freeze_until: Sequence[tuple[str, int]] = (),
    **fields: Any,
) -> Optimizer:
    """Calls `make_optimizer` with a config of these fields and one step per epoch."""
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    config = OptimConfig(
        optimizer=name,
        optimizer_args=tuple(args),
        warmup_epochs=warmup_steps,
        freeze_until=tuple(f"{regex}={step}" for regex, step in freeze_until),
        **fields,
    )
    return make_optimizer(config, total_steps=total_steps)


def classification(classes: int, **fields: Any) -> Classification:
    """A classification task whose class names are numbers."""
    return Classification(tuple(map(str, range(classes))), **fields)
