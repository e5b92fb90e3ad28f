"""Members trained together with different learning rates match single runs with those rates."""

import csv
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_jax.commands.committee import main
from cnn_jax.commands.experiment import parse
from cnn_jax.config import Config
from cnn_jax.errors import UserError
from cnn_jax.models.ensembles import average, member
from cnn_jax.training.experiment import make_experiment
from cnn_jax.training.run import train

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
    assert metrics["loss"][1] == 2 * 16
    assert "learning rate 0.3" in experiment.optimizer.description
    assert experiment.optimizer.description.endswith("other networks: 0.01")
    for number, rate in enumerate(rates):
        _, alone, _ = trained(config.override(learning_rate=rate))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), member(state.params, number), alone.params
        )


def test_a_network_that_diverges_is_left_out():
    config = CONFIG.override(optimizer="momentum", member_learning_rates=(0.01, 1e30))
    experiment, state, metrics = trained(config)
    assert not np.isfinite(jax.tree.leaves(member(state.params, 1))[0]).all()
    assert all(np.isfinite(pair).all() for pair in metrics.values()) and metrics["loss"][1] == 16
    validation, _ = experiment.evaluator("validation").predictions({"params": state.params})
    alone = make_experiment(config.override(member_learning_rates=(0.01,)))
    expected, *_ = alone.evaluator("validation").predictions({"params": member(state.params, 0)})
    assert validation == pytest.approx(expected)


def test_metrics_show_when_all_networks_diverge():
    _, _, metrics = trained(CONFIG.override(optimizer="momentum", member_learning_rates=(1e30, 1e31)))
    assert not np.isfinite(metrics["loss"][0])
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
