"""The figures of a report against hand-made cases, and the page against the figures."""

import base64
import io
import re

import numpy as np
import pytest
from made_up_run import SUMMARY, make_run
from PIL import Image

from cnn_jax.errors import UserError
from cnn_jax.report import curves, figures, sections, write_report
from cnn_jax.report.filters import first_layer, pictures
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.weights_file import load_weights, save_weights
from cnn_jax.tasks import Metric, measures
from cnn_jax.tasks.classification_figures import confusion
from cnn_jax.tasks.classification_report import classification_findings

CLASSES = ("airplane", "bird <&>", "$cat$")
LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
# Class probabilities per image. Images 2 (0.6 for bird), 4 (0.99 for cat) and 9 (0.7 for airplane) are wrong.
PROBABILITIES = np.array(
    [
        [0.9, 0.05, 0.05],
        [0.8, 0.1, 0.1],
        [0.3, 0.6, 0.1],
        [0.1, 0.8, 0.1],
        [0.0, 0.01, 0.99],
        [0.1, 0.2, 0.7],
        [0.0, 0.0, 1.0],
        [0.2, 0.2, 0.6],
        [0.05, 0.05, 0.9],
        [0.7, 0.1, 0.2],
    ],
    np.float32,
)
METRICS = {"loss": Metric("cross-entropy (nats)"), "accuracy": Metric("accuracy", percent=True)}
CONFUSION = np.array([[2, 1, 0], [0, 1, 1], [1, 0, 4]])


def test_wilson_interval_by_its_definition():
    # At each bound p, the distance to the observed share is z standard deviations for p.
    for correct, count in ((9, 10), (50, 100), (9987, 10000)):
        for bound in measures.wilson_interval(correct, count):
            distance = abs(correct / count - bound)
            assert distance == pytest.approx(1.96 * np.sqrt(bound * (1 - bound) / count), rel=1e-6)
    assert measures.wilson_interval(0, 10)[0] == 0 and measures.wilson_interval(0, 10)[1] > 0.2
    assert measures.wilson_interval(10, 10)[1] == 1


def test_confusion_and_the_scores_of_each_class():
    confusion = measures.confusion_matrix(LABELS, PROBABILITIES.argmax(axis=1), 3)
    np.testing.assert_array_equal(confusion, CONFUSION)
    assert measures.frequent_confusions(CONFUSION * np.array([[1], [5], [2]]), 2) == [(1, 2, 5), (2, 0, 2)]
    assert measures.frequent_confusions(np.eye(4, dtype=int), 5) == []
    scores = measures.per_class(CONFUSION)
    np.testing.assert_array_equal(scores.count, [3, 2, 5])
    np.testing.assert_allclose(scores.precision, [2 / 3, 1 / 2, 4 / 5])
    np.testing.assert_allclose(scores.recall, [2 / 3, 1 / 2, 4 / 5])
    np.testing.assert_allclose(scores.f1, [2 / 3, 1 / 2, 4 / 5])


def test_f1_is_the_harmonic_mean_and_empty_classes_have_no_score():
    scores = measures.per_class(np.array([[8, 2, 0], [6, 4, 0], [0, 0, 0]]))
    precision, recall = 8 / 14, 8 / 10
    assert scores.f1[0] == pytest.approx(2 / (1 / precision + 1 / recall))
    assert np.isnan([scores.precision[2], scores.recall[2], scores.f1[2]]).all()


def test_top_k_counts_ties_and_nan_as_wrong():
    scores = np.array([[1.0, 2, 3, 4], [5, 5, 0, 0], [np.nan] * 4, [9, 1, 1, 1]])
    labels = np.array([2, 0, 0, 0])
    assert [measures.top_k_accuracy(scores, labels, k) for k in (1, 2, 4)] == [0.25, 0.75, 1.0]


def test_calibration_against_its_definition():
    found = measures.calibration(PROBABILITIES, LABELS, bins=2)  # every confidence is above 0.5
    confidence = PROBABILITIES.max(axis=1)
    assert found.count.tolist() == [0, 10] and np.isnan(found.accuracy[0])
    assert found.accuracy[1] == pytest.approx(0.7)
    assert found.error == pytest.approx(abs(0.7 - confidence.mean()), rel=1e-5)
    found = measures.calibration(PROBABILITIES, LABELS, bins=10)
    parts = [np.flatnonzero((confidence > low / 10) & (confidence <= low / 10 + 0.1)) for low in range(10)]
    right = PROBABILITIES.argmax(axis=1) == LABELS
    expected = sum(abs(right[part].sum() - confidence[part].sum()) for part in parts) / 10
    assert found.error == pytest.approx(expected, rel=1e-5)
    assert found.count.sum() == 10


