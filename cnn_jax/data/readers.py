"""Reader processes, which make batches and send them through pipes.

Each reader has a pipe of its own, and they share nothing else: no memory, no locks, no queue. Whoever is killed, the
other end sees the pipe close, and nothing is left behind.
"""

import atexit
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import connection, resource_tracker
from typing import Any, NoReturn, Protocol

import cloudpickle

from cnn_jax.errors import UserError

_GONE = (EOFError, ConnectionError, pickle.UnpicklingError)  # the other end of a pipe was closed, perhaps amid a batch


class Batches(Protocol):
    """Batches by number, from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Any: ...


def read_in_processes(batches: Batches, first: int, workers: int) -> Generator[Any, None, None]:
    """Yields `batches[first]`, `batches[first + 1]`, … up to the last; each of the processes makes every N-th.

    Closing the generator kills the processes. They also end with this process, however it ends.

    Args:
        batches: picklable.
        first: index of the first batch.
        workers: number of processes, N. Each works one batch ahead.

    Raises:
        UserError: a process was killed or exited.
        Exception: what a process raised, with its traceback as a note.
    """
    readers: list[_Reader] = []
    end = partial(_end, readers)
    atexit.register(end)  # before the clean-up of `multiprocessing`, which would wait for them
    try:
        resource_tracker.ensure_running()  # it would unblock the signals again
        with _signals_blocked():
            readers.extend(_Reader() for _ in range(workers))
        work = cloudpickle.dumps(batches)  # handles classes of a script or notebook
        for i, reader in enumerate(readers):
            reader.send((work, range(first + i, len(batches), workers)))
        for number in range(first, len(batches)):
            yield readers[(number - first) % workers].receive()
    finally:
        atexit.unregister(end)
        end()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes started here inherit the block: only the training process handles Ctrl-C and SIGTERM, to save."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Reader:
    """A reader process and our end of its pipe."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()  # from now on only the process holds it
        self._results = open(self._pipe.fileno(), "rb", closefd=False)

    def send(self, task: Any) -> None:
        try:
            with open(self._pipe.fileno(), "wb", closefd=False) as tasks:
                pickle.dump(task, tasks)
        except _GONE:
            self._fail()

    def receive(self) -> Any:
        if self.process.exitcode:  # before the batches that are still in the pipe: these may last for minutes
            self._fail()
        try:
            batch, error = pickle.load(self._results)
        except _GONE:
            self._fail()
        if error is not None:
            raise error
        return batch

    def _fail(self) -> NoReturn:
        self.process.join()
        code, name = self.process.exitcode or 0, f"reader process {self.process.pid}"
        if code < 0:
            raise UserError(f"{name} was killed by {signal.Signals(-code).name}: if memory ran out, lower `workers`")
        raise UserError(f"{name} exited with code {code}: see what it wrote above, or set `workers` to 0")

    def close(self) -> None:
        self.process.join()
        self._results.close()
        self._pipe.close()


def _end(readers: Iterable[_Reader]) -> None:
    for reader in readers:
        reader.process.kill()
    for reader in readers:
        reader.close()


def _serve(pipe: connection.Connection) -> None:
    """Main function of a reader process: makes batches and sends (batch, None), or (None, error) and ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Files, not `pipe.send`: pickling to and from a file copies large arrays once.
    with suppress(*_GONE), open(pipe.fileno(), "rb", closefd=False) as tasks:
        work, numbers = pickle.load(tasks)
        with open(pipe.fileno(), "wb", closefd=False) as results:
            try:
                batches = cloudpickle.loads(work)
                for number in numbers:
                    batch = batches[number]
                    with suppress(*_GONE):
                        pickle.dump((batch, None), results, protocol=5)
                        results.flush()
            except Exception as error:
                results.write(_pickled(error))


def _pickled(error: Exception) -> bytes:
    error.add_note(f"In a reader process:\n{traceback.format_exc()}")
    try:
        text = cloudpickle.dumps((None, error))
        pickle.loads(text)  # fails for some classes with arguments of their own
    except Exception:
        text = pickle.dumps((None, RuntimeError(error.__notes__[-1])))
    return text


def _end_with_parent() -> None:
    """Ends this process, whatever it is doing, when the parent process has ended.

    The sentinel is the end of a pipe that only the parent holds open. Linux's PR_SET_PDEATHSIG would already kill the
    process when the thread that started it ends.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
