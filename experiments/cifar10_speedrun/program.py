"""A whole run as one pure function, compiled once: bytes and labels in, accuracy out.

It holds whitening, all steps in two `lax.scan`s (one that trains the whitening bias, one that does not) and evaluation.
In between, no Python runs and nothing goes to the host.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cnn_jax.inspect.summary import layer_table
from cnn_jax.models import ensembles as committee
from cnn_jax.models.speednet import whitened
from cnn_jax.optim.optimizers import Optimizer
from cnn_jax.tasks import Batch, Classification, Sums
from cnn_jax.training.state import TrainState, init_state, stream, variables_for_evaluation
from cnn_jax.training.step import make_train_step
from experiments.cifar10_speedrun.augment import batch_rows, first_flips, make_augment, mirrored, padded
from experiments.cifar10_speedrun.data import Split
from experiments.cifar10_speedrun.hardest import make_choose
from experiments.cifar10_speedrun.network import NUM_CLASSES, network, normalize
from experiments.cifar10_speedrun.optimizer import lookahead, make_optimizer
from experiments.cifar10_speedrun.recipe import Plan, Recipe

VIEWS = 6  # per image in evaluation
EVAL_BATCH = 2000


class Networks(NamedTuple):
    """The states that a step updates.

    Attributes:
        main: the network that is trained for its accuracy.
        small: the one that chooses its images; None if it trains on all of them.
    """

    main: TrainState
    small: TrainState | None = None


Step = Callable[[Networks, Batch], tuple[Networks, jax.Array]]
Gather = Callable[[jax.Array, jax.Array], Batch]
Predict = Callable[[bool, Any], jax.Array]  # (in six views?, rows or None for all images) → logits


class Outcome(NamedTuple):
    """The result of a run.

    Attributes:
        accuracy: share of the test images, float32 scalar.
        losses_S: mean training loss per example of each step, before its update.
        variables: variables of the trained network.
    """

    accuracy: jax.Array
    losses_S: jax.Array
    variables: dict[str, Any]


class Runner(Protocol):
    """A compiled run with its training and test images."""

    def __call__(self, seed: jax.Array, labels: np.ndarray | None = None) -> Outcome:
        """Runs from a seed; `labels` replace the true training labels."""
        ...

    def score(self, variables: dict[str, Any], split: Split) -> float:
        """Returns the accuracy on other images, in [0, 1]."""
        ...


class Resident:
    """The run with all images on the device."""

    def __init__(self, recipe: Recipe, train: Split, test: Split, unroll: int = 1):
        """Compiles the run; for the arguments see `speedrun`."""
        self._arrays = jax.device_put((*train, *test))
        run = partial(speedrun, recipe, unroll=unroll)
        self._run = jax.jit(run).lower(jnp.uint32(0), *self._arrays).compile()
        self._evaluate = jax.jit(partial(evaluate, recipe))

    def __call__(self, seed: jax.Array, labels: np.ndarray | None = None) -> Outcome:
        """See `Runner`."""
        images, own, *test = self._arrays
        return self._run(seed, images, own if labels is None else jax.device_put(labels), *test)

    def score(self, variables: dict[str, Any], split: Split) -> float:
        """See `Runner`."""
        return float(self._evaluate(variables, *jax.device_put(split)))


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
        recipe: what to train, and how.
        seed: uint32 scalar, for all draws.
        train_images, test_images: uint8 (N, H, W, 3).
        train_labels, test_labels: int32 (N,), in [0, 10).
        unroll: steps per iteration of the compiled loop.

    Raises:
        UserError: too few training images for a batch.
    """
    with random_numbers():
        plan = recipe.plan(len(train_images))
        networks = start(recipe, plan, seed, train_images[: recipe.whitening_images])
        rows_SxB = batch_rows(seed, len(train_images), recipe.batch_size, plan)
        gather = make_gather(recipe, plan, seed, train_images, train_labels)
        losses = []
        for steps, bias in plan.phases:
            step = make_step(recipe, plan, seed, train_whitening_bias=bias)
            networks, phase = jax.lax.scan(
                lambda networks, rows_B, step=step: step(networks, gather(networks.main.step, rows_B)),
                networks,
                rows_SxB[steps],
                unroll=unroll,
            )
            losses.append(phase)
    variables = variables_for_evaluation(networks.main)
    return Outcome(evaluate(recipe, variables, test_images, test_labels), jnp.concatenate(losses), variables)


