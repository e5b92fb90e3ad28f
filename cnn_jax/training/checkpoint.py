"""Checkpoints: the only module that knows Orbax.

A checkpoint is the train state and nothing else: the position in the data and every random draw follow from the step.
Saves are atomic (a folder appears under its final name only when it is whole) and run in the background.
"""

import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from cnn_jax.errors import UserError
from cnn_jax.tasks import Selection
from cnn_jax.training.parallel import Tree
from cnn_jax.training.state import TrainState

KEPT = 2  # latest checkpoints; the best one is kept besides


def quiet_failures() -> None:
    """Keeps a failed read or write of Orbax from printing a screen of `Event loop is closed` beside our one line.

    Its storage library calls back into an event loop that the failure has already closed; Python reports each call.
    """
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def has_checkpoint(folder: Path) -> bool:
    """Whether `Checkpoints(folder)` would find any; unlike that, leaves the folder alone."""
    return any(path.name.isdigit() for path in folder.glob("*"))


class Checkpoints:
    """The checkpoints of one run folder: the two latest and the best by validation.

    Args:
        folder: is created; checkpoint of step s is `folder/s`.
        selection: the metric of validation that says which is the best.
    """

    def __init__(self, folder: str | Path, selection: Selection):
        # Orbax reports every phase of every save, and prints the traceback of what it raises later anyway.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = Path(folder).resolve()  # Orbax refuses relative paths
        self._set_aside_without_metrics()
        sign = 1.0 if selection.higher_is_better else -1.0
        self._score = lambda metrics: sign * metrics[selection.metric]
        best = policies.BestN(get_metric_fn=self._score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=self._score,
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(KEPT), best]),
            cleanup_tmp_directories=True,
            # In the background a folder that cannot be made would be waited for, for 20 minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=("state",))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            self._manager.close()
        except Exception as error:
            if exception[0] is None:  # else the reason is on its way already
                raise self._cannot_write(error) from error

    def save(self, step: int, state: TrainState, validation: dict[str, float] | None) -> None:
        """Copies the state to the host and writes it in the background. A step that is already there is left alone.

        Args:
            step: number of updates done.
            state: on the devices.
            validation: metrics by which the best is chosen; None after an interruption.
        """
        if step in self._manager.all_steps():
            return
        try:
            self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state)), metrics=validation)
        except Exception as error:  # of this save or, in the background, of the one before; of many types
            raise self._cannot_write(error) from error

    def check(self) -> None:
        """Costs next to nothing; does not wait.

        Raises:
            UserError: a save in the background has failed.
        """
        try:
            self._manager.check_for_errors()
        except Exception as error:
            raise self._cannot_write(error) from error

    def wait(self) -> None:
        """Returns when every save is on disk.

        Raises:
            UserError: one could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> UserError:
        text = " ".join(str(error).split())
        known = [reason for reason in ("No space left on device", "Permission denied") if reason in text]
        return UserError(
            f"given run folder {self.folder.parent}; a checkpoint could not be written ({(known or [text])[0][:200]}); "
            "make room or give another --workdir; the checkpoints before it are whole and the same command goes on"
        )

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Step of the checkpoint that is best by validation, None if none was validated."""
        scored = [s for s in self.steps() if self.metrics(s)]
        return max(scored, key=lambda s: (self._score(self.metrics(s)), s), default=None)

    def metrics(self, step: int) -> dict[str, float] | None:
        """The validation metrics that were saved with a checkpoint, None if there are none."""
        try:
            return self._manager.metrics(step)
        except Exception:  # a checkpoint whose metrics cannot be read is not a candidate
            return None

    def restore(self, like: TrainState, sharding: Any, step: int | None = None) -> tuple[int, TrainState] | None:
        """Reads a checkpoint onto the devices; falls back to an earlier one, and says so, if it cannot be read.

        Args:
            like: a state (or its shapes) with the structure to be read.
            sharding: where the arrays go.
            step: which checkpoint; default: the latest.

        Returns:
            (step, state), or None if there is no checkpoint.

        Raises:
            UserError: there are checkpoints and none can be read.
        """
        abstract: Tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        damaged = []
        for candidate in [s for s in reversed(self.steps()) if step is None or s <= step]:
            try:
                args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    state = self._manager.restore(candidate, args=args)["state"]
            except Exception as error:  # Orbax raises many types for a damaged folder
                reason = " ".join(str(error).split())[:160]
                print(f"warning: checkpoint {self.folder / str(candidate)} cannot be read ({reason})", file=sys.stderr)
                damaged.append(candidate)
                continue
            if damaged:
                print(f"warning: falling back to the checkpoint of step {candidate}", file=sys.stderr)
                self._set_aside(damaged)
            return candidate, state
        if damaged:
            raise self._none_readable(damaged)
        return None

    def _set_aside_without_metrics(self) -> None:
        """Finds checkpoints whose metrics are damaged: Orbax reads all metrics first, and fails.

        Raises:
            UserError: of all that there are.
        """
        steps = [path for path in self.folder.glob("*") if path.name.isdigit()]
        damaged = [int(path.name) for path in steps if not _are_metrics(path / "metrics" / "metrics")]
        for step in damaged:
            print(f"warning: checkpoint {self.folder / str(step)} cannot be read (its metrics)", file=sys.stderr)
        if damaged and len(damaged) == len(steps):
            raise self._none_readable(damaged)
        if damaged:
            self._rename(damaged)

    def _none_readable(self, damaged: list[int]) -> UserError:
        return UserError(
            f"given run folder {self.folder.parent}; expected a readable checkpoint, none of {damaged} is; "
            "give --fresh to start over or another --workdir"
        )

    def _set_aside(self, damaged: list[int]) -> None:
        self._rename(damaged)
        self._manager.reload()

    def _rename(self, damaged: list[int]) -> None:
        """Renames what cannot be read, so that the run can save those steps again and nothing is deleted."""
        if jax.process_index() == 0:
            for step in damaged:
                (self.folder / str(step)).rename(self.folder / f"damaged-{step}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints")


def _are_metrics(file: Path) -> bool:
    """Whether a checkpoint's metrics can be read; one that Ctrl-C left has none, which is right."""
    try:
        return not file.exists() or isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False
