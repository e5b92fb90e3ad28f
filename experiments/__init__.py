"""One small file a reproduced result: a docstring and a config. Run one with `python -m experiments.NAME`."""
