"""Benchmarks of aitrain and its rivals on the same work, in the same run."""
