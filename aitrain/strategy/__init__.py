"""Strategies: how Lightning spreads a model over ranks, and how its state is read and written whole."""
