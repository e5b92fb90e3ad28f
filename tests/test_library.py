"""`fit`, `Run` and `load`: the same code path as the commands, with objects as well as names."""

import functools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import cnn_jax
from cnn_jax.config import Config
from cnn_jax.data import open_source
from cnn_jax.data.own import Subset, as_source, fingerprint
from cnn_jax.errors import TrainingStopped, UserError
from cnn_jax.models.linear import Mlp
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.lock import LOCK
from cnn_jax.storage.weights_file import load_weights
from cnn_jax.tasks import Classification, Reconstruction
from cnn_jax.training import compiled, loop, outcome
from cnn_jax.training.experiment import make_experiment
from cnn_jax.training.labels import label

pytestmark = pytest.mark.usefixtures("one_device")

SOURCE = open_source("digits", "train[:256]")
IMAGES, LABELS = (
    np.asarray([SOURCE[i]["image"] for i in range(256)]),
    np.asarray([SOURCE[i]["label"] for i in range(256)]),
)
FIELDS: dict[str, Any] = {
    "model_args": ["hidden=16"],
    "batch_size": 32,
    "steps": 8,
    "learning_rate": 1e-2,
    "devices": 1,
    "report": False,
}


def tiny(classes: int = 10) -> nn.Module:
    """A module of a new class on each call, like a notebook cell that is run again."""

    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.Conv(4, (3, 3), strides=2)(x)
            x = nn.BatchNorm(use_running_average=not train)(x)
            return nn.Dense(classes)(nn.relu(x).reshape(len(x), -1))

    return Tiny()


class Untrainable(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(len(x), -1))


class Interrupts:
    """A callback that presses Ctrl-C `times` times at each validation."""

    def __init__(self, times: int = 1):
        self.times = times

    def on_evaluation(self, step, metrics, state):
        for _ in range(self.times):
            os.kill(os.getpid(), signal.SIGINT)


def same(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit") / "run"
    return cnn_jax.fit("mlp", "digits", optimizer="adam", workdir=folder, **FIELDS)


def test_the_command_ends_with_the_same_weights(run, tmp_path):
    flags = ["--model", "mlp", "--model-args", "hidden=16", "--batch-size", "32", "--steps", "8", "--devices", "1"]
    flags += ["--learning-rate", "1e-2", "--augment", "--schedule", "constant", "--workdir", str(tmp_path / "run")]
    code = (
        "from cnn_jax.commands.experiment import run; from cnn_jax.config import Config; "
        "run(Config('command'), 'A command.')"
    )
    subprocess.run([sys.executable, "-c", code, *flags], check=True, stdout=subprocess.DEVNULL)
    assert same(load_weights(tmp_path / "run" / files.WEIGHTS)[0], run.variables)


def test_names_and_objects_are_the_same_run(run):
    splits = {split: open_source("digits", split) for split in ("train", "validation", "test")}
    model = cnn_jax.create_model("mlp", 10, hidden=(16,))
    fields: dict[str, Any] = FIELDS | {"model_args": ()}
    other = cnn_jax.fit(model, splits["train"], validation=splits["validation"], test=splits["test"], **fields)
    assert same(other.variables, run.variables)
    assert other.summary["test_accuracy"] == run.summary["test_accuracy"]


def test_a_network_of_the_catalogue_given_as_an_object_is_recorded_by_name(tmp_path):
    model = cnn_jax.create_model("mlp", 10, hidden=(16, 8), dtype=jnp.bfloat16)
    run = cnn_jax.fit(model, (IMAGES, LABELS), steps=2, batch_size=32, workdir=tmp_path / "run")
    recorded = run.config.model
    assert (recorded.model, recorded.model_args, recorded.precision) == ("mlp", ("hidden=16/8",), "bfloat16")
    again = cnn_jax.load(tmp_path / "run")
    assert again.model == model
    assert np.array_equal(again.predict(IMAGES[:9]), run.predict(IMAGES[:9]))


def test_own_module_optimizer_and_arrays_learn(tmp_path):
    run = cnn_jax.fit(tiny(), (IMAGES, LABELS), validation=0.25, optimizer=optax.adam(1e-2), epochs=6, batch_size=32)
    assert run.summary["validation_count"] == 64 and "test_accuracy" not in run.summary
    assert run.evaluate((IMAGES, LABELS))["accuracy"] > 0.8
    probabilities = run.predict(IMAGES[:7])
    assert probabilities.shape == (7, 10) and np.allclose(probabilities.sum(-1), 1)
    assert all("learning_rate" not in row for row in run.history), "the rate is inside the optimizer"
    run.save(tmp_path / "saved")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "saved").stat().st_mode == (tmp_path / "usual").stat().st_mode, "open to others"
    assert not (tmp_path / "saved" / LOCK).exists()
    again = cnn_jax.load(tmp_path / "saved", model=tiny())
    assert np.array_equal(again.predict(IMAGES), run.predict(IMAGES))
    with pytest.raises(UserError, match=r"pass it, as in load\(run, model=…\)"):
        cnn_jax.load(tmp_path / "saved")
    with pytest.raises(UserError, match="not empty"):
        again.save(tmp_path / "saved")


