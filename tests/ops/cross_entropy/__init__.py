"""Cross entropy: terms, reference, row passes, kernels, op."""
