"""Scalars for TensorBoard, written by the training thread.

tensorboardX's own `SummaryWriter` writes from another thread: a full disk kills it, and `close` then waits forever.
"""

import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# tensorboardX imports PyTorch, if installed, for one type's name: half of the import time. So it is hidden.
_modules: dict[str, Any] = sys.modules
_hidden = "torch" not in _modules
if _hidden:
    _modules["torch"] = None  # an import of it fails
from tensorboardX import summary  # noqa: E402
from tensorboardX.proto import event_pb2  # noqa: E402
from tensorboardX.record_writer import RecordWriter  # noqa: E402

if _hidden:
    del _modules["torch"]

logging.getLogger("tensorboardX").setLevel(logging.ERROR)  # the loop reports values that are not finite
_events: Any = event_pb2  # generated code, without types


class TensorBoardLogger:
    """One event file in `folder`.

    Args:
        folder: created if absent.
        first_step: TensorBoard hides events of later steps, which an interrupted run left.

    Raises:
        OSError: the file cannot be written; so does `log`.
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
        """Writes scalars by their tags, as one record: the checksum of each takes most of the time."""
        scalars: Any = summary.Summary()
        for tag, value in values.items():
            scalars.value.extend(summary.scalar(tag, value).value)
        self._write(_events.Event(wall_time=time.time(), step=step, summary=scalars))

    def flush(self) -> None:
        """Writes the buffer to the file, for a TensorBoard that watches it."""
        self._records.flush()

    def close(self) -> None:
        """Writes the buffer and closes the file."""
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())
