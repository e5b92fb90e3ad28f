"""Members trained together with different hyperparameters of the optimizer match single runs with these."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cnn_jax.commands.committee import main
from cnn_jax.commands.experiment import parse
from cnn_jax.config import Config, Member
from cnn_jax.data import open_source
from cnn_jax.errors import Diverged, UserError
from cnn_jax.models.ensembles import member
from cnn_jax.optim.optimizers import Compared, make_optimizer
from cnn_jax.optim.spaces import SPACES
from cnn_jax.runs.evaluate import evaluate
from cnn_jax.runs.results import collect, read_rows, table, write_rows
from cnn_jax.storage.run_folder import read_metrics
from cnn_jax.studies.candidates import with_settings
from cnn_jax.training.experiment import make_experiment
from cnn_jax.training.run import train

CONFIG = Config("args").override(
    dataset="synthetic:8x8x1:3:40",
    model="mlp",
    model_args=("hidden=8",),
    batch_size=16,
    steps=3,
    epochs=None,
    seed=4,
    log_every=1,
    eval_every=0.7,
    logger=(),
)
MOMENTUM: dict[str, Any] = {"optimizer": "momentum", "member_learning_rates": (0.1, 0.1, 0.01)}
MOMENTUM["member_optimizer_args"] = ("momentum=0,0.9,0.5", "weight_decay=0.1,0,0.3")
TEXTS = [("momentum=0", "weight_decay=0.1"), ("momentum=0.9", "weight_decay=0"), ("momentum=0.5", "weight_decay=0.3")]
EACH = [(0.1, 0, 0.1), (0.1, 0.9, 0), (0.01, 0.5, 0.3)]  # rate, momentum, weight decay of each


def descend(optimizer, rate, *hyperparameters):
    """The weights of a softmax regression after five steps on the first digits."""
    digits: Any = open_source("digits", "train[:200]")
    images, labels = jnp.asarray(digits.images.reshape(-1, 64), jnp.float32) / 255, jnp.asarray(digits.labels)

    def loss(params):
        logits = images @ params["kernel"] + params["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, _):
        params, state = carry
        # As in a training step, which finds the hyperparameters in the state.
        updates, state = optimizer.at(rate).update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params: Any = {"kernel": jnp.sin(jnp.arange(640.0)).reshape(64, 10) / 8, "bias": jnp.zeros(10)}
    start = params, optimizer.at(rate, *hyperparameters).init(params)
    return jax.lax.scan(step, start, None, length=5)[0][0]


@pytest.mark.parametrize("name", SPACES)
def test_every_space_can_be_searched_by_networks_trained_at_once(name):
    space, base = SPACES[name], Config().override(optimizer=name)
    points = [
        {key: of.at(shares[number % 2]) for number, (key, of) in enumerate(space.items())}
        for shares in ((0.3, 0.6), (0.7, 0.2))
    ]
    values = {key: jnp.array([point[key] for point in points], jnp.float32) for key in space}
    rates = values.pop("learning_rate")
    optimizer = make_optimizer(replace(base.optim, learning_rate=1.0), total_steps=5)
    together = jax.jit(jax.vmap(lambda rate, values: descend(optimizer, rate, values)))(rates, values)
    for number, point in enumerate(points):
        alone = make_optimizer(with_settings(base, point).optim, total_steps=5)
        expected = jax.jit(partial(descend, alone, alone.learning_rate))()
        for key in ("kernel", "bias"):
            np.testing.assert_allclose(together[key][number], expected[key], rtol=1e-5, atol=2e-6)
    assert np.abs(together["kernel"][0] - together["kernel"][1]).max() > 1e-3


def trained(config: Config) -> tuple[Any, Any, Any]:
    """Trains for three steps; returns the experiment and the first and last state."""
    experiment = make_experiment(config)
    data = experiment.data["train"]
    arrays, state, items = jax.device_put(data.arrays), experiment.state, data.train_items(0)
    step = jax.jit(experiment.train_step)
    for _ in range(3):
        state, _ = step(state, data.gather(arrays, next(items)))
    return experiment, experiment.state, state


def test_each_member_matches_a_run_with_its_arguments():
    experiment, start, state = trained(CONFIG.override(**MOMENTUM, schedule="cosine"))
    assert isinstance(start.opt_state, Compared)
    assert {name: of.tolist() for name, of in state.opt_state.hyperparameters.items()} == {
        "momentum": pytest.approx([0, 0.9, 0.5]),
        "weight_decay": pytest.approx([0.1, 0, 0.3]),
    }
    assert experiment.optimizer.description.endswith(
        "momentum=0, weight_decay=0.1; other networks: 0.1 momentum=0.9 weight_decay=0, 0.01 momentum=0.5 "
        "weight_decay=0.3"
    )
    for number, (rate, momentum, decay) in enumerate(EACH):
        own = {"learning_rate": rate, "optimizer_args": (f"momentum={momentum}",), "weight_decay": decay}
        _, _, alone = trained(CONFIG.override(optimizer="momentum", schedule="cosine", **own))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), member(state.params, number), alone.params
        )


def test_other_runs_keep_nothing_in_their_state():
    for changes in ({}, {"member_learning_rates": (0.1, 0.2)}):
        assert not isinstance(make_experiment(CONFIG.override(**changes)).state.opt_state, Compared)


def test_arguments_are_given_on_the_command_line(tmp_path):
    flags = ("--optimizer", "momentum", "--member-learning-rates", "0.1", "0.2")
    config = parse((*flags, "--member-optimizer-args", "momentum=0.5, 0.9", "weight_decay=0,1e-3"), CONFIG)
    assert config.compared == (
        Member(0.1, ("momentum=0.5", "weight_decay=0")),
        Member(0.2, ("momentum=0.9", "weight_decay=1e-3")),
    )
    (tmp_path / "config.json").write_text(config.to_json())
    assert Config.load(tmp_path / "config.json") == config
    assert config.override(optimizer="adam").optim.member_optimizer_args == (), "chosen for momentum"


@pytest.mark.parametrize(
    ("optimizer", "args", "said"),
    [
        ("momentum", "momentum=0.5", "has 'momentum=0.5' for 2 rates: write momentum=VALUE,VALUE,… with a value for"),
        ("momentum", "momentum", "has 'momentum' for 2 rates: write momentum=VALUE,VALUE,…"),
        ("momentum", "mometum=0,0.5", "`member_optimizer_args`: optimizer momentum has no argument 'mometum'; perhaps"),
        ("momentum", "momentum=0,1.5", "`member_optimizer_args`: momentum=1.5 for optimizer momentum is not in [0, 1)"),
        ("momentum", "momentum=0,x", "momentum=x for optimizer momentum: write momentum=NUMBER"),
        ("momentum", "momentum=0.5,none", "momentum of optimizer momentum is not a real number: start a run for each"),
        ("momentum", "nesterov=true,false", "nesterov of optimizer momentum is not a real number: start a run"),
        ("momentum", "weight_decay=0,-1", "weight_decay=-1.0 for optimizer momentum is not 0 or more: change it"),
        ("momentum", "momentum=0.5,0.5", "are 0.1 momentum=0.5, 0.1 momentum=0.5: name each once"),
        ("momentum", "learning_rate=1,2", "optimizer momentum has no argument 'learning_rate'"),
        ("muon", "ns_steps=3,4", "ns_steps of optimizer muon is not a real number: start a run for each value"),
        ("adam --optimizer-args b1=0.5", "b1=0.8,0.9", "b1 is given twice for optimizer adam: drop one"),
        ("adamw --weight-decay 0.1", "weight_decay=0,1", "weight_decay is given for all networks, too: drop one"),
        ("tests.test_member_args:picky", "warm=0.5,0.9", "picky (own) decides by the value of warm what to compute"),
        ("tests.test_member_args:PLAIN", "b1=0.5,0.9", "already built and ignores `learning_rate`"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(optimizer, args, said):
    flags = (*f"--optimizer {optimizer} --member-learning-rates 0.1 0.1 --member-optimizer-args".split(), args)
    with pytest.raises(UserError) as refused:
        make_experiment(parse(flags, CONFIG).resolve())
    assert said in str(refused.value)


def picky(learning_rate, warm: float = 0.5):
    """An optimizer that is another one for some values of its argument."""
    return optax.sgd(learning_rate) if warm > 0.7 else optax.adam(learning_rate)


PLAIN = optax.sgd(0.1)


def test_arguments_need_rates():
    for rates in ((), (0.1,)):
        config = CONFIG.override(member_learning_rates=rates, member_optimizer_args=("b1=0.5,0.9",))
        with pytest.raises(UserError, match="`member_optimizer_args` needs two or more `member_learning_rates`"):
            config.resolve()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A run of three networks, of which two share a rate and one diverges."""
    run = tmp_path_factory.mktemp("args") / "run"
    return run, train(CONFIG.override(**MOMENTUM | {"member_learning_rates": (0.01, 0.01, 1e30)}, workdir=str(run)))


