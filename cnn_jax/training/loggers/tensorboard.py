"""Scalars for TensorBoard, written by the thread that trains.

tensorboardX's own `SummaryWriter` writes from a thread: a full disk ends that thread, and closing then waits for ever.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnn_jax.storage.run_folder import TENSORBOARD


class TensorBoardLogger:
    """One event file in `tensorboard/` of a run folder.

    Args:
        run: the run folder.
        first_step: events of later steps, left by an interrupted run, are hidden by TensorBoard.

    Raises:
        OSError: the file cannot be written; so does `log`.
    """

    def __init__(self, run: Path, first_step: int):
        self._summary, self._events, writer = _library()
        folder = run / TENSORBOARD
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._records = writer(str(folder / f"events.out.tfevents.{now:.6f}.{os.getpid()}"))
        self._write(self._events.Event(wall_time=now, file_version="brain.Event:2"))
        if first_step:
            restart = self._events.SessionLog(status=self._events.SessionLog.SessionStatus.START)
            self._write(self._events.Event(wall_time=now, step=first_step + 1, session_log=restart))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes scalars by their tags, all as one record: its checksum is what takes time."""
        scalars: Any = self._summary.Summary()
        for tag, value in values.items():
            scalars.value.extend(self._summary.scalar(tag, value).value)
        self._write(self._events.Event(wall_time=time.time(), step=step, summary=scalars))

    def flush(self) -> None:
        """Writes what the file's buffer holds, for those who watch."""
        self._records.flush()

    def close(self) -> None:
        """Writes what the file's buffer holds."""
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


def _library() -> tuple[Any, Any, Any]:
    """tensorboardX's summaries, events (generated code, without types) and writer of records."""
    # tensorboardX imports PyTorch where there is one, for the name of a type alone: half of the imports' time.
    modules: dict[str, Any] = sys.modules
    hidden = "torch" not in modules
    if hidden:
        modules["torch"] = None  # an import of it fails
    try:
        from tensorboardX import summary
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter
    finally:
        if hidden:
            del modules["torch"]
    logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # the loop itself reports values that are not finite
    return summary, event_pb2, RecordWriter
