"""Checks shared by the tests of several model families: traced, or run on small random inputs."""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, partial, reduce
from operator import or_
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.extend.core import Jaxpr, Literal

from cnn_jax.models import stages

# For programs that run once on small inputs: halves the compile time.
QUICK = {"xla_backend_optimization_level": 0}


def each(names: Iterable[str], quick: Collection[str]) -> list[Any]:
    """Names to parametrize a test with; those not in `quick` are marked slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def shapes(model: nn.Module, *input_shape: int) -> Any:
    """Shapes and dtypes of the model's variables; computes nothing."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *input_shape)), train=False))


def volumes(model: nn.Module, *input_shape: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the recorded stages, without the batch axis."""
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    _, seen = jax.eval_shape(lambda v, x: stages(model, v, x), shapes(model, *input_shape), x)
    return {name: a.shape[1:] for name, a in seen.items()}


def initialised(model: nn.Module, *input_shape: int) -> Any:
    """The model's own initial variables."""
    x = jnp.zeros((1, *input_shape))
    return jax.jit(lambda: model.init(jax.random.key(0), x, train=False), compiler_options=QUICK)()


def drawn(model: nn.Module, *input_shape: int) -> Any:
    """Random variables of a model; see `drawn_like`."""
    return drawn_like(shapes(model, *input_shape))


def drawn_like(like: Any) -> Any:
    """Random variables: scales and variances positive, no bias or statistic at its trivial value."""
    numbers = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.ndim == 1:
            return jnp.asarray(numbers.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(numbers.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)

    return jax.tree.map(draw, like)


def some_images(batch: int = 4, size: int = 16) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3))


def loss(model: nn.Module, params: Any, rest: Any, x: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
    """Training loss, auxiliary heads included; also returns the logits and the new batch statistics."""
    updates: Any
    logits, updates = model.apply(
        {"params": params, **rest}, x, train=True, rngs={"dropout": key}, mutable=["batch_stats", "auxiliary"]
    )  # type: ignore[misc]
    heads = [logits, *(head["logits"] for head in updates.get("auxiliary", {}).values())]
    total = -sum(jnp.mean(jax.nn.log_softmax(head)[:, 0]) for head in heads)
    return jnp.asarray(total), (logits, {"batch_stats": updates.get("batch_stats", {})})


def trained(model: nn.Module, variables: Any, x: jax.Array, seed: int = 2) -> tuple[Any, Any]:
    """Gradients of one training step, and its (logits, new batch statistics)."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return _step(model)(variables["params"], rest, x, jax.random.key(seed))


@cache
def _step(model: nn.Module) -> Any:
    """Compiled once per model."""
    return jax.jit(jax.grad(partial(loss, model), has_aux=True), compiler_options=QUICK)


def evaluated(model: nn.Module, variables: Any, x: jax.Array) -> Any:
    """Logits in evaluation mode."""
    return _forward(model)(variables, x)


@cache
def _forward(model: nn.Module) -> Any:
    return jax.jit(lambda v, x: model.apply(v, x, train=False), compiler_options=QUICK)


def dependencies(function: Callable[..., Any], *arguments: Any) -> Any:
    """Finds which argument leaves each result depends on differentiably; computes nothing.

    Returns:
        The tree of results as bit masks: bit i is set where the result depends on leaf i of the arguments.
    """
    traced, results = jax.make_jaxpr(function, return_shape=True)(*arguments)
    own = [1 << i for i in range(len(traced.jaxpr.invars))]
    return jax.tree.unflatten(jax.tree.structure(results), _follow(traced.jaxpr, own))


def _follow(jaxpr: Jaxpr, given: Sequence[int]) -> list[int]:
    """Masks of the results, given those of the inputs."""
    known = dict(zip(jaxpr.invars, given, strict=True))

    def read(variables: Sequence[Any]) -> list[int]:
        return [0 if isinstance(v, Literal) else known.get(v, 0) for v in variables]

    for equation in jaxpr.eqns:
        inputs = read(equation.invars)
        # The body of an operation such as `jit`; some JAX versions wrap it in a closed jaxpr.
        bodies = (getattr(parameter, "jaxpr", parameter) for parameter in equation.params.values())
        inner = next((b for b in bodies if isinstance(b, Jaxpr) and len(b.invars) == len(inputs)), None)
        every = 0 if equation.primitive.name == "stop_gradient" else reduce(or_, inputs, 0)
        outputs = [every] * len(equation.outvars) if inner is None else _follow(inner, inputs)
        known.update(zip(equation.outvars, outputs, strict=True))
    return read(jaxpr.outvars)


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of a tree of variables by path, such as "params/conv1/kernel"."""
    return dict(traverse_util.flatten_dict(tree, sep="/"))


def without_gradient(gradients: Any) -> list[str]:
    """Paths of the parameters whose gradient is zero or not finite."""
    return [path for path, gradient in by_path(gradients).items() if not 0 < float(np.abs(gradient).max()) < np.inf]


def assert_bfloat16_is_only_inside(model: nn.Module, x: jax.Array) -> None:
    half = model.clone(dtype=jnp.bfloat16)
    variables = drawn(half, *x.shape[1:])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    got, expected = (np.asarray(evaluated(m, variables, x)) for m in (half, model))
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())
    assert not np.array_equal(got, expected), "computed in float32 after all"


def drop_paths(model: nn.Module, *input_shape: int) -> dict[str, float]:
    """Drop rate of each drop-path layer by the path of its block, in network order."""
    rates: dict[str, float] = {}

    def watch(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.module.name == "drop_path" and context.method_name == "__call__":
            rates["/".join(context.module.path[:-1])] = context.module.rate
        return next_function(*args, **kwargs)

    with nn.intercept_methods(watch):
        shapes(model, *input_shape)
    return rates
