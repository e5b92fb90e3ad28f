"""The train state: a frozen dataclass that holds only arrays."""

import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from cnn_jax.optim.optimizers import Optimizer

Tree = Any


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and changes. If M networks are trained at once, every array has a first axis M.

    Attributes:
        step: int32 scalar, number of updates so far.
        seed: uint32 scalar, from which every random draw of a step derives.
        learning_rate: float32 scalar, the peak rate; NaN if the optimizer sets its own.
        params: trainable parameters, float32.
        batch_stats: running statistics of BatchNorm ({} for models without).
        opt_state: state of the optimizer.
        ema: moving average of {"params", "batch_stats"}, or {} if none is kept.
    """

    step: jax.Array
    seed: jax.Array
    learning_rate: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Tree


def stream(seed: int | jax.Array, name: str, index: int | jax.Array = 0) -> jax.Array:
    """Returns the key of draw number `index` of the random stream `name`, so that no generator state need be saved.

    The checksum of its name identifies a stream, so adding one does not change the draws of the others.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), index)


def init_state(
    model: nn.Module,
    optimizer: Optimizer,
    input_shape: tuple[int, ...],
    seed: int | jax.Array,
    *,
    learning_rate: float | jax.Array | None = None,
    hyperparameters: Mapping[str, jax.Array] = {},
    ema: bool = False,
    variables: Tree = None,
) -> TrainState:
    """Initialises the parameters from `seed`, and the optimizer for them.

    Args:
        model: a Linen module.
        optimizer: from `make_optimizer`.
        input_shape: shape of one input of the model, such as (H, W, C).
        seed: the run's seed.
        learning_rate: peak rate; default: the optimizer's.
        hyperparameters: of the optimizer, in which networks trained at once differ; see `Optimizer.at`.
        ema: whether the state has a moving average of the weights.
        variables: initial variables; default: drawn at random.
    """
    rate = optimizer.learning_rate if learning_rate is None else learning_rate
    rate = jnp.asarray(jnp.nan if rate is None else rate, jnp.float32)
    if variables is None:
        variables = draw_variables(model, input_shape, seed)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # Copy: no two leaves of a donated state may share a buffer.
    average = jax.tree.map(jnp.array, {"params": params, "batch_stats": batch_stats}) if ema else {}
    opt_state = optimizer.at(rate, hyperparameters).init(params)
    return TrainState(
        jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32), rate, params, batch_stats, opt_state, average
    )


def draw_variables(model: nn.Module, input_shape: tuple[int, ...], seed: int | jax.Array) -> Tree:
    """Draws the initial variables of a model from the run's seed; see `init_state`."""
    inputs = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    # Lazy: computes only the draws, by one small program per shape of a parameter. As a single program of all layers, a
    # deep network would take minutes to compile.
    return model.lazy_init({"params": stream(seed, "init")}, inputs, train=False)


def variables_for_evaluation(state: TrainState) -> dict[str, Tree]:
    """Returns the variables to evaluate and save: the moving average if there is one."""
    chosen = state.ema or {"params": state.params, "batch_stats": state.batch_stats}
    return {name: tree for name, tree in chosen.items() if tree}
