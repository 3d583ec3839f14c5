"""Frozen linear layers with low-rank adapters beside them, alone, several of one input, or behind a gate."""
