"""Paths of optimizers on surfaces against closed forms; the rule for their rates; pictures; the command."""

import csv
import io
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from cnn_jax.__main__ import run
from cnn_jax.config import OptimConfig
from cnn_jax.errors import UserError
from cnn_jax.optim.paths import RATES, path, race
from cnn_jax.optim.surfaces import SURFACES, Surface
from cnn_jax.studies.optimizer_paths import HUES, animation, crossing, picture, still

CURVATURE = np.array([2.0, 5.0])
QUADRATIC = Surface("quadratic", "x² + 2.5y²", lambda x, y: x**2 + 2.5 * y**2, (-4, 4), (-4, 4), (3.0, -1.0), ((0, 0),))
START = np.array(QUADRATIC.start)
READY = optax.sgd(0.25)


def test_gradient_descent_on_a_quadratic_is_a_geometric_sequence():
    config = OptimConfig(optimizer="gradient_descent", learning_rate=0.07)
    expected = [START * (1 - 0.07 * CURVATURE) ** t for t in range(51)]
    np.testing.assert_allclose(path(config, QUADRATIC, steps=50), expected, rtol=1e-12)


def test_heavy_ball_on_a_quadratic_is_a_power_of_a_matrix():
    """v ← βv + λx and x ← x − ηv, so (x, v) ← M(x, v)."""
    rate, beta = 0.07, 0.9
    config = OptimConfig(optimizer="momentum", learning_rate=rate, optimizer_args=(f"momentum={beta}",))
    points = path(config, QUADRATIC, steps=50)
    for axis, curvature in enumerate(CURVATURE):
        matrix = np.array([[1 - rate * curvature, -rate * beta], [curvature, beta]])
        expected = [(np.linalg.matrix_power(matrix, t) @ [START[axis], 0])[0] for t in range(51)]
        np.testing.assert_allclose(points[:, axis], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "args"), [("adam", ("eps=1e-30",)), ("adagrad", ())])
def test_first_step_has_the_size_of_the_rate(name: str, args: tuple[str, ...]):
    points = path(OptimConfig(optimizer=name, learning_rate=0.3, optimizer_args=args), QUADRATIC, steps=1)
    np.testing.assert_allclose(points[1] - points[0], [-0.3, 0.3], rtol=1e-14)


def test_arithmetic_is_in_float64_and_leaves_the_settings_alone():
    points = path("adam", "rosenbrock", steps=3)
    assert points.dtype == np.float64 and points.shape == (4, 2)
    assert jnp.ones(1).dtype == jnp.float32


# Values and gradients by hand.
KNOWN = [
    ("bowl", (1, 1), 2.5, (1, 4)),
    ("ravine", (1, 1), 1, (1, 1)),
    ("ravine", (1, -1), 50, (50, -50)),
    ("saddle", (1, 0), 0.5, (1, 0)),
    ("saddle", (0, 2), 2, (0, 6)),
    ("beale", (0, 0), 14.203125, (-12.75, 0)),
    ("beale", (1, 1), 14.203125, (0, 27.75)),
    ("rosenbrock", (-1.2, 1), 24.2, (-215.6, -88)),
    ("rastrigin", (0.5, 0.25), 30.3125, (1, 0.5 + 20 * np.pi)),
    ("two_minima", (1, 2), 2.3, (0.3, 2)),
    ("two_minima", (0, 0), 1, (0.3, 0)),
]


@pytest.mark.parametrize(("name", "point", "value", "gradient"), KNOWN)
def test_surfaces_at_known_points(name: str, point: tuple, value: float, gradient: tuple):
    surface = SURFACES[name]
    with jax.enable_x64(True):
        w = jnp.asarray(point, jnp.float64)
        np.testing.assert_allclose(surface.at(w), value, rtol=1e-14)
        np.testing.assert_allclose(jax.grad(surface.at)(w), gradient, rtol=1e-13, atol=1e-13)


LOWEST = {
    "bowl": 0,
    "ravine": 0,
    "saddle": -0.25,
    "beale": 0,
    "rosenbrock": 0,
    "rastrigin": 0,
    "two_minima": -0.3054285,
}


