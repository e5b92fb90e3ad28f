"""Logs scalars for TensorBoard from the training thread.

tensorboardX's own `SummaryWriter` writes from another thread: a full disk kills that thread, and `close` then waits
forever.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Hide PyTorch: tensorboardX imports it, if installed, only for a type's name, and that is half of the import time.
_modules: dict[str, Any] = sys.modules
_hidden = "torch" not in _modules
if _hidden:
    _modules["torch"] = None  # makes `import torch` fail
from tensorboardX import summary  # noqa: E402
from tensorboardX.proto import event_pb2  # noqa: E402
from tensorboardX.record_writer import RecordWriter  # noqa: E402

if _hidden:
    del _modules["torch"]

logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # no warnings of NaN: the loop reports it
_events: Any = event_pb2  # generated code, without types


class TensorBoardLogger:
    """Writes one event file in `folder`.

    Args:
        folder: created if absent.
        first_step: number of updates so far; TensorBoard hides events of later steps, left by an interrupted run.

    Raises:
        OSError: the file cannot be written; `log` raises it too.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._records = RecordWriter(str(folder / f"events.out.tfevents.{now:.6f}.{os.getpid()}"))
        self._write(_events.Event(wall_time=now, file_version="brain.Event:2"))
        if first_step:
            restart = _events.SessionLog(status=_events.SessionLog.SessionStatus.START)
            self._write(_events.Event(wall_time=now, step=first_step + 1, session_log=restart))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes scalars as one record, because the checksum of each record takes most of the time."""
        scalars: Any = summary.Summary()
        for tag, value in values.items():
            scalars.value.extend(summary.scalar(tag, value).value)
        self._write(_events.Event(wall_time=time.time(), step=step, summary=scalars))

    def flush(self) -> None:
        """Writes the buffer to the file, where a running TensorBoard reads it."""
        self._records.flush()

    def close(self) -> None:
        """Writes the buffer and closes the file."""
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
