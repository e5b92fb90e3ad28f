"""The CIFAR-10 speed run: recipes, batches, optimizers and the whole program, against NumPy and PyTorch."""

import doctest
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn_jax.data import materialize, open_source
from cnn_jax.training.state import TrainState, stream
from experiments.cifar10_speedrun import augment, optimizer, program, streaming
from experiments.cifar10_speedrun import recipe as recipes
from experiments.cifar10_speedrun.recipe import MEAN, RECIPES, STD, Hardest, Plan, Recipe

pytestmark = pytest.mark.usefixtures("one_device")

SEED = jnp.uint32(3)


@pytest.fixture(autouse=True)
def quick_random_numbers():
    """Uses rbg, as the program does internally; the default generator takes seconds to compile."""
    with jax.default_prng_impl("rbg"):
        yield


def tiny(name: str, **changes: Any) -> Recipe:
    """The recipe shrunk to groups of 4, 16 and 16 filters and batches of 16."""
    return replace(RECIPES[name], width_factor=1 / 16, precision="float32", batch_size=16, **changes)


def synthetic(split: str) -> tuple[jax.Array, jax.Array]:
    images, labels = materialize(open_source("synthetic:20x20x3:10:64", split)).values()
    return jnp.asarray(images), jnp.asarray(labels)


# Recipes


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("muon94", Plan(25, 200, 75)),
        ("sgd94", Plan(48, 476, 144)),
        ("sgd95", Plan(48, 720, 144)),
        ("sgd96", Plan(48, 1776, 144)),
        ("hiverge94", Plan(32, 243, 7)),
        ("hardest96", Plan(48, 2160, 2160)),
    ],
)
def test_step_counts_match_the_records(name, plan):
    assert RECIPES[name].plan(50_000) == plan


def test_the_papers_rates_are_converted_for_a_summed_loss():
    recipe, scale = RECIPES["sgd94"], 1024 * (1 + 1 / 0.15)
    assert scale == pytest.approx(7850.67, abs=0.01)
    assert recipe.filter_rate == recipe.output_rate == recipe.whitening_rate == pytest.approx(11.5 / scale)
    assert recipe.norm_rate == pytest.approx(64 * 11.5 / scale)
    assert recipe.weight_decay * recipe.batch_size == pytest.approx(0.0153 * 1024 / scale)
    assert RECIPES["muon94"].weight_decay * 2000 == pytest.approx(0.004)


@pytest.mark.parametrize(
    ("name", "step", "factor"),
    [
        ("muon94", 0, 1.0),
        ("muon94", 50, 0.75),
        ("muon94", 199, 1 / 200),
        ("sgd94", 0, 0.2),
        ("sgd94", 109, 1.0),  # int(0.23 · 476)
        ("sgd94", 54, 0.2 + 0.8 * 54 / 109),
        ("sgd94", 475, 1 - 0.93 * 366 / 367),
        ("sgd96", 177, 1.0),
        ("sgd96", 1775, 1 / 1599),
    ],
)
def test_factor_of_the_rates(name, step, factor):
    recipe = RECIPES[name]
    assert float(optimizer.schedule(recipe, recipe.plan(50_000))(step)) == pytest.approx(factor, abs=1e-6)


def test_rate_of_the_whitening_bias_ends_with_its_training():
    muon, sgd = (
        optimizer.whitening_schedule(recipe, recipe.plan(50_000)) for recipe in (RECIPES["muon94"], RECIPES["sgd94"])
    )
    assert [float(muon(step)) for step in (0, 30, 75, 199)] == pytest.approx([1.0, 0.6, 0.0, 0.0])
    assert [float(sgd(step)) for step in (0, 109, 144, 475)] == pytest.approx([0.2, 1.0, 0.0, 0.0])


def test_flops_are_those_published():
    shape = (32, 32, 3)
    published = {"muon94": 0.29e15, "sgd94": 0.36e15, "sgd95": 1.39e15, "sgd96": 4.9e15}  # counting whole epochs
    published |= {"hiverge94": 0.26e15, "hardest96": 3.1e15}
    for name, flops in published.items():
        assert program.count_run_flops(RECIPES[name], shape, 50_000, 10_000) == pytest.approx(flops, rel=0.05)


# Batches


