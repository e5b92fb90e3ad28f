"""One small file per reproduced result: a docstring and a config. Run one with `python -m experiments.NAME`."""
