"""CIFAR-10 in seconds: a whole training run as one compiled program, raced against public PyTorch scripts."""
