"""Reconstruction: the network reproduces its input through a bottleneck (an auto-encoder).

Hinton and Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks"."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cnn_jax.config import OptimConfig
from cnn_jax.errors import UserError, counted, unknown
from cnn_jax.report import figures, html
from cnn_jax.report.metric import Metric
from cnn_jax.tasks.task import Batch, Findings, Selection, Sums, sums

ERRORS = {"mse": jnp.square, "l1": jnp.abs}
SHOWN = 16  # pairs in the report


@dataclass(frozen=True)
class Reconstruction:
    """Trains outputs to match the inputs, normalized images (B, H, W, C); the loss is the mean error per value."""

    error: str = "mse"
    name = "reconstruction"
    selection = Selection("loss", higher_is_better=False)
    outputs = None

    @property
    def metrics(self) -> dict[str, Metric]:
        """The loss, the reconstruction error."""
        return {"loss": Metric(f"reconstruction error ({self.error})")}

    def prepare(self, batch: Batch) -> dict[str, jax.Array]:
        """Returns the batch as it is: the target is the input."""
        return dict(batch)

    def inputs(self, batch: Batch) -> jax.Array:
        """Picks the images, (B, H, W, C)."""
        return batch["image"]

    def check(self, outputs: Any, batch: Batch) -> None:
        """Rejects outputs whose shape is not that of the images."""
        if (given := getattr(outputs, "shape", type(outputs).__name__)) != batch["image"].shape:
            raise UserError(f"the model returns {given}: reconstruction needs the images' shape {batch['image'].shape}")

    def loss(
        self, outputs: Any, batch: Batch, *, train: bool, auxiliary: Mapping[str, Any] = {}
    ) -> tuple[jax.Array, Sums]:
        """Mean error of the batch, and its sum."""
        error_B = self._distance(outputs, batch["image"])
        return error_B.mean(), {"loss": sums(error_B, batch)}

    def collect(self, outputs: Any, batch: Batch) -> dict[str, jax.Array]:
        """Returns input, output and error of each image."""
        return {"input": batch["image"], "output": outputs, "error": self._distance(outputs, batch["image"])}

    def combine(self, outputs: Any) -> jax.Array:
        """The mean of the images of M networks."""
        return outputs.mean(axis=0)

    def measures(self, collected: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Computes "count" and "loss", the mean error over the N images."""
        return {"count": len(collected["error"]), "loss": float(np.mean(collected["error"], dtype=np.float64))}

    def findings(self, collected: Mapping[str, np.ndarray], images: Sequence[np.ndarray], split: str) -> Findings:
        """Draws inputs above their reconstructions: some of the split, and the worst."""
        error_N, pictures = collected["error"], {}
        some = np.unique(np.linspace(0, len(error_N) - 1, SHOWN).astype(int))
        worst = np.argsort(-error_N, kind="stable")[:SHOWN]
        with figures.style():
            for name, chosen in (("reconstructions", some), ("worst", worst)):
                pairs = [collected["input"][chosen], collected["output"][chosen]]
                pictures[name] = figures.png(figures.image_rows(pairs, ("input", "output")))
        drawn = (html.figure((data, name), figures.DPI / 100) for name, data in pictures.items())
        text = f"Images of the {split} split above their reconstructions: an even sample, then the worst."
        tiles = [
            (
                f"{error_N.mean():.4f}",
                f"{split} error ({self.error})",
                f"{counted(len(error_N), 'image')}, normalized scale",
            )
        ]
        return Findings(tiles, [html.section("Reconstructions", text, *drawn)], pictures)

    def predict(self, outputs: np.ndarray) -> np.ndarray:
        """Reconstructions, in the normalized scale of the input."""
        return outputs

    def rows(self, prediction: np.ndarray, image: np.ndarray, top: int) -> list[dict[str, Any]]:
        """One row: the error of the image."""
        return [{"error": float(self._distance(prediction[None], image[None])[0])}]

    def _distance(self, outputs: Any, images: Any) -> jax.Array:
        return ERRORS[self.error](outputs - images).mean(axis=(1, 2, 3))


def make(config: OptimConfig, class_names: Sequence[str]) -> Reconstruction:
    """Makes the task of a config."""
    if (error := config.loss or "mse") not in ERRORS:
        raise unknown("loss of reconstruction", error, ERRORS)
    return Reconstruction(error)
