"""What a profile allows: the limits of partition and QoS together, and its own rules."""

import pytest

from aitrain.launch.choices import Container
from aitrain.launch.profile import Area, Device, Limits, Node, Profile, Request, Software, Storage

from .specimens import PROFILES, profile


@pytest.mark.parametrize(
    ("name", "partition", "qos", "expected"),
    [
        ("leonardo", "boost_usr_prod", None, (24, 64, None, None)),
        ("leonardo", "boost_usr_prod", "boost_qos_lprod", (96, 8, None, 32)),
        ("leonardo", "boost_usr_prod", "boost_qos_bprod", (24, 256, 65, None)),
        ("marenostrum5", "acc", "acc_debug", (2, 8, None, None)),
        ("lumi_g", "small-g", None, (72, 4, None, None)),
        ("lumi_g", "of-my-own", None, (None, None, None, None)),
    ],
)
def test_the_qos_goes_before_the_partition(name: str, partition: str, qos: str | None, expected: tuple) -> None:
    found = profile(name).limits(partition, qos)
    assert (found.max_hours, found.max_nodes, found.min_nodes, found.max_devices) == expected


def test_whole_nodes_are_said_by_the_partition_else_by_the_site() -> None:
    lumi, jupiter, snellius = profile("lumi_g"), profile("jupiter"), profile("snellius_h100")
    assert lumi.limits("standard-g", None).whole_nodes is True
    assert lumi.limits("small-g", None).whole_nodes is False
    assert jupiter.limits("booster", None).whole_nodes is True
    assert snellius.limits("gpu_h100", None).whole_nodes is False


@pytest.mark.parametrize("name", PROFILES)
def test_shipped_profiles_keep_the_rules(name: str) -> None:
    assert list(profile(name).faults()) == []


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (Profile(), "title is missing"),
        (Profile(title="x", device=Device(per_node=0)), "device.per_node=0 must be at least 1"),
        (Profile(title="x", node=Node(cores=16)), "is more than node.cores=16: write node.cores_per_device=4 or less"),
        (
            Profile(title="x", partition="a", partitions={"b": Limits()}),
            "partition=a is not in partitions: choose from",
        ),
        (Profile(title="x", qos="a", qos_limits={"b": Limits()}), "qos=a is not in qos_limits"),
        (Profile(title="x", request=Request(cpu_bind_full_node="mask_cpu:0x1,0x2")), "has 2 masks"),
        (Profile(title="x", software=Software(container=Container.apptainer)), "write for instance 'apptainer exec"),
        (Profile(title="x", storage=Storage(areas={"home": Area()})), "storage.areas.home.path is missing"),
    ],
)
def test_broken_rules(broken: Profile, says: str) -> None:
    (fault,) = broken.faults()
    assert says in fault


def test_names_for_people() -> None:
    assert profile("lumi_g").where == "LUMI-G (CSC, FI)" and profile("lumi_g").device_word == "GCD"
    assert profile("generic").where == "Slurm cluster with NVIDIA GPUs"
    assert profile("local_slurm").device_word == "CPU rank"
