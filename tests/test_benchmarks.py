"""The benchmarks' table and plots, and each benchmark at its smallest. Timings themselves are not tested."""

import doctest
import math
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import convolutions, cpu_gradients, growth, loop_overhead, members, plots, speed, startup, timing
from benchmarks.speed import COLUMNS, Figure, figure, markdown, read, record
from cnn_jax.errors import UserError
from cnn_jax.ops import native
from cnn_jax.runs.results import with_section

ROOT = Path(__file__).resolve().parents[1]


def test_page_has_the_table_of_the_figures():
    page = (ROOT / speed.PAGE).read_text()
    assert with_section(page, "speed", markdown(read(ROOT / speed.PATH))) == page, (
        f"{speed.PAGE} and {speed.PATH} differ; run: python -m benchmarks.speed"
    )


@pytest.mark.parametrize("module", [speed, timing, growth])
def test_examples_of_the_documentation(module):
    assert doctest.testmod(module).failed == 0


def test_new_figures_replace_those_of_the_same_key_only(tmp_path):
    path = tmp_path / "new" / "speed.csv"
    record(
        path,
        "b",
        [Figure("one", "step", 1.0, "ms"), Figure("one", "ratio", 2.0, "x"), Figure("two", "step", 3.0, "ms")],
    )
    record(path, "a", [Figure("one", "step", 4.0, "ms")])
    record(path, "b", [figure("one", "step", [5.0, 7.0, 6.0], "ms"), Figure("three", "step", 123456.7, "ms")])
    rows = read(path)
    assert [(row["benchmark"], row["case"], row["measure"], row["value"]) for row in rows] == [
        ("a", "one", "step", "4"),
        ("b", "one", "step", "6"),
        ("b", "one", "ratio", "2"),
        ("b", "two", "step", "3"),
        ("b", "three", "step", "123457"),
    ]
    assert (rows[1]["low"], rows[1]["high"], rows[1]["n"]) == ("5", "7", "3")
    assert (rows[2]["low"], rows[2]["high"], rows[2]["n"]) == ("", "", "1")
    assert all(row["device"] and "jax" in row["versions"] and row["command"] for row in rows)


def test_figures_of_another_device_stay(tmp_path):
    path = tmp_path / "speed.csv"
    record(path, "b", [Figure("one", "step", 1.0, "ms")])
    (row,) = read(path)
    path.write_text(path.read_text().replace(row["device"], "another device"))
    record(path, "b", [Figure("one", "step", 2.0, "ms")])
    assert [(row["device"] == "another device", row["value"]) for row in read(path)] == [(True, "1"), (False, "2")]


def test_nothing_is_written_without_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(None, "b", [Figure("one", "step", 1.0, "ms")])
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "digits.csv"
    path.write_text("experiment,model\n")
    with pytest.raises(UserError, match="does not have the columns"):
        record(path, "b", [Figure("one", "step", 1.0, "ms")])
    assert path.read_text() == "experiment,model\n"
    with pytest.raises(UserError, match="--output"):
        read(tmp_path / "absent.csv")


def test_markdown_has_a_table_per_benchmark_and_a_row_per_figure(tmp_path):
    path = tmp_path / "speed.csv"
    record(path, "a", [Figure("one", "p | q", 1.5, "x", 1.0, 2.0, 3)])
    record(path, "b", [Figure("two", "step", 4.0, "ms"), Figure("two", "ratio", 2.0, "x")])
    text = markdown(read(path))
    assert text.count("### ") == 2
    assert "| one | p \\| q | 1.5 x | 1 to 2 | 3 |" in text
    assert len([line for line in text.splitlines() if line.startswith("| two |")]) == 2


def test_pairs_alternate():
    order = []

    def block(name, seconds):
        return lambda: order.append(name) or seconds

    pairs = [timing.timed_pair(block("one", 1.0), block("other", 2.0), turn) for turn in range(3)]
    assert pairs == [(1.0, 2.0)] * 3
    assert order == ["one", "other", "other", "one", "one", "other"]


def test_bends_are_1_on_a_power_law():
    straight = {x: 3.0 * x**-0.5 for x in (1, 2, 3, 7, 64)}
    assert growth.bends(straight) == pytest.approx({2: 1.0, 3: 1.0, 7: 1.0})
    bent = growth.bends(straight | {3: straight[3] * 1.5})
    assert bent[3] == pytest.approx(1.5) and bent[2] < 1 and bent[7] < 1
    assert growth.bends({1: 1.0, 2: 1.0}) == {}


