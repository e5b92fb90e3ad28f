"""Strictness for every test: CPU only, eight simulated devices, no silent promotion of dtype or rank."""

import contextlib
import ctypes
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Decoded images and compiled programs are shared by the tests of one session, and by nobody else.
_cache = tempfile.TemporaryDirectory(prefix="cnn_jax-tests-")
os.environ["CNN_JAX_CACHE"] = _cache.name

import jax  # noqa: E402  (after the settings above)
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the markers: `pytest -m 'not tfds'` leaves out real data, `pytest -m slow` runs what takes long."""
    config.addinivalue_line("markers", "tfds: needs TFDS_DATA_DIR with mnist and cifar10 prepared, else skipped")
    config.addinivalue_line("markers", "slow: takes long; left out unless asked for by -m")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests as slow (slow.txt lists them), and those that ask for the folder of TFDS sets.

    Of parametrized ones only some may need these sets: they mark those themselves.
    """
    slow = set((Path(__file__).parent / "slow.txt").read_text().splitlines())
    for item in items:
        if item.nodeid in slow:
            item.add_marker("slow")
        if "tfds_dir" in getattr(item, "fixturenames", ()):
            item.add_marker("tfds")


@pytest.fixture(autouse=True, scope="module")
def fresh_memory() -> Iterator[None]:
    """The traces and programs of a file are not kept for the next one: those of the zoo are gigabytes."""
    yield
    jax.clear_caches()
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def tfds_dir() -> str:
    """The folder of prepared TFDS sets; tests that need real MNIST or CIFAR-10 are skipped without it."""
    folder = os.environ.get("TFDS_DATA_DIR", "")
    if not all(os.path.isdir(os.path.join(folder, name)) for name in ("mnist", "cifar10")):
        pytest.skip("needs TFDS_DATA_DIR with mnist and cifar10 prepared")
    return folder