def test_perfect_and_hopeless_confidence():
    sure = np.eye(2)[[0, 1, 0, 1]]
    assert measures.calibration(sure, np.array([0, 1, 0, 1])).error == 0
    assert measures.calibration(sure, np.array([1, 0, 1, 0])).error == 1


def test_worst_mistakes_are_the_most_confident_wrong_ones():
    assert measures.worst_mistakes(PROBABILITIES, LABELS, 24).tolist() == [4, 9, 2]
    assert measures.worst_mistakes(PROBABILITIES, LABELS, 2).tolist() == [4, 9]
    assert measures.worst_mistakes(np.eye(3), np.arange(3), 5).size == 0


def test_first_layer_is_the_one_at_the_image():
    stem, inner = np.ones((3, 3, 3, 8)), np.ones((5, 5, 3, 4))
    params = {"block": {"conv": {"kernel": inner}}, "stem": {"kernel": stem}, "fc": {"kernel": np.ones((8, 10))}}
    found = first_layer(params, (32, 32, 3))
    assert found is not None
    assert (found.layer, found.kind, found.weights.shape) == ("stem", "convolution", (8, 3, 3, 3))
    assert first_layer({"fc": {"kernel": np.ones((8, 10))}}, (32, 32, 3)) is None


def test_dense_weights_become_images():
    kernel = np.arange(2 * 3 * 1 * 4, dtype=np.float32).reshape(6, 4)
    found = first_layer({"output": {"kernel": kernel, "bias": np.ones(4)}}, (2, 3, 1))
    assert found is not None and found.kind == "dense" and found.weights.shape == (4, 2, 3, 1)
    np.testing.assert_array_equal(found.weights[1, ..., 0], kernel[:, 1].reshape(2, 3))


def test_filters_keep_zero_in_the_middle_or_colour_in_range():
    weights = np.array([[0.5, -1.0], [0.0, 0.25]]).reshape(1, 1, 1, 4).transpose(0, 3, 2, 1)  # one 4x1 grey filter
    grey = first_layer({"c": {"kernel": weights.transpose(1, 2, 3, 0)}}, (8, 8, 1))
    assert grey is not None
    np.testing.assert_allclose(pictures(grey).ravel(), [0.5, -1.0, 0.0, 0.25])
    colour = first_layer({"c": {"kernel": np.random.default_rng(0).normal(size=(3, 3, 3, 5))}}, (8, 8, 3))
    assert colour is not None
    shown = pictures(colour)
    np.testing.assert_allclose(shown.min(axis=(1, 2, 3)), 0)
    np.testing.assert_allclose(shown.max(axis=(1, 2, 3)), 1)


def test_smoothing_is_centred_and_skips_nan():
    ramp = np.arange(400.0)
    np.testing.assert_allclose(curves.smooth(ramp)[10:-10], ramp[10:-10])  # a lagging mean would be lower
    noisy = np.ones(400)
    noisy[7] = np.nan
    np.testing.assert_allclose(curves.smooth(noisy), 1)
    assert curves.smooth(np.array([3.0])).tolist() == [3.0]


# ---- the page ----


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 6, 7, 3), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory, images):
    run = make_run(tmp_path_factory.mktemp("report") / "run")
    kernel = np.random.default_rng(1).normal(size=(3, 3, 3, 4))
    save_weights(run / files.WEIGHTS, {"params": {"conv1": {"kernel": kernel}}}, {})
    write(run, images)
    return run


def write(run, images, **changes):
    arguments = {"images": images, "labels": LABELS, "probabilities": PROBABILITIES, "classes": CLASSES}
    found = classification_findings(split="test", **(arguments | changes))
    weights = run / files.WEIGHTS
    params = load_weights(weights)[0]["params"] if weights.is_file() else {}
    return write_report(
        run,
        summary=SUMMARY,
        metrics=METRICS,
        rates=np.linspace(0.1, 0.01, 40),
        split="test",
        tiles=found.tiles,
        found=found.sections,
        pictures=found.pictures,
        filters=first_layer(params, images.shape[1:]),
        classes=CLASSES,
    )