@pytest.fixture
def tiny(monkeypatch):
    """Shrinks the benchmark cases to 16 images and one device."""
    for name, case in timing.CASES.items():
        dataset = case.data.dataset.rpartition(":")[0] + ":16"
        monkeypatch.setitem(timing.CASES, name, case.override(dataset=dataset, batch_size=8, devices=1))
    monkeypatch.setattr(growth, "BASE", timing.BASE.override(devices=1))


def figures(path):
    """Reads {(case, measure): value} and asserts that all values are finite."""
    values = {(row["case"], row["measure"]): float(row["value"]) for row in read(path)}
    assert values and all(map(math.isfinite, values.values()))
    return values


def test_a_bench_trains_and_measures_its_speed(tiny):
    bench = timing.make_bench(timing.CASES["lenet5"])
    assert bench.bare(3) > 0
    assert int(bench.state.step) == 3
    assert bench.steps_in(1e-9) == 1
    assert bench.scratch > 0


def test_cpu_gradients(tiny, tmp_path, capsys):
    path = tmp_path / "speed.csv"
    small = ["--batch", "8", "--blocks", "2", "--seconds", "0.01", "--output", str(path)]
    cpu_gradients.main(["--models", "lenet5", *small])
    values = figures(path)
    assert {measure for _, measure in values} == {"plain / ours", "plain step", "our step"}
    assert "lenet5 batch 8: plain / ours" in capsys.readouterr().out


def test_loop_overhead(tiny, tmp_path):
    path = tmp_path / "speed.csv"
    small = ["--batch", "8", "--blocks", "1", "--seconds", "0.01", "--output", str(path)]
    loop_overhead.main(["--models", "lenet5", *small])
    values = figures(path)
    whole = values["lenet5 batch 8", "overhead"]
    assert values["lenet5 batch 8", "loop / bare, in images/s"] == pytest.approx(100 / (100 + whole), rel=1e-2)
    rows = {row["measure"]: row for row in read(path)}
    assert rows["bare step"]["n"] == str(loop_overhead.TURNS - 1)  # the last turn has no bare steps after it
    assert rows["overhead of checkpoints"]["n"] == "1"


def test_members_stops_before_a_size_that_takes_too_long(tiny, tmp_path, capsys):
    path = tmp_path / "speed.csv"
    small = ["--models", "lenet5", "--batch", "8", "--blocks", "2", "--block-seconds", "0.01", "--output", str(path)]
    members.main(["--members", "2", "1000000", "3", *small])
    assert {case for case, _ in figures(path)} == {"lenet5 batch 8, 2 members"}
    assert "ends before 1000000 members" in capsys.readouterr().out


def test_members_differ_in_seed_or_in_rate():
    seeds, rates = (members.of_several(timing.CASES["lenet5"], 3, kind) for kind in ("seeds", "rates"))
    assert seeds.train.members == rates.train.members == 3
    assert seeds.optim.member_learning_rates == ()
    assert rates.optim.member_learning_rates == pytest.approx((1e-3, 1e-2 / 10**0.5, 1e-2))


def test_growth(tiny, tmp_path):
    path = tmp_path / "speed.csv"
    small = ["--model", "lenet5", "--image", "12", "--blocks", "1", "--seconds", "0.01", "--output", str(path)]
    growth.main(["--axes", "batch", "--batches", "2", "3", "4", *small])
    values = figures(path)
    assert len(values) == 3 * 3 + 1
    first = "lenet5 12x12 batch 2 classes 10 float32"
    assert {measure for case, measure in values if case == first} == {
        "batch: an image",
        "batch: an image / of the first case",
        "batch: speed",
    }
    assert values["lenet5 12x12 batch 3 classes 10 float32", "batch: largest bend"] > 0


def test_growth_wants_a_depth():
    with pytest.raises(UserError, match="--model lenet does not end in its depth: choose"):
        growth.main(["--model", "lenet"])


def test_startup_says_why_a_command_ended(tmp_path):
    with pytest.raises(UserError, match=r"ended before its first step \(.*No module named"):
        startup.parts_of_start(["experiments.absent"], tmp_path)


