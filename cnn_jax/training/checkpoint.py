"""Saves and restores checkpoints, with Orbax.

A checkpoint holds only the train state: the position in the data and every random draw follow from the step.

Saves run in the background. A checkpoint gets its final name once its files and their checksums are synced, and only
then may an older one be deleted. It is read only if the checksums agree; otherwise it is set aside, and the one before
it used.
"""

import functools
import importlib
import logging
import sys
import threading
import warnings
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from cnn_jax.errors import UserError
from cnn_jax.storage import durable
from cnn_jax.tasks import Selection
from cnn_jax.training.parallel import Tree
from cnn_jax.training.state import TrainState

KEPT = 2  # latest checkpoints; the best one is kept as well


def quiet_failures() -> None:
    """Keeps Orbax from printing a screenful of "Event loop is closed" when a read or write fails.

    Its storage library calls back into an event loop that the failure has already closed; Python reports each call.
    """
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            report(unraisable)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


class Checkpoints:
    """The checkpoints of one run: the two latest and the best by validation.

    Args:
        folder: created if absent; the checkpoint of step s is `folder/s`.
        selection: the validation metric that decides which is best.

    Attributes:
        resumable: whether another process can go on from what is saved.
    """

    resumable = True

    def __init__(self, folder: str | Path, selection: Selection):
        # Orbax logs every phase of every save, and the traceback of every error that it raises anyway.
        logging.getLogger("absl").setLevel(logging.CRITICAL)
        self.folder = Path(folder).resolve()  # Orbax refuses relative paths
        self._set_aside_unusable()
        self.selection = selection
        self._score: Any = selection.key  # Orbax only sorts by it, so it may be a tuple

    @functools.cached_property
    def _manager(self) -> Any:
        """Orbax's manager, made at first use: a new run need not wait for the import of Orbax."""
        from cnn_jax.training.orbax_manager import make_manager

        return make_manager(self.folder, self._score, KEPT)

    @property
    def _used(self) -> bool:
        return "_manager" in self.__dict__

    def prepare(self) -> None:
        """Imports Orbax in the background, for the first save."""
        threading.Thread(target=importlib.import_module, args=("cnn_jax.training.orbax_manager",), daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            if self._used:
                self._manager.close()
        except Exception as error:
            if exception[0] is None:  # otherwise the first error is already propagating
                raise self._cannot_write(error) from error

    def save(self, step: int, state: TrainState, validation: dict[str, float] | None) -> None:
        """Copies the state to the host and writes it in the background; does nothing if the step is already saved.

        Args:
            step: number of updates so far.
            state: on the devices.
            validation: metrics by which the best is chosen; None after an interruption.

        Raises:
            UserError: this save or the previous one failed.
        """
        if step in self.steps():
            return
        # Copies, since the next step overwrites the memory. Orbax takes half the time for NumPy arrays.
        on_host = jax.tree.map(np.array, jax.device_get(state))
        try:
            self._manager.save_state(step, on_host, validation)
        except Exception as error:  # Orbax raises many types, also for the previous save, which ran in the background
            raise self._cannot_write(error) from error

    def check(self) -> None:
        """Checks for failed saves. Cheap; does not wait for saves in progress.

        Raises:
            UserError: a background save has failed.
        """
        try:
            if self._used:
                self._manager.check_for_errors()
        except Exception as error:
            raise self._cannot_write(error) from error

    def wait(self) -> None:
        """Waits until every save is on disk.

        Raises:
            UserError: a save failed.
        """
        try:
            if self._used:
                self._manager.wait_until_finished()
        except Exception as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error: Exception) -> UserError:
        text = " ".join(str(error).split())
        known = [reason for reason in ("No space left on device", "Permission denied") if reason in text]
        return UserError(
            f"cannot write a checkpoint in {self.folder.parent} ({(known or [text])[0][:200]}): make room and repeat "
            "the command, which resumes from the previous checkpoint, or set another `workdir`"
        )

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps()) if self._used or self._folders() else []

    def best_step(self) -> int | None:
        """Returns the step of the checkpoint that is best by validation; None if none was validated."""
        scored = [s for s in self.steps() if self.metrics(s)]
        return max(scored, key=lambda s: (self._score(self.metrics(s)), s), default=None)

    def metrics(self, step: int) -> dict[str, float] | None:
        """Returns the validation metrics saved with a checkpoint; None if there are none."""
        try:
            return self._manager.metrics(step)
        except Exception:  # a checkpoint whose metrics cannot be read is not a candidate
            return None

    def restore(
        self, like: TrainState, sharding: Any, step: int | None = None, *, finite: bool = True
    ) -> tuple[int, TrainState] | None:
        """Reads a checkpoint onto the devices; if it cannot be read, warns and falls back to another one.

        Args:
            like: a state (or its shapes) with the structure to read.
            sharding: the sharding of every array.
            step: the checkpoint to read; default: the latest. If it is damaged, the next best replaces the best and the
                latest any other.
            finite: whether a state with a number that is not finite counts as damaged.

        Returns:
            (step, state), or None if there is no checkpoint.

        Raises:
            UserError: there are checkpoints but none can be read.
        """
        abstract: Tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        damaged = []
        for candidate in self._preferred(step):
            try:
                if problem := durable.verify(self.folder / str(candidate)):
                    raise durable.Damaged(problem)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    state = self._manager.restore_state(candidate, abstract)
                if finite and not _is_finite(state):
                    raise durable.Damaged("it holds numbers that are not finite")
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

    def _preferred(self, step: int | None) -> list[int]:
        """Returns all checkpoints in the order in which `restore` tries them."""
        latest = self.steps()[::-1]
        if step is None:
            return latest
        if step == self.best_step():
            scores = {s: self._score(metrics) for s in latest if (metrics := self.metrics(s))}
            return sorted(latest, key=lambda s: (scores.get(s, ()), s), reverse=True)
        return sorted(latest, key=lambda s: s == step, reverse=True)

    def _set_aside_unusable(self) -> None:
        """Sets aside checkpoints that were not finished or whose metrics are damaged.

        Orbax reads all metrics at the start, and the best checkpoint is chosen by them. States are checked when read.

        Raises:
            UserError: all checkpoints are damaged.
        """
        steps, damaged = self._folders(), []
        for path in steps:
            if problem := durable.verify(path, below="metrics/"):
                print(f"warning: checkpoint {path} cannot be read ({problem})", file=sys.stderr)
                damaged.append(int(path.name))
        if damaged and len(damaged) == len(steps):
            raise self._none_readable(damaged)
        if damaged:
            self._rename(damaged)

    def _folders(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if path.name.isdigit()]

    def _none_readable(self, damaged: list[int]) -> UserError:
        return UserError(
            f"none of the checkpoints {damaged} in {self.folder.parent} can be read: set `fresh` to start over, or "
            "another `workdir`"
        )

    def _set_aside(self, damaged: list[int]) -> None:
        self._rename(damaged)
        self._manager.reload()

    def _rename(self, damaged: list[int]) -> None:
        """Renames damaged checkpoints: nothing is deleted, and the run can save those steps again."""
        if jax.process_index() == 0:
            for step in damaged:
                durable.set_aside(self.folder / str(step))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoints")