@pytest.fixture(scope="module")
def page(run):
    return (run / files.REPORT).read_text()


@pytest.fixture(scope="module")
def text(page):
    """The visible text of the page, with tags replaced by line breaks."""
    return re.sub(r"(\s*<[^>]*>\s*)+", "\n", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))


def test_headlines(text):
    low, high = measures.wilson_interval(7, 10)
    assert f"test accuracy\n70.00%\n{low:.2%} to {high:.2%} with 95% confidence, 10 images" in text
    for told in (
        "test loss\n0.3457",
        "validation accuracy\n87.50%",
        "best epoch, of these weights\n3\nstep 30 of 40",
        "training time\n1 min 15 s",
        "parameters\n650",
        "1.29 kFLOP",
        "python -m experiments.made_up --seed 3",
        "softmax_regression on digits, seed 3; 1 x TPU v9",
    ):
        assert told in text


def test_tables_show_the_confusions_and_scores(text):
    assert "airplane → bird &lt;&amp;&gt;\n1\n33.3%" in text
    assert "$cat$\n5\n80.0%\n80.0%\n80.0%" in text
    assert "mean of the classes\n10\n65.6%" in text
    assert "batch_size\n128" in text and "jax\n9.8.7" in text


def embedded(page):
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]*)", page)]


def test_worst_mistakes_are_shown_in_order(page, text, images):
    first, second, third = (
        text.index(told) for told in ("says $cat$ (99.0%)", "says airplane (70.0%)", "says bird &lt;&amp;&gt; (60.0%)")
    )
    assert first < second < third
    assert "says $cat$ (99.0%)\nis bird &lt;&amp;&gt; (1.0%)" in text
    shown = [np.asarray(picture) for picture in embedded(page) if picture.size == (7, 6)]
    assert len(shown) == 3
    for picture, index in zip(shown, (4, 9, 2), strict=True):
        np.testing.assert_array_equal(picture, images[index])


def test_page_is_self_contained(page):
    assert not re.findall(r"https?:|<script|<link|src=\"(?!data:)", page)
    assert page.count("<h2>") == len(set(re.findall("<h2>(.*?)</h2>", page))) == 7


def test_plots_are_not_blank(run):
    names = {path.stem for path in (run / files.PLOTS).iterdir()}
    assert names == {"loss", "accuracy", "learning_rate", "confusion", "calibration", "mistakes", "filters"}
    for name in names:
        picture = np.asarray(Image.open(run / files.PLOTS / f"{name}.png").convert("RGB")).astype(int)
        assert min(picture.shape[:2]) > 100 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 2, name


def test_curves_mark_the_best_epoch():
    rows = [
        {"kind": kind, "step": step, "epoch": step / 10, "loss": 1.0, "accuracy": step / 100}
        for step in (10, 20, 30)
        for kind in ("train", "validation")
    ]
    with figures.style():
        (axes,) = curves.curve(rows, "accuracy", METRICS["accuracy"], 20).axes
    lines = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert lines["best"] == [[2.0, 20.0]]
    assert lines["validation"] == [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "accuracy (%)")


def rows_of(values: dict[int, float], name: str = "loss", **more: object) -> list[dict[str, object]]:
    """Train rows that end at these steps, with ten steps per epoch."""
    return [{"kind": "train", "step": step, "epoch": step / 10, name: value} | more for step, value in values.items()]


def test_a_row_of_few_steps_weighs_as_little_as_they_do():
    # Rows of ten steps, but of two before the validation at step 22: its noise is not drawn as a fall.
    rows = rows_of({10: 1.0, 20: 1.0, 22: 0.4, 30: 1.0, 40: 1.0})
    with figures.style():
        (axes,) = curves.curve(rows, "loss", METRICS["loss"], None).axes
    lines = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
    weighted = (10 * 1.0 + 2 * 0.4) / 12
    expected = [[1.0, 1.0], [2.2, weighted], [3.0, 1.0], [4.0, 1.0]]
    np.testing.assert_allclose(lines["train (smoothed)"], expected)
    assert all(min(line[:, 1]) > 0.89 for line in lines.values() if len(line))


