"""Groups of parameters, told by regular expressions on their paths, such as "block1/conv/kernel"."""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cnn_jax.errors import UserError

Tree = Any


class Rule:
    """A multiplier for the parameters in whose path `regex` is found.

    Raises:
        UserError: `regex` is no regular expression.
    """

    def __init__(self, regex: str, multiplier: float):
        try:
            self.pattern = re.compile(regex)
        except re.error as error:
            raise UserError(f"given {regex!r}; expected a regular expression for parameter paths ({error})") from None
        self.multiplier = multiplier


def parse_rule(text: str) -> Rule:
    """Reads regex=multiplier.

    >>> parse_rule("^backbone/=0.1").multiplier
    0.1

    Raises:
        UserError: it is something else, or the multiplier is negative.
    """
    regex, equals, multiplier = text.rpartition("=")
    try:
        value = float(multiplier)
    except ValueError:
        value = math.nan
    if not equals or not 0 <= value < math.inf:
        raise UserError(f"given rate group {text!r}; expected regex=multiplier, such as backbone=0.1")
    return Rule(regex, value)


def multiply(rules: Sequence[Rule]) -> optax.GradientTransformation:
    """Multiplies each update by the number of the first rule that is for its path; by 1 if none is.

    Its `init` raises UserError if a rule is for no parameter at all.
    """

    def factor(path: Any, update: jax.Array) -> jax.Array:
        value = next((rule.multiplier for rule in rules if rule.pattern.search(_name(path))), 1.0)
        return update if value == 1.0 else jnp.zeros_like(update) if value == 0.0 else value * update

    def init(params: Tree) -> optax.EmptyState:
        paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern in (rule.pattern for rule in rules):
            if not any(map(pattern.search, paths)):
                some = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
                raise UserError(f"given {pattern.pattern!r}; expected a regular expression found in a path of: {some}")
        return optax.EmptyState()

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        return jax.tree_util.tree_map_with_path(factor, updates), state

    return optax.GradientTransformation(init, update)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