def test_rerunning_a_cell_compiles_nothing(caplog):
    def cell():
        return cnn_jax.fit(tiny(), (IMAGES, LABELS), optimizer=optax.sgd(0.1), steps=3, batch_size=16)

    def compilations() -> list[str]:
        return [text for text in caplog.messages if text.startswith("Finished XLA compilation")]

    with jax.log_compiles(), caplog.at_level("WARNING"):
        first = cell()
        assert compilations(), "else the log says nothing"
        caplog.clear()
        second = cell()
    assert compilations() == []
    assert same(first.variables, second.variables)
    assert len(compiled._programs) <= compiled.KEPT


def test_the_users_cache_of_compiled_programs_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("CNN_JAX_CACHE", str(tmp_path))
    code = "import jax, sys, cnn_jax.library; from cnn_jax.training import runtime; "
    code += "from cnn_jax.config import TrainConfig; assert 'orbax' not in sys.modules; "  # not before the first step
    code += "runtime.prepare(TrainConfig()); print(jax.config.jax_compilation_cache_dir)"
    for chosen, used in ((str(tmp_path / "mine"), tmp_path / "mine"), ("", tmp_path / "xla")):
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": chosen}
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == str(used)


def test_interrupt_returns_a_usable_run_and_the_same_call_resumes(run, tmp_path):
    class Interrupt:
        def on_evaluation(self, step, metrics, state):
            if state is not None and not seen:
                seen.append(step)
                os.kill(os.getpid(), signal.SIGINT)

    seen: list[int] = []
    fields = {**FIELDS, "eval_every": 0.1}
    whole = cnn_jax.fit("mlp", "digits", workdir=tmp_path / "whole", **{**fields, "report": True})
    stopped = cnn_jax.fit("mlp", "digits", workdir=tmp_path / "run", callbacks=[Interrupt()], **fields)
    assert stopped.interrupted and seen == [4]
    assert stopped.predict(IMAGES[:3]).shape == (3, 10) and "accuracy" in str(stopped.summary)
    assert "<iframe" not in stopped._repr_html_() and "<iframe" in whole._repr_html_()
    resumed = cnn_jax.fit("mlp", "digits", workdir=tmp_path / "run", **fields)
    assert not resumed.interrupted and same(resumed.variables, whole.variables)


def test_early_stopping_ends_at_the_same_step_when_resumed(tmp_path, capsys):
    fields = {**FIELDS, "steps": 60, "learning_rate": 1e-9, "eval_every": 0.1, "patience": 2}
    seen: list[Any] = []

    class Note:
        def on_evaluation(self, step, metrics, state):
            seen.append((step, metrics))

    run = cnn_jax.fit("mlp", "digits", workdir=tmp_path / "run", callbacks=[Note()], **fields)
    live, seen = seen, []
    assert f"early, after step {run.summary['steps']} of 60" in capsys.readouterr().out and run.summary["steps"] < 60
    (run.folder / files.SUMMARY).unlink()  # as if killed before the end
    again = cnn_jax.fit("mlp", "digits", workdir=tmp_path / "run", callbacks=[Note()], **fields)
    assert seen == live, "the rows before are shown again as they were"
    assert again.summary["steps"] == run.summary["steps"] and same(again.variables, run.variables)


def test_curves_are_drawn(run):
    figure = run.plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["cross-entropy (nats)", "accuracy (%)"]


def test_the_public_api_is_listed_without_importing_jax():
    code = "import sys, cnn_jax; assert {'fit', 'load', 'Run'} <= set(dir(cnn_jax)); assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "resnet20" in cnn_jax.list_models("resnet*") and cnn_jax.__version__


