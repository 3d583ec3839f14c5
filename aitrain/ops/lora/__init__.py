"""Frozen linear layers with low-rank adapters: one, several with the same input, or after a gate."""
