"""Tells Lightning which device each local rank has, also if every rank sees only its own."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.accelerators import CUDAAccelerator


class OwnDevice(CUDAAccelerator):
    """Lightning's CUDA accelerator without its check of visible devices against local ranks."""

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        """Return a number for every local rank.

        Args:
            devices: How many local ranks there are.
        """
        return list(range(int(devices)))

    @staticmethod
    def get_parallel_devices(devices: list[int]) -> list[torch.device]:
        """Return the device of every local rank; where one is visible it is the rank's own.

        Args:
            devices: From `parse_devices`.
        """
        alone = torch.cuda.device_count() == 1
        return [torch.device("cuda", 0 if alone else number) for number in devices]
