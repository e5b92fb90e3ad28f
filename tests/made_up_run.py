"""Writes a finished run folder without training: softmax regression on `digits`, with known weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from cnn_jax.config import Config
from cnn_jax.data import Preprocess, materialize, open_source
from cnn_jax.storage import run_folder as files
from cnn_jax.storage.weights_file import save_weights

CONFIG = Config("made_up").override(
    dataset="digits", model="softmax_regression", normalize="none", eval_batch_size=70, seed=3
)
SUMMARY = {
    "experiment": "made_up",
    "model": "softmax_regression",
    "dataset": "digits",
    "seed": 3,
    "epochs": 4.0,
    "steps": 40,
    "best_step": 30,
    "validation_accuracy": 0.875,
    "validation_loss": 0.4321,
    "test_accuracy": 0.9,
    "test_loss": 0.34567,
    "test_count": 10,
    "seconds": 75.2,
    "parameters": 650,
    "flops_per_image": 1290,
    "device": "1 x TPU v9",
    "command": "python -m experiments.made_up --seed 3",
    "commit": "abc1234",
    "finished": True,
}


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images, uint8 (N, 8, 8, 1), and labels (N,)."""
    images, labels = materialize(open_source("digits", split)).values()
    return np.asarray(images), np.asarray(labels)


def nearest_mean_weights() -> tuple[np.ndarray, np.ndarray]:
    """Kernel (64, 10) and bias (10,) with logits |x|² minus the squared distance of x to each class's mean image."""
    images, labels = digits("train")
    flat = images.reshape(len(images), -1) / np.float32(255)
    means = np.stack([flat[labels == k].mean(axis=0) for k in range(10)])
    return (2 * means.T).astype(np.float32), -(means**2).sum(axis=1).astype(np.float32)


def expected_logits(images: np.ndarray) -> np.ndarray:
    """Logits of the made-up run's model, computed with NumPy alone."""
    kernel, bias = nearest_mean_weights()
    return images.reshape(len(images), -1) / np.float32(255) @ kernel + bias


def make_run(folder: Path, config: Config = CONFIG, **summary: object) -> Path:
    """Writes the run folder; keyword arguments override fields of the summary."""
    folder.mkdir(parents=True)
    (folder / files.CONFIG).write_text(config.to_json())
    (folder / files.CLASSES).write_text("".join(f"{k}\n" for k in range(10)))
    (folder / files.PREPROCESS).write_text(Preprocess((8, 8, 1), (0.0,), (1.0,)).to_json())
    environment = {"command": "python -m experiments.made_up --seed 3", "commit": "abc1234", "jax": "9.8.7"}
    (folder / files.ENVIRONMENT).write_text(json.dumps(environment))
    for step in range(1, 41):
        loss = 2.3 / step
        files.append_metrics(folder, row("train", step, loss, 1 - loss / 3, learning_rate=0.1, images_per_second=1e3))
        if step % 10 == 0:
            files.append_metrics(folder, row("validation", step, loss + 0.1, 0.875 if step == 30 else 0.8))
    kernel, bias = nearest_mean_weights()
    save_weights(folder / files.WEIGHTS, {"params": {"output": {"kernel": kernel, "bias": bias}}}, {})
    (folder / files.SUMMARY).write_text(json.dumps(SUMMARY | summary))
    return folder


def row(kind: str, step: int, loss: float, accuracy: float, **more: float) -> dict[str, Any]:
    """A row of metrics.jsonl, with ten steps per epoch."""
    basic: dict[str, Any] = {"kind": kind, "step": step, "epoch": step / 10, "loss": loss, "accuracy": accuracy}
    return basic | {"seconds": step * 0.5} | more
