"""A whole run as one pure function, to be compiled once: bytes and labels in, accuracy out.

Whitening, all steps in two `lax.scan`s (with the whitening bias trained, and without), evaluation. No Python runs and
nothing is sent to the host in between.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cnn_jax import committee
from cnn_jax.data import Preprocess
from cnn_jax.losses import cross_entropy
from cnn_jax.models import build
from cnn_jax.models.speednet import SpeedNet, whitened
from cnn_jax.models.summary import layer_table
from cnn_jax.speedrun.augment import batch_rows, first_flips, make_augment, mirrored, padded
from cnn_jax.speedrun.optimizer import lookahead, make_optimizer
from cnn_jax.speedrun.recipe import MEAN, STD, Plan, Recipe
from cnn_jax.training.state import TrainState, init_state, stream, variables_for_evaluation
from cnn_jax.training.step import Batch, make_train_step

NUM_CLASSES = 10
VIEWS = 6  # of an image in evaluation
_WHITENED_IMAGES = 5000
_EVAL_BATCH = 2000

normalize = Preprocess((32, 32, 3), MEAN, STD).normalize  # of images of any size

Step = Callable[[TrainState, Batch], tuple[TrainState, jax.Array]]
Gather = Callable[[jax.Array, jax.Array], Batch]


class Outcome(NamedTuple):
    """What a run gives.

    Attributes:
        accuracy: share of the test images, float32 scalar.
        losses_S: mean training loss an example of every step, before its update.
        variables: of the trained network.
    """

    accuracy: jax.Array
    losses_S: jax.Array
    variables: dict[str, Any]


def network(recipe: Recipe) -> SpeedNet:
    """The model of a recipe."""
    model: Any = build(recipe.model, NUM_CLASSES, dtype=jnp.dtype(recipe.precision))
    widths = tuple(math.ceil(recipe.width_factor * width) for width in model.widths)
    # Where the classifier starts with deviation 1, its sums are divided by the number of their terms.
    return model.clone(widths=widths, logit_scale=1 / widths[-1] if model.unit_output else model.logit_scale)


def speedrun(
    recipe: Recipe,
    seed: jax.Array,
    train_images: jax.Array,
    train_labels: jax.Array,
    test_images: jax.Array,
    test_labels: jax.Array,
    *,
    unroll: int = 1,
) -> Outcome:
    """Trains a network from scratch and tests it.

    Args:
        recipe: what to do.
        seed: uint32 scalar, of all draws.
        train_images, test_images: uint8 (N, H, W, 3).
        train_labels, test_labels: int32 (N,), in [0, 10).
        unroll: steps in one turn of the compiled loop.

    Raises:
        UserError: too few training images for a batch.
    """
    # XLA's own generator: quicker than JAX's default, and very much quicker to compile.
    with jax.default_prng_impl("rbg"):
        plan = recipe.plan(len(train_images))
        state = start(recipe, plan, seed, train_images)
        rows_SxB = batch_rows(seed, len(train_images), recipe.batch_size, plan)
        gather = make_gather(recipe, plan, seed, train_images, train_labels)
        losses = []
        for bias, rows in ((True, rows_SxB[: plan.whitening_steps]), (False, rows_SxB[plan.whitening_steps :])):
            step = make_step(recipe, plan, seed, train_whitening_bias=bias)
            state, phase = jax.lax.scan(
                lambda state, rows_B, step=step: step(state, gather(state.step, rows_B)), state, rows, unroll=unroll
            )
            losses.append(phase)
    variables = variables_for_evaluation(state)
    return Outcome(evaluate(recipe, variables, test_images, test_labels), jnp.concatenate(losses), variables)


def start(recipe: Recipe, plan: Plan, seed: jax.Array, train_images: jax.Array) -> TrainState:
    """The network with the whitening of these images, before the first step."""
    (height, width, channels), model = train_images.shape[1:], network(recipe)
    shape = (height, width, channels)
    variables = model.init(stream(seed, "init"), jnp.zeros((1, *shape), jnp.float32), train=False)
    variables = whitened(variables, normalize(train_images[:_WHITENED_IMAGES]))
    return init_state(model, make_optimizer(recipe, plan), shape, seed, ema=recipe.lookahead, variables=variables)


def make_gather(recipe: Recipe, plan: Plan, seed: jax.Array, images_NxHxWxC: jax.Array, labels_N: jax.Array) -> Gather:
    """Returns `gather(step, rows_B) -> batch`: padded images as bytes, mirrored as the epoch of the step has it."""
    pixels, flips_N = padded(images_NxHxWxC, recipe.translate), first_flips(seed, len(images_NxHxWxC))

    def gather(step: jax.Array, rows_B: jax.Array) -> Batch:
        odd = step // plan.steps_per_epoch % 2 == 1
        return {"image": mirrored(pixels[rows_B], flips_N[rows_B] ^ odd), "label": labels_N[rows_B]}

    return gather


def make_step(recipe: Recipe, plan: Plan, seed: jax.Array, *, train_whitening_bias: bool) -> Step:
    """Returns `step(state, batch) -> (state, mean loss)`, the step of `cnn_jax.training` and the lookahead.

    Rates are meant for the loss summed over the batch. In float16 it must be summed, too: gradients of the mean would
    be lost below the smallest number.
    """

    def summed(logits_BxK: jax.Array, targets_BxK: jax.Array) -> jax.Array:
        return recipe.batch_size * cross_entropy(logits_BxK, targets_BxK)  # the step takes the mean of it

    one = make_train_step(
        network(recipe).clone(train_whitening_bias=train_whitening_bias),
        make_optimizer(recipe, plan),
        summed,
        make_augment(recipe, NUM_CLASSES),
        normalize,
        seed=seed,
        label_smoothing=recipe.label_smoothing,
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        state, metrics = one(state, batch)
        if recipe.lookahead:
            state = lookahead(state, plan.total_steps)
        total, count = metrics["loss"]
        return state, total / (count * recipe.batch_size)

    return step


def evaluate(recipe: Recipe, variables: dict[str, Any], images_NxHxWxC: jax.Array, labels_N: jax.Array) -> jax.Array:
    """Share of images that are classified correctly, each seen in six views (see `view_logits`)."""
    count, model = len(images_NxHxWxC), network(recipe)
    batches = -(-count // _EVAL_BATCH)
    size = -(-count // batches)
    missing = batches * size - count
    images = jnp.pad(images_NxHxWxC, ((0, missing), (0, 0), (0, 0), (0, 0)))
    labels = jnp.pad(labels_N, (0, missing), constant_values=-1)  # no class, so never right

    def add(hits: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x_BxHxWxC, labels_B = part
        logits_BxK = view_logits(model, variables, normalize(x_BxHxWxC))
        return hits + jnp.sum(jnp.argmax(logits_BxK, -1) == labels_B), None

    parts = (images.reshape(batches, size, *images.shape[1:]), labels.reshape(batches, size))
    hits, _ = jax.lax.scan(add, jnp.zeros((), jnp.int32), parts)
    return hits.astype(jnp.float32) / count


def view_logits(model: committee.Network, variables: Any, x_BxHxWxC: jax.Array) -> jax.Array:
    """Mean of the logits of six views: half the weight on the image, half on it moved a pixel either way along the
    diagonal; each of the three as it is and mirrored (Jordan 2024, §3.5)."""

    def both_sides(x: jax.Array) -> jax.Array:
        (mirror,) = committee.flip(x)
        return 0.5 * (model.apply(variables, x, train=False) + model.apply(variables, mirror, train=False))

    one, other = committee.shift(x_BxHxWxC)
    return 0.5 * both_sides(x_BxHxWxC) + 0.25 * (both_sides(one) + both_sides(other))


def count_run_flops(recipe: Recipe, image_shape: tuple[int, int, int], train_images: int, test_images: int) -> int:
    """FLOPs of a run, two a multiply-add: convolutions and the classifier, whose gradients cost twice their value.

    The fixed whitening is not counted. Once its bias is fixed, too, the first convolution needs no input gradient.
    """
    plan, layers = recipe.plan(train_images), layer_table(network(recipe), image_shape)
    forward = sum(layer.flops for layer in layers)
    first = next(layer.flops for layer in layers if layer.name == "group1/conv1")
    saved = first * (plan.total_steps - plan.whitening_steps)
    return recipe.batch_size * (3 * forward * plan.total_steps - saved) + VIEWS * forward * test_images
