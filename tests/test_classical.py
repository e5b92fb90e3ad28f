"""HOG, LBP, nearest neighbours and support vector machines, against NumPy, scikit-image and scikit-learn."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_run import digits

import cnn_jax
from cnn_jax import classical
from cnn_jax.arguments import load_attribute
from cnn_jax.classical import Examples, KernelSvm, LinearSvm, NearestNeighbours
from cnn_jax.classical import hog as hog_features
from cnn_jax.classical import lbp as lbp_codes
from cnn_jax.classical.kernel import shifted
from cnn_jax.classical.linear import planes
from cnn_jax.classical.neighbours import EXACT, MOST_VALUES, nearest, scores, squared_distances
from cnn_jax.classical.solved import is_solved
from cnn_jax.commands.experiment import parse
from cnn_jax.config import Config
from cnn_jax.data import materialize, open_source
from cnn_jax.errors import UserError
from cnn_jax.runs.evaluate import evaluate
from cnn_jax.training.run import train
from experiments.classical import CONFIG, PRESETS

pytestmark = pytest.mark.usefixtures("one_device")

hog = jax.jit(hog_features, static_argnames=("cell", "block", "bins"))
lbp = jax.jit(lbp_codes, static_argnames="form")


def pattern(height: int = 24, width: int = 20) -> np.ndarray:
    """A colour image of many directions, uint8 (1, H, W, 3)."""
    i, j, c = np.indices((height, width, 3))
    return ((i * i * 3 + j * j * j + 17 * i * j + c * (i * 7 + j * 5)) % 256).astype(np.uint8)[None]


def some_digits(count: int = 300) -> Examples:
    images, labels = digits("train")
    return Examples(images[:count], labels[:count])


# HOG


def test_hog_has_the_values_that_scikit_image_computed():
    found = np.asarray(hog(pattern(), cell=6, block=2, bins=9)).ravel()
    # scikit-image 0.26.0: feature.hog(pattern()[0], 9, (6, 6), (2, 2), channel_axis=-1)
    expected = [0.159849, 0.240704, 0.0, 0.140014, 0.240504, 0.187459]
    assert found.shape == (216,)
    np.testing.assert_allclose(found[[0, 4, 10, 50, 100, 215]], expected, atol=1e-5)
    assert found.sum() == pytest.approx(32.5731, abs=1e-3)


@pytest.mark.parametrize(
    ("shape", "cell", "block", "bins"),
    [((28, 28, 1), 4, 2, 9), ((32, 32, 3), 8, 2, 9), ((30, 21, 3), 4, 3, 8), ((28, 28, 1), 14, 1, 9)],
)
def test_hog_is_that_of_scikit_image(shape: tuple[int, int, int], cell: int, block: int, bins: int):
    feature = pytest.importorskip("skimage.feature")
    images = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    images[0] //= 64  # few grey levels: channels and directions tie
    found = np.asarray(hog(images, cell=cell, block=block, bins=bins)).reshape(3, -1)
    for image, ours in zip(images, found, strict=True):
        theirs = feature.hog(image, bins, (cell, cell), (block, block), channel_axis=-1)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(("axis", "expected"), [(2, 0), (1, 4)])
def test_an_edge_fills_one_bin(axis: int, expected: int):
    """The gradient of a vertical edge is horizontal, 0° in the first bin; 90° lies in the fifth, [80°, 100°)."""
    image = np.zeros((1, 16, 16, 1), np.float32)
    np.moveaxis(image, axis, 0)[8:] = 1.0
    found = np.asarray(hog(image, cell=4, block=2, bins=9)).sum(axis=(0, 1, 2, 3, 4))
    assert np.flatnonzero(found).tolist() == [expected]


def test_a_constant_image_has_no_gradient():
    assert not np.asarray(hog(np.full((1, 16, 16, 3), 9.0, np.float32), cell=4, block=2, bins=9)).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cell": 8}, "images of 12x20 pixels are smaller than a block of HOG, 2x2 cells of 8 pixels: set cell to at "),
        ({"cell": 0}, "cell=0, block=2 and bins=9 for HOG: set each to at least 1"),
    ],
)
def test_sizes_that_do_not_suit_the_images_are_refused(settings: dict[str, int], message: str):
    with pytest.raises(UserError, match=message):
        hog_features(jnp.zeros((1, 12, 20, 1)), **settings)


# LBP


def test_lbp_has_the_codes_that_scikit_image_computed():
    # scikit-image 0.26.0: feature.local_binary_pattern(pattern()[0, ..., 0], 8, 1, "uniform" and "nri_uniform")
    expected: dict[Any, tuple[list[int], int]] = {
        "rotation_invariant": ([6, 0, 9, 7, 8, 0, 8, 7, 9, 0, 9, 6], 110529),
        "oriented": ([43, 0, 58, 56, 57, 0, 57, 52, 58, 0, 58, 42], 758750),
    }
    for form, (row, weighted) in expected.items():
        found = np.asarray(lbp(pattern(), form=form))[0, ..., 0]
        assert found[10, :12].tolist() == row
        assert (found.ravel() * (np.arange(found.size) % 97)).sum() == weighted


@pytest.mark.parametrize(("form", "method"), [("rotation_invariant", "uniform"), ("oriented", "nri_uniform")])
def test_lbp_is_that_of_scikit_image(form: Any, method: str):
    feature = pytest.importorskip("skimage.feature")
    images = np.random.default_rng(0).integers(0, 256, (4, 20, 17, 2), np.uint8)
    found = np.asarray(lbp(images, form=form))
    for image, ours in zip(images, found, strict=True):
        for channel in range(2):
            theirs = feature.local_binary_pattern(image[..., channel], 8, 1, method)
            np.testing.assert_array_equal(ours[..., channel], theirs)


@pytest.mark.parametrize(("form", "code"), [("rotation_invariant", 8), ("oriented", 57)])
def test_inside_a_constant_image_all_neighbours_count_as_bright(form: Any, code: int):
    for level in (1, 77, 255):  # not 0: there the border, too, is as bright as outside
        found = np.asarray(lbp(np.full((1, 6, 6, 1), level, np.uint8), form=form))[0, 1:-1, 1:-1]
        assert (found == code).all()


def test_brighter_or_more_contrast_leaves_lbp_unchanged():
    image = np.random.default_rng(1).integers(0, 100, (1, 12, 12, 1), np.uint8)
    inside = np.asarray(lbp(image))[:, 1:-1, 1:-1]
    changed = np.asarray(lbp((2 * image + 17).astype(np.uint8)))[:, 1:-1, 1:-1]
    np.testing.assert_array_equal(changed, inside)
    two_levels = np.where(image > 50, 90, 10).astype(np.uint8)  # any monotone change of two levels is of this kind
    expected = np.asarray(lbp(two_levels))[:, 1:-1, 1:-1]
    gamma = np.round(255 * (two_levels / 255.0) ** 0.4).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(lbp(gamma))[:, 1:-1, 1:-1], expected)
    assert len(np.unique(inside)) > 5


def near_ties() -> np.ndarray:
    """Images of 3x3 bytes whose interpolated corners are nearly as bright as the middle, (N, 3, 3, 1)."""
    found = []
    for middle in range(0, 256, 5):
        for corner in range(256):
            even = round(-70_711 * (corner - middle) / 29_289)  # sum of two neighbours, less the pixel, for a tie
            for total in range(2 * middle + even - 1, 2 * middle + even + 2):
                if 0 <= total <= 510:
                    a, b = total // 2, total - total // 2
                    found.append([[corner, a, corner], [b, middle, b], [corner, a, corner]])
    return np.array(found, np.uint8)[..., None]


def exact_lbp(images: np.ndarray) -> np.ndarray:
    """Rotation-invariant codes in integers, with weights 70711 and 29289."""
    grey = np.pad(images.astype(np.int64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    inside = grey[:, 1:-1, 1:-1]

    def at(down: int, right: int) -> np.ndarray:
        return np.roll(grey, (-down, -right), (1, 2))[:, 1:-1, 1:-1] - inside

    ring = [(0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)]
    sums = [70_711 * at(i, j) + 29_289 * (at(i, 0) + at(0, j)) if i and j else at(i, j) for i, j in ring]
    bits = np.stack(sums) >= 0
    changes = (bits != np.roll(bits, 1, axis=0)).sum(axis=0)
    return np.where(changes <= 2, bits.sum(axis=0), 9)


@pytest.mark.parametrize("scale", [1.0, 1 / 255, 1 / 127.5, 0.013, 400.0])
def test_lbp_of_floats_of_any_range_is_that_of_the_bytes(scale: float):
    random = np.random.default_rng(2).integers(0, 6, (40, 3, 3, 1), np.uint8) * 43
    images = np.concatenate([near_ties(), random])
    assert len(images) > 10_000
    found = lbp(images * np.float32(scale))
    np.testing.assert_array_equal(found, exact_lbp(images))
    np.testing.assert_array_equal(found, lbp(images))


def test_lbp_histograms_are_shares_in_each_cell():
    codes = np.asarray(lbp(pattern(), form="oriented"))[0]
    found = np.asarray(classical.lbp_histograms(jnp.asarray(pattern()), cell=7))
    assert found.shape == (1, 3, 2, 3, 59)
    expected = np.bincount(codes[14:21, 7:14, 2].ravel(), minlength=59) / 49
    np.testing.assert_allclose(found[0, 2, 1, 2], expected, atol=1e-6)


# Nearest neighbours


def test_squared_distances_are_exact_beyond_float32():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (20, 3072), np.uint8), rng.integers(0, 256, (50, 3072), np.uint8)
    x[0], y[0] = 0, 255  # the largest: 3072 · 255²
    expected = ((x[:, None].astype(np.int64) - y[None]) ** 2).sum(axis=-1)
    assert expected.max() > 2**27
    np.testing.assert_array_equal(jax.jit(squared_distances)(x, y), expected)
    assert EXACT * 255**2 <= 2**24 < (EXACT + 1) * 255**2
    assert MOST_VALUES * 255**2 < 2**31


def test_neighbours_are_those_of_brute_force_and_the_earlier_of_equal_ones():
    rng = np.random.default_rng(1)
    stored, labels = rng.integers(0, 4, (5000, 30), np.uint8), rng.integers(0, 9, 5000).astype(np.int32)
    images = np.concatenate([stored[:5], rng.integers(0, 4, (20, 30), np.uint8)])  # few levels: many ties
    distances = ((images[:, None].astype(np.int64) - stored[None]) ** 2).sum(axis=-1)
    order = np.argsort(distances, axis=1, kind="stable")[:, :7]
    found, how_far = jax.jit(nearest, static_argnames="k")(images, stored, labels, k=7)
    np.testing.assert_array_equal(how_far, np.take_along_axis(distances, order, axis=1))
    np.testing.assert_array_equal(found, labels[order])
    assert (np.diff(how_far) == 0).any(axis=1).mean() > 0.5


@pytest.mark.parametrize(
    ("labels", "winner"),
    [([4], 4), ([1, 2, 2], 2), ([1, 2, 0], 1), ([3, 0, 0, 1, 1], 0), ([2, 1, 0, 0, 1, 3, 2], 2), ([5, 1, 1, 5], 5)],
)
def test_most_votes_win_and_ties_go_to_the_nearest(labels: list[int], winner: int):
    found = np.asarray(scores(jnp.array([labels]), 6))[0]
    assert found.argmax() == winner
    assert np.isfinite(found).all()


@pytest.mark.tfds
def test_one_neighbour_on_mnist_agrees_with_brute_force(tfds_dir: str):
    train_set = materialize(open_source("mnist", "train[:1000]", data_dir=tfds_dir))
    test_set = materialize(open_source("mnist", "test[:40]", data_dir=tfds_dir))
    stored, images = (part["image"].reshape(len(part["image"]), -1).astype(np.int64) for part in (train_set, test_set))
    expected = train_set["label"][((images[:, None] - stored[None]) ** 2).sum(axis=-1).argmin(axis=1)]
    solution = _solve(NearestNeighbours(), Examples(train_set["image"], train_set["label"]))
    found = _outputs(solution, test_set["image"]).argmax(axis=1)
    np.testing.assert_array_equal(found, expected)


def _solve(model: Any, examples: Examples) -> Any:
    return model.solve(examples, Examples(*digits("validation")), seed=0, say=lambda line: None)


def _outputs(solution: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(solution.model.apply(solution.variables, images / np.float32(255), train=False))


# Support vector machines


def test_planes_solve_the_problem_of_linear_svc():
    svm = pytest.importorskip("sklearn.svm")
    images, labels = some_digits()
    x = (images.reshape(len(images), -1) / 255.0 - 0.3).astype(np.float32)
    found = planes(x, labels, 10, 0.1)
    theirs = svm.LinearSVC(C=0.1, dual=False, tol=1e-8).fit(x, labels)
    np.testing.assert_allclose(found, np.vstack([theirs.coef_.T, theirs.intercept_]), atol=0.01)
    assert np.abs(found).max() > 0.3


def test_scaling_is_folded_into_the_layer():
    examples = some_digits()
    solution = _solve(LinearSvm(features="hog", c=0.1), examples)
    found = _outputs(solution, examples.images)
    features = np.asarray(hog(examples.images.astype(np.float32), cell=4, block=2, bins=9)).reshape(300, -1)
    centred = features - features.mean(axis=0)
    scaled = (centred / np.sqrt((centred**2).mean())).astype(np.float32)
    weights = planes(scaled, examples.labels, 10, 0.1)
    np.testing.assert_allclose(found, scaled @ weights[:-1] + weights[-1], atol=2e-3)


def test_the_cost_is_chosen_by_validation():
    said: list[str] = []
    solution = LinearSvm().solve(some_digits(), Examples(*digits("validation")), seed=0, say=said.append)
    best = max(said, key=lambda line: float(line.split("accuracy ")[1].split("%")[0]))  # the first of equal ones
    assert float(best.split()[1].rstrip(":")) == solution.model.c == solution.facts["cost"]
    assert len(said) >= 3


@pytest.mark.parametrize("classes", [range(10), (3, 8), (0, 4, 9)], ids=["ten", "two", "three of ten"])
@pytest.mark.parametrize("make", [classical.rbf_svm, classical.poly_svm], ids=["rbf", "poly"])
def test_kernel_machines_decide_as_scikit_learn(make: Callable[..., KernelSvm], classes: Any):
    svm = pytest.importorskip("sklearn.svm")
    images, labels = (of[np.isin(some_digits().labels, classes)] for of in some_digits())
    solution = _solve(make(), Examples(images, labels))
    tests = digits("test")[0]
    rows, others = (of.reshape(len(of), -1) / 255.0 for of in (images, tests))
    if make is classical.poly_svm:
        rows, others = (of / np.linalg.norm(of, axis=1, keepdims=True) for of in (rows, others))
        theirs = svm.SVC(C=2, kernel="poly", degree=9, gamma=0.5, coef0=0.5)
    else:
        theirs = svm.SVC(C=5, kernel="rbf", gamma="scale")
    expected = theirs.fit(rows, labels).predict(others)
    np.testing.assert_array_equal(_outputs(solution, tests).argmax(axis=1), expected)
    assert solution.facts["support vectors"] == len(theirs.support_)


def test_shifts_are_those_of_roll_with_empty_edges():
    images = np.pad(np.random.default_rng(0).integers(1, 256, (2, 3, 3, 1), np.uint8), ((0, 0), (2, 2), (2, 2), (0, 0)))
    found = shifted(Examples(images, np.array([7, 4])), 2)
    expected = [np.roll(images, (down, right), (1, 2)) for down in range(-2, 3) for right in range(-2, 3)]
    np.testing.assert_array_equal(found.images, np.concatenate(expected))
    assert found.labels.tolist() == [7, 4] * 25


def test_virtual_support_vectors_train_on_shifted_ones():
    pytest.importorskip("sklearn")
    first = _solve(classical.poly_svm(deskew=True), some_digits())
    virtual = _solve(classical.virtual_svm(), some_digits())
    before = virtual.facts["support vectors before shifting"]
    assert before == first.model.vectors
    assert virtual.facts["virtual examples"] == 9 * before
    images, labels = digits("test")
    accuracies = [(_outputs(of, images).argmax(axis=1) == labels).mean() for of in (first, virtual)]
    assert accuracies[1] > accuracies[0] > 0.9


# Runs


def config(model: str, workdir: Path, **fields: Any) -> Config:
    start = Config("classical").override(dataset="digits", train_split="train[:200]", test_split="test[:100]")
    named = {"model": f"cnn_jax.classical:{model}", "workdir": str(workdir), "eval_batch_size": 100}
    return start.override(**named, **fields).resolve()


def test_a_solved_run_is_evaluated_and_loaded_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    summary = train(config("knn", tmp_path / "run", model_args=("k=3",)))
    images, labels = digits("test[:100]")
    stored, known = digits("train[:200]")
    flat, rows = (of.reshape(len(of), -1).astype(np.int64) for of in (images, stored))
    order = np.argsort(((flat[:, None] - rows[None]) ** 2).sum(axis=-1), axis=1, kind="stable")[:, :3]
    a, b, c = known[order].T
    expected = np.where(b == c, b, a)  # two of three, or the nearest of three
    assert summary["test_accuracy"] == (expected == labels).mean()
    run = cnn_jax.load(tmp_path / "run")
    np.testing.assert_array_equal(run.predict(images).argmax(axis=1), expected)
    assert evaluate(tmp_path / "run")["accuracy"] == summary["test_accuracy"]
    with pytest.raises(UserError, match="cnn_jax.classical:knn was solved for, so there are no curves"):
        run.plot()
    assert run.config.model.model_args == ("k=3", f"vectors={len(stored)}")
    assert summary["solution"] == {"neighbours": 3, "stored images": len(stored)}
    assert summary["parameters"] is None and summary["evaluation_seconds"] > 0
    page = (tmp_path / "run/report.html").read_text()
    assert "time to solve" in page and "stored images" in page and ">Training<" not in page
    assert ">parameters<" not in page and "None" not in page
    capsys.readouterr()
    assert train(config("knn", tmp_path / "run", model_args=("k=3",))) == summary
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds a run with a different config"):
        train(config("knn", tmp_path / "run", model_args=("k=1",)))


def test_fields_without_effect_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    train(config("linear_svm", tmp_path / "run", model_args=("c=0.01",), optimizer="momentum", epochs=3))
    line = "without    effect: `optimizer`, `epochs`; cnn_jax.classical:linear_svm is solved for"
    assert line in capsys.readouterr().out.splitlines()


def test_refitting_adds_the_validation_images(tmp_path: Path):
    summary = train(config("knn", tmp_path / "run", model_args=("refit=true",)))
    stored = cnn_jax.load(tmp_path / "run").variables["memory"]["images"]
    np.testing.assert_array_equal(stored, np.concatenate([digits("train[:200]")[0], digits("validation")[0]]))
    assert summary["validation_accuracy"] < 1  # from before: its own images would all be found


def test_fit_solves_for_modules_and_colour_images(tmp_path: Path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.integers(0, 60, (60, 16, 16, 3), np.uint8)
    for label in range(3):  # each class has stripes in another direction
        i, j = np.indices((16, 16))
        stripes = ((i, j, i + j)[label] // 2 % 2 * 180).astype(np.uint8)
        images[labels == label] += stripes[None, ..., None]
    run = cnn_jax.fit(classical.hog_svm(c=0.1), (images, labels), test=(images, labels), workdir=tmp_path / "run")
    assert run.summary["test_accuracy"] == 1.0
    assert run.config.model.model_args[0] == "features=hog"
    np.testing.assert_array_equal(cnn_jax.load(tmp_path / "run").predict(images).argmax(axis=1), labels)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_solves_the_digits(name: str, tmp_path: Path):
    if name in ("rbf_svm", "poly_svm", "virtual_svm"):
        pytest.importorskip("sklearn")
    argv = ("--preset", name, "--dataset", "digits", "--workdir", str(tmp_path / "run"))
    summary = train(parse(argv, CONFIG, None, PRESETS))
    assert summary["test_accuracy"] > {"hog_svm": 0.8, "lbp_svm": 0.75}.get(name, 0.94)
    assert summary["steps"] == 0 and summary["solution"]
    values = {"linear_svm": 65 * 10, "hog_svm": 37 * 10, "lbp_svm": 60 * 10}  # weights and biases of the dense layer
    assert summary["parameters"] == values.get(name), "training images that are kept are not parameters"
    assert evaluate(tmp_path / "run")["accuracy"] == summary["test_accuracy"]


def test_every_preset_names_a_classical_classifier():
    for name in PRESETS:
        assert is_solved(load_attribute(f"cnn_jax.classical:{name}"))
    assert not is_solved(cnn_jax.models.lenet5)


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ("knn", {"augment": ("flip",)}, "`augment` is for networks, and cnn_jax.classical:knn is solved for: drop it"),
        ("hog_svm", {"balance": "loss"}, "`balance` is for networks, and cnn_jax.classical:hog_svm is solved for"),
        ("knn", {"balance": "sampling"}, "`balance` is for networks"),
        ("knn", {"model_args": ("k=2000",)}, "k=2000 for nearest neighbours: set it to 1 to 200"),
        ("knn", {"task": "reconstruction"}, "is a classifier, and `task` is reconstruction: set classification"),
        ("hog_svm", {"model_args": ("cell=5",)}, "smaller than a block of HOG"),
        ("lbp_svm", {"model_args": ("cell=9",)}, "cell=9 for LBP: set it to 1 to 8 pixels"),
        ("rbf_svm", {"model_args": ("c=0",)}, "c=0.0, gamma=0.0 and degree=9 for an SVM: set c above 0"),
        ("hog_smv", {}, "perhaps you meant hog_svm"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path: Path, model: str, fields: dict, message: str):
    with pytest.raises(UserError, match=message):
        train(config(model, tmp_path / "run", **fields))
    assert not (tmp_path / "run/config.json").exists()


def test_without_scikit_learn_the_message_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pip install 'cnn_jax\[classical\]'"):
        train(config("rbf_svm", tmp_path / "run"))
