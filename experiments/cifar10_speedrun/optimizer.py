"""Optimizers of the speed records, with PyTorch's definitions, built from Optax's parts; and Muon.

`optax.contrib.muon` cannot express this Muon. It averages gradients with bias correction, which weights the first ones
differently from buffer = momentum·buffer + gradient; it does not rescale the weights before each step; and it computes
in the type of the gradient, one matrix at a time. All that could be reused is its iteration, which is five lines.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax.training.state import TrainState
from experiments.cifar10_speedrun.recipe import QUINTIC, Plan, Recipe

Tree = Any
Factor = Callable[[Any], Any]  # step → number

_QUINTIC_STEPS = 3
_LOOKAHEAD_EVERY = 5  # steps
_LOOKAHEAD_KEEP = 0.95**_LOOKAHEAD_EVERY


def newton_schulz(x_MxRxC: jax.Array, dtype: Any, quintic: tuple[float, float, float] = QUINTIC) -> jax.Array:
    """Orthogonalises M matrices approximately: moves their singular values near 1, and keeps the singular vectors.

    Singular values end in 0.5 … 1.5 unless they were tiny.

    Args:
        x_MxRxC: matrices, float32. They are divided by their Frobenius norm first.
        dtype: type in which to iterate.
        quintic: a, b and c: one iteration maps each singular value s to a·s + b·s³ + c·s⁵.

    Returns:
        (M, R, C), of type `dtype`.
    """
    a, b, c = quintic
    x = (x_MxRxC / (jnp.linalg.norm(x_MxRxC, axis=(1, 2), keepdims=True) + 1e-7)).astype(dtype)
    wide = x.shape[1] < x.shape[2]
    x = x.mT if wide else x  # keeps the square matrices small
    for _ in range(_QUINTIC_STEPS):
        gram = x.mT @ x
        x = a * x + x @ (b * gram + c * (gram @ gram))
    return x.mT if wide else x


def orthogonalized(kernels: Tree, dtype: Any, quintic: tuple[float, float, float] = QUINTIC) -> Tree:
    """Applies `newton_schulz` to each kernel (h, w, C, F) as a matrix (h·w·C, F), batching those of equal shape."""
    leaves, structure = jax.tree.flatten(kernels)
    matrices = [leaf.reshape(-1, leaf.shape[-1]) for leaf in leaves]
    results: dict[int, jax.Array] = {}
    for shape in dict.fromkeys(matrix.shape for matrix in matrices):
        places = [i for i, matrix in enumerate(matrices) if matrix.shape == shape]
        results |= zip(places, newton_schulz(jnp.stack([matrices[i] for i in places]), dtype, quintic))
    return structure.unflatten([results[i].reshape(leaf.shape).astype(leaf.dtype) for i, leaf in enumerate(leaves)])


def muon(
    rate: Factor,
    momentum: float,
    dtype: Any,
    *,
    quintic: tuple[float, float, float] = QUINTIC,
    rescaled: Factor = lambda step: True,
    decay: float = 0.0,
) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised; before the step, each kernel's Frobenius norm is set to sqrt(F).

    Args:
        rate: step → learning rate.
        momentum: factor in buffer = momentum·buffer + gradient.
        dtype, quintic: see `newton_schulz`.
        rescaled: step → whether to set the norms.
        decay: after the step, kernels are multiplied by 1 - rate·decay.
    """
    return optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.stateless(lambda updates, _: orthogonalized(updates, dtype, quintic)),
        optax.scale_by_learning_rate(rate),
        _rescaled_and_decayed(rescaled, lambda step: 1.0 - decay * rate(step)),
    )


def _rescaled_and_decayed(rescaled: Factor, shrink: Factor) -> optax.GradientTransformation:
    """Changes the step so that the new kernel is shrink·(scale·kernel + update)."""

    def init(params: Tree) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: Tree, state: Tree, params: Tree = None) -> tuple[Tree, Tree]:
        due, factor = rescaled(state.count), shrink(state.count)

        def one(update: jax.Array, kernel: jax.Array) -> jax.Array:
            scale = jnp.sqrt(jnp.float32(kernel.shape[-1])) / jnp.linalg.norm(kernel)
            return factor * update + (factor * jnp.where(due, scale, 1.0) - 1.0) * kernel

        return jax.tree.map(one, updates, params), state._replace(count=optax.safe_increment(state.count))

    return optax.GradientTransformation(init, update)


