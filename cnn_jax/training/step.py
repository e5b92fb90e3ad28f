"""The training step and the evaluation step: pure functions, independent of files, epochs and devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cnn_jax.models.ensembles import Network
from cnn_jax.optim.optimizers import Optimizer
from cnn_jax.optim.parameter_groups import Rule, hold_statistics
from cnn_jax.tasks import Batch, Sums, Task
from cnn_jax.training.state import TrainState, Tree, stream

Augment = Callable[..., dict[str, jax.Array]]  # (key, batch, first_index) → batch
Normalize = Callable[[Batch], dict[str, jax.Array]]
Step = Callable[[TrainState, Batch], tuple[TrainState, Sums]]
EvalStep = Callable[[Tree, Batch], tuple[Sums, dict[str, jax.Array]]]


def make_train_step(
    model: nn.Module,
    task: Task,
    optimizer: Optimizer,
    augment: Augment,
    normalize: Normalize,
    *,
    accumulate: int = 1,
    ema_decay: float | None = None,
    axis_name: str | None = None,
) -> Step:
    """Builds `step(state, batch) -> (state, sums)`, pure and ready for `jit`, `pmap`, `vmap` or `scan`.

    Args:
        model: a Linen module, called with the task's inputs and `train`.
        task: prepares a batch and computes the loss.
        optimizer: from `make_optimizer`; it gets the state's learning rate. While one of its `frozen` rules holds the
            parameters of a BatchNorm layer, the layer uses its running statistics.
        augment: from `make_augment`. All draws of step s derive from (the state's seed, stream name, s).
        normalize: maps images in [0, 1] to the model's input.
        accumulate: parts into which the batch is split; their gradients are averaged.
        ema_decay: decay of the moving average in `state.ema`; after t updates it is at most (1 + t)/(10 + t).
        axis_name: the mapped axis if the step runs under `pmap`; None under plain `jit`, where the batch is global.

    Returns:
        The step. Its sums are computed with the parameters *before* the update, over the whole (global) batch: the
        task's metrics and "gradient_norm", each an array (sum, count).
    """
    loss_of = functools.partial(batch_loss, model, task, normalize, optimizer.frozen)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        first_index, dropout_key = 0, stream(state.seed, "dropout", state.step)
        if axis_name:
            first_index = jax.lax.axis_index(axis_name) * jax.tree.leaves(batch)[0].shape[0]
            dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(axis_name))
        batch = augment(stream(state.seed, "augment", state.step), task.prepare(batch), first_index)
        grads, batch_stats, sums = gradients(loss_of, accumulate, state, batch, dropout_key)
        if axis_name:
            grads, sums = jax.lax.pmean(grads, axis_name), jax.lax.psum(sums, axis_name)
        updates, opt_state = optimizer.at(state.learning_rate).update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        new = {"params": params, "batch_stats": batch_stats}
        ema = state.ema if ema_decay is None else _moving_average(state.ema, new, ema_decay, state.step)
        sums = {**sums, "gradient_norm": jnp.stack([optax.tree.norm(grads), jnp.ones((), jnp.float32)])}
        new_state = dataclasses.replace(
            state, step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema
        )
        return new_state, sums

    return step


def forward(
    model: nn.Module,
    task: Task,
    normalize: Normalize,
    frozen: Sequence[Rule],
    params: Tree,
    batch_stats: Tree,
    step: jax.Array,
    batch: Batch,
    dropout_key: jax.Array,
) -> tuple[Any, dict[str, jax.Array], Mapping[str, Any]]:
    """Applies the model in training mode: its outputs, the normalized batch, and the collections that it changed."""
    variables = {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}
    batch = normalize(batch)
    with hold_statistics(frozen, step):
        outputs, updates = model.apply(
            variables,
            task.inputs(batch),
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats", "auxiliary"],
        )
    return outputs, batch, updates


def batch_loss(
    model: nn.Module, task: Task, normalize: Normalize, frozen: Sequence[Rule], *args: Any
) -> tuple[jax.Array, tuple[Tree, Sums]]:
    """The loss of a batch, and (new batch_stats, sums); the other arguments are those of `forward`."""
    outputs, batch, updates = forward(model, task, normalize, frozen, *args)
    loss, sums = task.loss(outputs, batch, train=True, auxiliary=updates.get("auxiliary", {}))
    return loss, (updates.get("batch_stats", {}), sums)


def gradients(
    loss_of: Callable[..., Any], accumulate: int, state: TrainState, batch: Batch, dropout_key: jax.Array
) -> tuple[Tree, Tree, Sums]:
    """Gradients of the mean of `loss_of` over the parts of a batch, then the new batch_stats and the sums."""
    one = jax.value_and_grad(loss_of, has_aux=True)
    if accumulate == 1:
        (_, aux), grads = one(state.params, state.batch_stats, state.step, batch, dropout_key)
        return grads, *aux

    def part(batch_stats: Tree, batch: Batch, key: jax.Array) -> Any:
        (_, (batch_stats, sums)), grads = one(state.params, batch_stats, state.step, batch, key)
        return grads, batch_stats, sums

    def add(carry: Any, rows: Any) -> Any:
        grads, batch_stats, sums = carry
        more_grads, batch_stats, more_sums = part(batch_stats, *rows)
        return (jax.tree.map(jnp.add, grads, more_grads), batch_stats, jax.tree.map(jnp.add, sums, more_sums)), None

    # Part j takes rows j, j + n, …, so that a batch spread over devices stays in place.
    cut = lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)  # noqa: E731
    rows = (jax.tree.map(cut, dict(batch)), jax.random.split(dropout_key, accumulate))
    _, _, sums = jax.eval_shape(part, state.batch_stats, *jax.tree.map(lambda x: x[0], rows))
    start = (
        jax.tree.map(jnp.zeros_like, state.params),
        state.batch_stats,
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), sums),
    )
    (grads, batch_stats, sums), _ = jax.lax.scan(add, start, rows)
    return jax.tree.map(lambda g: g / accumulate, grads), batch_stats, sums


def _moving_average(old: Tree, new: Tree, decay: float, updates: jax.Array) -> Tree:
    """The moving average after one more update; after few `updates`, it forgets its start faster."""
    done = updates.astype(jnp.float32)
    keep = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
    return jax.tree.map(lambda before, now: keep * before + (1.0 - keep) * now, old, new)


def make_eval_step(model: Network, task: Task, normalize: Normalize, *, axis_name: str | None = None) -> EvalStep:
    """Builds `step(variables, batch) -> (sums, collected)`; the sums leave out rows where `batch["mask"]` is False."""

    def step(variables: Tree, batch: Batch) -> tuple[Sums, dict[str, jax.Array]]:
        batch = normalize(task.prepare(batch))
        outputs = model.apply(variables, task.inputs(batch), train=False)
        _, sums = task.loss(outputs, batch, train=False)
        if axis_name:
            sums = jax.lax.psum(sums, axis_name)
        return sums, task.collect(outputs, batch)

    return step
