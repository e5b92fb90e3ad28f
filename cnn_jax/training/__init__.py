"""Training: state, step, loop, evaluation and checkpoints."""