def random_numbers() -> Any:
    """Context for all draws: uses XLA's own generator, which is faster than JAX's default, above all to compile."""
    return jax.default_prng_impl("rbg")


def start(recipe: Recipe, plan: Plan, seed: jax.Array, images_NxHxWxC: jax.Array) -> Networks:
    """Returns the initial networks, with the whitening of these images."""

    def one(recipe: Recipe, draws: str) -> TrainState:
        (height, width, channels), model = images_NxHxWxC.shape[1:], network(recipe)
        shape = (height, width, channels)
        variables = model.init(stream(seed, draws), jnp.zeros((1, *shape), jnp.float32), train=False)
        variables = whitened(variables, normalize(images_NxHxWxC))
        optimizer = _bare(make_optimizer(recipe, plan))
        return init_state(model, optimizer, shape, seed, ema=recipe.lookahead, variables=variables)

    small = None if recipe.hardest is None else one(recipe.small(recipe.hardest), "small")
    return Networks(one(recipe, "init"), small)


def make_gather(recipe: Recipe, plan: Plan, seed: jax.Array, images_NxHxWxC: jax.Array, labels_N: jax.Array) -> Gather:
    """Returns `gather(step, rows_B) -> batch`: padded images as bytes, mirrored according to the step's epoch."""
    pixels, flips_N = padded(images_NxHxWxC, recipe.translate), first_flips(seed, len(images_NxHxWxC))

    def gather(step: jax.Array, rows_B: jax.Array) -> Batch:
        return {"image": oriented(plan, step, pixels[rows_B], flips_N[rows_B]), "label": labels_N[rows_B]}

    return gather


def oriented(plan: Plan, step: jax.Array, images_BxHxWxC: jax.Array, flips_B: jax.Array) -> jax.Array:
    """Mirrors images according to the step's epoch; for `flips_B` see `augment.first_flips`."""
    odd = step // plan.steps_per_epoch % 2 == 1
    return mirrored(images_BxHxWxC, flips_B ^ odd)


class SummedLoss(Classification):
    """Classification with the loss summed over the batch, on batches that already hold targets."""

    def prepare(self, batch: Batch) -> dict[str, jax.Array]:
        """Adds nothing."""
        return dict(batch)

    def loss(
        self, outputs: Any, batch: Batch, *, train: bool, auxiliary: Mapping[str, Any] = {}
    ) -> tuple[jax.Array, Sums]:
        """Computes the summed loss, and the same sums as `Classification`."""
        mean, sums = super().loss(outputs, batch, train=train, auxiliary=auxiliary)
        return len(outputs) * mean, sums


def _bare(tx: optax.GradientTransformation) -> Optimizer:
    """Wraps a transformation that has its rates built in."""
    return Optimizer(tx, None, None, lambda *_: tx, (), "speed run")


def make_step(recipe: Recipe, plan: Plan, seed: jax.Array, *, train_whitening_bias: bool) -> Step:
    """Returns `step(networks, batch) -> (networks, mean loss)`.

    It augments, chooses the hardest images if the recipe says so, takes the step of `cnn_jax.training`, and applies the
    lookahead. Rates are for the loss summed over the batch. In float16 a sum is also necessary: gradients of the mean
    would underflow.
    """

    one = make_train_step(
        network(recipe).clone(train_whitening_bias=train_whitening_bias),
        SummedLoss(tuple(map(str, range(NUM_CLASSES))), label_smoothing=recipe.label_smoothing),
        _bare(make_optimizer(recipe, plan)),
        lambda key, batch, first_index: batch,  # already augmented
        lambda batch: {**batch, "image": normalize(batch["image"])},
    )
    augment = make_augment(recipe, NUM_CLASSES)
    choose = None if recipe.hardest is None else make_choose(recipe, plan, recipe.hardest)

    def step(networks: Networks, batch: Batch) -> tuple[Networks, jax.Array]:
        state, small = networks
        images, targets = augment(stream(seed, "augment", state.step), batch["image"], batch["label"])
        if choose is not None and small is not None:
            small, rows_N = choose(small, images, targets)
            images, targets = images[rows_N], targets[rows_N]
        state, sums = one(state, {"image": images, "target": targets})
        if recipe.lookahead:
            state = lookahead(state, plan.total_steps)
        total, count = sums["loss"]
        return Networks(state, small), total / count

    return step


