"""Members trained together with different learning rates match single runs with those rates."""

import csv
import json
import re
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cnn_jax
from cnn_jax.commands.committee import main
from cnn_jax.commands.experiment import parse
from cnn_jax.config import Config
from cnn_jax.errors import TrainingStopped, UserError
from cnn_jax.models.ensembles import average, member
from cnn_jax.runs.evaluate import evaluate
from cnn_jax.runs.results import collect, read_rows, table, write_rows
from cnn_jax.storage.run_folder import read_metrics
from cnn_jax.storage.weights_file import load_weights
from cnn_jax.training.experiment import make_experiment
from cnn_jax.training.run import train
from cnn_jax.weights.sources import load_run

pytestmark = pytest.mark.usefixtures("one_device")

CONFIG = Config("rates").override(
    dataset="synthetic:8x8x1:3:40", model="mlp", model_args=("hidden=8",), batch_size=16, steps=3, epochs=None, seed=4
)


def trained(config: Config) -> tuple[Any, Any, Any]:
    """Trains for two steps; returns the experiment, state and last metrics."""
    experiment = make_experiment(config)
    data = experiment.data["train"]
    arrays, state, items = jax.device_put(data.arrays), experiment.state, data.train_items(0)
    step, metrics = jax.jit(experiment.train_step), {}
    for _ in range(2):
        state, metrics = step(state, data.gather(arrays, next(items)))
    return experiment, state, metrics


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "momentum", "schedule": "cosine", "weight_decay": 0.1, "augment": ("pad_crop:padding=1",)},
        {"optimizer": "rprop"},  # its initial state depends on the rate
    ],
    ids=lambda changes: changes["optimizer"],
)
def test_each_member_matches_a_run_with_its_rate(changes):
    rates = (0.3, 0.01)
    config = CONFIG.override(**changes)
    experiment, state, metrics = trained(config.override(member_learning_rates=rates))
    assert metrics["loss"][:, 1].tolist() == [16, 16], "the networks are kept apart"
    assert "learning rate 0.3" in experiment.optimizer.description
    assert experiment.optimizer.description.endswith("other networks: 0.01")
    for number, rate in enumerate(rates):
        _, alone, _ = trained(config.override(learning_rate=rate))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), member(state.params, number), alone.params
        )


def test_a_network_that_diverges_leaves_the_others_alone():
    config = CONFIG.override(optimizer="momentum", member_learning_rates=(0.01, 1e30))
    experiment, state, metrics = trained(config)
    assert not np.isfinite(jax.tree.leaves(member(state.params, 1))[0]).all()
    assert all(np.isfinite(pairs[0]).all() for pairs in metrics.values()) and metrics["loss"][0, 1] == 16
    validation, diverged = experiment.validator().each({"params": state.params})
    assert np.isnan(diverged["loss"])
    alone = make_experiment(config.override(member_learning_rates=(0.01,)))
    expected, *_ = alone.evaluator("validation").predictions({"params": member(state.params, 0)})
    assert validation == pytest.approx(expected)


def test_metrics_show_when_all_networks_diverge():
    _, _, metrics = trained(CONFIG.override(optimizer="momentum", member_learning_rates=(1e30, 1e31)))
    assert not np.isfinite(metrics["loss"][:, 0]).any()
    nothing = average(jnp.full((2, 1, 3), jnp.nan))
    assert np.isnan(nothing).all()


def test_there_is_a_network_for_each_rate(tmp_path):
    config = parse(("--member-learning-rates", "0.1", "0.2", "0.4"), CONFIG)
    assert config.optim.member_learning_rates == (0.1, 0.2, 0.4) and config.train.members == 3
    (tmp_path / "config.json").write_text(config.to_json())
    assert Config.load(tmp_path / "config.json") == config
    record = json.loads(config.to_json())
    record["optim"]["member_learning_rates"] = ["much"]
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="member_learning_rates is .* it must be a list of numbers"):
        Config.load(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"member_learning_rates": (0.1, 0.0)},
            "`member_learning_rates` are 0.1 0.0: they must be finite and above 0",
        ),
        ({"member_learning_rates": (0.1, 0.1)}, "`member_learning_rates` are 0.1 0.1: name each once"),
        (
            {"member_learning_rates": (0.1, 0.2), "head_learning_rate": 0.1},
            "and `head_learning_rate` cannot be combined",
        ),
    ],
)
def test_wrong_rates_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        make_experiment(CONFIG.override(**changes))


def test_the_table_has_a_row_per_rate(tmp_path, capsys):
    run, table = tmp_path / "run", tmp_path / "table.csv"
    train(CONFIG.override(workdir=str(run), member_learning_rates=(0.003, 0.001)))
    main([str(run), "--split", "validation", "--csv", str(table)])
    with table.open(newline="") as file:
        assert [row["learning_rate"] for row in csv.DictReader(file)] == ["0.003", "0.001"]
    assert "#1, rate 0.001" in " ".join(capsys.readouterr().out.split())


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A run that compares a rate that is too low, one that is right and one that diverges."""
    run = tmp_path_factory.mktemp("rates") / "run"
    rates = (1e-6, 0.1, 1e30)
    summary = train(CONFIG.override(workdir=str(run), optimizer="momentum", member_learning_rates=rates, steps=6))
    return run, summary


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A run with the best of those rates."""
    run = tmp_path_factory.mktemp("rate") / "run"
    return run, alone(run, 0.1)


