"""Losses of a linear head, computed in chunks of rows so that the logits never exist as a whole."""
