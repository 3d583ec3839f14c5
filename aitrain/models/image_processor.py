"""Prepares images for a model: first the size, once and stored as bytes; then the scale of the values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import AutoImageProcessor

from aitrain.errors import DataError, ModelError
from aitrain.models.load import Located
from aitrain.models.quiet import first_line, quiet

SIZES = ("do_resize", "do_center_crop", "do_pad", "do_crop_margin", "do_thumbnail", "do_align_long_axis")
"""Switches of transformers' image processors for what changes the size of an image."""

VALUES = ("do_rescale", "do_normalize")
"""Switches for what changes the values of its pixels."""


class ImageProcessor:
    """transformers' image processor of a model, in two halves.

    Pillow is always used for resizing: other libraries round differently, so the same images would
    differ between sites.

    Args:
        located: The model.

    Raises:
        ModelError: The folder has no usable image processor.
    """

    def __init__(self, located: Located) -> None:
        self.path = located.model.path
        try:
            with quiet():
                self.whole: Any = AutoImageProcessor.from_pretrained(
                    str(located.folder), local_files_only=True, backend="pil"
                )
        except Exception as error:  # third-party files can raise anything
            raise ModelError(
                f"model.path={self.path}: its image processor cannot be loaded: {first_line(error)}; copy "
                "preprocessor_config.json of the model again"
            ) from error

    def settings(self) -> dict[str, Any]:
        """Return what determines the result, as plain values."""
        found: dict[str, Any] = json.loads(self.whole.to_json_string())
        return found

    def _off(self, switches: Sequence[str]) -> dict[str, bool]:
        return {name: False for name in switches if getattr(self.whole, name, False)}

    def sized(self, image: Image.Image, where: str) -> npt.NDArray[np.uint8]:
        """Return an image in the size that the model sees, values 0 to 255.

        Args:
            image: In RGB.
            where: Its place, for messages.

        Returns:
            `(channels, height, width)`.

        Raises:
            DataError: It cannot be brought to that size.
        """
        try:
            found = self.whole(image, return_tensors="np", **self._off(VALUES))["pixel_values"][0]
        except (ValueError, KeyError, TypeError, ZeroDivisionError) as fault:
            size = f"{image.width} x {image.height} pixels"
            raise DataError(f"{where}: {size} cannot be resized for this model ({first_line(fault)})") from None
        return np.ascontiguousarray(found.round().astype(np.uint8) if found.dtype != np.uint8 else found)

    def scaled(self, images: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return sized images with the values that the model was trained on.

        Args:
            images: `(B, channels, height, width)`.

        Returns:
            float32, of the same shape.
        """
        if not len(images):
            return torch.zeros(images.shape)
        given = self.whole(list(images), input_data_format="channels_first", return_tensors="np", **self._off(SIZES))
        return torch.from_numpy(np.asarray(given["pixel_values"], dtype=np.float32))
