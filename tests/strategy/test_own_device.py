"""Each local rank has a device: its number among all, or the only one that it sees."""

from __future__ import annotations

import pytest
import torch

from aitrain.strategy.own_device import OwnDevice


@pytest.mark.parametrize(("visible", "devices"), [(4, [0, 1, 2, 3]), (8, [0, 1, 2, 3]), (1, [0, 0, 0, 0])])
def test_devices_of_four_ranks(visible: int, devices: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    found = OwnDevice.get_parallel_devices(OwnDevice.parse_devices(4))
    assert found == [torch.device("cuda", number) for number in devices]
