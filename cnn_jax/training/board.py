"""Scalars for TensorBoard, written by the thread that trains.

tensorboardX's own `SummaryWriter` writes from a thread: a full disk ends that thread, and closing then waits for ever.
"""

import logging
import os
import time
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter

logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # that a value is not finite is said by the loop
_events: Any = event_pb2  # generated code, without types


class Board:
    """One event file in `folder`.

    Args:
        folder: is created.
        first_step: events of later steps, left by an interrupted run, are hidden by TensorBoard.

    Raises:
        OSError: the file cannot be written; so does `add`.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._records = RecordWriter(str(folder / f"events.out.tfevents.{now:.6f}.{os.getpid()}"))
        self._write(_events.Event(wall_time=now, file_version="brain.Event:2"))
        if first_step:
            restart = _events.SessionLog(status=_events.SessionLog.SessionStatus.START)
            self._write(_events.Event(wall_time=now, step=first_step + 1, session_log=restart))

    def add(self, tag: str, value: float, step: int) -> None:
        """Writes one scalar."""
        self._write(_events.Event(wall_time=time.time(), step=step, summary=summary.scalar(tag, value)))

    def flush(self) -> None:
        """Writes what the file's buffer holds, for those who watch."""
        self._records.flush()

    def close(self) -> None:
        """Writes what the file's buffer holds."""
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