def test_startup_times_the_parts_of_a_run(tmp_path):
    arguments = ["experiments.xo_cnn", "--dataset", "xo:train=8", "--batch-size", "8"]
    parts = startup.parts_of_start(arguments, tmp_path)
    assert list(parts) == ["imports", "preparation", "placing", "compilation", "first step", "total"]
    assert min(parts.values()) > 0
    assert sum(parts.values()) == pytest.approx(2 * parts["total"])
    assert any(tmp_path.rglob("xla/*")), "the programs were not cached"


def test_pictures_are_drawn_for_the_figures_in_the_table(tmp_path):
    path = tmp_path / "speed.csv"
    with pytest.raises(UserError, match="measure them first"):
        record(path, "other", [Figure("one", "step", 1.0, "ms")])
        plots.main(["--table", str(path), "--output", str(tmp_path)])
    case = "lenet5 batch 128, {} members"
    for k in (1, 2, 4):
        at_once = Figure(case.format(k), "step of all at once", 2.0 * k, "ms")
        record(path, "members", [figure(case.format(k), "one by one / at once", [0.9, 1.0, k], "x"), at_once])
    plots.main(["--table", str(path), "--output", str(tmp_path)])
    assert not (tmp_path / "speed_growth.png").exists()
    for batch in (1, 2, 3):
        name = str(growth.Case("resnet", 20, 32, batch, 10, "float32"))
        record(
            path,
            "growth",
            [Figure(name, "batch: an image", 1 / batch, "ms"), Figure(name, "batch: speed", batch, "GFLOP/s")],
        )
    plots.main(["--table", str(path), "--output", str(tmp_path)])
    for name in plots.PICTURES:
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 600


@pytest.mark.parametrize("axis", growth.AXES)
def test_pictures_find_the_number_that_grows(axis):
    rows = []
    for number in (64, 2, 8):
        case = growth.Case(
            **{
                "family": "resnet",
                "depth": 20,
                "image": 32,
                "batch": 1,
                "classes": 10,
                "precision": "float32",
                axis: number,
            }
        )
        rows.append(
            {
                "benchmark": "growth",
                "case": str(case),
                "measure": axis,
                "value": "1",
                "low": "",
                "high": "",
                "device": "cpu",
            }
        )
    (points,) = plots.lines(rows, "growth", axis, plots.AXES[axis][0]).values()
    assert [number for number, *_ in points] == [2, 8, 64]


def test_pictures_keep_devices_and_models_apart():
    common = {"benchmark": "members", "measure": "m", "value": "2", "low": "1", "high": "3"}
    cases = [
        ("lenet5 batch 8, 2 members", "cpu"),
        ("lenet5 batch 8, 2 members", "gpu"),
        ("resnet20 batch 8, 2 members", "cpu"),
    ]
    rows = [common | {"case": case, "device": device} for case, device in cases]
    found = plots.lines(rows, "members", "m", plots.MEMBERS)
    assert found == {
        f"{model} batch 8\n{device}": [(2.0, 2.0, 1.0, 3.0)]
        for model, device in [("lenet5", "cpu"), ("lenet5", "gpu"), ("resnet20", "cpu")]
    }


def test_columns_of_the_table():
    assert COLUMNS[:2] == ("benchmark", "case") and COLUMNS[-4:] == ("device", "versions", "commit", "command")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--blocks", "0"], "--blocks is 0: it must be a whole number of at least 1"),
        (["--seconds", "nan"], "--seconds is nan: it must be a number greater than 0"),
        (["--output", "README.md"], "README.md does not have the columns"),
    ],
)
def test_mistakes_are_reported_before_measuring(flags, message):
    with pytest.raises(UserError, match=message):
        convolutions.main(flags)


def test_settings_that_change_speeds_have_rows_of_their_own(tmp_path, monkeypatch):
    path, row = tmp_path / "speed.csv", [speed.figure("a", "step", [1.0], "ms")]
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(native, "available", lambda: True)
    speed.record(path, "members", row)
    monkeypatch.setenv("XLA_FLAGS", "--xla_some=1")
    monkeypatch.setattr(native, "available", lambda: False)
    speed.record(path, "members", row, extra_versions=["driver 1"])
    first, second = speed.read(path)
    assert second["device"] == first["device"] + ", no compiled convolutions, XLA_FLAGS=--xla_some=1"
    assert second["versions"].endswith(", driver 1")