def rescaled_steps(recipe: Recipe, plan: Plan) -> np.ndarray:
    """Returns the steps before which Muon sets the norms, as (S,) bool: see `Recipe.rescale_every`.

    >>> from experiments.cifar10_speedrun.recipe import RECIPES
    >>> np.flatnonzero(rescaled_steps(RECIPES["hiverge94"], Plan(4, 30, 1))).tolist()
    [2, 8, 20]
    """
    first, growth = recipe.rescale_every
    due, last = np.zeros(plan.total_steps, bool), 0
    for step in range(1, plan.total_steps + 1):
        if step - last >= first + int(growth * (step / plan.total_steps)):
            due[step - 1], last = True, step
    return due


def sgd(rate: Factor, momentum: float, weight_decay: float) -> optax.GradientTransformation:
    """SGD with Nesterov momentum on the gradient plus weight_decay·weights."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum, nesterov=True),
        optax.scale_by_learning_rate(rate),
    )


def schedule(recipe: Recipe, plan: Plan) -> Factor:
    """Returns step → factor of the rates. Steps count from 0, so the last one does not quite reach `Recipe.end`."""
    warmup = int(recipe.warmup * plan.total_steps)
    up = optax.linear_schedule(recipe.start, 1.0, warmup)
    down = optax.linear_schedule(1.0, recipe.end, plan.total_steps - warmup)
    return optax.join_schedules([up, down], [warmup]) if warmup else down


def whitening_schedule(recipe: Recipe, plan: Plan) -> Factor:
    """The same for the whitening bias: 0 from `plan.whitening_steps` on, when it is no longer trained."""
    if recipe.whitening_falls:
        return optax.linear_schedule(1.0, 0.0, plan.whitening_steps)
    shared = schedule(recipe, plan)
    return lambda step: jnp.where(step < plan.whitening_steps, shared(step), 0.0)


def make_optimizer(recipe: Recipe, plan: Plan, stride: int = 1) -> optax.GradientTransformation:
    """Makes the optimizer of a speednet, with a rate for each group of parameters.

    Args:
        recipe: holds the rates.
        plan: the run's plan.
        stride: steps of the run between two updates.
    """
    decay = recipe.weight_decay * recipe.batch_size
    usual, dtype = schedule(recipe, plan), jnp.dtype(recipe.precision)

    def rate(peak: float, factor: Factor = usual) -> Factor:
        return lambda update: peak * factor(stride * update)

    def decayed(peak: float, factor: Factor = usual) -> optax.GradientTransformation:
        return sgd(rate(peak, factor), recipe.momentum, decay / peak)

    filters = decayed(recipe.filter_rate)
    if recipe.muon_momentum is not None:
        due = rescaled_steps(recipe, plan)
        filters = muon(
            rate(recipe.filter_rate),
            recipe.muon_momentum,
            dtype,
            quintic=recipe.quintic,
            rescaled=lambda step: jnp.asarray(due)[step],
            decay=decay if recipe.muon_decay else 0.0,
        )
    groups: dict[Hashable, optax.GradientTransformation] = {
        "filters": filters,
        "output": decayed(recipe.output_rate),
        "norms": decayed(recipe.norm_rate),
        "whitening": decayed(recipe.whitening_rate, whitening_schedule(recipe, plan)),
    }
    return optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(_group, params))


def _group(path: tuple[Any, ...], leaf: jax.Array) -> str:
    """Returns the group of a speednet's parameter."""
    if path[0].key == "whiten":
        return "whitening"
    if path[0].key == "output":
        return "output"
    return "filters" if leaf.ndim == 4 else "norms"


def lookahead(state: TrainState, total_steps: int) -> TrainState:
    """In every 5th step, moves `state.ema` towards the weights and sets the weights to it (Jordan 2024, §3.4).

    After step t of T, ema ← d·ema + (1 − d)·weights with d = 0.95⁵·(t/T)³; running statistics likewise. The final
    weights of the run are `state.ema`.
    """
    keep = _LOOKAHEAD_KEEP * (state.step.astype(jnp.float32) / total_steps) ** 3
    due = state.step % _LOOKAHEAD_EVERY == 0
    now = {"params": state.params, "batch_stats": state.batch_stats}
    mixed = jax.tree.map(lambda slow, fast: slow + (1.0 - keep) * (fast - slow), state.ema, now)
    ema, now = (jax.tree.map(lambda a, b: jnp.where(due, a, b), mixed, old) for old in (state.ema, now))
    return replace(state, ema=ema, **now)
