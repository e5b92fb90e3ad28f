"""Strict settings for every test: CPU only, eight simulated devices, no implicit dtype or rank promotion."""

import contextlib
import ctypes
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One cache of decoded images and compiled code per test session; its workers inherit the variable.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="cnn_jax-tests-")
    os.environ["CNN_JAX_CACHE"] = _cache.name
# Programs that an earlier session has compiled are loaded; `pytest --cache-clear` removes them.
_programs = Path(__file__).parents[1] / ".pytest_cache" / "d" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_programs))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax  # noqa: E402  (after the settings above)
import pytest  # noqa: E402

from cnn_jax.ops import conv, norm  # noqa: E402
from cnn_jax.studies import engine, record  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers: `pytest -m 'not tfds'` skips tests on real data, `pytest -m slow` runs the slow tests.

    All tests are compiled without optimization, in two thirds of the time. The commands of the README, which CI runs,
    too, are compiled as usual.
    """
    config.addinivalue_line("markers", "tfds: needs TFDS_DATA_DIR with mnist and cifar10 prepared, else skipped")
    config.addinivalue_line("markers", "slow: skipped unless selected with -m")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # most of their time is compiling


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests listed in slow.txt as slow, and those that use `tfds_dir` as tfds.

    Parametrized tests where only some cases need TFDS data mark those cases themselves.
    """
    slow = set((Path(__file__).parent / "slow.txt").read_text().splitlines())
    for item in items:
        if item.nodeid in slow:
            item.add_marker("slow")
        if "tfds_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("tfds")


@pytest.fixture(autouse=True, scope="module")
def fresh_memory() -> Iterator[None]:
    """Drops traces and compiled programs after each test file: those of the zoo take gigabytes."""
    yield
    jax.clear_caches()
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Restores the signal handlers, which commands set for the rest of their process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Convolves as on a machine with one device, by compiled code: the eight simulated ones leave it to XLA.

    Files whose networks use one device ask for it: their programs are compiled and run in less time, and as for users.
    """
    with pytest.MonkeyPatch.context() as patch:
        for module in (conv, norm):
            patch.setattr(module, "on_one_cpu", lambda: True)
        yield


@pytest.fixture(scope="module")
def quick_pages() -> Iterator[None]:
    """Pages of comparisons without pictures, which take seconds; tests/test_study_page.py has the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "write_page", lambda study: (study.folder / record.PAGE).write_text(repr(study.table)))
        yield


@pytest.fixture(scope="session")
def tfds_dir() -> str:
    """Folder of prepared TFDS data sets; without it, tests on real MNIST or CIFAR-10 are skipped."""
    folder = os.environ.get("TFDS_DATA_DIR", "")
    if not all(os.path.isdir(os.path.join(folder, name)) for name in ("mnist", "cifar10")):
        pytest.skip("needs TFDS_DATA_DIR with mnist and cifar10 prepared")
    return folder
