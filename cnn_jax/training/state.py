"""The state of training: a frozen dataclass of arrays and nothing else."""

import zlib
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

Tree = Any


@flax.struct.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
        step: int32 scalar, number of updates done.
        params: trainable parameters, float32.
        batch_stats: running statistics of BatchNorm ({} for models without).
        opt_state: state of the optimizer.
        ema: moving average of {"params", "batch_stats"}, or {} when none is kept.
    """

    step: jax.Array
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
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    seed: int | jax.Array,
    *,
    ema: bool = False,
    variables: Tree = None,
) -> TrainState:
    """Initialises parameters from `seed`, and the optimizer on them.

    Args:
        model: a Linen module of `cnn_jax.models`.
        tx: the optimizer.
        image_shape: (H, W, C) of one image.
        seed: of the run.
        ema: whether the state carries a moving average of the weights.
        variables: to start from, instead of drawing them.
    """
    if variables is None:
        variables = _draw(model, image_shape, seed)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    # Copies: a donated state must own each of its arrays once.
    average = jax.tree.map(jnp.array, {"params": params, "batch_stats": batch_stats}) if ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, tx.init(params), average)


def _draw(model: nn.Module, image_shape: tuple[int, int, int], seed: int | jax.Array) -> Tree:
    images_1xHxWxC = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    # Lazy: nothing but the draws is computed, one small program for each shape of a parameter. As one program of all
    # layers, a deep network would take minutes to compile.
    return model.lazy_init({"params": stream(seed, "init")}, images_1xHxWxC, train=False)


def variables_for_evaluation(state: TrainState) -> dict[str, Tree]:
    """The variables that are evaluated and saved: the moving average if there is one."""
    chosen = state.ema or {"params": state.params, "batch_stats": state.batch_stats}
    return {name: tree for name, tree in chosen.items() if tree}