@pytest.mark.parametrize(
    ("arguments", "fields", "said"),
    [
        ((Untrainable(), (IMAGES, LABELS)), {}, "Untrainable has no argument train in __call__"),
        ((tiny(7), (IMAGES, LABELS)), {}, r"shape \(2, 7\).* needs logits of shape \(2, 10\), \(batch, classes\)"),
        ((tiny, (IMAGES, LABELS)), {}, "is function: pass a flax.linen module"),
        ((type(tiny()), (IMAGES, LABELS)), {}, "Tiny is a class: pass an instance"),
        ((tiny(), (IMAGES / 255.0, LABELS)), {}, r"images are float64: convert .* np.round\(images \* 255\)"),
        ((tiny(), (IMAGES[0], LABELS)), {}, "images have shape|images but"),
        ((tiny(), (IMAGES, LABELS[:5])), {}, "256 images but 5 labels"),
        ((tiny(), (IMAGES, LABELS - 1)), {}, "labels go from -1 to 8"),
        ((tiny(), (IMAGES, LABELS)), {"classes": ["a", "b"]}, "labels go from 0 to 9: pass labels from 0 to 1"),
        ((tiny(), (IMAGES, jax.nn.one_hot(LABELS, 10))), {}, r"labels are float32 of shape \(256, 10\).*argmax"),
        ((tiny(), (IMAGES, LABELS)), {"optimizer": optax.polyak_sgd()}, "needs the loss value, not only gradients"),
        ((tiny(), (IMAGES, LABELS)), {"optimizer": optax.sgd(0.1), "learning_rate": 0.1}, "built and ignores"),
        ((tiny(), (IMAGES, LABELS)), {"optimizer": "adm"}, "perhaps you meant adam"),
        ((tiny(), (IMAGES, LABELS)), {"validation": 1.5}, "validation share of 1.5"),
        ((tiny(), (IMAGES, LABELS)), {"epoch": 3}, "perhaps you meant epochs"),
        ((tiny(), (IMAGES, LABELS)), {"epochs": 0}, "`epochs` is 0: it must be more than 0"),
        ((tiny(), (IMAGES, LABELS)), {"logger": ["cvs"]}, "perhaps you meant csv"),
        (("resnet21", "digits"), {}, "unknown model 'resnet21'"),
        ((tiny(), (IMAGES, LABELS)), {"batch_size": "64"}, "`batch_size` is '64': it must be a whole number"),
        ((tiny(), (IMAGES, LABELS)), {"batch_size": 64.5}, "`batch_size` is 64.5: it must be a whole number"),
        ((tiny(), (IMAGES, LABELS)), {"image_size": "28"}, "`image_size` is '28': it must be a whole number or None"),
        ((tiny(), (IMAGES, LABELS)), {"select": "foo"}, "`select` is 'foo': it must be one of best, last"),
        ((tiny(), (IMAGES, LABELS)), {"augment": [3]}, "`augment` is .3,.: it must be a list of strings"),
        (("mlp", (IMAGES, LABELS)), {"precision": "float16"}, "`precision` is 'float16': it must be one of float32"),
        ((tiny(), (IMAGES, LABELS)), {"callbacks": [print]}, "`callbacks` has the function print: pass objects with a"),
        ((tiny(), (IMAGES, LABELS)), {"callbacks": [Interrupts]}, "`callbacks` has the class Interrupts"),
        ((tiny(), (IMAGES, LABELS)), {"callbacks": Interrupts()}, "pass a list of callbacks"),
        ((tiny(), (IMAGES, LABELS)), {"optimizer": optax.adam}, r"the function adam, .* call it, as in adam\(1e-3\)"),
        ((tiny(), (IMAGES, LABELS)), {"optimizer": 3}, "`optimizer` is 3, which is no Optax transformation"),
        ((tiny(), (IMAGES, LABELS)), {"task": 3}, "`task` is 3, which is no cnn_jax.tasks.Task"),
        ((tiny(), (IMAGES, LABELS)), {"task": Classification}, "`task` is the class Classification, which is no"),
        ((tiny(), (IMAGES, LABELS)), {"config": {"steps": 3}}, "`config` is .*: pass a cnn_jax.config.Config"),
        ((tiny(), (IMAGES, LABELS)), {"train_split": "train[:9]"}, "`train_split` is for a data set given by name"),
        ((tiny(), (IMAGES, LABELS)), {"model_args": ["a=1"]}, "`model_args` is for a model given by name"),
        ((tiny(), (IMAGES, LABELS)), {"precision": "bfloat16"}, "`precision` is for a model given by name"),
        ((tiny(), (IMAGES, LABELS)), {"dataset": "digits"}, "`dataset` is not a field of fit"),
        ((tiny(), (IMAGES, LABELS)), {"steps": 3, "epochs": 2}, "`steps` is 3 and `epochs` is 2: set one of them"),
        (("mlp", "digits"), {"task": Reconstruction("mse"), "loss": "l1"}, "`loss` applies to `task` given by name"),
        (("mlp", "digits"), {"optimizer": optax.sgd(0.1), "layer_decay": 0.5}, "`layer_decay` applies to `optimizer`"),
        (("mlp", "digits"), {"classes": ["a", "b"]}, "`classes` is for arrays"),
        (("mlp", "digits"), {"validation": 0.1, "validation_split": "train[:9]"}, "are both set: drop one"),
        (("nowhere.net:Tiny", "digits"), {}, "there is no module nowhere"),
        (("optax:adamm", "digits"), {}, "optax has no attribute adamm: perhaps you meant adam"),
    ],
)  # fmt: skip
def test_mistakes_are_reported_and_nothing_is_written(arguments, fields, said, tmp_path):
    with pytest.raises(UserError, match=said):
        cnn_jax.fit(*arguments, workdir=tmp_path / "run", **fields)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_another_run_is_refused(run):
    fields: dict[str, Any] = FIELDS | {"learning_rate": 1.0}
    with pytest.raises(UserError, match="holds a run with a different config .*learning_rate"):
        cnn_jax.fit("mlp", "digits", optimizer="adam", workdir=run.folder, **fields)


