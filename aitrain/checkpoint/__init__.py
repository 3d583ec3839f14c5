"""Checkpoints: a directory that exists only when it is complete, in the field's own formats, without pickle."""
