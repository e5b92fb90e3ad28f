"""Cache directory for compiled programs and decoded images; safe to delete."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns $CNN_JAX_CACHE, else ~/.cache/cnn_jax."""
    return Path(os.environ.get("CNN_JAX_CACHE") or "~/.cache/cnn_jax").expanduser()
