"""Pure augmentation functions that run on the device, selected by name and composed.

An augmentation of one image is `f(key, image_HxWxC, *, …) -> image_HxWxC`; one of a batch is
`f(key, images_BxHxWxC, targets_BxK, *, …) -> (images, targets)`. Images are float32 in [0, 1] before and after.
The config's `augment` names them with their keyword arguments: `flip pad_crop:padding=4 cutout:size=16`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax import arguments
from cnn_jax.data.warp import affine, elastic, random_resized_crop
from cnn_jax.errors import UserError

Augment = Callable[..., dict[str, jax.Array]]  # (key, batch, first_index) → batch


def flip(key: jax.Array, image_HxWxC: jax.Array, *, p: float = 0.5) -> jax.Array:
    """Flips the image horizontally with probability `p`."""
    if not 0 <= p <= 1:
        raise UserError(f"p={p} for flip is not a probability: set it between 0 and 1")
    return jnp.where(jax.random.bernoulli(key, p), image_HxWxC[:, ::-1], image_HxWxC)


def pad_crop(
    key: jax.Array, image_HxWxC: jax.Array, *, padding: int = 4, mode: Literal["zero", "reflect"] = "zero"
) -> jax.Array:
    """Pads every side by `padding` pixels, then crops back to the original size at random (He et al. 2016, §4.2)."""
    height, width, channels = image_HxWxC.shape
    least = 0 if mode == "zero" else min(height, width) - 1
    if padding < 0 or (mode == "reflect" and padding > least):
        raise UserError(
            f"padding={padding} for pad_crop with mode={mode} does not fit {height}x{width} images: set it to 0 or more"
            + (f", at most {least}" if mode == "reflect" else "")
        )
    sides = ((padding, padding), (padding, padding), (0, 0))
    padded = jnp.pad(image_HxWxC, sides, mode="constant" if mode == "zero" else "reflect")
    top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), (height, width, channels))


def cutout(key: jax.Array, image_HxWxC: jax.Array, *, size: int = 16) -> jax.Array:
    """Zeroes a `size`×`size` square centred on a random pixel, clipped at the edges (DeVries & Taylor 2017, §3)."""
    if size < 1:
        raise UserError(f"size={size} for cutout: set it to at least 1 pixel")
    height, width, _ = image_HxWxC.shape
    row, column = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    inside_HxW = _between(height, row - size // 2, size)[:, None] & _between(width, column - size // 2, size)[None, :]
    return jnp.where(inside_HxW[..., None], 0.0, image_HxWxC)


def _between(length: int, start: jax.Array, size: int | jax.Array) -> jax.Array:
    """Mask of `length` elements that is true in [start, start + size)."""
    position = jnp.arange(length)
    return (position >= start) & (position < start + size)


# Rec. 601 luma and the two chroma axes of YIQ, where a hue shift is a rotation.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]], np.float32)
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def color_jitter(
    key: jax.Array,
    image_HxWxC: jax.Array,
    *,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.0,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, in this order (Howard 2013).

    Args:
        key: random key for this image.
        image_HxWxC: in [0, 1]. Saturation and hue apply only to three-channel images.
        brightness: the image is scaled by a factor in [1 − brightness, 1 + brightness].
        contrast: deviations from the image's mean luma are scaled likewise.
        saturation: deviations of each pixel's channels from its luma are scaled likewise.
        hue: the hue is rotated by an angle in [−hue, hue] turns.
    """
    if min(brightness, contrast, saturation, hue) < 0:
        raise UserError("color_jitter has a negative argument: set all of them to 0 or more")
    draws = jax.random.uniform(key, (4,), minval=-1.0, maxval=1.0)
    light, spread, colour = jnp.maximum(1.0 + draws[:3] * np.array([brightness, contrast, saturation], np.float32), 0.0)
    colourful = image_HxWxC.shape[-1] == 3
    image = jnp.clip(light * image_HxWxC, 0.0, 1.0)
    mean = (image @ _TO_YIQ[0]).mean() if colourful else image.mean()
    image = jnp.clip(mean + spread * (image - mean), 0.0, 1.0)
    if not colourful:
        return image
    turn = 2 * np.pi * hue * draws[3]
    cos, sin = colour * jnp.cos(turn), colour * jnp.sin(turn)
    one, zero = jnp.ones_like(cos), jnp.zeros_like(cos)
    rotation = jnp.array([[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]])
    return jnp.clip(image @ (_FROM_YIQ @ rotation @ _TO_YIQ).T, 0.0, 1.0)


# Principal components of ImageNet's training RGB values in [0, 1]: directions in columns, and their λ. Published with
# Facebook's ResNets (fb.resnet.torch, 2016).
_COLOR_DIRECTIONS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
_COLOR_LAMBDAS = np.array([0.2175, 0.0188, 0.0045], np.float32)


def pca_color(key: jax.Array, image_HxWxC: jax.Array, *, sigma: float = 0.1) -> jax.Array:
    """Adds one random colour to all pixels: Σ αᵢ λᵢ pᵢ with αᵢ ~ N(0, sigma) (Krizhevsky et al. 2012, §4.1).

    The paper computes pᵢ and λᵢ on its training set, ImageNet; those values are used here for every data set. The
    result is clipped to [0, 1].
    """
    if sigma < 0:
        raise UserError(f"sigma={sigma} for pca_color: set it to 0 or more")
    if image_HxWxC.shape[-1] != 3:
        raise UserError(
            f"pca_color needs colour images, and these have {image_HxWxC.shape[-1]} channels: leave it out, or set "
            "`channels` to 3"
        )
    color_3 = _COLOR_DIRECTIONS @ (sigma * jax.random.normal(key, (3,)) * _COLOR_LAMBDAS)
    return jnp.clip(image_HxWxC + color_3[None, None], 0.0, 1.0)


