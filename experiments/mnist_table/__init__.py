"""The table of MNIST results from the lectures, made anew: `python -m experiments.mnist_table`."""
