"""One training step and one evaluation step as pure functions; nothing here knows of files, epochs or devices."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from cnn_jax.models.ensembles import Network
from cnn_jax.optim.parameter_groups import Rule, hold_statistics
from cnn_jax.tasks.losses import smooth
from cnn_jax.training.state import TrainState, Tree, stream

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]  # name → float32 (sum, count): exact however examples are spread over batches
Augment = Callable[..., tuple[jax.Array, jax.Array]]
Loss = Callable[[jax.Array, jax.Array], jax.Array]


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    loss: Loss,
    augment: Augment,
    normalize: Callable[[jax.Array], jax.Array],
    *,
    seed: int | jax.Array,
    label_smoothing: float = 0.0,
    accumulate: int = 1,
    ema_decay: float | None = None,
    frozen: Sequence[Rule] = (),
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Builds `step(state, batch) -> (state, metrics)`, pure and ready for `jit`, `pmap`, `vmap` or `scan`.

    Args:
        model: returns logits_BxK.
        tx: the optimizer.
        loss: per-example loss of (logits_BxK, targets_BxK).
        augment: (key, images uint8, labels, first_index) -> (images float32 in [0, 1], targets_BxK).
        normalize: images in [0, 1] to what the model sees.
        seed: all draws of step s derive from (seed, stream name, s).
        label_smoothing: share of the target spread over all classes.
        accumulate: parts into which the batch is cut; their gradients are averaged.
        ema_decay: decay of the moving average in `state.ema`; after t updates it is at most (1 + t)/(10 + t).
        frozen: while a rule holds the parameters of a BatchNorm layer, the layer uses its running statistics. (That
            the parameters do not move is the optimizer's doing.)
        axis_name: the mapped axis when the step runs under `pmap`; None under plain `jit`, where the batch is global.

    Returns:
        The step. Its metrics are those of the parameters *before* the update, over the whole (global) batch:
        "loss", "accuracy" and "gradient_norm", each an array (sum, count).
    """
    loss_of = functools.partial(_batch_loss, model, loss, normalize, label_smoothing, frozen)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        size = batch["label"].shape[0]
        first_index, dropout_key = 0, stream(seed, "dropout", state.step)
        if axis_name:
            first_index = jax.lax.axis_index(axis_name) * size
            dropout_key = jax.random.fold_in(dropout_key, jax.lax.axis_index(axis_name))
        images, targets = augment(stream(seed, "augment", state.step), batch["image"], batch["label"], first_index)
        grads, batch_stats, loss_sum, hits = _gradients(loss_of, accumulate, state, images, targets, dropout_key)
        count = jnp.asarray(size, jnp.float32)
        if axis_name:
            grads = jax.lax.pmean(grads, axis_name)
            loss_sum, hits, count = jax.lax.psum((loss_sum, hits, count), axis_name)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        new = {"params": params, "batch_stats": batch_stats}
        ema = state.ema if ema_decay is None else _moving_average(state.ema, new, ema_decay, state.step)
        metrics = {
            "loss": jnp.stack([loss_sum, count]),
            "accuracy": jnp.stack([hits.astype(jnp.float32), count]),
            "gradient_norm": jnp.stack([optax.tree.norm(grads), jnp.ones((), jnp.float32)]),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    return step


def _batch_loss(
    model: nn.Module,
    loss: Loss,
    normalize: Callable[[jax.Array], jax.Array],
    label_smoothing: float,
    frozen: Sequence[Rule],
    params: Tree,
    batch_stats: Tree,
    step: jax.Array,
    images: jax.Array,
    targets: jax.Array,
    dropout_key: jax.Array,
) -> tuple[jax.Array, tuple[Tree, jax.Array, jax.Array]]:
    """Mean loss of a batch, side heads included, and (new batch_stats, sum of the losses without them, hits)."""
    variables = {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}
    with hold_statistics(frozen, step):
        logits_BxK, updates = model.apply(
            variables,
            normalize(images),
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats", "auxiliary"],
        )
    smoothed = smooth(targets, label_smoothing)
    loss_B = loss(logits_BxK, smoothed)
    hits_B = jnp.argmax(logits_BxK, -1) == jnp.argmax(targets, -1)
    heads: Any = updates.get("auxiliary", {})
    beside = sum(head["weight"] * loss(head["logits"], smoothed).mean() for head in heads.values())
    return loss_B.mean() + beside, (updates.get("batch_stats", {}), loss_B.sum(), hits_B.sum())


def _gradients(
    loss_of: Callable[..., Any],
    accumulate: int,
    state: TrainState,
    images: jax.Array,
    targets: jax.Array,
    dropout_key: jax.Array,
) -> tuple[Tree, Tree, jax.Array, jax.Array]:
    """Gradients of the mean of `loss_of` over the parts of a batch, then the batch_stats, loss sum and hits of all."""
    one = jax.value_and_grad(loss_of, has_aux=True)
    if accumulate == 1:
        (_, aux), grads = one(state.params, state.batch_stats, state.step, images, targets, dropout_key)
        return grads, *aux

    def add(carry: Any, part: Any) -> Any:
        grads, batch_stats, loss_sum, hits = carry
        (_, (batch_stats, more_loss, more_hits)), new = one(state.params, batch_stats, state.step, *part)
        return (jax.tree.map(jnp.add, grads, new), batch_stats, loss_sum + more_loss, hits + more_hits), None

    # Part j takes the rows j, j + n, …: a batch that is spread over devices stays where it is.
    cut = lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0)  # noqa: E731
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    start = (zeros, state.batch_stats, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
    parts = (cut(images), cut(targets), jax.random.split(dropout_key, accumulate))
    (grads, batch_stats, loss_sum, hits), _ = jax.lax.scan(add, start, parts)
    return jax.tree.map(lambda g: g / accumulate, grads), batch_stats, loss_sum, hits


def _moving_average(old: Tree, new: Tree, decay: float, updates: jax.Array) -> Tree:
    """The average after one more of `updates`; a young one forgets its start faster."""
    done = updates.astype(jnp.float32)
    keep = jnp.minimum(decay, (1.0 + done) / (10.0 + done))
    return jax.tree.map(lambda before, now: keep * before + (1.0 - keep) * now, old, new)


def make_eval_step(
    model: Network,
    loss: Loss,
    normalize: Callable[[jax.Array], jax.Array],
    num_classes: int,
    *,
    axis_name: str | None = None,
) -> Callable[[dict[str, Tree], Batch], tuple[Metrics, jax.Array]]:
    """Builds `step(variables, batch) -> (metrics, logits_BxK)`; rows where `batch["mask"]` is False count nowhere."""

    def step(variables: dict[str, Tree], batch: Batch) -> tuple[Metrics, jax.Array]:
        logits_BxK: Any = model.apply(variables, normalize(batch["image"]), train=False)
        targets_BxK = jax.nn.one_hot(batch["label"], num_classes, dtype=jnp.float32)
        mask_B = batch["mask"].astype(jnp.float32)
        loss_sum = jnp.sum(loss(logits_BxK, targets_BxK) * mask_B)
        hits = jnp.sum((jnp.argmax(logits_BxK, -1) == batch["label"]).astype(jnp.float32) * mask_B)
        count = mask_B.sum()
        if axis_name:
            loss_sum, hits, count = jax.lax.psum((loss_sum, hits, count), axis_name)
        return {"loss": jnp.stack([loss_sum, count]), "accuracy": jnp.stack([hits, count])}, logits_BxK

    return step
