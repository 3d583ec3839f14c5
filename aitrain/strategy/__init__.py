"""Strategies: how Lightning distributes a model over ranks, and how its unsharded state is read and written."""
