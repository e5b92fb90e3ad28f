"""The page of a comparison and its pictures, drawn from a made-up study."""

import csv
import itertools
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up_study import lower_is_better, make_study
from matplotlib.colors import to_rgb

from cnn_jax.report import lines
from cnn_jax.report.figures import new_axes
from cnn_jax.report.figures import style as report_style
from cnn_jax.report.metric import Metric
from cnn_jax.studies import figures, page, sentences, tables
from cnn_jax.studies.study import Candidate

SMALL = ("sgd", "adam", "nadam")


def check_self_contained(text: str) -> None:
    """Fails if the page would load anything."""
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", text) == [] and "@import" not in text and "http" not in text


def points_of(line: Any) -> np.ndarray:
    """The points of a line of a plot, (N, 2)."""
    return np.asarray(line.get_xydata())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished study of three candidates, and its page."""
    study = make_study(tmp_path_factory.mktemp("study"), points=5, seeds=3, labels=SMALL)
    return study, page.write_page(study).read_text()


def test_page_says_everything(small):
    study, text = small
    check_self_contained(text)
    assert "<h1>3 candidates compared: lenet5 on mnist</h1>" in text
    assert sentences.headline(study).replace("<", "&lt;") in text
    assert all(said in text for said in sentences.warnings(study))
    for name, (_, title, said) in page.PICTURES.items():
        assert f"<h2>{title}</h2>" in text and (study.folder / "plots" / f"{name}.png").is_file(), said
    assert text.count("<img ") == len(page.PICTURES)
    assert "9.8.7" in text and "abc1234" in text and study.facts["command"] in text
    assert "2e-05 to 0.06, uniform in log(value)" in text and "0.7 to 0.99, uniform in log(1 − value)" in text


def test_every_trial_is_in_the_page(small):
    study, text = small
    folded = text[text.index("<details>") : text.index("</details>")]
    assert f"All {len(study.trials)} trials" in folded and folded.count("<tr>") == 1 + len(study.trials)
    assert folded.count("<td>diverged</td>") + folded.count('"text">diverged</td>') == sum(
        trial.status == "diverged" for trial in study.trials
    )
    assert folded.count('<td class="text">best</td>') == len(SMALL)


def test_tables_are_written_beside_the_page(small):
    study, _ = small
    assert (study.folder / "table.csv").read_text() == tables.csv_text(study)
    rows = list(csv.DictReader((study.folder / "table.csv").read_text().splitlines()))
    assert [row["candidate"] for row in rows] == [row["candidate"] for row in tables.table(study)]
    written = (study.folder / "table.md").read_text().splitlines()
    assert len(written) == 2 + len(SMALL) and len({line.count("|") for line in written}) == 1


def test_page_of_a_study_that_has_only_begun(tmp_path):
    study = make_study(tmp_path, points=3, phases=("search",), labels=SMALL[:2])
    text = page.write_page(replace(study, trials=study.trials[:4])).read_text()
    assert "Unfinished: 4 of 6 search trials and 0 of 10 final runs are done." in text
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {
        *("steps", "seconds", "sensitivity", "best_after", "overview")
    }


def test_page_without_any_trial(tmp_path):
    study = make_study(tmp_path, labels=SMALL[:2])
    bare = [
        Candidate("<b>&", {"model": "lenet5"}, study.candidates[0].space),
        replace(study.candidates[1], label="plain"),
    ]
    text = page.write_page(replace(study, trials=[], candidates=bare, target=None)).read_text()
    check_self_contained(text)
    assert "Unfinished: 0 of 32" in text and "&lt;b&gt;&amp;" in text and "<b>&" not in text


def test_page_of_one_candidate_and_of_one_trial(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "draw", lambda study: {})
    study = make_study(tmp_path, points=1, seeds=1, labels=("adam",))
    text = page.write_page(study).read_text()
    assert "<h1>1 candidate: lenet5 on mnist</h1>" in text and "1 search trial and 1 final run each" in text
    assert not re.search(r"\b1 (candidates|seeds|search trials|final runs)", text)


def test_page_names_who_has_nothing_to_search(small, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "draw", lambda study: {})
    study = small[0]
    first = study.candidates[0]
    rest = [trial for trial in study.trials if (trial.candidate, trial.phase) != (first.label, "search")]
    one = next(
        trial
        for trial in study.trials
        if (trial.candidate, trial.phase, trial.status) == (first.label, "search", "finished")
    )
    changed = replace(
        study, folder=tmp_path, candidates=[replace(first, space={}), *study.candidates[1:]], trials=[one, *rest]
    )
    text = page.write_page(changed).read_text()
    assert "5 search trials (sgd: 1) and 3 final runs each" in text and "nfinished" not in text


def test_losses_of_different_kinds_are_not_drawn_side_by_side(small):
    study = small[0]
    kinds = ("cross_entropy", "mse", "cross_entropy")
    varied = [replace(of, fields={"loss": kind}) for of, kind in zip(study.candidates, kinds, strict=True)]
    with report_style():
        before, after = (figures.curves(replace(study, candidates=of), "steps") for of in (study.candidates, varied))
    assert before is not None and after is not None
    assert len(before.axes[0].lines) >= 3 and len(after.axes[0].lines) == 0
    assert "not compared" in after.axes[0].texts[0].get_text()
    assert len(after.axes[1].lines) == len(before.axes[1].lines), "validation is compared"


def test_sensitivity_of_all_has_no_points_that_are_no_trials(small):
    figure = small[0].plot()
    (axes,) = [axes for axes in figure.axes if axes.get_xlabel() == "learning rate"]
    assert len(axes.lines) == 3 and {line.get_marker() for line in axes.lines} == {"None"}
    assert not any(line.get_clip_on() for line in axes.lines), "a line along the edge keeps its width"


def test_long_names_leave_the_parts_of_the_overview_apart(small):
    study = small[0]
    names = {
        "sgd": "none",
        "adam": "affine:degrees=10,translate=0.1+pad_crop",
        "nadam": "package.networks:VeryLongName",
    }
    longer = replace(
        study,
        candidates=[replace(of, label=names[of.label]) for of in study.candidates],
        trials=[replace(trial, candidate=names[trial.candidate], settings={}) for trial in study.trials],
    )
    figure = longer.plot()
    figure.draw_without_rendering()
    boxes = [part.get_tightbbox() for part in figure.subfigs]
    assert len(boxes) == 6
    for one, other in itertools.combinations(boxes, 2):
        assert not one.shrunk(0.98, 0.98).overlaps(other.shrunk(0.98, 0.98))
    for part in figure.subfigs:
        (axes,) = part.axes
        assert axes.get_window_extent().width > 0.3 * part.bbox.width


def test_the_baseline_is_marked_among_the_differences(small):
    with report_style():
        figure = figures.differences(small[0])
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["baseline"]
    assert axes.get_xlabel() == "difference in test accuracy (points), better →"


def test_nothing_to_draw_without_rates_or_target(tmp_path):
    study = make_study(tmp_path, points=2, seeds=2, labels=SMALL[:2])
    plain = replace(study, target=None, trials=[replace(trial, settings={}) for trial in study.trials])
    assert figures.sensitivity(plain) is None
    assert figures.time_to_target(plain) is None and figures.performance_profile(plain) is None
    assert figures.differences(plain) is not None


@pytest.mark.parametrize("change", [lambda study: study, lower_is_better], ids=["accuracy", "loss"])
def test_whole_study_of_nine(tmp_path, change):
    study = change(make_study(tmp_path))
    text = page.write_page(study).read_text()
    check_self_contained(text)
    assert text.count("<img ") == len(page.PICTURES)


def test_lines_show_the_mean_over_seeds_and_the_target(small):
    study, _ = small
    with report_style():
        figure = figures.curves(study, "steps")
    assert figure is not None
    drawn = [line for line in figure.axes[1].lines if line.get_color() == lines.colour(1) and len(points_of(line)) > 2]
    runs = [trial for trial in study.trials if trial.candidate == "adam" and trial.phase == "final"]
    expected = np.mean([[r["accuracy"] for r in t.rows if r["kind"] == "validation"] for t in runs], axis=0)
    assert len(drawn) == 1 and np.allclose(drawn[0].get_ydata(), 100 * expected)
    assert any(points_of(line)[:, 1].tolist() == [98.0, 98.0] for line in figure.axes[1].lines)


def test_misses_are_drawn_at_infinity(small):
    study, _ = small
    missed = [
        replace(t, steps_to_target=None, seconds_to_target=None) if t.candidate == "sgd" else t for t in study.trials
    ]
    with report_style():
        figure = figures.time_to_target(replace(study, trials=missed))
    assert figure is not None
    axes = figure.axes[0]
    ticks = dict(zip([tick.get_text() for tick in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    (points,) = [line for line in axes.lines if line.get_color() == lines.colour(0) and len(points_of(line)) == 3]
    assert set(points_of(points)[:, 0]) == {ticks["∞"]}
    assert ticks["∞"] > max(trial.steps_to_target or 0 for trial in missed if trial.phase == "final")


def test_labels_keep_their_order_and_their_distance():
    places = np.array([0.5, 0.51, 0.1, 0.505, 0.9])
    found = lines._spread(places, 0.04)
    assert (np.argsort(found, kind="stable") == np.argsort(places, kind="stable")).all()
    assert np.diff(np.sort(found)).min() >= 0.04 - 1e-9
    assert found[[2, 4]].tolist() == [0.1, 0.9] and found[[0, 1, 3]].mean() == pytest.approx(places[[0, 1, 3]].mean())


def test_scale_spreads_values_near_a_hundred():
    with report_style():
        _, axes = new_axes(3, 3)
        lines.set_scale(axes, [80.0, 99.9, math.nan], Metric("accuracy", percent=True))
        to_place = axes.transData.transform
        places = [to_place((0, value))[1] for value in (80, 90, 99, 99.9)]
    assert np.diff(places)[1] > 2 * np.diff(places)[0]
    assert axes.get_ylim()[0] < 80 and 99.9 < axes.get_ylim()[1] <= 100


def test_nine_lines_differ_also_to_the_colour_blind():
    """By the least distance in CIELAB, to all cones and without those for green or red (Machado et al. 2009)."""
    eyes = [
        np.eye(3),
        np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
        np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    ]
    for eye in eyes:
        seen = [_lab(eye @ _linear(np.array(to_rgb(lines.colour(i))))) for i in range(9)]
        assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 20
    assert len({(lines.style(i, 1)["color"], lines.style(i, 1)["linestyle"]) for i in range(36)}) == 36


def test_text_about_a_line_can_be_read_on_white():
    for i in range(9):
        luminance = _linear(np.array(to_rgb(lines.ink(i)))) @ (0.2126, 0.7152, 0.0722)
        assert 1.05 / (luminance + 0.05) >= 4.5, lines.colour(i)  # WCAG 2.1, 1.4.3


def _linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ np.clip(linear, 0, 1) / (0.9505, 1.0, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