def alone(run, rate):
    """The summary of a run with one rate."""
    return train(CONFIG.override(workdir=str(run), optimizer="momentum", learning_rate=rate, steps=6))


def test_the_best_rate_is_the_result_and_each_has_a_row(compared, single, tmp_path):
    (run, summary), (single_run, expected) = compared, single
    assert summary["learning_rate"] == 0.1
    for name in ("best_step", "validation_accuracy", "validation_loss", "test_accuracy", "test_loss"):
        assert summary[name] == pytest.approx(expected[name]), name
    low, right, diverged = summary["rates"]
    assert [row["kept"] for row in summary["rates"]] == [False, True, False]
    assert low["validation_loss"] == pytest.approx(alone(tmp_path / "low", 1e-6)["validation_loss"])
    assert right["validation_loss"] == pytest.approx(expected["validation_loss"])
    assert right["step"] == expected["best_step"]
    assert diverged["validation_loss"] is None
    assert json.loads((run / "summary.json").read_text())["rates"] == summary["rates"]
    # Its weights are those of one network, and what reads a run takes them.
    assert evaluate(run)["loss"] == pytest.approx(expected["test_loss"])
    assert load_run(run).config.compares_rates, "it may be exported, or be a start"
    for ours, theirs in zip(leaves(run), leaves(single_run), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def leaves(run):
    return jax.tree.leaves(load_weights(run / "final.safetensors")[0])


def test_every_row_of_the_metrics_belongs_to_one_rate(compared, single):
    ours, theirs = read_metrics(compared[0]), read_metrics(single[0])
    own = [row for row in ours if row.get("member") == 1]
    for kind in ("train", "validation"):
        rows, expected = ([row for row in found if row["kind"] == kind] for found in (own, theirs))
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in expected])
        assert {row["peak_learning_rate"] for row in rows} == {0.1}
    assert [row["learning_rate"] for row in own if row["kind"] == "train"] == pytest.approx([0.1] * 3)
    assert {row["member"] for row in ours if row["kind"] != "test"} == {0, 1, 2}


def test_the_report_names_the_networks_and_their_rates(compared):
    run, _ = compared
    text = (run / "report.html").read_text()
    assert "3 networks mlp on" in text and "<h2>Learning rates</h2>" in text
    table = text.partition("<h2>Learning rates</h2>")[2].partition("</table>")[0]
    cells = [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert [row[0] for row in cells] == ["1e-06", "0.1", "1e+30"]
    assert [row[-1] for row in cells] == ["", "kept", ""] and cells[2][1] == "–"


def test_the_results_table_has_a_row_per_rate_and_tests_only_the_best(compared, tmp_path):
    run, summary = compared
    rows = collect([run])
    assert [row["learning_rate"] for row in rows] == ["1e-06", "0.1", "1e+30"]
    tested = [row["test_accuracy_mean"] for row in rows]
    assert tested == ["", f"{100 * summary['test_accuracy']:.3f}", ""]
    write_rows(tmp_path / "rates.csv", rows)
    head, _, *lines = table(read_rows([tmp_path / "rates.csv"])).splitlines()
    assert head.split("|")[4:6] == [" Rate ", " Test accuracy (%) "]
    assert [line.split("|")[4].strip() for line in lines] == ["1e-06", "0.1", "1e+30"]
    assert lines[0].split("|")[5].strip() == "–"


def test_a_comparison_is_resumed_like_any_run(compared, tmp_path):
    config = CONFIG.override(optimizer="momentum", member_learning_rates=(1e-6, 0.1, 1e30), steps=6, eval_every=0.7)
    config = config.override(workdir=str(tmp_path / "run"))

    class Stop:
        def on_evaluation(self, step, metrics, state):
            if state is not None and step < 6:
                signal.raise_signal(signal.SIGINT)

    whole = train(config.override(workdir=str(tmp_path / "whole")))
    with pytest.raises(TrainingStopped):
        train(config, callbacks=[Stop()])
    resumed = train(config)
    for name in ("rates", "best_step", "best_member", "test_loss"):
        assert resumed[name] == whole[name]


def test_the_best_network_of_an_interrupted_comparison_is_returned(tmp_path):
    class Stop:
        def on_evaluation(self, step, metrics, state):
            assert metrics["member"] == 1
            signal.raise_signal(signal.SIGINT)

    config = CONFIG.override(optimizer="momentum", member_learning_rates=(1e-6, 0.1), steps=20, eval_every=1)
    run = cnn_jax.fit(config.model.model, config.data.dataset, config=config, callbacks=[Stop()])
    assert run.interrupted
    last = run.history[-1]
    assert run.summary["validation_loss"] == last["loss"] and last["member"] == 1
    run.save(tmp_path / "saved")
    assert cnn_jax.load(tmp_path / "saved").evaluate("validation")["loss"] == pytest.approx(last["loss"])
