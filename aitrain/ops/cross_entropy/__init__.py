"""Cross entropy of given logits, row by row; the linear losses stand on the same rows."""
