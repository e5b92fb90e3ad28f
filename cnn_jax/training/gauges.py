"""Gauges of training: gradient norm, update ÷ weight ratio and dead units by layer, and the sharpness of the loss.

All are functions of a state and one batch, apart from the training step, which does not change with them. The loss
is that of training, with label smoothing and auxiliary heads, and in training mode: BatchNorm normalizes by the batch,
and its statistics are not updated. But the images are not augmented, `Dropout` and `DropPath` pass on their input, and
other layers that draw use one fixed key: on a fixed batch, gauges differ from step to step by the weights alone.

A layer is a module with parameters of its own, such as "conv1" with a kernel and a bias, which are measured together.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax.data.augment import make_augment
from cnn_jax.inspect.rectifiers import active_units
from cnn_jax.layers import DropPath
from cnn_jax.ops.plain import plain_operations
from cnn_jax.optim.optimizers import Optimizer
from cnn_jax.optim.parameter_groups import held
from cnn_jax.tasks import Batch, Task
from cnn_jax.training.state import TrainState, Tree, stream
from cnn_jax.training.step import Normalize, batch_loss, forward, gradients

TOLERANCE = 0.03  # of the power iteration: the residual |Hv - λv| as a share of |λ|
MOST_PRODUCTS = 50  # Hessian-vector products of one power iteration


@dataclasses.dataclass(frozen=True)
class Gauges:
    """Pure functions of one network; see `make_gauges`.

    Attributes:
        measure: `(state, batch) -> gauges`: float32 scalars "gradient_norm/LAYER" (of the loss, without weight decay),
            "update_ratio/LAYER" (norm of the update that the optimizer would make, divided by the norm of the
            parameters) and "dead_units/LAYER" (share of the units of the ReLU after that layer that are 0 for the whole
            batch, see `cnn_jax.inspect.rectifiers`).
        direction: `(state) -> vector`: where a power iteration starts, a tree like the parameters, of norm 1.
        power_step: `(state, vector, shift, batch) -> (next vector, eigenvalue, residual)`; see `power_step`.
    """

    measure: Callable[[TrainState, Batch], dict[str, jax.Array]]
    direction: Callable[[TrainState], Tree]
    power_step: Callable[[TrainState, Tree, jax.Array, Batch], tuple[Tree, jax.Array, jax.Array]]


def make_gauges(
    model: nn.Module,
    task: Task,
    optimizer: Optimizer,
    normalize: Normalize,
    *,
    accumulate: int = 1,
    axis_name: str | None = None,
) -> Gauges:
    """Builds the gauges of a network, ready for `jit`, `pmap` or `vmap`; the arguments are those of `make_train_step`.

    The Hessian is that of the parameters that are not frozen.
    """
    loss_of = functools.partial(batch_loss, model, task, normalize, optimizer.frozen)
    outputs_of = functools.partial(forward, model, task, normalize, optimizer.frozen)
    key, augment = jax.random.key(0), make_augment(())

    def prepared(batch: Batch) -> dict[str, jax.Array]:
        return augment(key, task.prepare(batch))

    def gradient(state: TrainState, batch: Batch, params: Tree) -> Tree:
        with _fixed():
            grads, *_ = gradients(loss_of, accumulate, dataclasses.replace(state, params=params), prepared(batch), key)
        return jax.lax.pmean(grads, axis_name) if axis_name else grads

    def measure(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        grads = gradient(state, batch, state.params)
        updates, _ = optimizer.at(state.learning_rate).update(grads, state.opt_state, state.params)
        weights = layer_norms(state.params)
        ratios = {layer: norm / weights[layer] for layer, norm in layer_norms(updates).items()}
        with _fixed():
            active = active_units(
                lambda params: outputs_of(params, state.batch_stats, state.step, prepared(batch), key)[0], state.params
            )
        if axis_name:
            active = jax.lax.pmax(active, axis_name)
        dead = {layer: jnp.mean(~units, dtype=jnp.float32) for layer, units in active.items()}
        named = {"gradient_norm": layer_norms(grads), "update_ratio": ratios, "dead_units": dead}
        return {f"{gauge}/{layer}": value for gauge, of in named.items() for layer, value in of.items()}

    def direction(state: TrainState) -> Tree:
        drawn = optax.tree.random_like(stream(state.seed, "gauges"), state.params, jax.random.normal)
        return _scaled(held(optimizer.frozen, drawn, state.step))

    def step(state: TrainState, vector: Tree, shift: jax.Array, batch: Batch) -> tuple[Tree, jax.Array, jax.Array]:
        def product(vector: Tree) -> Tree:
            _, along = jax.jvp(functools.partial(gradient, state, batch), (state.params,), (vector,))
            return held(optimizer.frozen, along, state.step)

        return power_step(product, vector, shift)

    return Gauges(measure, direction, step)


@contextmanager
def _fixed() -> Iterator[None]:
    """Context in which nothing is dropped, and operations have derivatives of any order."""

    def keep(next_function: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        drops = isinstance(context.module, nn.Dropout | DropPath) and context.method_name == "__call__"
        return args[0] if drops else next_function(*args, **kwargs)

    with nn.intercept_methods(keep), plain_operations():
        yield


def layer_norms(params: Tree) -> dict[str, jax.Array]:
    """Returns the Euclidean norm of each layer's parameters, by the layer's path.

    >>> layer_norms({"fc": {"kernel": jnp.array([[3.0]]), "bias": jnp.array([4.0])}})
    {'fc': Array(5., dtype=float32)}
    """
    layers: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        layers.setdefault(jax.tree_util.keystr(path[:-1], simple=True, separator="/"), []).append(leaf)
    return {layer: optax.tree.norm(leaves) for layer, leaves in layers.items()}


def power_step(product: Callable[[Tree], Tree], vector: Tree, shift: jax.Array) -> tuple[Tree, jax.Array, jax.Array]:
    """One power iteration for the symmetric H - shift·I.

    Args:
        product: vector → H·vector.
        vector: of norm 1.
        shift: scalar.

    Returns:
        The next vector, of norm 1, and of the given one its Rayleigh quotient λ = v·Hv and the norm of the residual
        |Hv - λv|: H has an eigenvalue within that distance of λ (Parlett 1998, "The symmetric eigenvalue problem",
        §4.5).

    >>> power_step(lambda v: jnp.array([[2.0, 3.0], [3.0, 2.0]]) @ v, jnp.array([1.0, 0.0]), jnp.array(2.0))
    (Array([0., 1.], dtype=float32), Array(2., dtype=float32), Array(3., dtype=float32))
    """
    image = product(vector)
    value: Any = optax.tree.vdot(vector, image)
    residual = optax.tree.norm(optax.tree.add_scale(image, -value, vector))
    return _scaled(optax.tree.add_scale(image, -shift, vector)), value, residual


def _scaled(vector: Tree) -> Tree:
    norm = optax.tree.norm(vector)
    return optax.tree.scale(1.0 / jnp.where(norm > 0, norm, 1.0), vector)


def largest_eigenvalue(
    step: Callable[[Tree, Any], tuple[Tree, Any, Any]],
    start: Tree,
    *,
    shape: tuple[int, ...] = (),
    tolerance: float = TOLERANCE,
    most: int = MOST_PRODUCTS,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the largest (not the largest absolute) eigenvalue of a symmetric matrix by power iteration.

    Power iteration finds the eigenvalue of largest absolute value. If that is negative, or if it has not settled, which
    is so where λ and -λ are eigenvalues, a second one shifts all eigenvalues up by that absolute value. The host counts
    the steps: loops inside a compiled program are slow on a CPU.

    Args:
        step: `(vector, shift) -> (next vector, eigenvalue, residual)`, see `power_step`; eigenvalue and residual have
            `shape`, that of the matrices of several networks.
        start: the first vector.
        shape: () for one matrix.
        tolerance: stop once the residual is at most this share of the eigenvalue.
        most: stop after this many products; twice, if all eigenvalues are shifted.

    Returns:
        The eigenvalues and their residuals, float64 of `shape`. An eigenvalue is NaN if the matrix is not finite.
    """
    value, residual, settled = _iterate(step, start, np.zeros(shape, np.float32), tolerance, most)
    again = (value < 0) | ~settled
    if again.any():
        shift = np.where(again, -np.hypot(value, residual), 0).astype(np.float32)
        second, second_residual, _ = _iterate(step, start, shift, tolerance, most)
        value, residual = np.where(again, second, value), np.where(again, second_residual, residual)
    return value, residual


def _iterate(
    step: Callable[..., Any], vector: Tree, shift: np.ndarray, tolerance: float, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns eigenvalues and residuals, each from when it had settled, and whether it has."""
    value = residual = np.zeros(shift.shape)
    settled = np.zeros(shift.shape, bool)
    for _ in range(most):
        vector, *found = step(vector, shift)
        new, new_residual = (np.asarray(one, np.float64) for one in found)
        value, residual = np.where(settled, value, new), np.where(settled, residual, new_residual)
        settled = ~(residual > tolerance * np.abs(value))  # so that NaN ends it
        if settled.all():
            break
    return value, residual, settled
