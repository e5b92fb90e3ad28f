"""Convolutional networks in JAX and Flax: train, compare, look inside.

Importing this package does not import JAX; first use of the names below does.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnn_jax.library import Run, fit, init, load
    from cnn_jax.models import create_model, list_models
    from cnn_jax.studies.compare import compare

    __version__: str

__all__ = ["Run", "__version__", "compare", "create_model", "fit", "init", "list_models", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Run", "fit", "init", "load"):
        from cnn_jax import library

        return getattr(library, name)
    if name == "compare":
        from cnn_jax.studies.compare import compare

        return compare
    if name in ("create_model", "list_models"):
        from cnn_jax import models

        return getattr(models, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("cnn_jax")
    raise AttributeError(f"module 'cnn_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
