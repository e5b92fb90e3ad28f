"""Trains with the images in host memory, for a device that cannot hold them.

The steps and batches are the same, but in chunks: the images of several steps are sent together, and one call of a
compiled program runs these steps. The next chunk is sent while the device computes.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.training.state import variables_for_evaluation
from experiments.cifar10_speedrun.augment import batch_rows, first_flips, padded
from experiments.cifar10_speedrun.data import Split
from experiments.cifar10_speedrun.program import (
    EVAL_BATCH,
    Networks,
    Outcome,
    accuracy,
    batch_logits,
    make_step,
    oriented,
    random_numbers,
    start,
)
from experiments.cifar10_speedrun.recipe import Plan, Recipe

_CHUNK_BYTES = 2**26  # of images; the device holds two chunks


def chunk_steps(recipe: Recipe, images_NxHxWxC: np.ndarray) -> int:
    """Returns the number of steps whose images are sent at a time."""
    return max(1, _CHUNK_BYTES // (recipe.batch_size * images_NxHxWxC[0].nbytes))


class Streamed:
    """The run with all images on the host; a `program.Runner`."""

    def __init__(self, recipe: Recipe, train: Split, test: Split, steps: int, unroll: int = 1):
        """Prepares the run, which is compiled at its first call.

        Args:
            recipe: what to train, and how.
            train, test: images and labels.
            steps: steps per chunk of images sent.
            unroll: steps per iteration of the compiled loop.
        """
        self._recipe, self._train, self._test, self._steps = recipe, train, test, steps
        self._plan = plan = recipe.plan(len(train[0]))
        self._draw = jax.jit(partial(_draw, recipe, plan, len(train[0])))
        self._start = jax.jit(partial(start, recipe, plan))
        self._chunks = {
            bias: jax.jit(partial(_chunk, recipe, plan, bias, unroll), donate_argnums=1) for bias in (True, False)
        }
        self._logits = {six: jax.jit(partial(batch_logits, recipe, six)) for six in (True, False)}

    def __call__(self, seed: jax.Array, labels: np.ndarray | None = None) -> Outcome:
        """See `program.Runner`."""
        images, own = self._train
        labels = own if labels is None else labels
        losses: list[jax.Array] = []
        with random_numbers():
            rows_SxB, flips_N = jax.device_get(self._draw(seed))
            networks = self._start(seed, images[: self._recipe.whitening_images])
            for steps, bias in self._plan.phases:
                rows = rows_SxB[steps]
                for part in (rows[i : i + self._steps] for i in range(0, len(rows), self._steps)):
                    sent = jax.device_put((images[part], labels[part], flips_N[part]))
                    networks, some = self._chunks[bias](seed, networks, *sent)
                    if losses:  # wait for the previous chunk, so that the host does not send too far ahead
                        jax.block_until_ready(losses[-1])
                    losses.append(some)
        variables = variables_for_evaluation(networks.main)
        return Outcome(self._accuracy(variables, self._test), jnp.concatenate(losses), variables)

    def score(self, variables: dict[str, Any], split: Split) -> float:
        """See `program.Runner`."""
        return float(self._accuracy(variables, split))

    def _accuracy(self, variables: dict[str, Any], split: Split) -> jax.Array:
        images, labels = split

        def predict(six_views: bool, rows: jax.Array | None) -> jax.Array:
            chosen = images if rows is None else images[np.asarray(rows)]
            parts = (chosen[i : i + EVAL_BATCH] for i in range(0, len(chosen), EVAL_BATCH))
            return jnp.concatenate([jax.block_until_ready(self._logits[six_views](variables, part)) for part in parts])

        return accuracy(self._recipe, predict, jnp.asarray(labels))


def _draw(recipe: Recipe, plan: Plan, images: int, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    return batch_rows(seed, images, recipe.batch_size, plan), first_flips(seed, images)


def _chunk(
    recipe: Recipe,
    plan: Plan,
    train_whitening_bias: bool,
    unroll: int,
    seed: jax.Array,
    networks: Networks,
    images_SxBxHxWxC: jax.Array,
    labels_SxB: jax.Array,
    flips_SxB: jax.Array,
) -> tuple[Networks, jax.Array]:
    """Takes the steps of one chunk; returns the networks and the losses."""
    step = make_step(recipe, plan, seed, train_whitening_bias=train_whitening_bias)

    def one(networks: Networks, sent: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Networks, jax.Array]:
        images_BxHxWxC, labels_B, flips_B = sent
        pixels = padded(images_BxHxWxC, recipe.translate)
        return step(networks, {"image": oriented(plan, networks.main.step, pixels, flips_B), "label": labels_B})

    return jax.lax.scan(one, networks, (images_SxBxHxWxC, labels_SxB, flips_SxB), unroll=unroll)
