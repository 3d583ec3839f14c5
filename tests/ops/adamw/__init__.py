"""AdamW: codes, reference, kernels, op."""
