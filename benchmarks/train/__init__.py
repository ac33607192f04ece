"""Training steps of this package against those of other implementations, in turns: `python -m benchmarks.train`."""
