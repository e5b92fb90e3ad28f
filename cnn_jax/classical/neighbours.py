"""k nearest neighbours by exact Euclidean distance between pixels (Cover and Hart 1967).

LeCun et al. (1998, §III-C.2) report 5.0 % error on MNIST for it; with all 60,000 images and k = 1, it is 3.09 %.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.classical.solved import Examples, Say, Solution, Solved, in_batches, pixels
from cnn_jax.data.characters import deskew
from cnn_jax.errors import UserError

EXACT = 2**24 // 255**2  # products of bytes whose sum is exact in float32: 258
MOST_VALUES = 2**31 // 255**2  # values of an image whose squared distances are less than 2³¹
_BLOCK = 2048  # training images at a time
_FAR = np.iinfo(np.int32).max


class NearestNeighbours(Solved):
    """Votes of the k training images that are nearest in Σ(x − y)² over pixels from 0 to 255, an exact integer.

    Of equally near images, the earlier in the training set is nearer. Of classes with equally many votes, the one with
    the nearest image wins. Scores are log((votes + 1/K)/(k + 1)), where the order of ties is kept by a part of less
    than a vote.

    Attributes:
        k: number of neighbours.
        deskew: whether to remove the slant of written characters first.
        vectors: number of training images; set when they are stored.
    """

    k: int = 1
    deskew: bool = False
    vectors: int = 0

    solved_fields: ClassVar[tuple[str, ...]] = ("vectors",)

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        """Returns scores (B, K), float32."""
        del train
        x_BxHxWxC = self.prepared(x_BxHxWxC)
        shape = (self.vectors, *x_BxHxWxC.shape[1:])
        images = self.variable("memory", "images", lambda: jnp.zeros(shape, jnp.uint8)).value
        labels = self.variable("memory", "labels", lambda: jnp.zeros(shape[:1], jnp.int32)).value
        batch = len(x_BxHxWxC)
        labels_Bxk, _ = nearest(x_BxHxWxC.reshape(batch, -1), images.reshape(len(images), -1), labels, k=self.k)
        return scores(labels_Bxk, self.num_classes)

    @nn.nowrap
    def prepared(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Images in [0, 1] as the bytes that are compared."""
        images = pixels(x_BxHxWxC).astype(jnp.uint8)
        return deskew(images) if self.deskew else images

    @nn.nowrap
    def check(self, image_shape: tuple[int, int, int], rows: int) -> None:
        """Checks k, and that distances fit 32 bits."""
        if not 1 <= self.k <= rows:
            raise UserError(f"k={self.k} for nearest neighbours: set it to 1 to {rows:,}, the training images")
        if int(np.prod(image_shape)) > MOST_VALUES:
            raise UserError(
                f"images of {'x'.join(map(str, image_shape))} are too large for exact distances: set `image_size` to "
                f"at most {int((MOST_VALUES / image_shape[-1]) ** 0.5)}"
            )

    @nn.nowrap
    def solve(self, train: Examples, validation: Examples, *, seed: int, say: Say) -> Solution:
        """Stores the training images."""
        del validation, seed, say
        images = np.asarray(train.images)
        if self.deskew:
            images = in_batches(self.prepared, images)
        model = self.clone(vectors=len(images))
        variables = {"memory": {"images": images, "labels": np.asarray(train.labels, np.int32)}}
        return Solution(model, variables, {"neighbours": self.k, "stored images": len(images)})


def squared_distances(x_BxD: jax.Array, y_NxD: jax.Array) -> jax.Array:
    """Returns Σ_d (x_bd − y_nd)² of bytes, exactly: int32 (B, N); D at most `MOST_VALUES`.

    Products are summed in float32 matrix products over parts of D that are small enough to be exact, 258·255² < 2²⁴,
    and the parts in int32, which may wrap around on the way, but not in the end.
    """
    size = x_BxD.shape[1]
    parts = [slice(start, start + EXACT) for start in range(0, size, EXACT)]
    x, y = x_BxD.astype(jnp.float32), y_NxD.astype(jnp.float32)
    products = sum(
        jnp.dot(x[:, part], y[:, part].T, precision=jax.lax.Precision.HIGHEST).astype(jnp.int32) for part in parts
    )
    x_B, y_N = (jnp.square(rows.astype(jnp.int32)).sum(axis=1) for rows in (x_BxD, y_NxD))
    return x_B[:, None] + y_N[None, :] - 2 * products


def nearest(x_BxD: jax.Array, y_NxD: jax.Array, labels_N: jax.Array, *, k: int) -> tuple[jax.Array, jax.Array]:
    """Finds the k nearest of N images, nearest first; of equally near ones, the earlier.

    Returns:
        Their labels and squared distances, int32 (B, k).
    """
    batch, count = len(x_BxD), len(y_NxD)
    block = min(_BLOCK, max(count, 1))
    fill = -count % block
    blocks = jnp.pad(y_NxD, ((0, fill), (0, 0))).reshape(-1, block, y_NxD.shape[1])
    labels = jnp.pad(labels_N, (0, fill), constant_values=-1).reshape(-1, block)

    def step(found: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]) -> tuple:
        images, labels_n = part
        distances = jnp.where(labels_n >= 0, squared_distances(x_BxD, images), _FAR)
        here = _smallest(jnp.broadcast_to(labels_n, distances.shape), distances, min(k, block))
        labels_m, distances_m = (jnp.concatenate([old, new], axis=1) for old, new in zip(found, here))
        return _smallest(labels_m, distances_m, k), None

    start = (jnp.full((batch, k), -1, jnp.int32), jnp.full((batch, k), _FAR, jnp.int32))
    return jax.lax.scan(step, start, (blocks, labels))[0]


def _smallest(labels_BxN: jax.Array, distances_BxN: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The labels and distances of the k smallest distances, in order; the first of equal ones. k is small."""
    found = []
    for _ in range(k):
        index_Bx1 = jnp.argmin(distances_BxN, axis=1, keepdims=True)
        found.append([jnp.take_along_axis(of, index_Bx1, axis=1) for of in (labels_BxN, distances_BxN)])
        distances_BxN = jnp.where(jnp.arange(distances_BxN.shape[1])[None, :] == index_Bx1, _FAR, distances_BxN)
    labels, distances = zip(*found)
    return jnp.concatenate(labels, axis=1), jnp.concatenate(distances, axis=1)


def scores(labels_Bxk: jax.Array, classes: int) -> jax.Array:
    """Turns the labels of neighbours, nearest first, into scores (B, K) whose largest is the decision."""
    k = labels_Bxk.shape[1]
    votes_BxkxK = jax.nn.one_hot(labels_Bxk, classes)
    rank_k = jnp.arange(k, dtype=jnp.float32)[None, :, None]
    nearest_BxK = jnp.min(jnp.where(votes_BxkxK > 0, rank_k, float(k)), axis=1)  # rank of a class's nearest image
    votes_BxK = votes_BxkxK.sum(axis=1) + 0.5 * (1.0 - nearest_BxK / k)
    return jnp.log((votes_BxK + 1.0 / classes) / (k + 1.0))