def mixup(
    key: jax.Array, images_BxHxWxC: jax.Array, targets_BxK: jax.Array, *, alpha: float = 0.2
) -> tuple[jax.Array, jax.Array]:
    """Mixes the batch with a shuffled copy, λx + (1−λ)x′, one λ ~ Beta(alpha, alpha) per batch (Zhang et al. 2018)."""
    share, partner_B = _share_and_partners(key, alpha, images_BxHxWxC.shape[0])

    def mix(x: jax.Array) -> jax.Array:
        return share * x + (1.0 - share) * x[partner_B]

    return mix(images_BxHxWxC), mix(targets_BxK)


def cutmix(
    key: jax.Array, images_BxHxWxC: jax.Array, targets_BxK: jax.Array, *, alpha: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Pastes a box from a shuffled copy into the batch and mixes targets by area (Yun et al. 2019, §3.1).

    The box has the images' aspect ratio and relative area 1−λ, λ ~ Beta(alpha, alpha). It is centred on a random pixel
    and clipped at the edges; targets are mixed by the clipped area.
    """
    key, box_key = jax.random.split(key)
    size, height, width, _ = images_BxHxWxC.shape
    share, partner_B = _share_and_partners(key, alpha, size)
    sides_2 = jnp.array([height, width])
    box_2 = jnp.round(jnp.sqrt(1.0 - share) * sides_2.astype(jnp.float32)).astype(jnp.int32)
    start_2 = jax.random.randint(box_key, (2,), 0, sides_2) - box_2 // 2
    inside_HxW = _between(height, start_2[0], box_2[0])[:, None] & _between(width, start_2[1], box_2[1])[None, :]
    images = jnp.where(inside_HxW[None, :, :, None], images_BxHxWxC[partner_B], images_BxHxWxC)
    share = 1.0 - inside_HxW.mean(dtype=jnp.float32)
    return images, share * targets_BxK + (1.0 - share) * targets_BxK[partner_B]


def _share_and_partners(key: jax.Array, alpha: float, size: int) -> tuple[jax.Array, jax.Array]:
    """Draws λ ~ Beta(alpha, alpha) and a permutation of the batch."""
    if alpha <= 0:
        raise UserError(f"alpha={alpha} for mixup or cutmix: set it above 0, or leave the augmentation out")
    share_key, partner_key = jax.random.split(key)
    return jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32), jax.random.permutation(partner_key, size)


PER_IMAGE: dict[str, Callable[..., jax.Array]] = {
    "flip": flip,
    "pad_crop": pad_crop,
    "random_resized_crop": random_resized_crop,
    "affine": affine,
    "elastic": elastic,
    "cutout": cutout,
    "color_jitter": color_jitter,
    "pca_color": pca_color,
}
PER_BATCH: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {"mixup": mixup, "cutmix": cutmix}
AUGMENTATIONS: dict[str, Callable[..., Any]] = {**PER_IMAGE, **PER_BATCH}


def parse_spec(spec: str) -> tuple[str, Callable[..., Any]]:
    """Turns "name" or "name:arg=value,arg=value" into (name, function with those arguments set).

    Raises:
        UserError: unknown name or argument, or a value of the wrong type.
    """
    positional = ("key", "image_HxWxC", "images_BxHxWxC", "targets_BxK")
    return arguments.parse_spec("augmentation", spec, AUGMENTATIONS, hidden=positional)


def changes(name: str) -> tuple[str, ...]:
    """Returns the names of the batch arrays that an augmentation changes."""
    return ("image", "target") if name in PER_BATCH else ("image",)


def make_augment(specs: Sequence[str]) -> Augment:
    """Composes augmentations, in order, into one function on batches.

    Args:
        specs: each a name of `AUGMENTATIONS`, with arguments as in "affine:degrees=15,scale=0.8/1.2".

    Returns:
        `augment(key, batch, first_index=0) -> batch`, pure. In `batch`, "image" is uint8 BxHxWxC before and float32 in
        [0, 1] after; augmentations that mix examples also mix "target" (BxK); other arrays pass through unchanged. The
        randomness of example i depends only on (key, position of the augmentation, first_index + i), so a shard given
        its first index is augmented as in the full batch. Examples are mixed only within their shard.

    Raises:
        UserError: unknown name or argument, or a value of the wrong type. The returned function raises it for a value
            out of range, or when an augmentation changes an array that is not in the batch.

    >>> augment = make_augment([])
    >>> augment(jax.random.key(0), {"image": jnp.full((1, 1, 2, 1), 255, jnp.uint8)})["image"].ravel()
    Array([1., 1.], dtype=float32)
    """
    stages = [parse_spec(spec) for spec in specs]

    def augment(key: jax.Array, batch: Mapping[str, Any], first_index: int | jax.Array = 0) -> dict[str, jax.Array]:
        images = batch["image"].astype(jnp.float32) / 255.0
        targets = batch.get("target")
        index_B = first_index + jnp.arange(images.shape[0])
        for position, (name, function) in enumerate(stages):
            if absent := [array for array in changes(name) if array not in batch]:
                raise UserError(f"{name} changes {', '.join(absent)}, which this task's batches lack: leave it out")
            stage_key = jax.random.fold_in(key, position)
            if name in PER_BATCH:
                images, targets = function(jax.random.fold_in(stage_key, first_index), images, targets)
            else:
                keys_B = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(stage_key, index_B)
                images = jax.vmap(function)(keys_B, images)
        return {**batch, "image": images} | ({} if targets is None else {"target": targets})

    return augment
