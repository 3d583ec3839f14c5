"""Side-by-side measurements: aitrain and its rivals on the same work, in the same run."""
