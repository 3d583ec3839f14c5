"""Peak memory is that of tensors, to the byte."""

from __future__ import annotations

import gc

import torch

from aitrain.bench.ops.peak import peak_bytes

MIB = 2**20


def test_what_is_freed_on_the_way_counts_once() -> None:
    def run() -> torch.Tensor:
        first = torch.empty(4 * MIB, dtype=torch.uint8)
        del first
        second = torch.empty(6 * MIB, dtype=torch.uint8)
        third = torch.empty(MIB, dtype=torch.uint8)
        del second
        return third

    assert peak_bytes(run, torch.device("cpu")) == 7 * MIB


def test_what_was_there_before_does_not_count() -> None:
    before = torch.ones(8 * MIB, dtype=torch.uint8)
    assert peak_bytes(lambda: before[:MIB].clone(), torch.device("cpu")) == MIB


def test_garbage_of_an_earlier_call_is_not_taken_off() -> None:
    def leave_a_cycle() -> None:
        cycle: list[object] = [torch.empty(8 * MIB, dtype=torch.uint8)]
        cycle.append(cycle)

    def collect_on_the_way() -> None:
        gc.collect()
        torch.empty(MIB, dtype=torch.uint8)

    gc.disable()
    try:
        assert peak_bytes(leave_a_cycle, torch.device("cpu")) == 8 * MIB
        assert peak_bytes(collect_on_the_way, torch.device("cpu")) == MIB
    finally:
        gc.enable()
