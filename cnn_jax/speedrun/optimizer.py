"""Optimizers of the speed records, in PyTorch's form, made of Optax's parts; and Muon.

`optax.contrib.muon` cannot express this Muon: it averages gradients with bias correction, which weighs the first ones
differently from buffer = momentum·buffer + gradient; it does not rescale the weights before each step; it computes in
the type of the gradient, one matrix at a time. So only its iteration would be left, which is five lines.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cnn_jax.speedrun.recipe import Plan, Recipe
from cnn_jax.training.state import TrainState

Tree = Any
Factor = Callable[[Any], Any]  # step → number

# Of the quintic a·s + b·s³ + c·s⁵: the steepest slope at 0 that keeps singular values s near 1 (Jordan 2024, "Muon").
_QUINTIC = (3.4445, -4.7750, 2.0315)
_QUINTIC_STEPS = 3
_LOOKAHEAD_EVERY = 5  # steps
_LOOKAHEAD_KEEP = 0.95**_LOOKAHEAD_EVERY


def newton_schulz(x_MxRxC: jax.Array, dtype: Any) -> jax.Array:
    """Brings the singular values of each of M matrices near 1 (to 0.5 … 1.5 if they were not tiny), and keeps the rest.

    Args:
        x_MxRxC: matrices, float32. They are divided by their Frobenius norm first.
        dtype: of the iteration.

    Returns:
        (M, R, C), of that type.
    """
    a, b, c = _QUINTIC
    x = (x_MxRxC / (jnp.linalg.norm(x_MxRxC, axis=(1, 2), keepdims=True) + 1e-7)).astype(dtype)
    wide = x.shape[1] < x.shape[2]
    x = x.mT if wide else x  # so that the square matrices are small ones
    for _ in range(_QUINTIC_STEPS):
        gram = x.mT @ x
        x = a * x + x @ (b * gram + c * (gram @ gram))
    return x.mT if wide else x


def orthogonalized(kernels: Tree, dtype: Any) -> Tree:
    """`newton_schulz` of each kernel (h, w, C, F) as a matrix (h·w·C, F); those of one shape go through it together."""
    leaves, structure = jax.tree.flatten(kernels)
    matrices = [leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves]
    results: dict[int, jax.Array] = {}
    for shape in dict.fromkeys(matrix.shape for matrix in matrices):
        places = [i for i, matrix in enumerate(matrices) if matrix.shape == shape]
        results |= zip(places, newton_schulz(jnp.stack([matrices[i] for i in places]), dtype))
    return structure.unflatten([results[i].reshape(leaf.shape).astype(leaf.dtype) for i, leaf in enumerate(leaves)])


def muon(rate: Factor, momentum: float, dtype: Any) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised; each kernel's Frobenius norm is set to sqrt(F) before the step.

    Args:
        rate: step → learning rate.
        momentum: buffer = momentum·buffer + gradient.
        dtype: see `newton_schulz`.
    """

    def renormalize(updates: Tree, kernels: Tree) -> Tree:
        def one(update: jax.Array, kernel: jax.Array) -> jax.Array:
            scale = jnp.sqrt(jnp.float32(kernel.shape[-1])) / jnp.linalg.norm(kernel)
            return update + (scale - 1.0) * kernel

        return jax.tree.map(one, updates, kernels)

    return optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.stateless(lambda updates, _: orthogonalized(updates, dtype)),
        optax.scale_by_learning_rate(rate),
        optax.stateless(renormalize),
    )


def sgd(rate: Factor, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """Nesterov momentum of the gradient plus weight_decay·weights."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum, nesterov=True),
        optax.scale_by_learning_rate(rate),
    )


def schedule(recipe: Recipe, plan: Plan) -> Factor:
    """Step → factor of the rates; the first step is 0, so that the end is not quite reached."""
    warmup = int(recipe.warmup * plan.total_steps)
    up = optax.linear_schedule(recipe.start, 1.0, warmup)
    down = optax.linear_schedule(1.0, recipe.end, plan.total_steps - warmup)
    return optax.join_schedules([up, down], [warmup]) if warmup else down


def whitening_schedule(recipe: Recipe, plan: Plan) -> Factor:
    """The same of the whitening bias: 0 from `plan.whitening_steps` on, where it is not trained any more."""
    if recipe.whitening_falls:
        return optax.linear_schedule(1.0, 0.0, plan.whitening_steps)
    shared = schedule(recipe, plan)
    return lambda step: jnp.where(step < plan.whitening_steps, shared(step), 0.0)


def make_optimizer(recipe: Recipe, plan: Plan) -> optax.GradientTransformation:
    """The optimizer of a speednet's parameters, each group of them with its own rate."""
    decay = recipe.weight_decay * recipe.batch_size
    usual, dtype = schedule(recipe, plan), jnp.dtype(recipe.precision)

    def rate(peak: float, factor: Factor = usual) -> Factor:
        return lambda step: peak * factor(step)

    def decayed(peak: float, factor: Factor = usual) -> optax.GradientTransformation:
        return sgd(rate(peak, factor), recipe.momentum, decay / peak)

    filters = decayed(recipe.filter_rate)
    if recipe.muon_momentum is not None:
        filters = muon(rate(recipe.filter_rate), recipe.muon_momentum, dtype)
    groups: dict[Hashable, optax.GradientTransformation] = {
        "filters": filters,
        "output": decayed(recipe.output_rate),
        "norms": decayed(recipe.norm_rate),
        "whitening": decayed(recipe.whitening_rate, whitening_schedule(recipe, plan)),
    }
    return optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(_group, params))


def _group(path: tuple[Any, ...], leaf: jax.Array) -> str:
    """Which of the groups a parameter of a speednet is in."""
    if path[0].key == "whiten":
        return "whitening"
    if path[0].key == "output":
        return "output"
    return "filters" if leaf.ndim == 4 else "norms"


def lookahead(state: TrainState, total_steps: int) -> TrainState:
    """Every 5th step moves `state.ema` towards the weights, and puts the weights there (Jordan 2024, §3.4).

    After step t of T, ema ← d·ema + (1 − d)·weights with d = 0.95⁵·(t/T)³, and the same for running statistics. The
    run ends with `state.ema` for its weights.
    """
    keep = _LOOKAHEAD_KEEP * (state.step.astype(jnp.float32) / total_steps) ** 3
    due = state.step % _LOOKAHEAD_EVERY == 0
    now = {"params": state.params, "batch_stats": state.batch_stats}
    mixed = jax.tree.map(lambda slow, fast: slow + (1.0 - keep) * (fast - slow), state.ema, now)
    ema, now = (jax.tree.map(lambda a, b: jnp.where(due, a, b), mixed, old) for old in (state.ema, now))
    return replace(state, ema=ema, **now)
