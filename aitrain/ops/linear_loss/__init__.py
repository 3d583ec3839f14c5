"""Losses of a linear head, computed in chunks of rows so that the full logits are never stored."""
