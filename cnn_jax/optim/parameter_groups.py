"""Parameter groups and freezing, selected by regular expressions on paths such as "block1/conv/kernel"."""

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
from cnn_jax.layers.normalization import BatchNorm
from cnn_jax.ops.norm import normalize

Tree = Any


class Rule:
    """A learning-rate multiplier for parameters whose path matches `regex`.

    Args:
        regex: searched for anywhere in the path.
        multiplier: at least 0.
        until: the rule applies only to the first `until` steps; None: always.
        field: where the expression comes from, for messages.

    Raises:
        UserError: `regex` is not a regular expression.
    """

    def __init__(self, regex: str, multiplier: float, until: int | None = None, *, field: str = "rule"):
        self.multiplier, self.until, self.field = multiplier, until, field
        try:
            self.pattern = re.compile(regex)
        except re.error as error:
            raise UserError(
                f"{field} {regex!r} is not a regular expression for parameter paths ({error}): correct it"
            ) from None


def frozen_rules(freeze: str | None, freeze_until: Sequence[tuple[str, int]]) -> tuple[Rule, ...]:
    """Returns rules for parameters frozen for good or until a step; see `cnn_jax.optim.optimizers.make_optimizer`."""
    always = () if freeze is None else (Rule(freeze, 0.0, field="`freeze`"),)
    return always + tuple(Rule(regex, 0.0, until, field="`freeze_until`") for regex, until in freeze_until)


def freeze_until_steps(pairs: Sequence[str], steps_per_epoch: float) -> list[tuple[str, int]]:
    """Converts the regex=epochs pairs of `freeze_until` to (regex, step) pairs.

    Raises:
        UserError: one is not regex=epochs.
    """
    parsed = [parse_pair(text, "`freeze_until`", "regex=epochs", "stage1=3") for text in pairs]
    return [(regex, round(epochs * steps_per_epoch)) for regex, epochs in parsed]


def first_rule(rules: Sequence[Rule], path: str) -> Rule | None:
    """Returns the first rule that matches a path, if any."""
    return next((rule for rule in rules if rule.pattern.search(path)), None)


def parse_pair(text: str, field: str, form: str, example: str) -> tuple[str, float]:
    """Parses regex=number.

    >>> parse_pair("^backbone/=0.1", "`rate_groups`", "regex=multiplier", "backbone=0.1")
    ('^backbone/', 0.1)

    Raises:
        UserError: `text` has another form, or the number is negative.
    """
    regex, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not equals or not 0 <= value < math.inf:
        raise UserError(f"{field} {text!r} is not {form} with a number of at least 0: write it like {example}")
    return regex, value


def parse_rule(text: str) -> Rule:
    """Parses regex=multiplier.

    >>> parse_rule("^backbone/=0.1").multiplier
    0.1

    Raises:
        UserError: `text` has another form, or the multiplier is negative.
    """
    field = "`rate_groups`"
    return Rule(*parse_pair(text, field, "regex=multiplier", "backbone=0.1"), field=field)


class Steps(NamedTuple):
    """State of `multiply` when a rule expires: int32 count of updates."""

    done: jax.Array


def multiply(rules: Sequence[Rule]) -> optax.GradientTransformation:
    """Scales each update by the multiplier of the first rule that matches its path; by 1 if none does.

    Its `init` raises UserError if a rule matches no parameter.
    """
    timed = any(rule.until is not None for rule in rules)

    def scaled(update: jax.Array, value: float) -> jax.Array:
        return update if value == 1.0 else jnp.zeros_like(update) if value == 0.0 else value * update

    def factor(path: Any, update: jax.Array, state: Any) -> jax.Array:
        rule = first_rule(rules, _name(path))
        if rule is None:
            return update
        held = scaled(update, rule.multiplier)
        return held if rule.until is None else jnp.where(state.done < rule.until, held, update)

    def init(params: Tree) -> Any:
        paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for rule in rules:
            if not any(map(rule.pattern.search, paths)):
                some = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
                raise UserError(
                    f"{rule.field} {rule.pattern.pattern!r} matches no parameter (paths: {some}): correct it"
                )
        return Steps(jnp.zeros((), jnp.int32)) if timed else optax.EmptyState()

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        new = jax.tree_util.tree_map_with_path(lambda path, u: factor(path, u, state), updates)
        return new, Steps(state.done + 1) if timed else state

    return optax.GradientTransformation(init, update)


def held(rules: Sequence[Rule], tree: Tree, step: jax.Array) -> Tree:
    """Sets to 0 what belongs to parameters frozen at a step; see `multiply`."""
    return multiply(rules).update(tree, Steps(step))[0]


def hold_statistics(rules: Sequence[Rule], step: jax.Array) -> AbstractContextManager[Any]:
    """Context in which frozen BatchNorm layers normalize by their running statistics, as in evaluation.

    Otherwise the features of a frozen network would drift and depend on the batch.

    Args:
        rules: rules for frozen parameters. A layer is frozen while all its parameters are.
        step: int32 scalar, number of updates so far.
    """
    if not rules:
        return nullcontext()

    def call(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if not isinstance(layer, (nn.BatchNorm, BatchNorm)) or context.method_name != "__call__":
            return next_function(*args, **kwargs)
        until = _held_until(rules, ["/".join([*layer.path, name]) for name in layer.variables.get("params", {})])
        if not until:
            return next_function(*args, **kwargs)
        still, before = _normalize(layer, args[0]), dict(layer.variables["batch_stats"])
        if until == math.inf:
            return still
        moving, held = next_function(*args, **kwargs), step < until
        for name, value in before.items():
            layer.put_variable("batch_stats", name, jnp.where(held, value, layer.get_variable("batch_stats", name)))
        return jnp.where(held, still.astype(moving.dtype), moving)

    return nn.intercept_methods(call)


def _held_until(rules: Sequence[Rule], paths: Sequence[str]) -> float:
    """The step until which all these parameters are frozen: 0 if one is free, infinity if all are frozen for good."""
    found = [first_rule(rules, path) for path in paths]
    return min((0 if rule is None else math.inf if rule.until is None else rule.until for rule in found), default=0)


def _normalize(layer: nn.BatchNorm | BatchNorm, x: jax.Array) -> jax.Array:
    """Normalizes as the layer does in evaluation."""
    own, running = layer.variables.get("params", {}), layer.variables["batch_stats"]
    with jax.numpy_dtype_promotion("standard"):
        scale, bias = own.get("scale"), own.get("bias")
        return normalize(x, running["mean"], running["var"], scale, bias, layer.epsilon, layer.dtype)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
