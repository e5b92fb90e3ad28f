"""Trains several networks at once: `jax.vmap` of one network's step over stacked states."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cnn_jax.arguments import naming
from cnn_jax.config import Config
from cnn_jax.optim.compared import compared_values
from cnn_jax.optim.optimizers import Optimizer
from cnn_jax.tasks import Batch, Sums
from cnn_jax.training.gauges import Gauges
from cnn_jax.training.state import TrainState, Tree
from cnn_jax.training.step import EvalStep, Step


def member_hyperparameters(config: Config, optimizer: Optimizer) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Per-member seeds (M,) uint32, learning rates (M,) float32, and other hyperparameters that differ, (M,) float32.

    With several rates, all members share the run's seed; otherwise they share one rate and take consecutive seeds.

    Raises:
        UserError: see `compared_values`.
    """
    members, seed, rates = config.train.members, config.train.seed, config.optim.member_learning_rates
    seeds = [seed] * members if len(rates) > 1 else range(seed, seed + members)
    usual = float("nan") if optimizer.learning_rate is None else optimizer.learning_rate
    each = rates if len(rates) > 1 else [usual] * members
    with naming("`member_optimizer_args`"):
        values = compared_values(config.optim, [member.args for member in config.compared])
    others = {name: jnp.asarray(of, jnp.float32) for name, of in values.items()}
    return jnp.asarray(list(seeds), jnp.uint32), jnp.asarray(each, jnp.float32), others


def stack_members(init: Callable[..., TrainState], *hyperparameters: Tree) -> TrainState:
    """Initialises the states of M networks, stacked along a new first axis; a single network's state is not stacked.

    Args:
        init: maps the hyperparameters of a network to its state.
        hyperparameters: from `member_hyperparameters`.
    """
    members = len(hyperparameters[0])
    return jax.vmap(init)(*hyperparameters) if members > 1 else init(*jax.tree.map(lambda of: of[0], hyperparameters))


def train_members(step: Step, *, apart: bool) -> Step:
    """Turns the training step of one network into that of stacked members, which all see the same batches.

    Args:
        step: the training step of one network.
        apart: return the sums of each member, (M, 2): members with learning rates of their own are compared, not
            averaged. Otherwise they are added up, (2,).

    Returns:
        `step(stacked state, batch) -> (stacked state, sums)`.
    """

    def step_all(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        state, sums = jax.vmap(step, in_axes=(0, None))(state, batch)
        return state, sums if apart else jax.tree.map(lambda pairs_Mx2: pairs_Mx2.sum(axis=0), sums)

    return step_all


def evaluate_members(step: EvalStep) -> EvalStep:
    """Turns the evaluation step of one network into that of stacked members, with sums (M, 2); collects nothing."""

    def step_all(variables: Any, batch: Batch) -> tuple[Sums, dict[str, jax.Array]]:
        return jax.vmap(step, in_axes=(0, None))(variables, batch)[0], {}

    return step_all


def gauge_members(gauges: Gauges) -> Gauges:
    """Turns the gauges of one network into those of stacked members, on the same batch."""
    return Gauges(
        jax.vmap(gauges.measure, in_axes=(0, None)),
        jax.vmap(gauges.direction),
        jax.vmap(gauges.power_step, in_axes=(0, 0, 0, None)),
    )
