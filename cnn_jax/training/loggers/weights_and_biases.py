"""Metrics to Weights & Biases, through its own library; WANDB_MODE=offline works without a network."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_jax.storage.run_folder import WANDB_ID, write_text


class WandbLogger:
    """One W&B run for a run folder; resuming continues it.

    Args:
        run: the run folder, which gets `wandb/` and the id of the W&B run.
        first_step: number of updates done.
        config: shown with the run.
    """

    def __init__(self, run: Path, first_step: int, config: Mapping[str, Any]):
        import wandb

        known = run / WANDB_ID
        if not (first_step and known.is_file()):
            write_text(known, wandb.util.generate_id() + "\n")
        # wandb's own environment variables (WANDB_MODE, WANDB_PROJECT, …) count.
        self._run: Any = wandb.init(
            dir=str(run), id=known.read_text().strip(), resume="allow", name=run.name, config=dict(config)
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Adds finite scalars at a step."""
        self._run.log({tag: value for tag, value in values.items() if math.isfinite(value)}, step=step)

    def flush(self) -> None:
        """Does nothing: the library writes by itself."""

    def close(self) -> None:
        """Finishes the W&B run."""
        self._run.finish()