def test_models_data_and_optimizers_from_user_modules(tmp_path, monkeypatch):
    (tmp_path / "mynet.py").write_text(
        "import flax.linen as nn, numpy as np, optax\n"
        "class Net(nn.Module):\n"
        "    num_classes: int = 10\n    width: int = 4\n"
        "    @nn.compact\n    def __call__(self, x, *, train):\n"
        "        return nn.Dense(self.num_classes)(nn.relu(nn.Dense(self.width)(x.reshape(len(x), -1))))\n"
        "def data():\n"
        "    rng = np.random.default_rng(0)\n"
        "    make = lambda n: (rng.integers(0, 256, (n, 6, 6, 1), np.uint8), np.arange(n) % 3)\n"
        "    return {'train': make(60), 'test': make(12)}\n"
        "rule = optax.adam(1e-3)\n"
    )
    (tmp_path / "broken.py").write_text("raise RuntimeError('the user sees this')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    fields = {"model_args": ["width=5"], "steps": 4, "batch_size": 8, "workdir": "run"}
    run = cnn_jax.fit("mynet:Net", "mynet:data", optimizer="mynet:rule", **fields)
    assert run.summary["test_count"] == 12 and run.summary["validation_count"] == 6
    assert cnn_jax.load("run").model.width == 5  # type: ignore[attr-defined]
    (tmp_path / "pair.py").write_text("from mynet import data\narrays = data()['train']\n")
    assert cnn_jax.fit("mynet:Net", "pair:arrays", steps=1, batch_size=8).summary["validation_count"] == 6
    with pytest.raises(RuntimeError, match="the user sees this"):
        cnn_jax.fit("broken:Net", "digits")


def test_callbacks_get_the_train_state(run):
    class Keep:
        def on_evaluation(self, step, metrics, state):
            kept.append((step, sorted(metrics), int(state.step), float(state.learning_rate), jnp.shape(state.seed)))

    kept: list[Any] = []
    cnn_jax.fit("mlp", "digits", callbacks=[Keep()], **FIELDS)
    assert kept == [(8, ["accuracy", "loss"], 8, pytest.approx(1e-2), ())]


def test_ctrl_c_during_the_final_test_returns_a_usable_run(monkeypatch, tmp_path):
    def interrupted(*arguments, **values):
        os.kill(os.getpid(), signal.SIGINT)

    fields = {**FIELDS, "report": True}
    monkeypatch.setattr(outcome, "write_report", interrupted)
    stopped = cnn_jax.fit("mlp", "digits", **fields)
    assert stopped.interrupted and stopped.folder.exists() and stopped.predict(IMAGES[:3]).shape == (3, 10)
    monkeypatch.undo()
    finished = cnn_jax.fit("mlp", "digits", workdir=stopped.folder, **fields)
    assert not finished.interrupted and same(finished.variables, stopped.variables)


def test_a_second_ctrl_c_raises_and_keeps_the_checkpoints(capsys):
    with pytest.raises(KeyboardInterrupt):
        cnn_jax.fit("mlp", "digits", callbacks=[Interrupts(times=2)], **FIELDS)
    folder = Path(capsys.readouterr().out.splitlines()[-1].split(" keeps ")[0])
    try:
        assert files.has_checkpoint(folder)
    finally:
        shutil.rmtree(folder)


def test_a_second_ctrl_c_ends_a_command(monkeypatch):
    def quit_at_once(number, frame):
        raise SystemExit(130)

    monkeypatch.setattr(loop, "quit_at_once", quit_at_once)
    previous = signal.signal(signal.SIGINT, quit_at_once)  # as the commands do
    try:
        with pytest.raises(SystemExit), loop.StopRequest():
            Interrupts(times=2).on_evaluation(0, {}, None)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_a_diverged_run_keeps_the_checkpoint_that_its_message_names(capsys):
    rates = optax.scale_by_schedule(lambda step: jnp.where(jnp.asarray(step) < 4, -0.05, jnp.nan))
    with pytest.raises(TrainingStopped, match="last good checkpoint: step 4 in ") as stopped:
        cnn_jax.fit(tiny(), (IMAGES, LABELS), optimizer=rates, steps=12, batch_size=64, eval_every=1)
    folder = Path(str(stopped.value).split(" in ")[1].split(")")[0])
    try:
        assert files.has_checkpoint(folder.parent)
    finally:
        shutil.rmtree(folder.parent)


def test_values_from_numpy_and_single_texts_are_fields(tmp_path):
    fields: dict[str, Any] = {"seed": np.int64(1), "learning_rate": jnp.float32(0.5), "batch_size": 32.0}
    lists: dict[str, Any] = {"augment": "flip", "logger": "csv", "member_learning_rates": np.array([0.25, 0.5])}
    run = cnn_jax.fit("softmax_regression", (IMAGES, LABELS), steps=1, data_dir=tmp_path, devices=1, **fields, **lists)
    saved = files.read_config(run.folder)
    assert (saved.train.seed, saved.optim.learning_rate, saved.data.batch_size) == (1, 0.5, 32)
    assert (saved.data.augment, saved.train.logger) == (("flip",), ("csv",))
    assert saved.optim.member_learning_rates == (0.25, 0.5) and saved.data.data_dir == str(tmp_path)


def test_a_run_of_own_parts_is_evaluated_on_its_own_test_split(tmp_path):
    run = cnn_jax.fit(tiny(), "digits", task=Classification(SOURCE.class_names), steps=2, batch_size=32)
    assert run.evaluate("test")["accuracy"] == run.summary["test_accuracy"]
    other = cnn_jax.fit("softmax_regression", "digits", validation=(IMAGES, LABELS), steps=1)
    with pytest.raises(UserError, match=r"the data of this run, <digits \w+>, were given .* as objects"):
        other.evaluate("test")


def test_an_interrupted_run_is_evaluated_and_saved(tmp_path):
    fields: dict[str, Any] = FIELDS | {"steps": 80}
    stopped = cnn_jax.fit("mlp", "digits", callbacks=[Interrupts()], **fields)
    assert stopped.interrupted
    accuracy = stopped.evaluate("test")["accuracy"]
    with pytest.raises(UserError, match="not finished .*: repeat the call of cnn_jax.fit with workdir="):
        cnn_jax.load(stopped.folder)
    again = cnn_jax.load(stopped.save(tmp_path / "saved"))
    assert again.interrupted and again.evaluate("test")["accuracy"] == accuracy


def test_labels_are_the_same_in_every_process():
    code = (
        "import optax, jax, flax.linen as nn\n"
        "from cnn_jax.tasks import Reconstruction\n"
        "from cnn_jax.training.labels import label\n"
        "class Net(nn.Module):\n    act: object\n"
        "net = Net([nn.relu, lambda x: x, jax.tree_util.Partial(nn.gelu, approximate=True), nn.Dense(3), object()])\n"
        "print(label(net), label(optax.adam(optax.cosine_decay_schedule(0.1, 9))), label(Reconstruction('mse')))\n"
    )
    ran = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout for _ in range(2)]
    assert ran[0] == ran[1] != b""


