"""The hyperparameters in which networks that are trained at once differ."""

import inspect
from collections.abc import Sequence

from cnn_jax.arguments import parse_arguments
from cnn_jax.config import OptimConfig
from cnn_jax.errors import UserError
from cnn_jax.optim.optimizers import DECAY, HIDDEN, check_ranges, get_optimizer_spec


def compared_values(config: OptimConfig, each: Sequence[Sequence[str]]) -> dict[str, tuple[float, ...]]:
    """Returns the values of each hyperparameter by name, one for each of M networks.

    Args:
        config: the optimizer, and what holds for all networks.
        each: what each network has of its own, key=value, the same keys for all: real arguments of the optimizer, or
            weight_decay.

    Raises:
        UserError: a key that is unknown, is not a real number or is set for all networks, too; or a value of the wrong
            type or out of range.

    >>> compared_values(OptimConfig(optimizer="momentum"), [["momentum=0.5"], ["momentum=0.9"]])
    {'momentum': (0.5, 0.9)}
    """
    name, names = config.optimizer, [_key(text) for text in each[0]] if each else []
    if not names:
        return {}
    if DECAY in names and config.weight_decay:
        raise UserError(f"{DECAY} is given for all networks, too: drop one")
    factory = get_optimizer_spec(name).factory
    parameters = inspect.signature(factory).parameters
    rows = []
    for texts in each:
        own = [text for text in texts if _key(text) != DECAY]
        values = parse_arguments(f"optimizer {name}", factory, [*config.optimizer_args, *own], hidden=HIDDEN)
        values |= parse_arguments(f"optimizer {name}", _decay, [text for text in texts if text not in own])
        check_ranges(name, values)
        rows.append({key: values[key] for key in names})
    for key in names:
        if key != DECAY and not all(_is_real(row[key], parameters[key].default) for row in rows):
            raise UserError(f"{key} of optimizer {name} is not a real number: start a run for each value instead")
    return {key: tuple(float(row[key]) for row in rows) for key in names}


def _key(text: str) -> str:
    return text.partition("=")[0].strip()


def _decay(weight_decay: float = 0.0) -> None:
    """Has the parameter that every optimizer takes."""


def _is_real(value: object, default: object) -> bool:
    """Whether a parsed value is one of a real argument. A number of iterations is none, but 0 may be a momentum."""
    return type(value) is float or (type(value) is int and not isinstance(default, int))