def test_the_best_is_the_result_and_each_has_a_row(compared):
    run, summary = compared
    assert [row.get("optimizer_args") for row in summary["rates"]] == [" ".join(texts) for texts in TEXTS]
    assert [row["learning_rate"] for row in summary["rates"]] == [0.01, 0.01, 1e30]
    best = summary["best_member"]
    assert [row["kept"] for row in summary["rates"]] == [number == best for number in range(3)] and best < 2
    assert summary["learning_rate"] == 0.01 and summary["optimizer_args"] == " ".join(TEXTS[best])
    assert evaluate(run)["loss"] == pytest.approx(summary["test_loss"])
    rows = [row for row in read_metrics(run) if row["kind"] == "validation" and row["member"] == best]
    assert max(row["accuracy"] for row in rows) == summary["validation_accuracy"]
    assert {row["optimizer_args"] for row in rows} == {" ".join(TEXTS[best])}


def test_the_step_at_which_a_network_diverges_is_in_the_metrics(compared, tmp_path):
    def diverged(run):
        return [(row["member"], row["step"]) for row in read_metrics(run) if row["kind"] == "diverged"]

    single = CONFIG.override(optimizer="momentum", learning_rate=1e30, optimizer_args=TEXTS[2][:1], weight_decay=0.3)
    with pytest.raises(Diverged) as alone:
        train(single.override(workdir=str(tmp_path / "alone")))
    assert diverged(compared[0]) == [(2, alone.value.step)]
    all_of_them = CONFIG.override(optimizer="momentum", member_learning_rates=(1e30, 1e31), log_every=10)
    with pytest.raises(Diverged) as last:
        train(all_of_them.override(workdir=str(tmp_path / "all")))
    assert sorted(member for member, _ in diverged(tmp_path / "all")) == [0, 1]
    assert max(step for _, step in diverged(tmp_path / "all")) == last.value.step


