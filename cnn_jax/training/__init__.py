"""What turns a config into a trained run: state, step, loop, evaluation, checkpoints."""