@pytest.mark.parametrize("surface", SURFACES.values(), ids=lambda surface: surface.name)
def test_minima_are_where_they_are_said_to_be(surface: Surface):
    grid = np.meshgrid(np.linspace(*surface.x_range, 101), np.linspace(*surface.y_range, 101))
    with jax.enable_x64(True):
        for minimum in (*surface.minima, *surface.local_minima):
            w = jnp.asarray(minimum, jnp.float64)
            np.testing.assert_allclose(jax.grad(surface.at)(w), 0, atol=1e-14)
            assert np.linalg.eigvalsh(jax.hessian(surface.at)(w)).min() > 0.1
            assert surface.contains(np.asarray(w))
            lowest = LOWEST[surface.name] if minimum in surface.minima else 0.29
            np.testing.assert_allclose(surface.at(w), lowest, atol=0.005 if minimum in surface.local_minima else 1e-6)
        assert np.min(surface.value(*grid)) >= LOWEST[surface.name] - 1e-6
    assert surface.contains(np.asarray(surface.start))


def test_the_saddle_has_one():
    with jax.enable_x64(True):
        w = jnp.zeros(2, jnp.float64)
        np.testing.assert_array_equal(jax.grad(SURFACES["saddle"].at)(w), 0)
        np.testing.assert_array_equal(jax.hessian(SURFACES["saddle"].at)(w), [[1, 0], [0, -1]])


