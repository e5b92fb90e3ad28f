"""Several networks as one: averaged probabilities of members, and of several views of an image.

Members are networks of one architecture whose variables lie stacked along a new first axis, so that `jax.vmap` trains
or evaluates all of them at once. Views (test-time augmentation) are changed copies of an image that mean the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from cnn_jax.arguments import parse_spec
from cnn_jax.errors import UserError

Tree = Any


class Network(Protocol):
    """What evaluation needs of a model; every Linen module has it."""

    def apply(self, variables: Tree, x_BxHxWxC: jax.Array, *, train: bool) -> Any:
        """Returns logits (B, K)."""
        ...


def average(logits_MxBxK: Any) -> jax.Array:
    """Logits (B, K) of the mean of the members' probabilities (Ciresan, Meier and Schmidhuber 2012, eq. 1).

    >>> [round(float(p), 3) for p in jnp.exp(average(jnp.log(jnp.array([[[0.5, 0.5]], [[0.9, 0.1]]]))))[0]]
    [0.7, 0.3]
    """
    return jax.nn.logsumexp(jax.nn.log_softmax(logits_MxBxK), axis=0) - jnp.log(jnp.float32(len(logits_MxBxK)))


@dataclass(frozen=True)
class Committee:
    """Networks of one architecture, evaluated at once."""

    model: Network

    def apply(self, variables: Tree, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Log-probabilities (B, K) of the committee; each leaf of `variables` is (M, …)."""
        return average(self.members(variables, x_BxHxWxC, train=train))

    def members(self, variables: Tree, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Logits (M, B, K) of each member."""
        return jax.vmap(lambda own: self.model.apply(own, x_BxHxWxC, train=train))(variables)


def member(variables: Tree, index: int) -> Tree:
    """The variables of one member of stacked ones."""
    return jax.tree.map(lambda leaf: leaf[index], variables)


def train_members(make_step: Callable[[jax.Array], Callable[..., Any]], seeds: Sequence[int]) -> Callable[..., Any]:
    """Makes the training step of stacked members of the step of one.

    Args:
        make_step: seed (a traced uint32 scalar) → `step(state, batch) -> (state, metrics)`.
        seeds: of the members; each draws its own dropout and augmentation. They see the same batches.

    Returns:
        `step(stacked state, batch) -> (stacked state, metrics)`; metrics are summed over the members.
    """

    def step(state: Tree, batch: Mapping[str, jax.Array]) -> tuple[Tree, Tree]:
        one = lambda state, seed: make_step(seed)(state, batch)  # noqa: E731
        state, metrics = jax.vmap(one)(state, jnp.asarray(seeds, jnp.uint32))
        return state, jax.tree.map(lambda pairs_Mx2: pairs_Mx2.sum(axis=0), metrics)

    return step


def flip(images_BxHxWxC: jax.Array) -> list[jax.Array]:
    """The mirror image (Krizhevsky et al. 2012, §4.1)."""
    return [images_BxHxWxC[:, :, ::-1]]


def shift(images_BxHxWxC: jax.Array, *, pixels: int = 1) -> list[jax.Array]:
    """Moved up and left, and down and right, by so many pixels; the edge is mirrored."""
    height, width = images_BxHxWxC.shape[1:3]
    if not 0 < pixels < min(height, width):
        raise UserError(f"given pixels={pixels} for view shift; expected 1 to {min(height, width) - 1}")
    padded = jnp.pad(images_BxHxWxC, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
    ends = ((0, 0), (2 * pixels, 2 * pixels))
    return [padded[:, top : top + height, left : left + width] for top, left in ends]


VIEWS: dict[str, Callable[..., list[jax.Array]]] = {"flip": flip, "shift": shift}


@dataclass(frozen=True)
class Views:
    """A network that sees each image several times: as it is, and as each of the `specs` changes all views before it.

    Attributes:
        model: the network.
        specs: names of `VIEWS`, with arguments as in "shift:pixels=2".
    """

    model: Network
    specs: tuple[str, ...]

    def __post_init__(self) -> None:
        self._functions()  # what is wrong is said now

    def _functions(self) -> list[Callable[[jax.Array], list[jax.Array]]]:
        return [parse_spec("view", spec, VIEWS, hidden=["images_BxHxWxC"])[1] for spec in self.specs]

    def apply(self, variables: Tree, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Log-probabilities (B, K): the mean of the probabilities of all views."""
        views = [x_BxHxWxC]
        for function in self._functions():
            views += [changed for view in views for changed in function(view)]
        logits = [self.model.apply(variables, view, train=train) for view in views]
        return average(jnp.stack(logits))