class Activated(nn.Module):
    act: Any = nn.relu

    @nn.compact
    def __call__(self, x, *, train):
        return self.act(nn.Dense(10)(x.reshape(len(x), -1)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Activated(), Activated(nn.gelu)),
        (Activated(lambda x: x), Activated(lambda x: -x)),
        (
            Activated(functools.partial(nn.leaky_relu, negative_slope=0.1)),
            Activated(functools.partial(nn.leaky_relu, negative_slope=0.2)),
        ),
        (Activated(nn.initializers.normal(0.1)), Activated(nn.initializers.normal(0.2))),
        (optax.adam(1e-2), optax.adam(1e-3)),
        (optax.sgd(optax.cosine_decay_schedule(0.1, 10)), optax.sgd(optax.cosine_decay_schedule(0.1, 20))),
        (
            optax.multi_transform({"a": optax.sgd(0.1)}, {"mine": "a"}),
            optax.multi_transform({"a": optax.sgd(0.2)}, {"mine": "a"}),
        ),
        (Reconstruction("mse"), Reconstruction("l1")),
    ],
)
def test_labels_change_with_the_settings(one, other):
    assert label(one) == label(one) != label(other)


class Plain:
    """A source that tells nothing about its contents."""

    name, split, image_shape, fingerprint = "plain", "train", (8, 8, 1), None

    def __init__(self, value: int, classes: tuple[str, ...] = ("a", "b")):
        self.value, self.class_names = value, classes

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"image": np.full((8, 8, 1), self.value * (index % 2), np.uint8), "label": index % 2}


