"""Optimizers against their papers' formulas, transcribed into NumPy; weight decay, clipping, freezing, schedules."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from model_checks import each
from parts import optimizer_of

from cnn_jax.errors import UserError
from cnn_jax.optim.optimizers import METHODS, REFUSED, Optimizer, get_optimizer_spec, optax_factories
from cnn_jax.optim.schedules import SCHEDULES, make_schedule

GRADIENTS = [np.array([0.3, -2.0]), np.array([-0.1, -1.0]), np.array([0.7, 4.0])]
START = np.array([1.0, -0.5])

# Each takes gradients g₁, g₂, … and yields the updates of w, in float64 and in the notation of the paper.


def gradient_descent(gradients: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for g in gradients:
        yield -0.01 * g


def momentum(gradients: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    v = np.zeros(2)
    for g in gradients:
        v = 0.9 * v - 0.01 * g
        yield v


def nesterov(gradients: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Gradients are taken at the look-ahead point, which is also the point that is stored (Bengio et al. 2013)."""
    v = np.zeros(2)
    for g in gradients:
        before, v = v, 0.9 * v - 0.01 * g
        yield -0.9 * before + 1.9 * v


def adagrad(gradients: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    total = np.zeros(2)
    for g in gradients:
        total += g**2
        yield -0.01 * g / np.sqrt(total)


def adadelta(gradients: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Algorithm 1, with ρ = 0.95 and ε = 1e-6."""
    mean_g, mean_x = np.zeros(2), np.zeros(2)
    for g in gradients:
        mean_g = 0.95 * mean_g + 0.05 * g**2
        x = -np.sqrt(mean_x + 1e-6) / np.sqrt(mean_g + 1e-6) * g
        mean_x = 0.95 * mean_x + 0.05 * x**2
        yield x


def rmsprop(gradients: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    mean = np.zeros(2)
    for g in gradients:
        mean = 0.9 * mean + 0.1 * g**2
        yield -0.001 * g / (np.sqrt(mean) + 1e-8)


def adam(gradients: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    m, v = np.zeros(2), np.zeros(2)
    for t, g in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        yield -0.001 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)


def adamax(gradients: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    m, u = np.zeros(2), np.zeros(2)
    for t, g in enumerate(gradients, 1):
        m, u = 0.9 * m + 0.1 * g, np.maximum(0.999 * u, np.abs(g))
        yield -0.002 / (1 - 0.9**t) * m / u


def nadam(gradients: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Algorithm 2 with constant μ = 0.9 and Adam's bias correction of the second moment."""
    m, n = np.zeros(2), np.zeros(2)
    for t, g in enumerate(gradients, 1):
        m, n = 0.9 * m + 0.1 * g, 0.999 * n + 0.001 * g**2
        m_hat = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        yield -0.002 * m_hat / (np.sqrt(n / (1 - 0.999**t)) + 1e-8)


PAPERS = (gradient_descent, momentum, nesterov, adagrad, adadelta, rmsprop, adam, adamax, nadam)


def updates_of(optimizer: Optimizer, params: Any, gradients: list) -> list:
    state, found = optimizer.tx.init(params), []
    for gradient in gradients:
        update, state = optimizer.tx.update(gradient, state, params)
        params = optax.apply_updates(params, update)
        found.append(update)
    return found


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.__name__)
def test_three_steps_follow_the_paper(paper: Callable):
    optimizer = optimizer_of(paper.__name__, total_steps=3)
    actual = updates_of(optimizer, jnp.asarray(START, jnp.float32), [jnp.asarray(g, jnp.float32) for g in GRADIENTS])
    np.testing.assert_allclose(actual, list(paper(GRADIENTS)), rtol=2e-5)  # 1 − 0.999 has few digits in float32


def random_problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares ½|Aw − b|², and a start: A (8, 2), b (8,), w (2,)."""
    draw = np.random.default_rng(17)
    return draw.normal(size=(8, 2)), draw.normal(size=8), draw.normal(size=2)


def points_of_the_paper(paper: Callable, steps: int) -> np.ndarray:
    """Where a paper's rule goes on the random problem, in NumPy: (steps + 1, 2)."""
    a, b, w = random_problem()
    points = [w]

    def gradients() -> Iterator[np.ndarray]:
        for _ in range(steps):
            yield a.T @ (a @ points[-1] - b)

    for update in paper(gradients()):
        points.append(points[-1] + update)
    return np.array(points)


def points_of(name: str, steps: int) -> np.ndarray:
    """Where the optimizer goes on the random problem, in float64: (steps + 1, 2)."""
    a, b, w = random_problem()
    with jax.enable_x64(True):
        optimizer, points = optimizer_of(name, total_steps=steps), cast(list[Any], [jnp.asarray(w)])
        state = optimizer.tx.init(points[0])
        for _ in range(steps):
            update, state = optimizer.tx.update(jnp.asarray(a.T @ (a @ np.asarray(points[-1]) - b)), state, points[-1])
            points.append(optax.apply_updates(points[-1], update))
        return np.array(points)


# AdaMax's ε, which Optax adds to |g|, is not in the paper; the others differ by rounding only.
PRECISION = {"adamax": 1e-6}


@pytest.mark.parametrize("paper", PAPERS, ids=lambda paper: paper.__name__)
def test_thirty_steps_on_a_random_problem_follow_the_paper(paper: Callable):
    """Each gradient is taken where the steps before led, so that a deviation would grow."""
    expected, actual = points_of_the_paper(paper, 30), points_of(paper.__name__, 30)
    assert np.abs(expected[-1] - expected[0]).min() > 1e-3
    np.testing.assert_allclose(actual - actual[0], expected - expected[0], rtol=PRECISION.get(paper.__name__, 1e-11))


def test_momentum_is_polyaks_heavy_ball():
    """w⁺ = w − η∇f(w) + β(w − w⁻), Polyak 1964."""
    a, b, w = random_problem()
    points = [w, w]
    for _ in range(30):
        points.append(points[-1] - 0.01 * a.T @ (a @ points[-1] - b) + 0.9 * (points[-1] - points[-2]))
    np.testing.assert_allclose(points_of("momentum", 30), points[1:], rtol=1e-11)


def test_nesterov_stores_the_points_at_which_gradients_are_taken():
    """v⁺ = μv − η∇f(θ + μv) and θ⁺ = θ + v⁺, Sutskever et al. 2013, eq. 3 and 4; ours is θ + μv."""
    a, b, theta = random_problem()
    v = np.zeros(2)
    points = [theta]
    for _ in range(30):
        v = 0.9 * v - 0.01 * a.T @ (a @ (theta + 0.9 * v) - b)
        theta = theta + v
        points.append(theta + 0.9 * v)
    np.testing.assert_allclose(points_of("nesterov", 30), points, rtol=1e-11)


def test_sgd_is_gradient_descent():
    assert METHODS["sgd"] == METHODS["gradient_descent"]


def problem() -> tuple[dict, Callable]:
    """Parameters shaped like a layer's, and a least-squares loss whose minimum, 0, is at the targets."""
    shapes = {"conv": {"kernel": (2, 2, 3, 4), "bias": (4,)}}
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    params = jax.tree.map(lambda shape: jnp.full(shape, 0.3), shapes, is_leaf=is_shape)
    key = jax.random.key(0)
    targets = jax.tree.map(lambda shape: 0.5 + jax.random.normal(key, shape), shapes, is_leaf=is_shape)
    half_squares = lambda p, target: 0.5 * jnp.mean((p - target) ** 2)  # noqa: E731
    return params, lambda p: sum(jax.tree.leaves(jax.tree.map(half_squares, p, targets)))


@pytest.mark.parametrize(
    "name", each(sorted({*METHODS, *optax_factories()}), quick=(*METHODS, "adamw", "lion", "muon"))
)
def test_every_optimizer_descends_under_jit_scan_and_donation(name: str):
    params, loss = problem()
    optimizer = optimizer_of(name, learning_rate=get_optimizer_spec(name).learning_rate or 0.01, total_steps=20)
    state = optimizer.tx.init(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    train = jax.jit(lambda *carry: jax.lax.scan(step, carry, None, length=20)[0], donate_argnums=(0, 1))
    before = float(loss(params))
    trained, after_state = train(params, state)
    assert float(loss(trained)) < before
    assert jax.tree.structure(after_state) == jax.tree.structure(state)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_with_the_reason(name: str):
    with pytest.raises(UserError, match=f"^optimizer {name} cannot be used here: .*; use "):
        optimizer_of(name, learning_rate=0.1, total_steps=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "adm"}, r"unknown optimizer 'adm'; perhaps you meant .*adam"),
        ({"name": "adam", "args": ["beta=0.9"]}, r"no argument 'beta'.*known: b1=0.9, b2=0.999"),
        (
            {"name": "adam", "args": ["b1=high"]},
            r"`optimizer_args`: b1=high for optimizer adam: write b1=NUMBER",
        ),
        ({"name": "adam", "args": ["b1=nan"]}, r"write b1=NUMBER"),
        ({"name": "adam", "args": ["b1"]}, r"is not key=value"),
        ({"name": "adam", "args": ["b1=0.9", "b1=0.8"]}, r"b1 is given twice"),
        ({"name": "adam", "args": ["learning_rate=1"]}, r"no argument 'learning_rate'"),
        ({"name": "adamw", "args": ["weight_decay=1"]}, r"no argument 'weight_decay'"),
        (
            {"name": "adam", "args": ["mu_dtype=float31"]},
            r"`optimizer_args`: Optax refuses mu_dtype=float31 for optimizer adam \(.*\): correct it",
        ),
        ({"name": "rmsprop", "args": ["centered=1"]}, r"write centered=true\|false"),
        (
            {"name": "lamb"},
            r"lamb has no usual learning rate: set `learning_rate`",
        ),
        ({"name": "adam", "schedule": "cosin"}, r"unknown schedule 'cosin'; perhaps you meant cosine"),
        ({"name": "adam", "schedule": "cosine", "schedule_args": ["end=0"]}, r"schedule cosine has no argument"),
        ({"name": "adam", "schedule": "one_cycle", "schedule_args": ["peak=1"]}, r"between 0 and 1"),
        (
            {"name": "adam", "args": ["b1=2"]},
            r"`optimizer_args`: b1=2.0 for optimizer adam is not in \[0, 1\): change it",
        ),
        ({"name": "momentum", "args": ["momentum=1.5"]}, r": momentum=1.5 for optimizer momentum is not in \[0, 1\)"),
        (
            {"name": "rmsprop", "args": ["decay=-1"]},
            r": decay=-1.0 for optimizer rmsprop is not in \[0, 1\)",
        ),
        ({"name": "adadelta", "args": ["rho=1"]}, r": rho=1.0 .* \[0, 1\)"),
        ({"name": "nadam", "args": ["eps=0"]}, r": eps=0.0 for optimizer nadam is not more than 0"),
        ({"name": "adagrad", "args": ["initial_accumulator_value=-1"]}, r"_value=-1.0 .* is not 0 or more"),
        (
            {"name": "adam", "schedule": "step", "schedule_args": ["factor=-1"]},
            r"`schedule_args`: factor=-1.0 for step is not above 0",
        ),
        (
            {"name": "adam", "schedule": "cosine", "schedule_args": ["final=-1"]},
            r": final=-1.0 for cosine is negative: .* 0 or more",
        ),
        (
            {"name": "adam", "schedule": "one_cycle", "schedule_args": ["initial=-1"]},
            r": initial=-1.0 for one_cycle is negative",
        ),
        ({"name": "adam", "warmup_steps": 10}, r"the warm-up of 10 steps .* run of 10: lower `warmup_epochs`"),
        (
            {"name": "rprop", "learning_rate": 0.1, "warmup_steps": 2},
            r"^rprop takes a constant rate: leave out the schedule",
        ),
        ({"name": "adam", "freeze": "conv["}, r"is not a regular expression"),
        ({"name": "adam", "rate_groups": ["conv"]}, r"is not regex=multiplier"),
        ({"name": "adam", "rate_groups": ["conv=-1"]}, r"is not regex=multiplier"),
    ],
)
def test_mistakes_are_reported_in_one_line(arguments: dict, message: str):
    with pytest.raises(UserError, match=message) as error:
        optimizer_of(**{"total_steps": 10, **arguments})
    assert "\n" not in str(error.value)


