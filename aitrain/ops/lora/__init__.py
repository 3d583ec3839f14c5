"""A frozen linear layer with a low-rank adapter beside it, as one op."""
