"""Ensembles: averaged probabilities of several members, or of several views of each image.

Members share an architecture; their variables are stacked along a new first axis, so that `jax.vmap` trains or
evaluates all of them at once. Views (test-time augmentation) are altered copies of an image with the same label.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from cnn_jax.arguments import parse_spec
from cnn_jax.errors import UserError

Tree = Any


class Network(Protocol):
    """The part of a Linen module's interface that evaluation uses."""

    def apply(self, variables: Tree, x_BxHxWxC: jax.Array, *, train: bool) -> Any:
        """Returns logits (B, K)."""
        ...


def average(logits_MxBxK: Any) -> jax.Array:
    """Returns the log (B, K) of the members' mean probabilities (Ciresan, Meier and Schmidhuber 2012, eq. 1).

    A member with NaN logits, because its training diverged, is left out.

    >>> [round(float(p), 3) for p in jnp.exp(average(jnp.log(jnp.array([[[0.5, 0.5]], [[0.9, 0.1]]]))))[0]]
    [0.7, 0.3]
    """
    log_MxBxK = jax.nn.log_softmax(logits_MxBxK)
    votes_MxBx1 = ~jnp.isnan(log_MxBxK).any(axis=-1, keepdims=True)
    total_BxK = jax.nn.logsumexp(jnp.where(votes_MxBx1, log_MxBxK, -jnp.inf), axis=0)
    return total_BxK - jnp.log(votes_MxBx1.sum(axis=0).astype(jnp.float32))


@dataclass(frozen=True)
class Committee:
    """Members of one architecture, evaluated together.

    Attributes:
        model: the architecture.
        combine: joins the members' outputs, whose first axis is M.
    """

    model: Network
    combine: Callable[[Any], Any] = average

    def apply(self, variables: Tree, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns the combined outputs, for classifiers log-probabilities (B, K); leaves of `variables` are (M, …)."""
        return self.combine(self.members(variables, x_BxHxWxC, train=train))

    def members(self, variables: Tree, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns the logits of each member, (M, B, K)."""
        return jax.vmap(lambda own: self.model.apply(own, x_BxHxWxC, train=train))(variables)


def member(variables: Tree, index: int) -> Tree:
    """Returns the variables of one member from stacked ones."""
    return jax.tree.map(lambda leaf: leaf[index], variables)


def flip(images_BxHxWxC: jax.Array) -> list[jax.Array]:
    """Returns the mirror image (Krizhevsky et al. 2012, §4.1)."""
    return [images_BxHxWxC[:, :, ::-1]]


def shift(images_BxHxWxC: jax.Array, *, pixels: int = 1) -> list[jax.Array]:
    """Shifts up and left, and down and right, by `pixels`; the edges are filled by reflection."""
    height, width = images_BxHxWxC.shape[1:3]
    if not 0 < pixels < min(height, width):
        raise UserError(f"view shift cannot use pixels={pixels}: use 1 to {min(height, width) - 1}")
    padded = jnp.pad(images_BxHxWxC, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
    ends = ((0, 0), (2 * pixels, 2 * pixels))
    return [padded[:, top : top + height, left : left + width] for top, left in ends]


def ten_crop(images_BxHxWxC: jax.Array, *, part: float = 0.875) -> list[jax.Array]:
    """Crops the four corners and the centre, and mirrors each crop (Krizhevsky et al. 2012, §4.1).

    Each crop covers `part` of the height and of the width (224 of 256 pixels in the paper), and is enlarged bilinearly
    to the image size, which is the network's input size. Train on crops enlarged in the same way, by
    `random_resized_crop`. The whole image is not one of the views.
    """
    height, width = images_BxHxWxC.shape[1:3]
    rows, columns = round(part * height), round(part * width)
    if not (0 < part <= 1 and rows and columns):
        raise UserError(f"view ten_crop cannot use part={part} of {height}x{width} images: use 1 or a little less")
    low, right = height - rows, width - columns
    corners = ((0, 0), (0, right), (low, 0), (low, right), (low // 2, right // 2))
    crops = [images_BxHxWxC[:, top : top + rows, left : left + columns] for top, left in corners]
    views = [jax.image.resize(crop, images_BxHxWxC.shape, "bilinear") for crop in crops]
    return [*views, *(view[:, :, ::-1] for view in views)]


VIEWS: dict[str, Callable[..., list[jax.Array]]] = {"flip": flip, "shift": shift, "ten_crop": ten_crop}
REPLACING = {"ten_crop"}  # views that replace the image; the others are added to it


@dataclass(frozen=True)
class Views:
    """A network evaluated on several views of each image; each spec applies to all views made so far.

    Attributes:
        model: the network.
        specs: keys of `VIEWS`, optionally with arguments as in "shift:pixels=2".
    """

    model: Network
    specs: tuple[str, ...]

    def __post_init__(self) -> None:
        self._functions()  # report mistakes early

    def _functions(self) -> list[tuple[str, Callable[[jax.Array], list[jax.Array]]]]:
        return [parse_spec("view", spec, VIEWS, hidden=["images_BxHxWxC"]) for spec in self.specs]

    def apply(self, variables: Tree, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns log-probabilities (B, K): the mean of the probabilities over all views."""
        views = [x_BxHxWxC]
        for name, function in self._functions():
            changed = [made for view in views for made in function(view)]
            views = changed if name in REPLACING else views + changed
        logits = [self.model.apply(variables, view, train=train) for view in views]
        return average(jnp.stack(logits))
