"""The state of training: a frozen dataclass of arrays and nothing else."""

import zlib
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from cnn_jax.optim.optimizers import Optimizer

Tree = Any


@flax.struct.dataclass
class TrainState:
    """Everything a step reads and changes. Of M networks that are trained at once, every array has a first axis M.

    Attributes:
        step: int32 scalar, number of updates done.
        seed: uint32 scalar, from which every random draw of a step derives.
        learning_rate: float32 scalar, the peak rate; NaN where the optimizer has its own inside.
        params: trainable parameters, float32.
        batch_stats: running statistics of BatchNorm ({} for models without).
        opt_state: state of the optimizer.
        ema: moving average of {"params", "batch_stats"}, or {} when none is kept.
    """

    step: jax.Array
    seed: jax.Array
    learning_rate: jax.Array
    params: Tree
    batch_stats: Tree
    opt_state: Tree
    ema: Tree


def stream(seed: int | jax.Array, name: str, index: int | jax.Array = 0) -> jax.Array:
    """Key of draw number `index` of the random stream `name`: nothing of the generator is ever saved.

    Streams are told apart by a checksum of their name, so that a new one leaves the draws of the others as they were.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode())), index)


def init_state(
    model: nn.Module,
    optimizer: Optimizer,
    input_shape: tuple[int, ...],
    seed: int | jax.Array,
    *,
    learning_rate: float | jax.Array | None = None,
    ema: bool = False,
    variables: Tree = None,
) -> TrainState:
    """Initialises parameters from `seed`, and the optimizer on them.

    Args:
        model: a Linen module.
        optimizer: of `make_optimizer`.
        input_shape: of one input of the model, such as (H, W, C).
        seed: of the run.
        learning_rate: peak rate; default: the optimizer's.
        ema: whether the state carries a moving average of the weights.
        variables: to start from, instead of drawing them.
    """
    rate = optimizer.learning_rate if learning_rate is None else learning_rate
    rate = jnp.asarray(jnp.nan if rate is None else rate, jnp.float32)
    if variables is None:
        variables = _draw(model, input_shape, seed)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # Copies: a donated state must own each of its arrays once.
    average = jax.tree.map(jnp.array, {"params": params, "batch_stats": batch_stats}) if ema else {}
    opt_state = optimizer.at(rate).init(params)
    return TrainState(
        jnp.zeros((), jnp.int32), jnp.asarray(seed, jnp.uint32), rate, params, batch_stats, opt_state, average
    )


def _draw(model: nn.Module, input_shape: tuple[int, ...], seed: int | jax.Array) -> Tree:
    inputs = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    # Lazy: nothing but the draws is computed, one small program for each shape of a parameter. As one program of all
    # layers, a deep network would take minutes to compile.
    return model.lazy_init({"params": stream(seed, "init")}, inputs, train=False)


def variables_for_evaluation(state: TrainState) -> dict[str, Tree]:
    """The variables that are evaluated and saved: the moving average if there is one."""
    chosen = state.ema or {"params": state.params, "batch_stats": state.batch_stats}
    return {name: tree for name, tree in chosen.items() if tree}
