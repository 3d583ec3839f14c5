"""Checkpoints: a directory that exists only when it is whole, in the field's own formats, without pickle."""
