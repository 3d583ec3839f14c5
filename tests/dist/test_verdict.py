"""What the states of all ranks mean: who is to blame, whether the run goes on, and when nothing is wrong."""

from __future__ import annotations

import signal

import pytest

from aitrain.dist.verdict import RankState, Verdict, failed, of_stuck, stuck


def states(*codes: int | None, ended_s: float = 100.0) -> list[RankState]:
    return [
        RankState(rank, f"node{rank // 2}", "step 7", code=code, ended_s=0.0 if code is None else ended_s)
        for rank, code in enumerate(codes)
    ]


@pytest.mark.parametrize(
    ("codes", "code"),
    [((0, 0, 0), 0), ((75, 75, 75), 75), ((0, 75, 0), 75), ((0, 0, None), None), ((75, None, 0), None)],
)
def test_ranks_that_end_well_end_together(codes: tuple[int | None, ...], code: int | None) -> None:
    assert failed(states(*codes)) == (None if code is None else Verdict(code))


def test_a_killed_rank_is_to_blame_and_not_those_that_died_of_it() -> None:
    found = states(1, None, -signal.SIGKILL, 1)
    found[0].ended_s = found[3].ended_s = 200.0  # even when they were heard of first
    verdict = failed(found)
    assert verdict is not None and (verdict.code, verdict.rank, verdict.node) == (75, 2, "node1")
    assert verdict.reason is not None and "killed by signal 9 (SIGKILL" in verdict.reason and "step 7" in verdict.reason


def test_others_get_a_moment_to_report_that_they_died_first() -> None:
    assert failed(states(1, None, None, ended_s=0.5)) is None
    assert failed(states(1, None, None, ended_s=2.0)) is not None
    assert failed(states(1, 1, 1, ended_s=0.0)) is not None, "nobody is left to wait for"


@pytest.mark.parametrize("code", [2, 3, 4])
def test_a_fault_that_was_told_ends_the_run_with_its_code(code: int) -> None:
    assert failed(states(code, None, None, ended_s=5.0)) is None, (
        "the others have the same fault, and end by themselves"
    )
    assert failed(states(code, None, None, ended_s=20.0)) == Verdict(code, None, 0)
    verdict = failed(states(1, code, 1))
    assert verdict is not None and (verdict.code, verdict.rank, verdict.node) == (code, 1, None)


@pytest.mark.parametrize("code", [-signal.SIGTERM, 143, 130])
def test_a_job_that_is_cancelled_is_no_failure(code: int) -> None:
    assert failed(states(code, code)) == Verdict(130 if code == 130 else 143)


def test_a_bug_ends_the_run_and_a_broken_device_does_not() -> None:
    found = states(1, 1)
    found[1].ended_s += 1
    verdict = failed(found)
    assert verdict is not None and (verdict.code, verdict.rank, verdict.node) == (1, 1, None)
    found[1].tail = ["Traceback", "torch.AcceleratorError: CUDA error: uncorrectable ECC error encountered"]
    verdict = failed(found)
    assert verdict is not None and (verdict.code, verdict.rank, verdict.node) == (75, 1, "node0")


def test_a_lost_node_is_named() -> None:
    found = states(None, None, None, None)
    found[2].is_lost, found[2].ended_s = True, 5.0
    verdict = failed(found)
    assert verdict is not None and (verdict.code, verdict.rank, verdict.node) == (75, 2, "node1")


def test_silence_counts_only_when_it_is_everybodys() -> None:
    found = states(None, None, 0)
    found[2].ended_s = 2.0
    found[0].silent_s = found[1].silent_s = 500.0
    assert stuck(found, 60) is None, "a rank has just ended"
    found[2].ended_s = 500.0
    found[0].silent_s, found[1].silent_s = 500.0, 3.0
    assert stuck(found, 60) is None, "rank 0 waits for rank 1, which prepares data"
    found[1].silent_s = 61.0
    assert stuck(found, 60) == "silent" and stuck(found, None) is None
    found[0].stopped_s = 5.0
    assert stuck(found, None) is None
    found[0].stopped_s = 11.0
    assert stuck(found, None) == "stopped"


def test_who_keeps_the_others_waiting() -> None:
    found = states(None, None, None)
    for state in found:
        state.silent_s, state.beats = 70.0, 12
    waiting = [
        "Thread 1 (most recent call first):",
        '  File "torch/distributed/distributed_c10d.py", line 1 in all_reduce',
    ]
    stacks = {0: waiting, 1: ["most recent call first", '  File "data.py", line 3 in read'], 2: waiting}
    verdict = of_stuck(found, "silent", stacks)
    assert (verdict.code, verdict.rank, verdict.node) == (75, 1, "node0") and "data.py" in verdict.tail[1]
    found[2].beats = 11
    verdict = of_stuck(found, "silent", stacks)
    assert verdict.rank == 2 and "behind the others" in str(verdict.reason)
    found[2].beats = 12
    verdict = of_stuck(found, "silent", dict.fromkeys((0, 1, 2), waiting))
    assert verdict.rank is None and verdict.node is None, "nobody is accused without a reason"
    found[0].stopped_s = 12.0
    assert of_stuck(found, "stopped", stacks).rank == 0
