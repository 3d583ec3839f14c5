"""Linear losses: chunks, autograd, op."""
