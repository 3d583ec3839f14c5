"""A job as values: what follows from a profile and a wish, against figures worked out by hand."""

from dataclasses import replace

import pytest

from aitrain.launch.job import Ask, Job, amount, counted, smallest_set

from .specimens import job, profile


def small(name: str, **changes: object) -> Job:
    """Return the specimen job with another wish."""
    whole = job(profile(name))
    return replace(whole, ask=replace(whole.ask, **changes))


@pytest.mark.parametrize(
    ("name", "devices", "flags"),
    [
        ("lumi_g", 8, ["--gpus-per-node=8", "--mem=480G"]),
        ("lumi_g", 2, ["--gpus-per-node=2", "--mem=122880M"]),
        ("leonardo", 4, ["--gres=gpu:4", "--mem=0"]),
        ("leonardo", 1, ["--gres=gpu:1", "--mem=128500M"]),
        ("snellius_h100", 4, ["--gpus-per-node=4", "--exclusive"]),
        ("snellius_h100", 1, ["--gpus-per-node=1"]),
        ("marenostrum5", 4, ["--gres=gpu:4"]),
        ("clariden", 4, ["--constraint=thp_never&nvidia_vboost_enabled"]),
        ("discoverer_plus", 1, ["--gres=gpu:1", "--mem=263168M"]),
    ],
)
def test_resources_are_asked_for_as_the_site_wants_it(name: str, devices: int, flags: list[str]) -> None:
    assert small(name, devices=devices).resource_flags == flags


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("snellius_h100", "32 GPU-hours = 6,144 SBU"),  # 2 nodes x 4 GPUs x 4 h x 192
        ("lumi_g", "64 GCD-hours = 32 GPU-hours"),
        ("leonardo", "32 GPU-hours = 256 core-hours"),
        ("jupiter", "32 GPU-hours = 2,304 core-hours"),
        ("karolina", "64 GPU-hours = 8 node-hours"),
        ("vega", "32 GPU-hours"),  # its unit is known, its rate is not
    ],
)
def test_what_a_job_costs_at_most(name: str, cost: str) -> None:
    assert job(profile(name)).cost == cost


def test_binding_masks_are_for_whole_nodes_only() -> None:
    assert "mask_cpu" in small("lumi_g", devices=8).srun_ranks
    assert "cpu-bind" not in small("lumi_g", devices=4).srun_ranks
    assert "--cpu-bind=none" in small("marenostrum5", devices=1).srun_ranks


def test_a_site_that_wants_one_task_per_node_still_gets_one_rank_per_device() -> None:
    discoverer = job(profile("discoverer_plus"))
    assert discoverer.one_task_per_node and discoverer.cores == 26
    assert "--ntasks=16 --ntasks-per-node=8 --cpus-per-task=26" in discoverer.srun_ranks


def test_hugging_face_keeps_its_cache_when_the_model_comes_from_a_hub() -> None:
    offline = job(profile("lumi_g"))
    assert offline.run is not None
    hub = replace(offline, run=replace(offline.run, opens_hub=True))
    assert "HF_HOME" in dict(offline.caches) and "HF_HOME" not in dict(hub.caches)
    assert "HF_HUB_OFFLINE" in dict(offline.connections) and "HF_HUB_OFFLINE" not in dict(hub.connections)
    assert dict(hub.connections)["WANDB_MODE"] == "offline"


def test_network_variables_of_practice_are_set_only_on_request() -> None:
    assert small("juwels_booster").fabric_practice == []
    assert dict(small("juwels_booster", practice_env=True).fabric_practice)["NCCL_SOCKET_IFNAME"] == "ib0"


def test_words_that_break_out_of_a_comment_are_held_in_it() -> None:
    lumi = job(profile("lumi_g"))
    assert lumi.run is not None
    broken = replace(lumi, run=replace(lumi.run, recipe="sft 'evaluate.prompts=[\"a\nrm -rf ~\"]'"))
    assert all("\n" not in line for line in broken.headline)


def test_a_ready_script_tells_what_it_needs() -> None:
    plain = Job(profile("marenostrum5"), Ask("marenostrum5", 1, 4, 60, 300))
    assert plain.ready and plain.usage_flags == "--account=ACCOUNT --qos=QOS "


def test_folders_inside_others_are_left_out() -> None:
    assert smallest_set(["/a/b", "/a", "/ab/", "/c/d", "/c/d"]) == ("/a", "/ab", "/c/d")
    assert smallest_set(["/a", "/"]) == ("/",)


def test_amounts() -> None:
    assert [amount(1, "GPU-hour"), amount(2 / 3, "GPU-hour")] == ["1 GPU-hour", "0.67 GPU-hours"]
    assert [amount(1234567, "SBU"), amount(1, "SBU")] == ["1,234,567 SBU", "1 SBU"]


def test_plurals() -> None:
    assert (counted(1, "node"), counted(2, "GPU")) == ("1 node", "2 GPUs")
