import csv
import math
import subprocess
import sys

import numpy as np
import pytest

from cnn_jax.errors import UserError
from cnn_jax.storage.run_folder import LOGGED
from cnn_jax.training import loggers
from cnn_jax.training.loggers import LOGGERS, check_loggers, make_loggers
from cnn_jax.training.loggers.csv_file import CsvLogger


def table(path):
    """Rows as dicts of floats, without empty cells."""
    with open(path, newline="") as file:
        return [{tag: float(cell) for tag, cell in row.items() if cell} for row in csv.DictReader(file)]


def test_importing_the_loggers_imports_no_library():
    code = (
        "import sys, cnn_jax.training.loggers as l; l.check_loggers(['tensorboard', 'csv']);"
        "print([n for n in ('tensorboardX', 'wandb', 'mlflow', 'jax') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_an_unknown_name_and_a_missing_library_are_said_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="unknown logger 'wandv'; perhaps you meant wandb"):
        make_loggers(["tensorboard", "wandv"], tmp_path, 0, {})
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda name: None)
    for name in ("wandb", "mlflow"):
        with pytest.raises(UserError, match=rf"pip install 'cnn_jax\[{name}\]'"):
            make_loggers(["csv", name], tmp_path, 0, {})
    assert not list(tmp_path.iterdir())
    check_loggers(["csv", "tensorboard"])


def test_if_one_cannot_be_opened_the_files_of_the_others_are_removed(tmp_path, monkeypatch):
    def refuse(run, first_step, config):
        assert (run / "metrics.csv").exists() and (run / "tensorboard").exists()
        raise OSError("no")

    monkeypatch.setitem(LOGGERS, "mlflow", refuse)
    monkeypatch.setattr(loggers, "EXTRAS", {})
    (tmp_path / "mine.txt").write_text("stays")
    with pytest.raises(OSError, match="no"):
        make_loggers(["mlflow", "tensorboard", "csv"], tmp_path, 0, {})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_tensorboard_and_csv_write_only_declared_files(tmp_path):
    opened = make_loggers(["csv", "tensorboard", "csv"], tmp_path, 0, {})
    assert len(opened) == 2
    for logger in opened:
        logger.log({"train/loss": 0.5}, 1)
        logger.flush()
        logger.close()
    assert {path.name for path in tmp_path.iterdir()} == {"tensorboard", "metrics.csv"} <= set(LOGGED)


def test_csv_numbers_round_trip_and_steps_are_one_row(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path, 0)
    loss, rate = 0.1 + 0.2, float(np.float32(0.1))
    logger.log({"train/loss": loss}, 10)
    logger.log({"train/loss": math.nan, "train/rate": rate}, 20)
    logger.log({'odd,"tag"': math.inf, "validation/loss": -math.inf}, 20)
    logger.flush()
    seen = table(path)
    logger.log({"train/loss": 3}, 30)
    logger.log({"validation/loss": 1e-300}, 30)
    logger.close()
    first, second, third = table(path)
    assert seen == [first, pytest.approx(second, nan_ok=True)]
    assert first == {"step": 10, "train/loss": loss}
    assert math.isnan(second.pop("train/loss"))
    assert second == {"step": 20, "train/rate": rate, 'odd,"tag"': math.inf, "validation/loss": -math.inf}
    assert third == {"step": 30, "train/loss": 3.0, "validation/loss": 1e-300}
    header = path.read_text().splitlines()[0]
    assert header == 'step,train/loss,train/rate,"odd,""tag""",validation/loss'
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.csv"]


def test_csv_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path):
    def write(logger, steps):
        for step in steps:
            logger.log({"train/loss": 1 / step}, step)
            if step % 4 == 0:
                logger.log({"validation/loss": 2 / step}, step)
        logger.close()

    whole, cut = tmp_path / "whole.csv", tmp_path / "cut.csv"
    write(CsvLogger(whole, 0), range(1, 13))
    write(CsvLogger(cut, 0), range(1, 11))
    cut.write_bytes(cut.read_bytes() + b"11,0.0")  # half a line, left by a killed process
    write(CsvLogger(cut, 8), range(9, 13))
    assert cut.read_bytes() == whole.read_bytes()
    CsvLogger(cut, 0).close()
    assert cut.read_text() == "step\n"  # a new run


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "step,a\n1\n", "step,a\nx,2\n"])
def test_csv_that_is_damaged_is_left_alone(text, tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="delete"):
        CsvLogger(path, 5)
    assert path.read_text() == text


def test_wandb_offline_continues_its_run(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    ids = []
    for first_step in (0, 10, 0):
        (logger,) = make_loggers(["wandb"], tmp_path, first_step, {"batch_size": 8, "augment": ("flip",)})
        logger.log({"train/loss": 0.5}, first_step + 10)
        logger.log({"validation/loss": math.nan}, first_step + 10)
        logger.flush()
        logger.close()
        ids.append((tmp_path / "wandb_run.txt").read_text().strip())
    assert ids[0] == ids[1] != ids[2]
    assert {path.name for path in tmp_path.iterdir()} == {"wandb", "wandb_run.txt"} <= set(LOGGED)
    stored = {path.stem.removeprefix("run-") for path in tmp_path.glob("wandb/offline-run-*/*.wandb")}
    assert stored == {ids[0], ids[2]}


def test_mlflow_continues_its_run_without_doubled_steps(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("DO_NOT_TRACK", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

    config = {"experiment": "digits"} | {f"field{i}": i for i in range(150)}
    for first_step, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        (logger,) = make_loggers(["mlflow"], tmp_path, first_step, config)
        for step in steps:
            logger.log({"train/loss": 1 / step, "train/odd": math.nan}, step)
        logger.flush()
        logger.close()
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow", "mlflow_run.txt"} <= set(LOGGED)
    client = MlflowClient((tmp_path / "mlflow").as_uri())
    run = client.get_run((tmp_path / "mlflow_run.txt").read_text().strip())
    assert run.info.status == "FINISHED" and run.info.run_name == tmp_path.name
    assert client.get_experiment(run.info.experiment_id).name == "digits"
    assert run.data.params == {key: str(value) for key, value in config.items()}
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(step, 1 / step) for step in (10, 20, 30, 40)]
    assert len(client.get_metric_history(run.info.run_id, "train/odd")) == 4