def test_every_epoch_has_its_own_permutation():
    plan = Plan(steps_per_epoch=3, total_steps=8, whitening_steps=0)
    rows = np.asarray(augment.batch_rows(SEED, 17, 5, plan))
    assert rows.shape == (8, 5) and rows.dtype == np.int32
    epochs = [rows[0:3].ravel(), rows[3:6].ravel(), rows[6:].ravel()]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == len(epoch) and 0 <= epoch.min() and epoch.max() < 17
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[0].tolist() != sorted(epochs[0])


def test_images_are_mirrored_in_every_second_epoch():
    recipe = tiny("sgd94")
    images, labels = synthetic("train")
    gather = program.make_gather(recipe, recipe.plan(64), SEED, images, labels)
    rows = jnp.arange(64, dtype=jnp.int32)
    even, odd, even_again = (gather(jnp.int32(step), rows) for step in (0, 4, 8))  # 4 steps per epoch
    np.testing.assert_array_equal(even["label"], labels)
    np.testing.assert_array_equal(even["image"], even_again["image"])
    np.testing.assert_array_equal(even["image"], odd["image"][:, :, ::-1])
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    as_it_is = (np.asarray(even["image"]) == padded).all((1, 2, 3))
    in_mirror = (np.asarray(even["image"]) == padded[:, :, ::-1]).all((1, 2, 3))
    assert (as_it_is ^ in_mirror).all() and 16 < as_it_is.sum() < 48


