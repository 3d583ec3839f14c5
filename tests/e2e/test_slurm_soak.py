"""Twenty rounds of faults on one run, one after the other: it goes on after each, and ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from slurm_cluster import (
    aitrain,
    events,
    is_over,
    job_of,
    node_of,
    rank_processes,
    records,
    slurm,
    steps,
    submit,
    wait_for,
)
from test_slurm import Place, next_life, place  # noqa: F401 (a fixture)

ROUNDS = 20
STEPS = 4000
FAULTS = ("a rank is killed", "a rank is stopped", "a signal", "a node is lost")
LONGEST_S = {"a rank is killed": 10, "a rank is stopped": 15, "a signal": 10, "a node is lost": 30}
"""What the documentation promises: seconds from a fault to the end of every rank."""


@pytest.mark.soak
@pytest.mark.timeout(2400)
def test_rounds_of_faults(place: Place) -> None:  # noqa: F811 (a fixture)
    run, alone = place.folder / "soak", place.folder / "soak-alone"
    words = [*place.recipe(STEPS), "trainer.global_batch_samples=8", "trainer.devices=1"]
    submit(words, run, "checkpoint.every_steps=10", "checkpoint.keep=2")
    table = []
    lost = ""
    for number in range(ROUNDS):
        fault = FAULTS[number % len(FAULTS)]
        done = next_life(run, number + 1, steps(run) + 11, 120)
        # else there would soon be no node left; the one lost last stays out, because Slurm still ends old jobs on it
        (run / "logs/excluded-nodes").write_text(f"{lost}\n" if lost else "")
        ranks = rank_processes(run)
        victim = ranks[number // len(FAULTS) % 2] if fault != "a node is lost" else ranks[1]
        node, began = node_of(victim), time.monotonic()
        if fault == "a node is lost":
            lost = node
            aitrain("local-slurm", "kill-node", node)
        elif fault == "a signal":
            slurm("scancel", "--signal=USR1", job_of(run))
        else:
            os.kill(victim, signal.SIGKILL if fault == "a rank is killed" else signal.SIGSTOP)
        others = {pid for rank, pid in ranks.items() if fault != "a node is lost" or rank != 1}
        wait_for("all ranks end", lambda others=others: not others & set(rank_processes(run).values()), 60, run)
        ended = time.monotonic() - began
        wait_for("the next start", lambda number=number: len(events(run, "launched")) == number + 2, 180, run)
        started = time.monotonic() - began
        if fault == "a node is lost":
            aitrain("local-slurm", "start-node", node)
        resumed = next(iter(wait_for("it is resumed", lambda number=number: events(run, "resumed")[number:], 120, run)))
        table.append((number + 1, fault, done, resumed["step"], ended, started))
        assert ended <= LONGEST_S[fault], table[-1]
        assert resumed["step"] >= done - 10, "more was lost than since the newest checkpoint"
    print("\nround  fault              at step  resumed from  ranks ended  started again")
    for number, fault, done, resumed_from, ended, started in table:
        print(f"{number:>5}  {fault:<17}  {done:>7}  {resumed_from:>12}  {ended:>9.1f} s  {started:>11.1f} s")
    wait_for("the run is over", lambda: is_over(run), 600, run)
    command = [sys.executable, "-m", "aitrain", "train", *words, f"run.dir={alone}"]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    found, expected = (records(each / "metrics.jsonl") for each in (run, alone))
    assert [record["step"] for record in found] == list(range(1, STEPS + 1)), "each step once"
    assert [record["loss"] for record in found] == pytest.approx([record["loss"] for record in expected], rel=2e-3)
    assert not rank_processes(run) and not rank_processes(run, supervised=False)
