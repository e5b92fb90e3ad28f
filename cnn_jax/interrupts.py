"""Ends a command on a signal: at once, or by KeyboardInterrupt."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import NoReturn


def quit_at_once(number: int, frame: object) -> NoReturn:
    """Signal handler: exits with code 130, without waiting for anything. Reader processes end by themselves."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def quit_on_signals() -> None:
    """Makes Ctrl-C and SIGTERM end the process at once, with code 130 and no traceback; for commands."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, quit_at_once)


def interrupt(number: int, frame: object) -> NoReturn:
    """Signal handler: raises KeyboardInterrupt; the next signal ends the process at once."""
    quit_on_signals()
    raise KeyboardInterrupt


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Context of a command in which Ctrl-C and SIGTERM raise KeyboardInterrupt, and a second one ends it at once.

    In the library, nothing changes: the process is the caller's.
    """
    main = threading.current_thread() is threading.main_thread()  # others may not set handlers
    if not main or signal.getsignal(signal.SIGINT) is not quit_at_once:
        yield
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        quit_on_signals()