def evaluate(recipe: Recipe, variables: dict[str, Any], images_NxHxWxC: jax.Array, labels_N: jax.Array) -> jax.Array:
    """Returns the accuracy on images, in the views of the recipe (see `accuracy`)."""

    def predict(six_views: bool, rows: jax.Array | None) -> jax.Array:
        images = images_NxHxWxC if rows is None else images_NxHxWxC[rows]
        count = len(images)
        batches = -(-count // EVAL_BATCH)
        size = -(-count // batches)
        padded = jnp.pad(images, ((0, batches * size - count), (0, 0), (0, 0), (0, 0)))
        parts = padded.reshape(batches, size, *images.shape[1:])
        logits = jax.lax.map(lambda x_BxHxWxC: batch_logits(recipe, six_views, variables, x_BxHxWxC), parts)
        return logits.reshape(batches * size, -1)[:count]

    return accuracy(recipe, predict, labels_N)


def accuracy(recipe: Recipe, predict: Predict, labels_N: jax.Array) -> jax.Array:
    """Returns the share of images classified correctly, float32 scalar.

    Each image is classified in six views. If `recipe.uncertain` is below 1, only that share of them is, the images
    whose largest probability in one view is lowest; the others keep their one view.
    """
    if recipe.uncertain == 1.0:
        logits_NxK = predict(True, None)
    else:
        logits_NxK = predict(False, None)
        certainty_N = jax.nn.softmax(logits_NxK).max(axis=-1)
        _, rows = jax.lax.top_k(-certainty_N, max(1, int(recipe.uncertain * len(certainty_N))))
        logits_NxK = logits_NxK.at[rows].set(predict(True, rows))
    return jnp.mean((jnp.argmax(logits_NxK, -1) == labels_N).astype(jnp.float32))


def batch_logits(recipe: Recipe, six_views: bool, variables: Any, images_BxHxWxC: jax.Array) -> jax.Array:
    """Returns the logits (B, K) of uint8 images, in one view or six."""
    model, x_BxHxWxC = cast(committee.Network, network(recipe)), normalize(images_BxHxWxC)
    if six_views:
        return view_logits(model, variables, x_BxHxWxC, recipe.centre)
    return model.apply(variables, x_BxHxWxC, train=False)


def view_logits(model: committee.Network, variables: Any, x_BxHxWxC: jax.Array, centre: float = 0.5) -> jax.Array:
    """Averages the logits of six views (Jordan 2024, §3.5).

    The image has the weight `centre`; the rest goes to the image shifted by a pixel either way along the diagonal. Each
    of the three counts as it is and mirrored.
    """

    def both_sides(x: jax.Array) -> jax.Array:
        (mirror,) = committee.flip(x)
        return 0.5 * (model.apply(variables, x, train=False) + model.apply(variables, mirror, train=False))

    one, other = committee.shift(x_BxHxWxC)
    return centre * both_sides(x_BxHxWxC) + 0.5 * (1.0 - centre) * (both_sides(one) + both_sides(other))


def count_run_flops(recipe: Recipe, image_shape: tuple[int, int, int], train_images: int, test_images: int) -> int:
    """Counts the FLOPs of a run, two per multiply-add.

    Convolutions and the classifier count, with gradients at twice the forward pass; the fixed whitening does not. Once
    its bias is fixed as well, the first convolution needs no input gradient.
    """

    def forward(recipe: Recipe) -> tuple[int, int]:
        layers = layer_table(network(recipe), image_shape)
        return sum(layer.flops for layer in layers), next(row.flops for row in layers if row.name == "group1/conv1")

    plan, (whole, first) = recipe.plan(train_images), forward(recipe)
    batch = recipe.batch_size if recipe.hardest is None else recipe.hardest.count(recipe.batch_size)
    flops = batch * (3 * whole * plan.total_steps - first * (plan.total_steps - plan.whitening_steps))
    if recipe.hardest is not None:
        small, small_first = forward(recipe.small(recipe.hardest))
        learning = -(-plan.total_steps // recipe.hardest.every)
        flops += recipe.batch_size * (small * plan.total_steps + (2 * small - small_first) * learning)
    views = VIEWS if recipe.uncertain == 1.0 else 1 + VIEWS * recipe.uncertain
    return flops + round(views * whole * test_images)
