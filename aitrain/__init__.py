"""aitrain: distributed model training for the GPUs of an AI factory."""

__version__ = "0.1.0"
