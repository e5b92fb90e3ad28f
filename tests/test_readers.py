"""Reader processes: they end with the run, and the run with one line when one of them ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial
from itertools import islice

import numpy as np
import pytest

from cnn_jax.data import ArraySource
from cnn_jax.data.pipeline import make_pipeline
from cnn_jax.data.readers import read_in_processes
from cnn_jax.errors import UserError

LIMIT = 120  # seconds that nothing here takes


class Numbers:
    """Eleven batches; instead of the last one it raises what `wrong` returns."""

    def __init__(self, wrong=None):
        self.wrong = wrong

    def __len__(self):
        return 11

    def __getitem__(self, number):
        if number == 10 and self.wrong is not None:
            raise self.wrong()
        return {"number": np.full(1000, number)}


class Peculiar(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class Fatal:
    """Ends the process that pickles it."""

    def __reduce__(self):
        os._exit(7)


class Doomed(Numbers):
    """Batches that end the process while it sends one."""

    def __getitem__(self, number):
        return {"image": np.zeros(2**20), "mine": np.array([Fatal()])}


def children():
    return {child.pid for child in multiprocessing.active_children()}


def test_batches_come_in_order_and_may_be_written_to():
    before = children()
    for workers in (1, 3):
        got = list(read_in_processes(Numbers(), 2, workers))
        assert [batch["number"][0] for batch in got] == list(range(2, 11))
        assert all(batch["number"].flags.writeable for batch in got)
        assert children() == before


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (partial(UserError, "bad image"), UserError, "bad image"),
        (partial(Peculiar, 1, 2), RuntimeError, "Peculiar: 1 and 2"),  # cannot be pickled
    ],
)
def test_what_a_reader_raises_arrives_with_its_traceback(wrong, kind, message):
    before = children()
    with pytest.raises(kind, match=message) as caught:
        list(read_in_processes(Numbers(wrong), 10, 1))
    assert "in __getitem__" in "".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert children() == before


def test_a_killed_reader_is_noticed_at_once():
    before = children()
    images = np.zeros((4, 2, 2, 1), np.uint8)
    source = ArraySource("mine", "train", ("a",), images, np.zeros(4, np.int32))
    items = make_pipeline(source, batch_size=2, seed=0, mode="stream", workers=2).train_items()
    next(items)
    victim, other = sorted(multiprocessing.active_children(), key=lambda child: child.pid in before)[:2]
    victim.kill()
    victim.join()  # thousands of batches of it are still in the pipe
    with pytest.raises(UserError, match=rf"^reader process {victim.pid} was killed by SIGKILL: if memory ran out, "):
        list(islice(items, 2))
    assert children() == before and not other.is_alive()


def test_a_reader_that_ends_amid_a_batch_is_noticed():
    with pytest.raises(UserError, match=r"reader process \d+ exited with code 7: see what it wrote above, or set `wor"):
        next(read_in_processes(Doomed(), 0, 1))


READ = """
import os, signal, sys, time
from cnn_jax.data import ArraySource
from cnn_jax.data.pipeline import make_pipeline
from cnn_jax.interrupts import quit_at_once
import numpy as np

class Source(ArraySource):
    def __getitem__(self, index):
        if sys.argv[1] == "busy" and self.labels[index]:
            os.write(1, b"busy\\n")
            time.sleep(10**6)
        return super().__getitem__(index)

labels = np.zeros(64, np.int32)
if sys.argv[1] == "busy":
    labels[:] = 1
source = Source("mine", "train", ("a", "b"), np.zeros((64, 32, 32, 3), np.uint8), labels)
items = make_pipeline(source, batch_size=16, seed=0, mode="stream", workers=2).train_items()
signal.signal(signal.SIGINT, quit_at_once)
if sys.argv[1] == "idle":  # the readers wait until their batches are fetched
    next(items), next(items)
    print("idle", flush=True)
    signal.pause()
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
for number, _ in enumerate(items):
    if number == 4:
        print("reading", flush=True)
    if asked:
        break
for _ in range(200):  # more than the pipes hold
    next(items)
items.close()
print("stopped", flush=True)
"""


@pytest.mark.parametrize("how", ["killed", "interrupted"])
@pytest.mark.parametrize("state", ["busy", "idle", "reading"])
def test_readers_end_with_their_parent_and_leave_nothing(state, how):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", READ, state], start_new_session=True, **pipes) as going:
        assert going.stdout is not None
        assert going.stdout.readline() == f"{state}\n"
        if how == "killed":
            going.kill()
        else:  # as Ctrl-C in a terminal does
            os.killpg(going.pid, signal.SIGINT)
        # Returns once all processes have ended, because the readers have inherited the pipes, and so has the tracker of
        # resources, which would write about memory that was left behind.
        _, wrong = going.communicate(timeout=LIMIT)
    assert going.returncode == (-signal.SIGKILL if how == "killed" else 130)
    assert wrong == ("" if how == "killed" else "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_all_processes_leaves_the_readers_to_the_run(number):
    code = READ.replace("signal.SIGINT, quit_at_once", "signal.SIGINT, lambda *_: asked.append(True)")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, "reading"], start_new_session=True, **pipes) as going:
        assert going.stdout is not None and going.stdout.readline() == "reading\n"
        os.killpg(going.pid, number)
        said, wrong = going.communicate(timeout=LIMIT)
    assert (going.returncode, said, wrong) == (0, "stopped\n", "")


def test_an_abandoned_generator_does_not_keep_the_interpreter_from_exiting():
    code = "import test_readers as t; kept = t.read_in_processes(t.Numbers(), 0, 2); print(next(kept)['number'][0])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, cwd=os.path.dirname(__file__)
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
