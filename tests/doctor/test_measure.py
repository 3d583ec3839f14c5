"""The measurements themselves, on one rank; several ranks are measured in tests/e2e/test_slurm.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aitrain.dist.ranks import Ranks
from aitrain.doctor import measure


def test_one_rank_measures_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PRODUCT_S", 0.05)
    (found,) = measure.measure(Ranks(), tmp_path)
    assert found.tflops > 0 and found.write_gbps is not None and found.write_gbps > 0
    assert (found.within_gbps, found.between_gbps, found.memory_gb) == (None, None, None)
    assert list(tmp_path.iterdir()) == [], "a file was left behind"


def test_the_rate_counts_operations() -> None:
    """Half of the time with the same number of products would be twice the rate: it is an average over the time."""
    rates = [measure.product_rate(torch.device("cpu"), 0.2) for _ in range(3)]
    assert max(rates) < 20 * min(rates) and min(rates) > 1e-4


def test_the_network_is_read_from_nccls_own_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert measure._network(log) == "NCCL"
    log.write_text("n1:1:1 [0] NCCL INFO NET/Plugin: none\nn1:1:1 [0] NCCL INFO Using network Socket\n")
    assert measure._network(log) == "NCCL over Socket"


def test_memory_errors_are_those_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure.memory_errors("abc") is None
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/bash\necho 'GPU-abc, 3'; echo 'GPU-def, 0'; echo 'GPU-old, [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [measure.memory_errors(uuid) for uuid in ("abc", "GPU-def", "old", "none")] == [3, 0, None, None]
