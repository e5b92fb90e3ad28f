"""What the tests of several families of models ask of a tiny network of each."""

from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from cnn_jax.models import stages


def shapes(model: nn.Module, *input_shape: int) -> Any:
    """The variables, as shapes."""
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *input_shape)), train=False))


def volumes(model: nn.Module, *input_shape: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the stages, without the batch."""
    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    _, seen = jax.eval_shape(lambda v, x: stages(model, v, x), shapes(model, *input_shape), x)
    return {name: a.shape[1:] for name, a in seen.items()}


def initialised(model: nn.Module, *input_shape: int) -> Any:
    """The variables as the model starts with them."""
    return model.lazy_init(jax.random.key(0), jnp.zeros((1, *input_shape)), train=False)


def drawn(model: nn.Module, *input_shape: int) -> Any:
    """Random variables; scales and variances are positive, no bias or statistic has its trivial value."""
    numbers = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if leaf.ndim == 1:
            return jnp.asarray(numbers.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
        return jnp.asarray(numbers.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype)

    return jax.tree.map(draw, shapes(model, *input_shape))


def some_images(batch: int = 4, size: int = 16) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, size, size, 3))


def trained(model: nn.Module, variables: Any, x: jax.Array, seed: int = 2) -> tuple[Any, Any]:
    """Gradients, and the logits and new batch statistics, of one step."""
    rest = {name: tree for name, tree in variables.items() if name != "params"}
    return _step(model)(variables["params"], rest, x, jax.random.key(seed))


@cache
def _step(model: nn.Module) -> Any:
    """Compiled once for all the tests of a model."""

    def loss(params: Any, rest: Any, x: jax.Array, key: jax.Array) -> Any:
        logits, updates = model.apply(
            {"params": params, **rest}, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )  # type: ignore[misc]
        return -jnp.mean(jax.nn.log_softmax(logits)[:, 0]), (logits, updates)

    return jax.jit(jax.grad(loss, has_aux=True))


def evaluated(model: nn.Module, variables: Any, x: jax.Array) -> Any:
    """Logits without training."""
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)


def without_gradient(gradients: Any) -> list[str]:
    """Paths of the parameters whose gradient is zero or not finite."""
    leaves: dict[str, Any] = traverse_util.flatten_dict(gradients, sep="/")
    return [path for path, gradient in leaves.items() if not 0 < float(np.abs(gradient).max()) < np.inf]


def assert_remat_changes_nothing(model: nn.Module, x: jax.Array) -> None:
    """Same variables, same logits, statistics and gradients, the same examples and units dropped."""
    variables, again = drawn(model, *x.shape[1:]), model.clone(remat=True)
    assert jax.tree.structure(shapes(again, *x.shape[1:])) == jax.tree.structure(variables)
    plain, recomputed = trained(model, variables, x), trained(again, variables, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain, recomputed)


def assert_statistics_move_in_training_only(model: nn.Module, x: jax.Array) -> None:
    """All of "batch_stats" in training; nothing in evaluation."""
    variables = drawn(model, *x.shape[1:])
    _, (_, updates) = trained(model, variables, x)
    moves = jax.tree.map(lambda a, b: bool(jnp.all(a != b)), variables["batch_stats"], updates["batch_stats"])
    assert all(jax.tree.leaves(moves)), moves
    _, after = jax.jit(lambda: model.apply(variables, x, train=False, mutable=["batch_stats"]))()
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])


def assert_bfloat16_is_only_inside(model: nn.Module, x: jax.Array) -> None:
    half = model.clone(dtype=jnp.bfloat16)
    variables = drawn(half, *x.shape[1:])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    got, expected = (np.asarray(evaluated(m, variables, x)) for m in (half, model))
    assert got.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=0.05 * np.abs(expected).max())
    assert not np.array_equal(got, expected), "computed in float32 after all"


def drop_paths(model: nn.Module, *input_shape: int) -> dict[str, float]:
    """Rate of each drop-path layer, in the order of the network."""
    rates: dict[str, float] = {}

    def watch(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if context.module.name == "drop_path" and context.method_name == "__call__":
            rates["/".join(context.module.path[:-1])] = context.module.rate
        return next_function(*args, **kwargs)

    with nn.intercept_methods(watch):
        shapes(model, *input_shape)
    return rates