def test_arguments_reach_the_factory_with_their_types():
    params = jnp.asarray(START, jnp.float32)
    gradients = [jnp.asarray(g, jnp.float32) for g in GRADIENTS]
    ours = optimizer_of(
        "rmsprop", learning_rate=0.5, args=["decay=0.5", "momentum=0.3", "nesterov=true"], total_steps=3
    )
    theirs = optax.rmsprop(0.5, decay=0.5, eps_in_sqrt=False, momentum=0.3, nesterov=True)
    state = theirs.init(params)
    for update, gradient in zip(updates_of(ours, params, gradients), gradients, strict=True):
        expected, state = theirs.update(gradient, state)
        np.testing.assert_allclose(update, jnp.asarray(expected), rtol=1e-6)
    assert optimizer_of("prodigy", args=["betas=0.8/0.9"], total_steps=3).learning_rate == 1.0  # the factory's default
    bf16 = optimizer_of("adam", args=["mu_dtype=bfloat16"], total_steps=3).tx.init(params)
    assert jnp.bfloat16 in [leaf.dtype for leaf in jax.tree.leaves(bf16)]


TREE = {"block1": {"kernel": np.array([[1.0, -2.0]], np.float32), "bias": np.array([4.0], np.float32)}}
ZERO = jax.tree.map(np.zeros_like, TREE)
ONE = jax.tree.map(np.ones_like, TREE)


