"""The tiny model and a few verses, as the tests of the trainer have them."""

from trainer.conftest import small, verses

__all__ = ["small", "verses"]
