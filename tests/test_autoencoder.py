"""The auto-encoder and the reconstruction task: sizes, gradients, and a run through the usual commands."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_checks import by_path

import cnn_jax
from cnn_jax.commands import evaluate, predict
from cnn_jax.data import open_source
from cnn_jax.data.pictures import export
from cnn_jax.errors import UserError
from cnn_jax.models import create_model
from cnn_jax.runs.results import collect
from cnn_jax.storage import run_folder as files
from cnn_jax.tasks import Classification, Reconstruction

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 7, 3), (8, 8, 1), (1, 2, 1)])
def test_outputs_have_the_size_of_the_inputs(shape):
    model, x = create_model("conv_autoencoder"), jnp.ones((2, *shape))
    variables = model.init(jax.random.key(0), x, train=False)
    outputs, state = cast(Any, model).apply(variables, x, train=False, mutable=["stages"])
    assert outputs.shape == x.shape and outputs.dtype == jnp.float32
    height, width = (-(-side // 4) for side in shape[:2])
    assert state["stages"]["code"].shape == (2, height, width, 8)


def test_every_parameter_gets_a_gradient():
    model, task = create_model("conv_autoencoder", features=(4, 6), code=3), Reconstruction()
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    params = model.init(jax.random.key(0), x, train=False)["params"]

    def loss(params):
        return task.loss(model.apply({"params": params}, x, train=True), {"image": x}, train=True)[0]

    gradients = by_path(jax.grad(loss)(params))
    assert len(gradients) == 12
    assert [path for path, gradient in gradients.items() if not np.any(np.asarray(gradient))] == []


def test_it_is_no_classifier():
    with pytest.raises(UserError, match="conv_autoencoder has no classes"):
        create_model("conv_autoencoder", 10)
    outputs: Any = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    with pytest.raises(UserError, match=r"array of shape \(2, 8, 8, 1\).* \(2, 3\), \(batch, classes\)"):
        Classification(("a", "b", "c")).check(outputs, {"image": outputs})


@pytest.mark.parametrize(("error", "expected"), [("mse", (1 + 9) / 2), ("l1", (1 + 3) / 2)])
def test_loss_matches_hand_computation(error, expected):
    task = Reconstruction(error)
    images = jnp.array([0.0, 0.0]).reshape(1, 1, 2, 1)
    outputs = jnp.array([1.0, -3.0]).reshape(1, 1, 2, 1)
    loss, sums = task.loss(outputs, {"image": images}, train=True)
    assert float(loss) == expected and sums["loss"].tolist() == [expected, 1.0]
    rows = task.rows(np.asarray(outputs[0]), np.asarray(images[0]), top=5)
    assert rows == [{"error": pytest.approx(expected)}]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("auto") / "run"
    fields = {"task": "reconstruction", "batch_size": 64, "learning_rate": 5e-3, "eval_every": 0.5}
    return cnn_jax.fit("conv_autoencoder", "digits", epochs=2, workdir=folder, **fields)


def test_it_learns_and_the_best_is_the_lowest(run):
    validation = [row["loss"] for row in run.history if row["kind"] == "validation"]
    assert len(validation) == 4 and validation[-1] < 0.7 * validation[0]
    assert run.summary["validation_loss"] == min(validation) and "test_accuracy" not in run.summary


def test_the_report_shows_inputs_above_reconstructions(run):
    page = (run.folder / files.REPORT).read_text()
    assert "<h2>Reconstructions</h2>" in page and "Confusion" not in page
    assert {"reconstructions.png", "worst.png", "loss.png"} <= {
        path.name for path in (run.folder / files.PLOTS).iterdir()
    }


def test_an_interrupted_run_ends_with_the_same_weights(run, tmp_path):
    class Stop:
        def on_evaluation(self, step, metrics, state):
            if state is not None and step == seen[0]:
                raise KeyboardInterrupt

    seen = [row["step"] for row in run.history if row["kind"] == "validation"][1:2]
    again = run.config.override(workdir=None)
    with pytest.raises(KeyboardInterrupt):
        cnn_jax.fit("conv_autoencoder", "digits", workdir=tmp_path / "run", config=again, callbacks=[Stop()])
    resumed = cnn_jax.fit("conv_autoencoder", "digits", workdir=tmp_path / "run", config=again)
    jax.tree.map(np.testing.assert_array_equal, resumed.variables, run.variables)


def test_commands_evaluate_and_predict(run, tmp_path, capsys):
    evaluate.main([str(run.folder)])
    assert f"{run.summary['test_loss']:.4f}" in capsys.readouterr().out
    export(open_source("digits", "test[:3]"), tmp_path / "images")
    predict.main([str(run.folder), str(tmp_path / "images"), "--pictures", str(tmp_path / "made")])
    assert "error" in capsys.readouterr().out
    assert len(list((tmp_path / "made").glob("*.png"))) == 3


def test_it_needs_no_classes(run, tmp_path, capsys):
    """One class trains; its weights start another run; other data needs no classes of the same names."""
    export(open_source("digits", "train[:40]"), tmp_path / "images")
    for folder in (tmp_path / "images").iterdir():
        if folder.name != "3":
            for number, image in enumerate(folder.iterdir()):
                image.rename(tmp_path / "images" / "3" / f"{folder.name}-{number}.png")
            folder.rmdir()
    fields: dict[str, Any] = {"task": "reconstruction", "steps": 2, "batch_size": 8}
    again = cnn_jax.fit("conv_autoencoder", f"folder:{tmp_path / 'images'}", init_from=str(run.folder), **fields)
    assert again.summary["test_loss"] < cnn_jax.fit("conv_autoencoder", "digits", **fields).summary["test_loss"]
    evaluate.main([str(run.folder), "--dataset", f"folder:{tmp_path / 'images'}"])
    assert "loss" in capsys.readouterr().out
    with pytest.raises(UserError, match="is a run of reconstruction, without accuracies: leave it out"):
        collect([run.folder])


@pytest.mark.parametrize("changed", [{}, {"image_size": 12, "channels": 3}], ids=["as they are", "changed"])
def test_images_need_no_labels(changed, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), np.uint8)
    fields: dict[str, Any] = {"task": "reconstruction", "steps": 2, "batch_size": 16, "logger": ()} | changed
    run = cnn_jax.fit("conv_autoencoder", images, test=images[:8], workdir=tmp_path / "run", **fields)
    labelled = cnn_jax.fit(
        "conv_autoencoder", (images, np.arange(40) % 3), test=(images[:8], np.zeros(8, int)), **fields
    )
    assert run.classes == () and labelled.classes == ("0", "1", "2")
    assert run.summary["test_loss"] == labelled.summary["test_loss"]
    assert run.evaluate(images[:8])["loss"] == pytest.approx(run.summary["test_loss"])
    assert cnn_jax.load(tmp_path / "run").predict(images[:2]).shape[0] == 2
    again = cnn_jax.fit("conv_autoencoder", images, test=images[:8], workdir=tmp_path / "run", **fields)
    assert again.summary == run.summary, "it had finished"


def test_images_without_labels_are_nothing_to_classify():
    images, fields = np.zeros((20, 8, 8), np.uint8), {"steps": 1, "batch_size": 8, "logger": ()}
    said = r"images without labels, which classification needs: pass \(images, labels\), or set `task`"
    with pytest.raises(UserError, match=said):
        cnn_jax.fit("softmax_regression", images, **fields)
    with pytest.raises(UserError, match=said):
        cnn_jax.fit("softmax_regression", (images, np.arange(20) % 2), test=images, **fields)


def test_members_are_averaged():
    outputs = jnp.stack([jnp.zeros((2, 4, 4, 1)), jnp.ones((2, 4, 4, 1))])
    assert np.all(np.asarray(Reconstruction().combine(outputs)) == 0.5)


def test_what_does_not_fit_is_refused(capsys):
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"augment": ["mixup"]}, "mixup changes target"),
        ({"loss": "hinge"}, "unknown loss of reconstruction 'hinge'"),
    )
    for fields, said in cases:
        with pytest.raises(UserError, match=said):
            cnn_jax.fit("conv_autoencoder", "digits", task="reconstruction", **fields)
    with pytest.raises(UserError, match="reconstruction needs the images' shape"):
        cnn_jax.fit("softmax_regression", "digits", task="reconstruction")
