"""Imports weights from PyTorch files, the Hugging Face hub and torchvision; exports the weights of runs."""

from cnn_jax.weights.export import export
from cnn_jax.weights.pretrained import load_pretrained

__all__ = ["export", "load_pretrained"]
