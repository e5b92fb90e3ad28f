"""Weights from elsewhere and for elsewhere: PyTorch's files, the Hugging Face hub, torchvision; export of runs."""

from cnn_jax.weights.export import export
from cnn_jax.weights.pretrained import load_pretrained

__all__ = ["export", "load_pretrained"]