def one_update(gradient: dict, name: str = "sgd", **arguments) -> dict:
    optimizer = optimizer_of(name, learning_rate=arguments.pop("learning_rate", 0.1), total_steps=10, **arguments)
    return updates_of(optimizer, jax.tree.map(jnp.asarray, TREE), [jax.tree.map(jnp.asarray, gradient)])[0]["block1"]


def test_weight_decay_is_added_to_the_gradient_before_the_optimizer():
    """L2: with no gradient, Adam's first step is still ∓rate, whatever the size of the penalty."""
    np.testing.assert_allclose(one_update(ZERO, weight_decay=0.5)["kernel"], [[-0.05, 0.1]], rtol=1e-6)
    np.testing.assert_allclose(one_update(ZERO, "adam", weight_decay=0.5)["kernel"], [[-0.1, 0.1]], rtol=1e-5)
    np.testing.assert_array_equal(one_update(ZERO, weight_decay=0.5)["bias"], [0.0])
    np.testing.assert_allclose(one_update(ZERO, weight_decay=0.5, decay_all=True)["bias"], [-0.2], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_weight_decay_is_decoupled_where_the_optimizer_has_its_own(name: str):
    """With no gradient w moves by −rate·λ·w; with no coefficient not at all, whatever Optax's default."""
    np.testing.assert_allclose(one_update(ZERO, name, weight_decay=0.5)["kernel"], [[-0.05, 0.1]], rtol=1e-5)
    np.testing.assert_array_equal(one_update(ZERO, name, weight_decay=0.5)["bias"], [0.0])
    np.testing.assert_allclose(one_update(ZERO, name, weight_decay=0.5, decay_all=True)["bias"], [-0.2], rtol=1e-5)
    np.testing.assert_array_equal(one_update(ZERO, name)["kernel"], [[0.0, 0.0]])


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_layer_wise_rates_are_for_weights_only(name: str):
    """The update of a kernel has the size of the kernel; that of a bias does not depend on the bias."""
    gradient = {"kernel": jnp.array([[3.0, -4.0]]), "bias": jnp.array([1.0, -2.0])}

    def update(scale: float) -> dict[str, jax.Array]:
        params = {"kernel": scale * jnp.array([[0.6, 0.8]]), "bias": scale * jnp.array([0.5, 0.25])}
        return updates_of(optimizer_of(name, learning_rate=0.1, total_steps=10), params, [gradient])[0]

    one, ten = update(1.0), update(10.0)
    np.testing.assert_allclose(ten["kernel"], 10 * one["kernel"], rtol=1e-5)
    np.testing.assert_allclose(ten["bias"], one["bias"], rtol=1e-5)
    expected = {"lars": [-0.1, 0.2], "lamb": [-0.1, 0.1]}[name]  # the gradient; Adam's first step, its sign
    np.testing.assert_allclose(one["bias"], expected, rtol=1e-4)
    size = {"lars": 0.1 * 0.001, "lamb": 0.1}[name]  # the rate times the coefficient of LARS, times |kernel| = 1
    assert float(jnp.linalg.norm(one["kernel"])) == pytest.approx(size, rel=1e-4)


def test_muon_makes_the_update_of_a_convolution_orthogonal():
    """As a (3·3·2) × 4 matrix, its singular values become similar however spread out the gradient's are."""
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4)) * jnp.array([[[[1.0, 0.1, 10.0, 0.3]]]])
    gradient = {"conv": {"kernel": kernel, "bias": jnp.ones(4)}}
    update = updates_of(optimizer_of("muon", learning_rate=1.0, total_steps=10), gradient, [gradient])[0]
    before, after = (
        np.linalg.svd(np.asarray(tree["conv"]["kernel"]).reshape(18, 4), compute_uv=False)
        for tree in (gradient, update)
    )
    assert before.min() / before.max() < 0.02
    assert after.min() / after.max() > 0.5, "Muon did not get the convolution"


