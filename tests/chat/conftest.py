"""A trained run of the tiny model, as the tests of the trainer have it."""

from trainer.conftest import small, trained, verses

__all__ = ["small", "trained", "verses"]
