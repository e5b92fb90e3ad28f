"""PyTorch's side of `benchmarks.inference`: a data set of image files and a loop over its DataLoader.

Reader processes import this module, so it imports neither JAX nor, at once, PyTorch.
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

MEAN, STD = 0.5, 0.5


class Photos:
    """Image files as tensors (3, S, S), float32, normalized; resized and cropped as by `cnn_jax.data`."""

    def __init__(self, paths: Sequence[Path], size: int):
        self._paths, self._size = paths, size

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        torch: Any = importlib.import_module("torch")
        with Image.open(self._paths[index]) as image:
            fitted = ImageOps.exif_transpose(image).convert("RGB")
        if fitted.size != (self._size, self._size):
            fitted = ImageOps.fit(fitted, (self._size, self._size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
        return pixels.float().div_(255).sub_(MEAN).div_(STD)  # ToTensor and Normalize of torchvision


class Classifier:
    """A network and a DataLoader with one reader process for each core, which stays alive between passes."""

    def __init__(self, net: Any, state: Mapping[str, np.ndarray], paths: Sequence[Path], size: int, batch_size: int):
        torch: Any = importlib.import_module("torch")
        net.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=False)
        self._torch, self._net = torch, net.to(memory_format=torch.channels_last).eval()
        self._loader = torch.utils.data.DataLoader(
            Photos(paths, size),
            batch_size=batch_size,
            num_workers=torch.get_num_threads(),
            persistent_workers=True,
            multiprocessing_context="forkserver",  # a copy of a process with JAX's threads would hang
        )

    def probabilities(self) -> np.ndarray:
        """Reads and classifies every file: float32 (N, K), in their order."""
        torch, found = self._torch, []
        with torch.inference_mode():
            for images in self._loader:
                logits = self._net(images.contiguous(memory_format=torch.channels_last))
                found.append(logits.softmax(1).numpy())
        return np.concatenate(found)