def test_muon_has_the_rate_of_its_authors():
    optimizer = optimizer_of("muon", total_steps=10)
    assert optimizer.learning_rate == 0.02 and "muon (Jordan et al. 2024), learning rate 0.02" in optimizer.description
    # An orthogonal update: all singular values of the change of a kernel are about the rate.
    kernel = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    change = updates_of(optimizer, {"kernel": kernel}, [{"kernel": kernel}])[0]["kernel"]
    np.testing.assert_allclose(np.linalg.svd(change)[1], 0.02, rtol=0.35)


def test_gradients_are_clipped_to_the_global_norm():
    gradient = jax.tree.map(lambda x: 10.0 * x, ONE)  # global norm 10·√3
    np.testing.assert_allclose(one_update(gradient, clip_norm=1.0)["bias"], [-0.1 / math.sqrt(3)], rtol=1e-6)
    np.testing.assert_allclose(one_update(ONE, clip_norm=2.0)["bias"], [-0.1], rtol=1e-6)


def test_frozen_parameters_do_not_move_and_do_not_count_in_the_norm():
    update = one_update(ONE, "adamw", freeze="kernel", weight_decay=0.5, decay_all=True)
    np.testing.assert_array_equal(update["kernel"], [[0.0, 0.0]])
    assert update["bias"][0] < 0
    np.testing.assert_allclose(one_update(ONE, freeze="kernel", clip_norm=1.0)["bias"], [-0.1], rtol=1e-6)