def test_tables_name_the_arguments(compared, tmp_path, capsys):
    run, summary = compared
    rows = collect([run])
    assert sorted((row["learning_rate"], row["optimizer_args"]) for row in rows) == [
        ("0.01", "momentum=0 weight_decay=0.1"),
        ("0.01", "momentum=0.9 weight_decay=0"),
        ("1e+30", "momentum=0.5 weight_decay=0.3"),
    ]
    write_rows(tmp_path / "table.csv", rows)
    head, _, *lines = table(read_rows([tmp_path / "table.csv"])).splitlines()
    assert head.split("|")[4:7] == [" Rate ", " Arguments ", " Test accuracy (%) "]
    assert "| 0.01 | momentum=0 weight_decay=0.1 |" in lines[0]
    main([str(run), "--split", "validation", "--csv", str(tmp_path / "committee.csv")])
    assert "#1, rate 0.01 momentum=0.9 weight_decay=0" in " ".join(capsys.readouterr().out.split())
    report = (run / "report.html").read_text().partition("<h2>Learning rates</h2>")[2].partition("</table>")[0]
    cells = [re.findall("<td>(.*?)</td>", row) for row in report.split("<tr>")[2:]]
    assert [row[:2] for row in cells] == [
        ["0.01", "momentum=0 weight_decay=0.1"],
        ["0.01", "momentum=0.9 weight_decay=0"],
        ["1e+30", "momentum=0.5 weight_decay=0.3"],
    ]
    assert [row[-1] for row in cells] == ["kept" if row["kept"] else "" for row in summary["rates"]]