class InMemory:
    """The latest state and the best one by validation, in memory: a run that is killed starts over.

    Has what the loop needs of `Checkpoints`. A step's state counts as saved, but `steps` lists nothing on disk.

    Args:
        folder: of the run's checkpoints, for messages.
        selection: the validation metric that decides which is best.
    """

    resumable = False

    def __init__(self, folder: str | Path, selection: Selection):
        self.folder, self.selection = Path(folder), selection
        self._kept: dict[int, tuple[Any, dict[str, float] | None]] = {}  # step → state on the host, validation

    def prepare(self) -> None:
        """Does nothing: no library is needed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._kept.clear()

    def save(self, step: int, state: TrainState, validation: dict[str, float] | None) -> None:
        """Copies the state to the host; see `Checkpoints.save`."""
        best = self.best_step()
        self._kept = {kept: of for kept, of in self._kept.items() if kept == best}
        self._kept[step] = jax.tree.map(np.array, jax.device_get(state)), validation

    def check(self) -> None:
        """Does nothing: there is nothing that could have failed."""

    def wait(self) -> None:
        """Does nothing."""

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint on disk: none."""
        return []

    def best_step(self) -> int | None:
        """Returns the step of the state that is best by validation; of equal ones, the latest."""
        scored = {step: self.selection.key(metrics) for step, (_, metrics) in self._kept.items() if metrics}
        return max(scored, key=lambda step: (scored[step], step), default=None)

    def metrics(self, step: int) -> dict[str, float] | None:
        """Returns the validation metrics of a state that is kept."""
        return self._kept[step][1] if step in self._kept else None

    def restore(
        self, like: TrainState, sharding: Any, step: int | None = None, *, finite: bool = True
    ) -> tuple[int, TrainState] | None:
        """Puts the state of a step, or the latest, on the devices; None if there is none. See `Checkpoints.restore`."""
        if not self._kept:
            return None
        chosen = max(self._kept) if step is None else step
        return chosen, jax.device_put(self._kept[chosen][0], sharding)


def _is_finite(state: TrainState) -> bool:
    leaves = jax.device_get(jax.tree.leaves((state.params, state.batch_stats, state.ema)))
    return all(np.isfinite(leaf).all() for leaf in leaves if np.issubdtype(leaf.dtype, np.floating))
