"""Which units of a network are dead: units whose ReLU is 0 for every example and every position of a batch.

The ReLUs are found in the traced computation, so any network will do, also one that is not of this package. A ReLU is
a call of `jax.nn.relu` or `jax.nn.relu6` (Flax's are the same), also inside another activation such as `hard_swish`, or
of a jitted function with one of these names. `jnp.maximum(x, 0)` and ReLUs inside `jax.lax` loops are not found.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, Literal

RECTIFIERS = ("relu", "relu6")
INPUT = "input"  # the name of a ReLU before any layer


def active_units(function: Callable[..., Any], *args: Any) -> dict[str, jax.Array]:
    """Evaluates a function that applies Flax modules, and finds the units of its ReLUs that are not dead.

    A unit is an index of the last axis of a ReLU's output: a channel of a convolution, or a unit of a dense layer. It
    is active if it is above 0 for some example at some position. Pure: it may be traced by `jit`, `vmap` and `pmap`.

    Args:
        function: such as `lambda x: model.apply(variables, x, train=False)`.
        args: its arguments.

    Returns:
        For each ReLU, in order of execution, bool (units,). It is named by the layer called last before it, such as
        "stage1_block1/bn2"; if a second one follows the same layer, its name ends in "-2". {} for networks without.

    >>> import jax.numpy as jnp
    >>> net = nn.Sequential([nn.Dense(3), nn.relu])
    >>> params = {"layers_0": {"kernel": jnp.eye(3), "bias": jnp.array([0.0, -9.0, -9.0])}}
    >>> active_units(lambda x: net.apply({"params": params}, x), jnp.array([[1.0, 10.0, 1.0], [0.0, 0.0, 1.0]]))
    {'layers_0': Array([ True,  True, False], dtype=bool)}
    """

    def named(*args: Any) -> Any:
        with nn.intercept_methods(_tag):
            return function(*args)

    closed, found = jax.make_jaxpr(named)(*args), _Found()
    _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), found)
    return found.active


class _Found:
    """The ReLUs so far, and the layer called last."""

    def __init__(self) -> None:
        self.active: dict[str, jax.Array] = {}
        self.layer = INPUT

    def add(self, y: jax.Array) -> None:
        if y.ndim < 2:  # not the activations of a batch
            return
        count = 1 + sum(name == self.layer or name.startswith(f"{self.layer}-") for name in self.active)
        name = self.layer if count == 1 else f"{self.layer}-{count}"
        self.active[name] = (y > 0).any(axis=tuple(range(y.ndim - 1)))


def _tag(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    """Names the outputs of each call of a module, as an operation of the jaxpr."""
    y = next_function(*args, **kwargs)
    if context.method_name != "__call__" or not context.module.path:
        return y
    name = "/".join(context.module.path)
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, name) if isinstance(leaf, jax.Array) else leaf, y)


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any], found: _Found) -> list[Any]:
    """Evaluates a jaxpr, and those of the calls in it, in order."""
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in jaxpr.eqns:
        inputs, inner = [read(variable) for variable in equation.invars], _inner(equation)
        if equation.primitive.name == "name":
            found.layer, outputs = equation.params["name"], inputs
        elif inner is not None and not _is_rectifier(equation):
            outputs = _evaluate(*inner, inputs, found)
        else:
            params = equation.primitive.get_bind_params(equation.params)
            outputs = equation.primitive.bind(*inputs, **params)
            outputs = outputs if equation.primitive.multiple_results else [outputs]
        if _is_rectifier(equation):
            found.add(outputs[0])
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _is_rectifier(equation: Any) -> bool:
    return equation.primitive.name in ("jit", "pjit") and equation.params["name"] in RECTIFIERS


def _inner(equation: Any) -> tuple[Jaxpr, Sequence[Any]] | None:
    """Returns the computation of a call, such as that of `jit` or `checkpoint`, with its constants; else None."""
    for value in equation.params.values():
        jaxpr: Any = getattr(value, "jaxpr", value)  # older JAX wraps it with its constants
        if isinstance(jaxpr, Jaxpr):
            # The bodies of loops and reductions have other shapes.
            same = [*map(_shape, jaxpr.invars)] == [*map(_shape, equation.invars)]
            return (jaxpr, getattr(value, "consts", ())) if same else None
    return None


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