def test_smoothing_weighs_rows_by_their_steps():
    values, steps = np.tile([0.0, 3.0], 50), np.tile([10.0, 5.0], 50)  # 100 rows: windows of five
    smoothed = curves.smooth(values, steps)[2:-2]
    np.testing.assert_allclose(smoothed[::2], (2 * 5 * 3) / (3 * 10 + 2 * 5))  # around 0: two rows of 3 in three of 0
    np.testing.assert_allclose(smoothed[1::2], (3 * 5 * 3) / (2 * 10 + 3 * 5))


def test_the_schedule_is_drawn_step_by_step():
    rates = np.array([0.1, 0.1, 0.01, 0.01])
    with figures.style():
        (axes,) = curves.learning_rate(rates, 2.0).axes
    (line,) = axes.lines
    # A step down at step 2, after one epoch, and not a ramp.
    assert line.get_drawstyle() == "steps-post"
    assert np.asarray(line.get_xydata()).tolist() == [[0.0, 0.1], [0.5, 0.1], [1.0, 0.01], [1.5, 0.01], [2.0, 0.01]]


def test_a_metric_is_in_per_cent_if_its_task_says_so_whatever_its_name():
    rows = rows_of({10: 0.5, 20: 0.25}, "iou")
    metrics = {"iou": Metric("overlap", percent=True), "accuracy": Metric("accuracy in mm")}
    with figures.style():
        (axes,) = curves.curve(rows, "iou", metrics["iou"], None).axes
        (other,) = curves.curve(rows_of({10: 0.5}, "accuracy"), "accuracy", metrics["accuracy"], None).axes
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [50.0, 25.0] and axes.get_ylabel() == "overlap (%)"
    assert np.asarray(other.lines[0].get_ydata()).tolist() == [0.5] and other.get_ylabel() == "accuracy in mm"
    metrics = {"loss": Metric("error")} | metrics
    summary = SUMMARY | {"validation_iou": 0.5, "validation_accuracy": 1.5}
    page = sections.headlines(summary, rows, metrics, [], "test", "best")
    assert "50.00%" in page and "1.5000" in page and "150" not in page


def test_matrix_shows_counts_up_to_20_classes():
    with figures.style():
        few = confusion(CONFUSION, CLASSES).axes[0]
        many = confusion(np.eye(21, dtype=int), [str(k) for k in range(21)]).axes[0]
    assert [text.get_text() for text in few.texts] == [str(n) for n in CONFUSION.ravel()]
    assert not many.texts


def test_run_without_mistakes_metrics_or_weights(tmp_path, images):
    run = make_run(tmp_path / "run")
    (run / files.METRICS).write_text("")
    (run / files.WEIGHTS).unlink()
    page = write(run, images, probabilities=np.eye(3)[LABELS]).read_text()
    assert "100.00%" in page
    for title in ("Training", "Worst mistakes", "First layer"):
        assert f"<h2>{title}</h2>" not in page
    assert {path.stem for path in (run / files.PLOTS).iterdir()} == {"confusion", "calibration"}


def test_metrics_that_are_not_finite(tmp_path, images):
    run = make_run(tmp_path / "run")
    for step in (41, 42):
        files.append_metrics(
            run, {"kind": "train", "step": step, "epoch": step / 10, "loss": np.nan, "accuracy": np.nan}
        )
    assert "<h2>Training</h2>" in write(run, images).read_text()


def test_many_classes_have_a_list_but_no_matrix(tmp_path, images):
    classes = [f"class {k}" for k in range(40)]
    probabilities = np.full((10, 40), 0.01)
    probabilities[:, 39] = 0.61
    page = write(make_run(tmp_path / "run"), images, classes=classes, probabilities=probabilities).read_text()
    assert 'alt="confusion"' not in page
    assert "<td>class 2 → class 39</td><td>5</td><td>100.0%</td>" in page


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": LABELS[:9]},
        {"classes": CLASSES[:2]},
        {"probabilities": np.where(PROBABILITIES == 1, np.nan, PROBABILITIES)},
        {"images": np.zeros((9, 6, 7, 3), np.uint8)},
    ],
)
def test_mismatched_arrays_are_refused(tmp_path, images, changes):
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError) as error:
        write(run, **({"images": images} | changes))
    assert "\n" not in str(error.value) and not (run / files.REPORT).exists()