@pytest.mark.parametrize("steps", [5, 40, 400])
def test_the_rate_is_that_with_the_lowest_mean_over_the_last_tenth(steps: int):
    """Against the closed form of gradient descent at all rates."""
    found = race(QUADRATIC, ["gradient_descent"], steps=steps).paths[0]
    t = np.arange(steps + 1 - max(1, steps // 10), steps + 1)
    with np.errstate(over="ignore"):
        x = START * (1 - RATES[:, None, None] * CURVATURE) ** t[:, None]
        late = np.mean(0.5 * np.sum(CURVATURE * x**2, axis=2), axis=1)
    start = 0.5 * np.sum(CURVATURE * START**2)
    expected = RATES[late <= late.min() + 1e-12 * start].min()
    assert found.chosen and not found.at_edge
    assert found.learning_rate == pytest.approx(expected)
    np.testing.assert_allclose(found.points[-1], START * (1 - expected * CURVATURE) ** steps, rtol=1e-9)
    np.testing.assert_allclose(found.values, 0.5 * np.sum(CURVATURE * found.points**2, axis=1), rtol=1e-12)


def test_rates_are_the_same_for_all_and_given_ones_are_kept():
    assert len(RATES) == 65 and RATES[0] == pytest.approx(1e-5) and RATES[-1] == pytest.approx(1e3)
    configs = ["sgd", OptimConfig(optimizer="adam", optimizer_args=("b1=0.5",), learning_rate=0.2), f"{__name__}:READY"]
    sgd, adam, ready = race("bowl", configs, {"sgd": 0.03}, steps=4).paths
    assert (sgd.learning_rate, sgd.chosen) == (0.03, False)
    assert (adam.optimizer, adam.learning_rate, adam.chosen) == ("adam b1=0.5", 0.2, False)
    assert (ready.learning_rate, ready.chosen, ready.at_edge) == (None, False, False)
    np.testing.assert_allclose(ready.points[:, 0], -1.7 * 0.75 ** np.arange(5))
    np.testing.assert_array_equal(sgd.points, path(OptimConfig(optimizer="sgd", learning_rate=0.03), "bowl", steps=4))


def test_a_rate_at_the_end_of_the_range_is_told():
    flat = replace(QUADRATIC, value=lambda x, y: 1e-6 * (x**2 + y**2))
    assert race(flat, ["sgd"], steps=5).paths[0].at_edge
    assert not race(flat, ["sgd"], {"sgd": RATES[-1]}, steps=5).paths[0].at_edge


def test_the_edge_is_crossed_where_it_is():
    square = replace(QUADRATIC, x_range=(-1, 1), y_range=(-2, 2))
    np.testing.assert_allclose(crossing(square, np.array([0.0, 0.0]), np.array([4.0, 1.0])), [1, 0.25])
    np.testing.assert_allclose(crossing(square, np.array([0.5, -1.0]), np.array([0.0, -3.0])), [0.25, -2])
    np.testing.assert_allclose(crossing(square, np.array([0.5, 1.0]), np.array([0.5, 9.0])), [0.5, 2])
    np.testing.assert_allclose(crossing(square, np.array([0.5, 1.0]), np.array([np.nan, 9.0])), [0.5, 1])


def words(shown) -> str:
    return " ".join(text.get_text() for text in shown.findobj(Text) if text.get_visible())


def test_the_picture_says_start_steps_and_rates():
    rates = {"sgd": 0.0123, "rmsprop": 0.0456}
    told = words(picture(race("two_minima", ["sgd", "rmsprop", "adam"], rates, start=(-1.5, 0.7), steps=12)))
    for part in ("two minima", "12 steps", "(−1.5, 0.7)", "sgd", "0.0123", "rmsprop", "0.0456", "last tenth"):
        assert part in told
    assert re.search(r"given: sgd, rmsprop\)", told) and "×" in told
    assert "given." in words(picture(race("bowl", ["sgd"], {"sgd": 0.1}, steps=3)))


@pytest.mark.parametrize(
    ("name", "said"),
    [("bowl", "; minimum ★; 3"), ("saddle", "; minima ★; 3"), ("two_minima", "; minimum ★; local minimum ☆; 3")],
)
def test_the_caption_says_what_the_stars_are(name: str, said: str):
    figure = picture(race(name, ["sgd"], {"sgd": 0.01}, steps=3))
    assert said in words(figure)
    stars: list[Any] = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    filled = {
        tuple(point): sum(to_rgb(star.get_markerfacecolor())) < 1 for star in stars for point in star.get_xydata()
    }
    surface = SURFACES[name]
    assert filled == dict.fromkeys(surface.minima, True) | dict.fromkeys(surface.local_minima, False)


def test_columns_of_the_table_are_apart():
    """With the widest entries: a long name, a rate of eight and heights of seven characters, a late divergence."""
    late = np.where(np.arange(1001) < 999, 1.0, np.nan)
    low = np.full(1001, 1e-13)
    (own,) = race("bowl", ["sgd"], {"sgd": 1.33e-5}, steps=1).paths
    paths = [
        replace(own, optimizer="gradient_descent", points=np.stack([each, each], axis=1), values=each)
        for each in (late, low, low + 5.5e-4)
    ]
    figure = picture(replace(race("bowl", [], steps=1000), paths=paths))
    figure.canvas.draw()
    rows: dict[float, list[Any]] = {}
    for text in figure.axes[2].texts:
        if text.get_text():
            rows.setdefault(text.get_position()[1], []).append(text)
    cells = [[text.get_text() for text in row][2:] for row in rows.values()]
    assert cells == [["last f"], ["–", "diverged at 999"], ["< 1e-12"], ["0.00055"]]
    for row in rows.values():
        boxes = [text.get_window_extent() for text in row]
        assert all(left.x1 + 0.08 * figure.dpi < right.x0 for left, right in zip(boxes, boxes[1:]))  # inches
        assert boxes[-1].x1 < figure.bbox.x1


@pytest.mark.parametrize(("rate", "note"), [(0.5, "out at 1"), (0.01, "")])
def test_a_path_that_leaves_is_marked_where_it_leaves(rate: float, note: str):
    shown = race(QUADRATIC, ["sgd"], {"sgd": rate}, start=(0, 3), steps=30)  # y is multiplied by 1 − 5·rate
    figure = picture(shown)
    crosses: list[Any] = [line for line in figure.axes[0].lines if line.get_marker() == "X"]
    assert ("out at" in words(figure)) == bool(note) and note in words(figure)
    assert len(crosses) == bool(note)
    if note:
        np.testing.assert_allclose(crosses[0].get_xydata(), [[0, -4]])


def test_a_path_that_diverges_is_marked_so():
    shown = race("rosenbrock", ["sgd", "adam"], {"sgd": 10.0, "adam": 0.1}, steps=20)
    points, first = shown.paths[0].points, shown.paths[0].diverged_at
    assert first is not None and np.isfinite(points[first - 1]).all() and not np.isfinite(shown.paths[0].values[first])
    told = words(picture(shown))
    assert f"diverged at {first}" in told and told.count("diverged") == 1
    still(shown)


@pytest.mark.parametrize(("steps", "frames"), [(7, 8), (100, 51), (101, 35)])
def test_the_animation_grows_to_the_still(steps: int, frames: int):
    shown = race("bowl", ["sgd", "momentum"], {"sgd": 0.05, "momentum": 0.02}, steps=steps)
    film: Any = Image.open(io.BytesIO(animation(shown)))
    assert film.n_frames == frames and film.info["loop"] == 0
    images, times = [], []
    for i in range(film.n_frames):
        film.seek(i)
        images.append(np.asarray(film.convert("RGB"), np.int16))
        times.append(film.info["duration"])
    assert times[0] < 100 and times[-1] > 1000
    images = [images[0], images[frames // 2], images[-1]]
    for hue in HUES[:2]:  # ever more of the picture has the colours of the paths
        near = [
            int((np.abs(image - (255 * np.array(to_rgb(hue))).astype(np.int16)).max(axis=2) < 12).sum())
            for image in images
        ]
        assert near[0] < near[1] <= near[2] + 30
    assert Image.open(io.BytesIO(still(shown))).size == (1080, 624)


def test_the_command_writes_pictures_and_the_rates(tmp_path, capsys):
    common = ["optimizer-paths", "--optimizers", "sgd", "adam", "--steps", "4"]
    given = ["--surfaces", "saddle", "--start", "-1,0.5", "--learning-rate", "adam=0.25"]
    run([*common, *given, "--output", str(tmp_path / "out")])
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"saddle.png", "saddle.gif", "rates.csv"}
    told = capsys.readouterr().out
    assert "saddle: f = ½x² − ½y² + ¼y⁴, start (-1, 0.5), 4 steps" in told and "rate     0.25" in told
    run([*common, "--surfaces", "bowl", "--no-animation", "--output", str(tmp_path / "stills")])
    assert {file.name for file in (tmp_path / "stills").iterdir()} == {"bowl.png", "rates.csv"}
    rows = []
    for folder in ("out", "stills"):
        with open(tmp_path / folder / "rates.csv") as file:
            rows += csv.DictReader(file)
    named = [
        ("saddle", "sgd", "chosen"),
        ("saddle", "adam", "given"),
        ("bowl", "sgd", "chosen"),
        ("bowl", "adam", "chosen"),
    ]
    assert [(row["surface"], row["optimizer"], row["rate_from"]) for row in rows] == named
    row = rows[1]
    config = OptimConfig(optimizer="adam", learning_rate=float(row["learning_rate"]))
    expected = path(config, row["surface"], (float(row["start_x"]), float(row["start_y"])), int(row["steps"]))[-1]
    assert config.learning_rate == 0.25
    np.testing.assert_allclose([float(row["x"]), float(row["y"])], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--surfaces", "beal"], r"unknown surface 'beal'; perhaps you meant beale"),
        (["--optimizers", "adm"], r"unknown optimizer 'adm'; perhaps you meant .*adam"),
        (["--optimizers", "lbfgs"], r"lbfgs cannot be used here: it needs the loss value"),
        (["--start", "9,9"], r"`start` 9,9 is outside the picture of bowl: set x between -2 and 2, y between -1.5"),
        (["--start", "nan,0"], r"`start` nan,0 is outside the picture"),
        (["--start", "1"], r"`start` is 1: write X,Y, such as -1.2,1"),
        (["--steps", "0"], r"--steps is 0: it must be a whole number of at least 1"),
        (["--steps", "1000000"], r"`steps` is 1000000: set it between 1 and 100000"),
        (["--learning-rate", "adam"], r"`learning_rate` has adam: write NAME=VALUE"),
        (["--learning-rate", "adam=-1"], r"`learning_rate` has adam=-1: write NAME=VALUE with a number above 0"),
        (["--learning-rate", "lion=0.1"], r"`learning_rate` is set for lion, which does not take part"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], message: str, tmp_path):
    surfaces = [] if "--surfaces" in arguments else ["--surfaces", "bowl"]
    with pytest.raises(UserError, match=message) as error:
        run(["optimizer-paths", *surfaces, *arguments, "--output", str(tmp_path)])
    assert "\n" not in str(error.value)
