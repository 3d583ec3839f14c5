"""Attention within the documents of packed sequences, by the best backend that is there; none is written here."""
