"""Cross entropy of given logits, row by row; the linear losses use the same row passes."""
