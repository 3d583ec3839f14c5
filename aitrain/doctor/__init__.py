"""What is wrong with this environment, this allocation or one of its nodes, and what to do about it."""
