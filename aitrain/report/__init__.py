"""Summaries of runs, read from their directories."""
