"""Trains several networks at once: `jax.vmap` of one network's step over stacked states."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from cnn_jax.config import Config
from cnn_jax.optim.optimizers import Optimizer
from cnn_jax.tasks import Batch, Sums
from cnn_jax.training.state import TrainState
from cnn_jax.training.step import Step


def member_hyperparameters(config: Config, optimizer: Optimizer) -> tuple[jax.Array, jax.Array]:
    """Per-member seeds (M,) uint32 and learning rates (M,) float32.

    With several rates, all members share the run's seed; otherwise they share one rate and take consecutive seeds.
    """
    members, seed, rates = config.train.members, config.train.seed, config.optim.member_learning_rates
    seeds = [seed] * members if len(rates) > 1 else range(seed, seed + members)
    usual = float("nan") if optimizer.learning_rate is None else optimizer.learning_rate
    each = rates if len(rates) > 1 else [usual] * members
    return jnp.asarray(list(seeds), jnp.uint32), jnp.asarray(each, jnp.float32)


def stack_members(init: Callable[[jax.Array, jax.Array], TrainState], seeds: jax.Array, rates: jax.Array) -> TrainState:
    """Initialises the states of M networks, stacked along a new first axis; a single network's state is not stacked."""
    return jax.vmap(init)(seeds, rates) if len(seeds) > 1 else init(seeds[0], rates[0])


def train_members(step: Step, *, skip_diverged: bool) -> Step:
    """Turns the training step of one network into that of stacked members, which all see the same batches.

    Args:
        step: the training step of one network.
        skip_diverged: leave members whose loss is not finite out of the sums, unless all have diverged: among several
            learning rates, some are expected to be too high.

    Returns:
        `step(stacked state, batch) -> (stacked state, sums)`, with the sums added up over the members.
    """

    def step_all(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        state, sums = jax.vmap(step, in_axes=(0, None))(state, batch)
        if skip_diverged:
            sums = _drop_diverged(sums)
        return state, jax.tree.map(lambda pairs_Mx2: pairs_Mx2.sum(axis=0), sums)

    return step_all


def _drop_diverged(sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Zeroes the (sum, count) pairs, (M, 2), of members whose loss is not finite, unless all have diverged."""
    finite_M = jnp.isfinite(sums["loss"][:, 0])
    stays_Mx1 = (finite_M | ~finite_M.any()).reshape(-1, 1)
    return {name: jnp.where(stays_Mx1, pairs_Mx2, 0.0) for name, pairs_Mx2 in sums.items()}
