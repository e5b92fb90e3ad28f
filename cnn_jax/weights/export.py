"""Exports the weights of a run as a PyTorch state dict, which PyTorch and `load_pretrained` read."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cnn_jax.errors import UserError, unknown
from cnn_jax.storage.weights_file import save_weights
from cnn_jax.weights.convert import flattened_maps, to_torch
from cnn_jax.weights.naming import namings
from cnn_jax.weights.sources import METADATA, load_run


def export(run: str | Path, path: str | Path, names: str | None = None) -> Path:
    """Writes the trained weights of a run in PyTorch's names and layout.

    Args:
        run: folder of a finished run.
        path: the `.safetensors` file. In PyTorch, `safetensors.torch.load_file(path)` returns the state dict. Its
            header stores model, preprocessing and class names, so `load_pretrained(path)` needs nothing else.
        names: "torchvision" or "timm" if they have the model, or "plain", our names with dots. Default: the first one
            available.

    Returns:
        The path.

    Raises:
        UserError: `run` is not a finished run of one network, its model has no such `names`, or `path` does not end in
            `.safetensors`.
    """
    if Path(path).suffix != ".safetensors":
        raise UserError(f"{path} does not end in .safetensors, the only format written: choose another name")
    trained = load_run(run)
    network: Any = trained.model
    preprocess = trained.preprocess
    known = namings(network)
    if names is not None and names not in known:
        raise unknown("naming", names, known)
    naming = known[names or next(iter(known))]
    config = trained.config.model
    record = {
        "model": config.model,
        "model_args": config.model_args,
        "preprocess": asdict(preprocess),
        "classes": trained.classes,
    }
    flattened = flattened_maps(network, preprocess.image_shape)
    state = to_torch(
        trained.variables,
        naming.names,
        flattened=flattened,
        convolutions=naming.convolutions,
        flat_scales=naming.flat_scales,
        given=str(run),
    )
    save_weights(path, state, {"format": "pt", METADATA: json.dumps(record)})
    return Path(path)
