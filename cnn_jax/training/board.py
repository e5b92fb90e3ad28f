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

# tensorboardX imports PyTorch where there is one, for the name of a type alone: half of the imports' time.
_modules: dict[str, Any] = sys.modules
_hidden = "torch" not in _modules
if _hidden:
    _modules["torch"] = None  # an import of it fails
from tensorboardX import summary  # noqa: E402
from tensorboardX.proto import event_pb2  # noqa: E402
from tensorboardX.record_writer import RecordWriter  # noqa: E402

if _hidden:
    del _modules["torch"]

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

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Writes scalars by their tags, all as one record: its checksum is what takes time."""
        scalars: Any = summary.Summary()
        for tag, value in values.items():
            scalars.value.extend(summary.scalar(tag, value).value)
        self._write(_events.Event(wall_time=time.time(), step=step, summary=scalars))

    def flush(self) -> None:
        """Writes what the file's buffer holds, for those who watch."""
        self._records.flush()

    def close(self) -> None:
        """Writes what the file's buffer holds."""
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
