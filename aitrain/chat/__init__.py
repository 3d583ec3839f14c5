"""Talking to a trained model in a terminal."""
