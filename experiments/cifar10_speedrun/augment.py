"""Batches of the speed records: images stay on the device as bytes, and every draw derives from (seed, name, index).

An image is mirrored in every other epoch, starting at random in the first or the second ("alternating flip", Jordan
2024, §3.6), so any two successive epochs show it in both forms. In every epoch it is shifted at random, with reflected
borders.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.training.state import stream
from experiments.cifar10_speedrun.recipe import MEAN, STD, Plan, Recipe


def padded(images_NxHxWxC: jax.Array, pixels: int) -> jax.Array:
    """Pads by `pixels` on every side by reflection, without repeating the edge: (N, H + 2·pixels, …)."""
    sides = (pixels, pixels)
    return jnp.pad(images_NxHxWxC, ((0, 0), sides, sides, (0, 0)), mode="reflect")


def batch_rows(seed: jax.Array, images: int, batch_size: int, plan: Plan) -> jax.Array:
    """Returns the images of every step, (S, B) int32: one permutation per epoch; an incomplete batch is dropped."""

    def permutation(epoch: jax.Array) -> jax.Array:
        return jnp.argsort(jax.random.bits(stream(seed, "order", epoch), (images,)))

    order_ExN = jax.vmap(permutation)(jnp.arange(plan.epochs))
    used = order_ExN[:, : plan.steps_per_epoch * batch_size]
    return used.reshape(-1, batch_size)[: plan.total_steps].astype(jnp.int32)


def first_flips(seed: jax.Array, images: int) -> jax.Array:
    """Returns whether each image is mirrored in even epochs, (N,) bool; in odd ones the others are."""
    return jax.random.bernoulli(stream(seed, "flip"), 0.5, (images,))


def mirrored(images_BxHxWxC: jax.Array, which_B: jax.Array) -> jax.Array:
    """Mirrors the selected images left to right."""
    return jnp.where(which_B.reshape(-1, 1, 1, 1), images_BxHxWxC[:, :, ::-1], images_BxHxWxC)


def crop(key: jax.Array, images_BxHxWxC: jax.Array, pixels: int) -> jax.Array:
    """Crops each padded image to (H - 2·pixels, W - 2·pixels) at its own random place."""
    batch, height, width, channels = images_BxHxWxC.shape
    size = (height - 2 * pixels, width - 2 * pixels, channels)

    def one(image_HxWxC: jax.Array, corner_2: jax.Array) -> jax.Array:
        top, left = corner_2
        return jax.lax.dynamic_slice(image_HxWxC, (top, left, jnp.zeros_like(top)), size)

    return jax.vmap(one)(images_BxHxWxC, jax.random.randint(key, (batch, 2), 0, 2 * pixels + 1))


def cutout(key: jax.Array, images_BxHxWxC: jax.Array, side: int) -> jax.Array:
    """Fills a square at a random place inside each image with the mean colour; pixels in [0, 1]."""
    batch, height, width, channels = images_BxHxWxC.shape

    def inside(key: jax.Array, length: int) -> jax.Array:
        start_Bx1 = jax.random.randint(key, (batch, 1), 0, length - side + 1)
        position_1xL = jnp.arange(length).reshape(1, -1)
        return (position_1xL >= start_Bx1) & (position_1xL < start_Bx1 + side)

    rows_BxH, columns_BxW = map(inside, jax.random.split(key), (height, width))
    square = rows_BxH.reshape(batch, -1, 1, 1) & columns_BxW.reshape(batch, 1, -1, 1)
    return jnp.where(square, np.asarray(MEAN, np.float32).reshape(1, 1, 1, channels), images_BxHxWxC)


def jitter(key: jax.Array, images_BxHxWxC: jax.Array, brightness: float, contrast: float) -> jax.Array:
    """Shifts the normalized pixels of each image by a random number in ±brightness, then scales them by one in
    1 ± contrast.

    Pixels are passed and returned on the scale [0, 1]; results may exceed it.
    """
    keys, shape = jax.random.split(key), (len(images_BxHxWxC), 1, 1, 1)
    shift = jax.random.uniform(keys[0], shape, minval=-brightness, maxval=brightness)
    factor = jax.random.uniform(keys[1], shape, minval=1.0 - contrast, maxval=1.0 + contrast)
    mean, std = (jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1) for values in (MEAN, STD))
    return mean + factor * (images_BxHxWxC - mean + shift * std)


Augment = Callable[..., tuple[jax.Array, jax.Array]]


def make_augment(recipe: Recipe, num_classes: int) -> Augment:
    """Returns `augment(key, padded images_BxHxWxC uint8, labels_B, first_index=0)`.

    `augment` returns float32 images, shifted and, if the recipe says so, with cutout and jitter, and one-hot targets.
    Pixels are in [0, 1] unless there is jitter.
    """

    def augment(
        key: jax.Array, images_BxHxWxC: jax.Array, labels_B: jax.Array, first_index: int | jax.Array = 0
    ) -> tuple[jax.Array, jax.Array]:
        crop_key, cutout_key, jitter_key = jax.random.split(jax.random.fold_in(key, first_index), 3)
        images = crop(crop_key, images_BxHxWxC, recipe.translate).astype(jnp.float32) / 255.0
        if recipe.cutout:
            images = cutout(cutout_key, images, recipe.cutout)
        if recipe.brightness or recipe.contrast:
            images = jitter(jitter_key, images, recipe.brightness, recipe.contrast)
        return images, jax.nn.one_hot(labels_B, num_classes, dtype=jnp.float32)

    return augment
