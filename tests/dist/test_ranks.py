"""The place of a process, read from the variables that torchrun, srun and our own launcher really set."""

from __future__ import annotations

import pytest

from aitrain.dist.ranks import Ranks, detect, first_host
from aitrain.errors import LaunchError

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "gcn12",
    "MASTER_PORT": "29500",
}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gcn[12-13]",
    "SLURM_JOB_NODELIST": "gcn[11-13]",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "3",
}


def test_nobody_started_this_process() -> None:
    assert detect({}) == Ranks(0, 1, 0, 1, "127.0.0.1", 0, "none")
    assert detect({}).is_first


def test_torchrun() -> None:
    ranks = detect(TORCHRUN)
    assert ranks == Ranks(5, 8, 1, 4, "gcn12", 29500, "torchrun")
    assert (ranks.nodes, ranks.node, ranks.is_first) == (2, 1, False)


def test_our_own_launcher_is_told_apart() -> None:
    assert detect({**TORCHRUN, "AITRAIN_LAUNCHED": "1"}).launcher == "aitrain"


def test_srun() -> None:
    ranks = detect(SRUN)
    assert ranks == Ranks(5, 8, 1, 4, "gcn12", 20000 + (4711 * 31 + 3) % 6000 * 2, "srun")
    assert (ranks.nodes, ranks.node) == (2, 1)


def test_srun_ports_are_below_the_ephemeral_range_and_differ_between_jobs() -> None:
    ports = [detect({**SRUN, "SLURM_JOB_ID": str(job)}).port for job in range(10_000, 10_100)]
    assert len(set(ports)) == 100
    assert all(20000 <= port < 32768 for port in ports)


def test_address_and_port_set_by_hand_win_over_slurm() -> None:
    ranks = detect({**SRUN, "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "31000"})
    assert (ranks.address, ranks.port) == ("10.0.0.7", 31000)


def test_torchrun_inside_a_slurm_job_counts_as_torchrun() -> None:
    assert detect({**SRUN, **TORCHRUN}).launcher == "torchrun"


def test_the_batch_script_of_a_job_is_one_rank() -> None:
    """sbatch runs the script as a step of one task, in an allocation of many."""
    batch = {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "8"}
    assert detect(batch) == Ranks()


def test_what_one_process_says_another_reads() -> None:
    ranks = Ranks(3, 4, 1, 2, "host", 1234, "torchrun")
    assert detect(ranks.environment()) == ranks


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"LOCAL_WORLD_SIZE": "3"}, "8 ranks with 3 on this node"),
        ({"RANK": "8"}, "8 ranks"),
        ({"RANK": "-1"}, "8 ranks"),
        ({"LOCAL_RANK": "4"}, "rank 5, here 4"),
        ({"LOCAL_WORLD_SIZE": "0"}, "0 on this node"),
        ({"LOCAL_RANK": None}, "LOCAL_RANK is not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many is not a whole number"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT=x"),
    ],
)
def test_torchrun_contradictions(change: dict[str, str | None], said: str) -> None:
    environment = {key: value for key, value in {**TORCHRUN, **change}.items() if value is not None}
    with pytest.raises(LaunchError, match=said):
        detect(environment)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"SLURM_STEP_NUM_TASKS": "7"}, "same number on every node"),
        ({"SLURM_STEP_NUM_TASKS": "7", "SLURM_PROCID": "1"}, "same number on every node"),
        ({"SLURM_LOCALID": None}, "SLURM_LOCALID is not set"),
        ({"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS=x"),
        ({"SLURM_STEP_NUM_NODES": "0"}, "8 ranks on 0 nodes"),
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"}, "3 ranks on 2 nodes"),
        ({"SLURM_STEP_NODELIST": ",gcn1"}, "',gcn1' cannot be parsed"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT=x"),
    ],
)
def test_srun_contradictions(change: dict[str, str | None], said: str) -> None:
    environment = {key: value for key, value in {**SRUN, **change}.items() if value is not None}
    with pytest.raises(LaunchError, match=said):
        detect(environment)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("login1", "login1"),
        ("gcn12,gcn14", "gcn12"),
        ("gcn[12-14,20],login1", "gcn12"),
        ("gcn[07,12]", "gcn07"),
        ("node-a[001-128]", "node-a001"),
        ("gcn[3-4]-ib,x", "gcn3-ib"),
        ("rack[1-2]n[3-4],x", "rack1n3"),
    ],
)
def test_first_host(nodelist: str, host: str) -> None:
    """Expected values as `scontrol show hostnames LIST | head -1` prints them."""
    assert first_host(nodelist) == host


@pytest.mark.parametrize(
    ("local_rank", "local_world", "visible", "index"),
    [(3, 4, 4, 3), (3, 4, 8, 3), (3, 4, 1, 0), (0, 1, 8, 0)],
)
def test_the_device_of_a_rank(local_rank: int, local_world: int, visible: int, index: int) -> None:
    ranks = Ranks(local_rank, local_world, local_rank, local_world, launcher="srun")
    assert ranks.device_index(visible) == index


def test_fewer_devices_than_ranks() -> None:
    with pytest.raises(LaunchError, match="srun started 4 ranks on this node, but rank 3 sees 2 devices"):
        Ranks(3, 4, 3, 4, launcher="srun").device_index(2)
