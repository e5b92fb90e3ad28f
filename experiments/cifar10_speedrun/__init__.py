"""CIFAR-10 in seconds: a whole training run as one compiled program, and its contest with public PyTorch scripts."""
