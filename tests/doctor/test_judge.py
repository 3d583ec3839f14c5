"""What measurements mean: the slow, broken or wrongly set node is named, and nothing else is accused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aitrain.doctor.finding import Finding, Grade, exit_code, text_of
from aitrain.doctor.judge import judge
from aitrain.doctor.measure import Measured
from aitrain.launch.clusters import load

GOOD = [
    Measured(
        rank=rank,
        node=f"gcn{rank // 2}",
        device="NVIDIA H100",
        memory_gb=95.0,
        memory_errors=0 if rank else None,
        tflops=600.0 + rank,
        time_s=1000.0 + 0.001 * rank,
        write_gbps=2.0 if rank % 2 == 0 else None,
        within_gbps=2000.0,
        between_gbps=500.0 if rank % 2 == 0 else None,
        network="NCCL over IB",
    )
    for rank in range(6)
]


def wrong(found: list[Measured], cluster: str | None = None) -> list[str]:
    findings = judge(found, None if cluster is None else load(cluster, {}))
    return [finding.said for finding in findings if finding.grade is Grade.wrong]


def test_good_nodes_are_left_in_peace() -> None:
    assert wrong(GOOD) == [] and wrong(GOOD, "snellius_h100") == []


@pytest.mark.parametrize(
    ("rank", "change", "says"),
    [
        (3, {"tflops": 300.0}, "rank 3 on gcn1 (NVIDIA H100) reaches 300 TFLOP/s, 50 % of the fastest"),
        (1, {"memory_errors": 2}, "rank 1 on gcn0 has had 2 uncorrectable memory errors"),
        (4, {"within_gbps": 300.0}, "all-reduce within gcn2: 300 Gbit/s, others reach 2e+03"),
        (0, {"network": "NCCL over Socket"}, "the fast network is not used"),
        (2, {"between_gbps": 20.0}, "all-reduce between nodes: 20 Gbit/s, NCCL over IB; the nodes have 800 Gbit/s"),
        (5, {"time_s": 1010.0}, "off on gcn2 by +10.0 s"),
    ],
)
def test_one_fault_is_named(rank: int, change: dict[str, float | str], says: str) -> None:
    found = [replace(each, **change) if each.rank == rank else each for each in GOOD]  # type: ignore[arg-type]
    (said,) = wrong(found, "snellius_h100")
    assert says in said


def test_a_slow_file_system_is_a_note_because_others_use_it_too() -> None:
    found = [replace(each, write_gbps=0.1) if each.rank == 2 else each for each in GOOD]
    findings = judge(found, None)
    assert wrong(found) == [] and any("slow: gcn1" in finding.said for finding in findings)


def test_a_gpu_cluster_without_gpus() -> None:
    found = [replace(each, memory_gb=None, device="8 CPU cores") for each in GOOD]
    assert wrong(found) == []
    (said,) = wrong(found, "snellius_h100")
    assert "no rank sees a GPU, but snellius_h100 has some" in said


def test_one_node_is_compared_with_nothing() -> None:
    (device, files) = judge([replace(GOOD[0], within_gbps=None, between_gbps=None)], None)
    assert device.said == "1 x NVIDIA H100, 600 TFLOP/s" and files.said == "the node writes 2 GB/s"


def test_the_text_and_the_code() -> None:
    findings = [Finding("clock", "fine"), Finding("device", "slow", Grade.wrong)]
    assert text_of(findings).splitlines() == ["ok     clock   fine", "WRONG  device  slow", "1 of 2 checks failed."]
    assert (exit_code(findings, True), exit_code(findings, False), exit_code(findings[:1], True)) == (4, 2, 0)
