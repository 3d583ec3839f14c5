"""Jobs whose scripts are committed in `expected/`: one of every profile, and one of every turn in the template."""

from __future__ import annotations

from dataclasses import replace

from aitrain.launch.choices import Container
from aitrain.launch.clusters import SHIPPED, load
from aitrain.launch.job import Ask, Job, Run
from aitrain.launch.profile import Profile

PROFILES = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
NOBODY: dict[str, str] = {"HOME": "/nobody"}


def profile(name: str) -> Profile:
    """Return a shipped profile, whatever files of his own the person has who runs the tests."""
    return load(name, NOBODY).profile


def job(profile: Profile) -> Job:
    """Return the same run on any profile: two whole nodes for four hours, in a container where there is one."""
    place = "/shared/project_1"
    image = {Container.none: None, Container.edf: f"{place}/train.toml"}.get(
        profile.software.container, f"{place}/train.sif"
    )
    ask = Ask(
        name="sft_lora",
        nodes=2,
        devices=profile.device.per_node,
        minutes=240,
        signal_s=300,
        account="project_1" if profile.account_required else None,
        partition=profile.partition,
        qos=profile.qos or ("project_1" if profile.qos_required else None),
    )
    run = Run(
        recipe=f"sft_lora model.path={place}/model data.path={place}/chats.jsonl",
        directory=f"{place}/runs/first",
        work_directory=place,
        python="python3" if image else f"{place}/venv/bin/python",
        container=image,
        binds=(place,),
    )
    return Job(profile, ask, run)


def turns() -> dict[str, Job]:
    """Return the jobs that go other ways through the template, by the name of their committed script."""
    lumi, snellius, juwels = job(profile("lumi_g")), job(profile("snellius_h100")), job(profile("juwels_booster"))
    assert lumi.run is not None and snellius.run is not None and juwels.run is not None
    part = replace(lumi.ask, nodes=1, devices=2, partition="small-g")
    one = replace(snellius.ask, nodes=1, devices=1, minutes=3 * 24 * 60 + 30)
    archive = replace(snellius.run, container=None, venv_archive="/shared/project 1/venv.tar.gz", cache="/shared/cache")
    connected = replace(lumi.run, opens_hub=True, opens_wandb=True)
    return {
        "turn-part-of-a-node": replace(lumi, ask=part),
        "turn-one-device-and-archive": Job(snellius.profile, one, archive),
        "turn-connections": replace(lumi, run=connected),
        "turn-chain": replace(snellius, ask=replace(snellius.ask, requeue=False)),
        "turn-sweep": replace(lumi, run=replace(lumi.run, sweep="/shared/runs/rates", runs=4)),
        "turn-sweep-chain": replace(
            juwels, ask=replace(juwels.ask, requeue=False), run=replace(juwels.run, sweep="/shared/rates", runs=2)
        ),
        "turn-practice-environment": replace(juwels, ask=replace(juwels.ask, practice_env=True)),
    }


def all_jobs() -> dict[str, Job]:
    """Return every job with a committed script, by its name."""
    return {name: job(profile(name)) for name in PROFILES} | turns()