def test_crops_are_windows_of_the_padded_images_at_all_places():
    images, _ = synthetic("train")
    many = jnp.tile(images, (4, 1, 1, 1))
    padded = np.asarray(augment.padded(many, 1))
    np.testing.assert_array_equal(padded, np.pad(many, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect"))
    crops = np.asarray(augment.crop(jax.random.key(0), jnp.asarray(padded), 1))
    places = {(y, x): padded[:, y : y + 20, x : x + 20] for y in range(3) for x in range(3)}
    found = {place: (crops == window).all((1, 2, 3)) for place, window in places.items()}
    assert np.logical_or.reduce(list(found.values())).all()
    assert all(place.any() for place in found.values())


def test_cutout_blanks_a_whole_square_of_mean_colour():
    images = jnp.ones((50, 20, 16, 3))
    cut = np.asarray(augment.cutout(jax.random.key(0), images, 6))
    corners = set()
    for image in cut:
        rows, columns = np.nonzero((image != 1).any(-1))
        assert len(rows) == 36 and np.ptp(rows) == np.ptp(columns) == 5
        np.testing.assert_allclose(image[rows, columns], np.tile(MEAN, (36, 1)), rtol=1e-6)
        corners.add((rows.min(), columns.min()))
    assert len(corners) > 20 and max(row for row, _ in corners) == 14 and max(column for _, column in corners) == 10


def test_jitter_acts_on_normalized_pixels_and_is_constant_over_an_image():
    images, _ = synthetic("train")
    x = images.astype(jnp.float32) / 255.0
    mean, std = np.asarray(MEAN, np.float32), np.asarray(STD, np.float32)
    before = (np.asarray(x) - mean) / std
    after = (np.asarray(augment.jitter(jax.random.key(0), x, 0.2, 0.1)) - mean) / std
    factors, shifts = [], []
    for one, other in zip(before, after):
        factor, offset = np.polyfit(one.ravel(), other.ravel(), 1)
        np.testing.assert_allclose(other, factor * one + offset, atol=1e-4)
        factors.append(factor - 1)
        shifts.append(offset / factor)
    for found, limit in ((factors, 0.1), (shifts, 0.2)):
        assert 0.8 * limit < np.abs(found).max() <= limit + 1e-4 and min(found) < 0 < max(found)


def test_augmented_images_are_shifted_cut_and_in_the_unit_range():
    images, labels = synthetic("train")
    both = augment.make_augment(tiny("sgd96", translate=1), 10)
    x, targets = both(jax.random.key(0), augment.padded(images, 1), labels)
    assert x.shape == (64, 20, 20, 3) and x.dtype == jnp.float32 and 0 <= x.min() and x.max() <= 1
    np.testing.assert_array_equal(jnp.argmax(targets, -1), labels)
    blank = np.isclose(x, np.asarray(MEAN, np.float32)).all(-1).sum((1, 2))
    assert (blank >= 12 * 12).all()


# Optimizers


def newton_schulz_by_hand(
    matrix: np.ndarray, quintic: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
) -> np.ndarray:
    x = matrix / np.linalg.norm(matrix)
    x = x.T if len(x) > len(x.T) else x
    for _ in range(3):
        a = x @ x.T
        x = quintic[0] * x + (quintic[1] * a + quintic[2] * a @ a) @ x
    return x.T if len(matrix) > len(matrix.T) else x


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_newton_schulz_matches_numpy(shape):
    matrices = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    got = optimizer.newton_schulz(jnp.asarray(matrices), jnp.float32)
    np.testing.assert_allclose(got, [newton_schulz_by_hand(m) for m in matrices], atol=1e-5)
    values = np.linalg.svd(np.asarray(got), compute_uv=False)
    assert 0.3 < values.min() and values.max() < 1.3
    assert optimizer.newton_schulz(jnp.asarray(matrices), jnp.bfloat16).dtype == jnp.bfloat16


def test_each_kernel_is_orthogonalised_separately():
    numbers = np.random.default_rng(0)
    shapes = {"a": (3, 3, 2, 4), "b": (3, 3, 4, 4), "c": (3, 3, 2, 4)}
    kernels = {name: jnp.asarray(numbers.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    got = optimizer.orthogonalized(kernels, jnp.float32)
    for name, kernel in kernels.items():
        expected = newton_schulz_by_hand(np.asarray(kernel).reshape(-1, 4)).reshape(kernel.shape)
        np.testing.assert_allclose(got[name], expected, atol=1e-5)


def test_muon_rescales_the_weights_before_each_step():
    kernels = {"conv": jnp.full((3, 3, 2, 4), 5.0)}
    tx = optimizer.muon(lambda step: 0.0, 0.6, jnp.float32)
    updates, _ = tx.update({"conv": jnp.ones((3, 3, 2, 4))}, tx.init(kernels), kernels)
    after: Any = optax.apply_updates(kernels, updates)
    assert float(jnp.linalg.norm(after["conv"])) == pytest.approx(2.0, rel=1e-5)


def test_muon_rescales_when_due_and_decays():
    kernels: Any = {"conv": jnp.full((3, 3, 2, 4), 5.0)}
    due = jnp.asarray([False, True])
    tx = optimizer.muon(lambda step: 0.1, 0.6, jnp.float32, rescaled=lambda step: due[step], decay=0.5)
    state, still = tx.init(kernels), {"conv": jnp.zeros((3, 3, 2, 4))}
    updates: Any
    updates, state = tx.update(still, state, kernels)
    np.testing.assert_allclose(kernels["conv"] + updates["conv"], 0.95 * 5.0, rtol=1e-5)
    updates, state = tx.update(still, state, kernels)
    assert float(jnp.linalg.norm(kernels["conv"] + updates["conv"])) == pytest.approx(0.95 * 2.0, rel=1e-5)


def test_rescaling_becomes_rarer():
    recipe = RECIPES["hiverge94"]
    (steps,) = np.nonzero(optimizer.rescaled_steps(recipe, recipe.plan(50_000)))
    gaps = np.diff(steps)
    assert steps[0] == 1 and gaps[0] == 2 and gaps[-1] >= 15 and (np.diff(gaps) >= 0).all()
    assert optimizer.rescaled_steps(RECIPES["muon94"], Plan(4, 9, 2)).all()


def test_parameters_are_in_their_groups():
    recipe = tiny("muon94")
    images, _ = synthetic("train")
    state = jax.eval_shape(lambda: program.start(recipe, recipe.plan(64), SEED, images).main)
    groups = jax.tree_util.tree_map_with_path(optimizer._group, state.params)
    assert groups["whiten"] == {"bias": "whitening"} and groups["output"] == {"kernel": "output"}
    assert groups["group2"]["conv1"] == {"kernel": "filters"} and groups["group3"]["bn2"] == {"bias": "norms"}


def test_lookahead_by_hand():
    def state(step: int) -> TrainState:
        return TrainState(
            jnp.int32(step),
            seed=jnp.uint32(0),
            learning_rate=jnp.float32(0),
            params=jnp.float32(2.0),
            batch_stats=jnp.float32(6.0),
            opt_state=(),
            ema={"params": jnp.float32(1.0), "batch_stats": jnp.float32(2.0)},
        )

    between = optimizer.lookahead(state(9), 20)
    assert (between.params, between.batch_stats, between.ema["params"]) == (2.0, 6.0, 1.0)
    keep = 0.95**5 * 0.5**3
    due = optimizer.lookahead(state(10), 20)
    assert float(due.params) == float(due.ema["params"]) == pytest.approx(keep * 1 + (1 - keep) * 2)
    assert float(due.batch_stats) == float(due.ema["batch_stats"]) == pytest.approx(keep * 2 + (1 - keep) * 6)


# Steps, against PyTorch


class Transcription:
    """The recipe as in its published code: PyTorch's own layers, SGD and gradients, in float32.

    Muon is written out here from its description. Arrays are NCHW, kernels OIHW. For networks of depth 2 only.
    """

    def __init__(self, torch: Any, recipe: Recipe, plan: Plan, state: TrainState):
        self.torch, self.recipe, self.plan, self.step_number, self.rescaled = torch, recipe, plan, 0, 0
        self.whitening = self.tensor(state.batch_stats["whiten"]["kernel"])
        self.parameters = jax.tree_util.tree_map_with_path(
            lambda path, leaf: self.tensor(leaf).requires_grad_(), state.params
        )
        bias, head = self.parameters["whiten"]["bias"], self.parameters["output"]["kernel"]
        groups = [layers for name, layers in self.parameters.items() if name.startswith("group")]
        layers = [(name, layer) for group in groups for name, layer in group.items()]
        self.filters = [layer["kernel"] for name, layer in layers if name.startswith("conv")]
        norms = [layer["bias"] for name, layer in layers if name.startswith("bn")]
        decay = recipe.weight_decay * recipe.batch_size
        chosen = [([bias], recipe.whitening_rate), (norms, recipe.norm_rate), ([head], recipe.output_rate)]
        if recipe.muon_momentum is None:
            chosen.append((self.filters, recipe.filter_rate))
        self.rates = [rate for _, rate in chosen]
        configs = [{"params": params, "lr": rate, "weight_decay": decay / rate} for params, rate in chosen]
        self.sgd = torch.optim.SGD(configs, momentum=recipe.momentum, nesterov=True)
        self.buffers = [torch.zeros_like(kernel) for kernel in self.filters]
        self.slow = [p.detach().clone() for p in self.all()]

    def tensor(self, leaf: jax.Array) -> Any:
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[leaf.ndim]
        return self.torch.tensor(np.ascontiguousarray(np.asarray(leaf).transpose(axes)))

    def all(self) -> list[Any]:
        return jax.tree.leaves(self.parameters)

    def logits(self, x: Any) -> Any:
        f = self.torch.nn.functional
        bias = self.parameters["whiten"]["bias"]
        activation = f.silu if "activation=silu" in self.recipe.model_args else f.gelu
        x = f.gelu(f.conv2d(x, self.whitening, bias if self.bias_trained else bias.detach()))
        for name in ("group1", "group2", "group3"):
            group = self.parameters[name]
            x = f.max_pool2d(f.conv2d(x, group["conv1"]["kernel"], padding=1), 2)
            x = activation(f.batch_norm(x, None, None, None, group["bn1"]["bias"], True, 0.0, 1e-12))
            x = f.conv2d(x, group["conv2"]["kernel"], padding=1)
            x = activation(f.batch_norm(x, None, None, None, group["bn2"]["bias"], True, 0.0, 1e-12))
        x = f.max_pool2d(x, x.shape[-1]).flatten(1)
        return x @ self.parameters["output"]["kernel"].T / (x.shape[-1] if self.recipe.muon_momentum is not None else 9)

    @property
    def bias_trained(self) -> bool:
        return self.step_number < self.plan.whitening_steps

    def factors(self) -> tuple[float, float]:
        """Schedule factors of the whitening bias's rate and of the other rates."""
        step, total = self.step_number, self.plan.total_steps
        if self.recipe.muon_momentum is not None:
            return 1 - step / self.plan.whitening_steps, 1 - step / total
        warmup = int(total * self.recipe.warmup)
        if step < warmup:
            share = step / warmup
            factor = 0.2 * (1 - share) + 1.0 * share
        else:
            share = (step - warmup) / (total - warmup)
            factor = 1.0 * (1 - share) + self.recipe.end * share
        return factor, factor

    def losses(self, x_BxHxWxC: np.ndarray, labels: np.ndarray) -> Any:
        return self.torch.nn.functional.cross_entropy(
            self.logits(self.torch.tensor(x_BxHxWxC.transpose(0, 3, 1, 2))),
            self.torch.tensor(labels).long(),
            label_smoothing=self.recipe.label_smoothing,
            reduction="none",
        )

    def step(self, x_BxHxWxC: np.ndarray, labels: np.ndarray) -> float:
        losses = self.losses(x_BxHxWxC, labels)
        self.update(losses.sum())
        self.step_number += 1
        if self.recipe.lookahead and self.step_number % 5 == 0:
            keep = 0.95**5 * (self.step_number / self.plan.total_steps) ** 3
            with self.torch.no_grad():
                for slow, parameter in zip(self.slow, self.all()):
                    slow.lerp_(parameter, 1 - keep)
                    parameter.copy_(slow)
        return losses.mean().item()

    def choose(self, x_BxHxWxC: np.ndarray, labels: np.ndarray, keep: int, every: int) -> np.ndarray:
        losses = self.losses(x_BxHxWxC, labels)
        rows = losses.argsort()[-keep:]
        if self.step_number % every == 0:
            self.update(losses[rows].sum())
        self.step_number += 1
        return rows.numpy()

    def update(self, loss: Any) -> None:
        for parameter in self.all():
            parameter.grad = None
        loss.backward()
        of_bias, of_others = self.factors()
        for group, rate, factor in zip(self.sgd.param_groups, self.rates, [of_bias, *[of_others] * 3]):
            group["lr"] = rate * factor
        self.sgd.step()
        if self.recipe.muon_momentum is not None:
            with self.torch.no_grad():
                self.muon(self.recipe.filter_rate * of_others, self.recipe.muon_momentum)

    def muon(self, rate: float, momentum: float) -> None:
        recipe, number = self.recipe, self.step_number + 1
        first, growth = recipe.rescale_every
        rescale = number - self.rescaled >= first + int(growth * number / self.plan.total_steps)
        self.rescaled = number if rescale else self.rescaled
        for kernel, buffer in zip(self.filters, self.buffers):
            buffer.mul_(momentum).add_(kernel.grad)
            direction = (kernel.grad + momentum * buffer).flatten(1)
            orthogonal = newton_schulz_by_hand(direction.numpy(), recipe.quintic)
            if rescale:
                kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
            kernel.sub_(rate * self.torch.tensor(orthogonal).reshape(kernel.shape))
            if recipe.muon_decay:
                kernel.mul_(1 - rate * recipe.weight_decay * recipe.batch_size)


def same(reference: Transcription, params: Any, number: int) -> None:
    """Asserts that the parameters match PyTorch's."""
    jax.tree_util.tree_map_with_path(
        lambda path, ours, theirs: np.testing.assert_allclose(
            reference.tensor(ours).numpy(),
            theirs.detach().numpy(),
            atol=1e-4 * float(theirs.detach().abs().max()) + 1e-6,
            err_msg=f"{jax.tree_util.keystr(path)} after step {number + 1}",
        ),
        params,
        reference.parameters,
    )


def seen(recipe: Recipe, step: jax.Array, batch: Any) -> np.ndarray:
    """The network's input for a batch: augmented and normalised."""
    images, _ = augment.make_augment(recipe, 10)(stream(SEED, "augment", step), batch["image"], batch["label"])
    return (np.asarray(images) - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)


@pytest.mark.parametrize(
    "recipe",
    [
        # A lower rate, because Newton-Schulz amplifies rounding errors 41-fold where the gradient is nearly 0.
        tiny("muon94", epochs=1.25, filter_rate=0.024),
        tiny("sgd94", epochs=1.75, whitening_epochs=0.75),
        tiny("hiverge94", epochs=1.25, filter_rate=0.02, rescale_every=(2, 2)),
    ],
    ids=["muon94", "sgd94", "hiverge94"],
)
def test_steps_are_those_of_pytorch(recipe):
    torch = pytest.importorskip("torch")
    images, labels = synthetic("train")
    plan = recipe.plan(64)
    networks = jax.jit(partial(program.start, recipe, plan))(SEED, images)
    reference = Transcription(torch, recipe, plan, networks.main)
    gather = program.make_gather(recipe, plan, SEED, images, labels)
    rows = augment.batch_rows(SEED, 64, 16, plan)
    steps = {bias: jax.jit(program.make_step(recipe, plan, SEED, train_whitening_bias=bias)) for bias in (True, False)}
    for number in range(plan.total_steps):
        batch = gather(networks.main.step, rows[number])
        expected = reference.step(seen(recipe, networks.main.step, batch), np.asarray(batch["label"]))
        networks, loss = steps[number < plan.whitening_steps](networks, batch)
        assert float(loss) == pytest.approx(expected, abs=1e-4)
        same(reference, networks.main.params, number)
    if recipe.lookahead:
        end = [reference.tensor(leaf).numpy() for leaf in jax.tree.leaves(networks.main.ema["params"])]
        for ours, theirs in zip(end, reference.slow):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4 * float(theirs.abs().max()) + 1e-6)
    assert number + 1 == plan.total_steps > 4


def test_small_network_chooses_the_images_as_in_pytorch():
    torch = pytest.importorskip("torch")
    images, labels = synthetic("train")
    hardest = Hardest(share=0.5, widths=(32, 64, 64), every=2)
    recipe = tiny("sgd94", epochs=1, whitening_epochs=1, hardest=hardest)
    plan = recipe.plan(64)
    networks = jax.jit(partial(program.start, recipe, plan))(SEED, images)
    assert networks.small is not None
    reference = Transcription(torch, recipe, plan, networks.main)
    small = Transcription(torch, recipe.small(hardest), replace(plan, whitening_steps=0), networks.small)
    gather = program.make_gather(recipe, plan, SEED, images, labels)
    step = jax.jit(program.make_step(recipe, plan, SEED, train_whitening_bias=True))
    for number, rows in enumerate(augment.batch_rows(SEED, 64, 16, plan)):
        batch = gather(networks.main.step, rows)
        x, label = seen(recipe, networks.main.step, batch), np.asarray(batch["label"])
        kept = small.choose(x, label, keep=8, every=2)
        before = networks.small.params
        networks, loss = step(networks, batch)
        assert float(loss) == pytest.approx(reference.step(x[kept], label[kept]), abs=1e-4)
        same(reference, networks.main.params, number)
        same(small, networks.small.params, number)
        still = jax.tree.map(lambda a, b: bool((a == b).all()), before, networks.small.params)
        assert all(jax.tree.leaves(still)) == (number % 2 == 1)
    assert (networks.small.params["whiten"]["bias"] == 0).all()


# Evaluation


class Weighted:
    """A stand-in for a network: each class's logit is a weighted sum of the pixels."""

    def apply(self, variables: Any, x_BxHxWxC: jax.Array, *, train: bool) -> jax.Array:
        assert not train
        return x_BxHxWxC.reshape(len(x_BxHxWxC), -1) @ variables


def six_views_by_hand(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    def score(view: np.ndarray) -> np.ndarray:
        return view.reshape(len(view), -1) @ weights

    size = x.shape[1]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    total = np.zeros((len(x), weights.shape[1]))
    for view, weight in (
        (x, 0.5),
        (padded[:, :size, :size], 0.25),
        (padded[:, 2:, 2:], 0.25),
    ):
        total += weight * (score(view) + score(view[:, :, ::-1])) / 2
    return total


def test_logits_are_the_mean_over_six_views():
    numbers = np.random.default_rng(0)
    x, weights = numbers.normal(size=(3, 5, 5, 2)), numbers.normal(size=(50, 4))
    got = program.view_logits(Weighted(), jnp.asarray(weights, jnp.float32), jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, six_views_by_hand(x, weights), atol=1e-5)


def test_least_certain_images_are_seen_in_six_views():
    certain = np.array([[9.0, 0.0], [0.1, 0.0], [0.0, 5.0], [0.0, 0.2]], np.float32)
    asked = []

    def predict(six_views: bool, rows: Any) -> jax.Array:
        asked.append((six_views, None if rows is None else sorted(rows.tolist())))
        return jnp.asarray(certain if rows is None else 1.0 - certain[np.asarray(rows)])

    share = program.accuracy(replace(RECIPES["hiverge94"], uncertain=0.5), predict, jnp.array([0, 1, 1, 0]))
    assert asked == [(False, None), (True, [1, 3])] and float(share) == 1.0
    assert float(program.accuracy(RECIPES["muon94"], predict, jnp.array([0, 1, 1, 0]))) == 0.5
    assert asked[2:] == [(True, None)]


@pytest.mark.parametrize("batch", [2, 4, 100])
def test_every_test_image_counts_once(batch, monkeypatch):
    monkeypatch.setattr(program, "EVAL_BATCH", batch)
    monkeypatch.setattr(program, "network", lambda recipe: Weighted())
    images, labels = (a[:7] for a in synthetic("test"))
    weights = np.random.default_rng(0).normal(size=(20 * 20 * 3, 10))
    x = (np.asarray(images) / 255 - MEAN) / STD
    hits = six_views_by_hand(x, weights).argmax(-1)
    labels = jnp.where(jnp.arange(7) < 3, jnp.asarray(hits), (jnp.asarray(hits) + 1) % 10)  # 3 of 7 right
    share = program.evaluate(tiny("muon94"), jnp.asarray(weights, jnp.float32), images, labels)  # type: ignore[arg-type]
    assert float(share) == pytest.approx(3 / 7)


# Whole runs


@pytest.fixture(scope="module")
def runs():
    """Three runs of one compiled program: two with seed 0, one with seed 1."""
    recipe = tiny("muon94", epochs=10, whitening_epochs=1)
    run = jax.jit(partial(program.speedrun, recipe))  # module scope: the default generator
    return [run(jnp.uint32(seed), *synthetic("train"), *synthetic("test")) for seed in (0, 0, 1)]


def test_loss_falls_and_images_are_recognised(runs):
    losses = np.asarray(runs[0].losses_S)
    assert losses.shape == (40,) and losses[:4].mean() == pytest.approx(np.log(10), abs=0.5)
    assert losses[-4:].mean() < 0.8 * losses[:4].mean()
    assert float(runs[0].accuracy) > 0.4


def test_same_seed_same_run_and_other_seed_another(runs):
    jax.tree.map(np.testing.assert_array_equal, runs[0], runs[1])
    assert not np.array_equal(runs[0].losses_S, runs[2].losses_S)


def test_returned_variables_are_those_that_were_scored(runs):
    recipe = tiny("muon94")
    score = program.evaluate(recipe, runs[0].variables, *synthetic("test"))
    assert float(score) == float(runs[0].accuracy)


def test_streamed_run_matches_the_resident_one(runs):
    train, test = ((np.asarray(images), np.asarray(labels)) for images, labels in map(synthetic, ("train", "test")))
    recipe = tiny("muon94", epochs=10, whitening_epochs=1)
    run = streaming.Streamed(recipe, train, test, steps=18)  # 4 steps, then 18 twice
    with jax.default_prng_impl("threefry2x32"):  # the default generator
        outcome = run(jnp.uint32(0))
        np.testing.assert_allclose(outcome.losses_S[:8], runs[0].losses_S[:8], rtol=1e-4)
        np.testing.assert_allclose(outcome.losses_S, runs[0].losses_S, rtol=0.1)
        assert run.score(outcome.variables, test) == float(outcome.accuracy)
        assert float(outcome.accuracy) == pytest.approx(float(runs[0].accuracy), abs=0.1)
        other = run(jnp.uint32(0), (train[1] + 1) % 10)
    assert not np.array_equal(other.losses_S[1:], outcome.losses_S[1:])


def test_images_are_sent_in_parts_of_a_limited_size():
    images = np.zeros((10, 32, 32, 3), np.uint8)
    assert streaming.chunk_steps(RECIPES["muon94"], images) * 2000 * 3072 <= 2**26
    assert streaming.chunk_steps(replace(RECIPES["muon94"], batch_size=10**6), images) == 1


def test_examples():
    assert doctest.testmod(recipes).failed == doctest.testmod(optimizer).failed == 0


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_published_sizes_fit_together(name):
    recipe = RECIPES[name]
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            ((), jnp.uint32),
            ((45_000, 32, 32, 3), jnp.uint8),
            ((45_000,), jnp.int32),
            ((5_000, 32, 32, 3), jnp.uint8),
            ((5_000,), jnp.int32),
        )
    ]
    outcome = jax.eval_shape(partial(program.speedrun, recipe), *shapes)
    assert outcome.losses_S.shape == (recipe.plan(45_000).total_steps,) and outcome.accuracy.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(outcome.variables)} == {jnp.dtype("float32")}, "float32 masters"