def test_rate_groups_multiply_the_update_and_the_first_match_counts():
    update = one_update(ONE, rate_groups=["block1/kernel$=0.25", "block1=3"])
    np.testing.assert_allclose(update["kernel"], [[-0.025, -0.025]], rtol=1e-6)
    np.testing.assert_allclose(update["bias"], [-0.3], rtol=1e-6)


@pytest.mark.parametrize(
    "arguments", [{"freeze": "block2"}, {"freeze_until": [("block2", 1)]}, {"rate_groups": ["bloc=1", "block2=0.1"]}]
)
def test_a_pattern_that_matches_no_parameter_is_a_mistake(arguments: dict):
    field = f"`{next(iter(arguments))}`"
    with pytest.raises(UserError, match=rf"^{field} 'block2'.*block1/bias, block1/kernel\): correct it"):
        one_update(ONE, **arguments)


def test_the_description_tells_everything_in_one_line():
    optimizer = optimizer_of(
        "momentum",
        args=["momentum=0.8"],
        schedule="step",
        schedule_args=["factor=0.2"],
        warmup_steps=5,
        total_steps=50,
        weight_decay=5e-4,
        clip_norm=1.0,
        freeze="conv1",
        rate_groups=["fc=10"],
    )
    assert optimizer.description == (
        "momentum (Polyak 1964), momentum=0.8, learning rate 0.01, schedule step factor=0.2, 5 warm-up steps, "
        "weight decay 0.0005 (L2), clipped to 1, frozen conv1, rates fc=10"
    )
    adamw = optimizer_of("adamw", weight_decay=0.1, total_steps=50, warmup_steps=1)
    assert adamw.description.endswith("1 warm-up step, weight decay 0.1 (built in, not L2)")


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("constant", [], {0: 2.0, 50: 2.0, 100: 2.0}),
        ("step", ["boundaries=0.5/0.75", "factor=0.1"], {0: 2.0, 49: 2.0, 50: 0.2, 74: 0.2, 75: 0.02, 99: 0.02}),
        ("step", ["boundaries=0.07"], {6: 2.0, 7: 0.2}),  # 7/100 and 0.07 differ in float32
        ("cosine", ["final=0.5"], {0: 2.0, 25: 1 + 0.5 * (1 + math.sqrt(0.5)), 50: 1.5, 100: 1.0, 120: 1.0}),
        ("one_cycle", ["peak=0.2", "initial=0.1"], {0: 0.2, 10: 1.1, 20: 2.0, 60: 1.0, 100: 0.0}),
        ("triangular", [], {0: 0.08, 15: 1.04, 30: 2.0, 100: 0.0}),
        ("exponential", ["final=0.01"], {0: 2.0, 50: 0.2, 100: 0.02}),
    ],
)
def test_schedules_have_the_values_computed_by_hand(name: str, args: list[str], expected: dict[int, float]):
    plain = make_schedule(name, args, peak=2.0, total_steps=100)
    late = make_schedule(name, args, peak=2.0, warmup_steps=40, total_steps=140)
    for step, rate in expected.items():
        assert float(plain(step)) == pytest.approx(rate, rel=1e-5, abs=1e-6)
        assert float(jax.jit(late)(jnp.int32(step + 40))) == pytest.approx(rate, rel=1e-5, abs=1e-6)
    assert [float(late(step)) for step in (0, 19, 39)] == pytest.approx([2 / 41, 40 / 41, 80 / 41])


@pytest.mark.parametrize("warmup_steps", [0, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_moves_the_weights(name: str, warmup_steps: int):
    schedule = make_schedule(name, peak=1.0, warmup_steps=warmup_steps, total_steps=20)
    assert all(float(schedule(step)) > 0 for step in range(20))


def test_the_schedule_is_what_the_optimizer_uses():
    optimizer = optimizer_of("sgd", learning_rate=1.0, schedule="cosine", warmup_steps=3, total_steps=8)
    updates = updates_of(optimizer, jnp.ones(()), [jnp.ones(())] * 8)
    np.testing.assert_allclose(
        np.stack(updates), [-cast(Any, optimizer).schedule(step) for step in range(8)], rtol=1e-6
    )