def test_fingerprints_change_with_data_and_classes():
    arrays = [(IMAGES, LABELS), (IMAGES[:9], LABELS[:9]), (255 - IMAGES, LABELS), (IMAGES, LABELS[::-1])]
    sources: list[Any] = [*(as_source(pair) for pair in arrays), as_source(arrays[0], class_names=list("abcdefghij"))]
    sources += [Subset(sources[0], range(5), "train"), Subset(sources[0], range(1, 6), "train")]
    sources += [Plain(1), Plain(2), Plain(1, ("a", "c"))]
    assert len({fingerprint({"train": source}) for source in sources}) == len(sources)


def test_a_folder_of_another_optimizer_object_is_refused(tmp_path):
    fields: dict[str, Any] = {"steps": 1, "batch_size": 32, "workdir": tmp_path / "run"}
    cnn_jax.fit("softmax_regression", (IMAGES, LABELS), optimizer=optax.sgd(0.1), **fields)
    with pytest.raises(UserError, match="different config .*optimizer"):
        cnn_jax.fit("softmax_regression", (IMAGES, LABELS), optimizer=optax.sgd(0.2), **fields)


def test_workdir_of_the_config_channels_and_size_of_arrays_are_honoured(tmp_path):
    config = Config("fit").override(workdir=str(tmp_path / "run"))
    run = cnn_jax.fit("softmax_regression", (IMAGES, LABELS), config=config, channels=3, image_size=6, steps=1)
    assert run.folder == tmp_path / "run" and run.preprocess.image_shape == (6, 6, 3)
    predicted = run.predict(IMAGES)  # converted as in training
    accuracy = float(np.mean(predicted.argmax(-1) == LABELS))
    assert run.evaluate((IMAGES, LABELS))["accuracy"] == pytest.approx(accuracy)
    assert np.array_equal(run.predict(IMAGES[..., 0]), predicted)


def test_init_draws_what_fit_starts_from():
    model = cnn_jax.create_model("resnet20", 10, blocks=(1, 1), width=4)
    drawn = cnn_jax.init(model, (8, 8, 3), seed=5)
    args = ("blocks=1/1", "width=4")
    config = Config("fit").override(model="resnet20", model_args=args, dataset="synthetic:8x8x3:10", seed=5, steps=1)
    state = make_experiment(config.resolve()).state
    assert same(drawn, {"params": state.params, "batch_stats": state.batch_stats})
    assert not same(drawn, cnn_jax.init(model, (8, 8, 3), seed=6))
    with pytest.raises(UserError, match="Mlp is a class"):
        cnn_jax.init(Mlp, (32, 32, 3))  # type: ignore[arg-type]


def test_mistakes_in_using_a_run_are_reported(run):
    for size in (0, -1, 2.5):
        with pytest.raises(UserError, match=f"`batch_size` is {size}: set an integer"):
            run.predict(IMAGES, batch_size=size)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=f"`batch_size` is {size}: set an integer"):
            run.evaluate((IMAGES, LABELS), batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"Untrainable is a class: pass an instance"):
        cnn_jax.load(run.folder, model=Untrainable)  # type: ignore[arg-type]
