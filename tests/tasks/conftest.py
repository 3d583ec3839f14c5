"""The tiny model and a few verses, as the tests of the trainer have them."""

from trainer.conftest import cache, small, verses

__all__ = ["cache", "small", "verses"]
