"""Training several networks at once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def train_members(
    make_step: Callable[..., Callable[..., Any]], seeds: jax.Array, rates: jax.Array | None = None
) -> Callable[..., Any]:
    """Makes the training step of stacked members of the step of one.

    Args:
        make_step: seed, or seed and learning rate (traced scalars) → `step(state, batch) -> (state, metrics)`.
        seeds: uint32 (M,), of the members; each draws its own dropout and augmentation. They see the same batches.
        rates: float32 (M,), their learning rates, if they have their own.

    Returns:
        `step(stacked state, batch) -> (stacked state, metrics)`; metrics are summed over the members. Of several rates
        those that are too great are to be expected: members whose loss is not finite are left out, unless all are.
    """

    def step(state: Tree, batch: Mapping[str, jax.Array]) -> tuple[Tree, Tree]:
        one = lambda state, *own: make_step(*own)(state, batch)  # noqa: E731
        if rates is None:
            state, metrics = jax.vmap(one)(state, seeds)
        else:
            state, metrics = jax.vmap(one)(state, seeds, rates)
            metrics = _of_finite(metrics)
        return state, jax.tree.map(lambda pairs_Mx2: pairs_Mx2.sum(axis=0), metrics)

    return step


def _of_finite(metrics: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Pairs (M, 2) of (sum, count); those of members whose loss is not finite become 0 of 0, unless all are such."""
    finite_M = jnp.isfinite(metrics["loss"][:, 0])
    stays_Mx1 = (finite_M | ~finite_M.any()).reshape(-1, 1)
    return {name: jnp.where(stays_Mx1, pairs_Mx2, 0.0) for name, pairs_Mx2 in metrics.items()}
