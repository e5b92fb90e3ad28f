"""Groups of parameters, told by regular expressions on their paths, such as "block1/conv/kernel"; freezing."""

import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cnn_jax.errors import UserError

Tree = Any


class Rule:
    """A multiplier for the parameters in whose path `regex` is found.

    Args:
        regex: searched for anywhere in the path.
        multiplier: at least 0.
        until: the rule holds in the first `until` steps only; None: always.

    Raises:
        UserError: `regex` is no regular expression.
    """

    def __init__(self, regex: str, multiplier: float, until: int | None = None):
        try:
            self.pattern = re.compile(regex)
        except re.error as error:
            raise UserError(f"given {regex!r}; expected a regular expression for parameter paths ({error})") from None
        self.multiplier, self.until = multiplier, until


def parse_pair(text: str, what: str, example: str) -> tuple[str, float]:
    """Reads regex=number.

    >>> parse_pair("^backbone/=0.1", "rate group", "backbone=0.1")
    ('^backbone/', 0.1)

    Raises:
        UserError: it is something else, or the number is negative.
    """
    regex, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not equals or not 0 <= value < math.inf:
        raise UserError(f"given {what} {text!r}; expected {example}")
    return regex, value


def parse_rule(text: str) -> Rule:
    """Reads regex=multiplier.

    >>> parse_rule("^backbone/=0.1").multiplier
    0.1

    Raises:
        UserError: it is something else, or the multiplier is negative.
    """
    return Rule(*parse_pair(text, "rate group", "regex=multiplier, such as backbone=0.1"))


class Steps(NamedTuple):
    """State of `multiply` where a rule ends: int32 number of updates done."""

    done: jax.Array


def multiply(rules: Sequence[Rule]) -> optax.GradientTransformation:
    """Multiplies each update by the number of the first rule that is for its path; by 1 if none is.

    Its `init` raises UserError if a rule is for no parameter at all.
    """
    timed = any(rule.until is not None for rule in rules)

    def scaled(update: jax.Array, value: float) -> jax.Array:
        return update if value == 1.0 else jnp.zeros_like(update) if value == 0.0 else value * update

    def factor(path: Any, update: jax.Array, state: Any) -> jax.Array:
        rule = next((rule for rule in rules if rule.pattern.search(_name(path))), None)
        if rule is None:
            return update
        held = scaled(update, rule.multiplier)
        return held if rule.until is None else jnp.where(state.done < rule.until, held, update)

    def init(params: Tree) -> Any:
        paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern in (rule.pattern for rule in rules):
            if not any(map(pattern.search, paths)):
                some = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
                raise UserError(f"given {pattern.pattern!r}; expected a regular expression found in a path of: {some}")
        return Steps(jnp.zeros((), jnp.int32)) if timed else optax.EmptyState()

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        new = jax.tree_util.tree_map_with_path(lambda path, u: factor(path, u, state), updates)
        return new, Steps(state.done + 1) if timed else state

    return optax.GradientTransformation(init, update)


def hold_statistics(frozen: str | None) -> AbstractContextManager[Any]:
    """Within it, a BatchNorm layer whose parameters are frozen normalizes by its running statistics, as in evaluation.

    Otherwise the features of a frozen network would drift, and change with every batch.

    Args:
        frozen: regular expression for parameter paths, as for `Rule`; None: nothing is frozen.
    """
    if frozen is None:
        return nullcontext()
    pattern = re.compile(frozen)

    def call(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if not isinstance(layer, nn.BatchNorm) or context.method_name != "__call__":
            return next_function(*args, **kwargs)
        own = layer.variables.get("params", {})
        if not own or not all(pattern.search("/".join([*layer.path, name])) for name in own):
            return next_function(*args, **kwargs)
        return _normalize(layer, args[0])

    return nn.intercept_methods(call)


def _normalize(layer: nn.BatchNorm, x: jax.Array) -> jax.Array:
    """What `flax.linen.BatchNorm` computes in evaluation."""
    own, running = layer.variables.get("params", {}), layer.variables["batch_stats"]
    per_channel = lambda v: v.reshape((1,) * (x.ndim - 1) + (-1,))  # noqa: E731
    y = (x.astype(jnp.float32) - per_channel(running["mean"])) * per_channel(
        jax.lax.rsqrt(running["var"] + layer.epsilon)
    )
    if "scale" in own:
        y = y * per_channel(own["scale"])
    if "bias" in own:
        y = y + per_channel(own["bias"])
    return y.astype(layer.dtype or x.dtype)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
