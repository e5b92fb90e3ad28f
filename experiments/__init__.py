"""One small file per reproduced result: a docstring and a config. Run one with `python -m experiments.NAME`."""

import sys

if sys.argv[0] == "-m":  # Python is about to run one of the modules, which first imports for a while
    from cnn_jax.interrupts import quit_on_signals

    quit_on_signals()
