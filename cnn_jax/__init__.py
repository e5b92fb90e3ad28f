"""Convolutional networks in JAX and Flax: train, compare, look inside.

Importing this package imports no JAX; `load` and the modules do when they are used.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(run: str) -> tuple[Any, Any, Any]:
    """Opens a finished run folder: `(model, variables, preprocess)`.

    `model.apply(variables, preprocess.normalize(images_BxHxWxC), train=False)` gives the logits.

    Raises:
        UserError: the folder is no finished run, or its weights do not fit its model.
    """
    from cnn_jax.weights.trained import load

    return load(run)
