"""Logs metrics to Weights & Biases.

WANDB_MODE, WANDB_PROJECT (default: cnn_jax) and W&B's other variables work as usual. Upload runs made with
WANDB_MODE=offline by `wandb sync RUN/wandb/offline-run-*`; add `--append` for a resumed one.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_jax.errors import UserError
from cnn_jax.storage.run_folder import write_text


class WandbLogger:
    """One W&B run.

    Args:
        run: the run folder; the W&B run gets its name, and stores its local files in `wandb/` there.
        id_file: stores the id of the W&B run, so that a resumed run can continue it.
        first_step: 0 starts a new W&B run.
        config: the config of the W&B run.

    Raises:
        UserError: W&B refuses, or cannot be reached.
    """

    def __init__(self, run: Path, id_file: Path, first_step: int, config: Mapping[str, Any]):
        import wandb  # pyright: ignore[reportMissingImports]

        known = id_file.read_text().strip() if first_step and id_file.exists() else None
        try:
            self._run = wandb.init(
                dir=str(run.resolve()),
                project=os.environ.get("WANDB_PROJECT", "cnn_jax"),
                name=os.environ.get("WANDB_NAME", run.resolve().name),
                id=known,
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(console="off"),  # do not log the progress bar
            )
        except wandb.Error as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"W&B did not start ({reason}): run `wandb login`, or set WANDB_MODE=offline") from error
        write_text(id_file, self._run.id + "\n")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Sends values, except those of steps that were sent before an interruption."""
        if step >= self._run.starting_step:  # W&B would ignore earlier steps, with a warning for each
            self._run.log({tag: float(value) for tag, value in values.items()}, step=step)

    def flush(self) -> None:
        """Does nothing: W&B sends in the background."""

    def close(self) -> None:
        """Waits until everything is sent, or stored if offline."""
        self._run.finish()
