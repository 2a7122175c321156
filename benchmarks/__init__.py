"""Questions about cost, each beside its peers in the same run: ``python -m benchmarks --help``."""
