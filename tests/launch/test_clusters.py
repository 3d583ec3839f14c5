"""Cluster profiles: the shipped ones name their sources, a user's file changes or adds one, mistakes are told."""

import re
from pathlib import Path

import pytest

from aitrain.errors import RecipeError
from aitrain.launch.choices import Confidence, Kind, Network, Runtime
from aitrain.launch.clusters import SHIPPED, load, names, own_folder, unsourced, warning

from .specimens import NOBODY, PROFILES

ASKED = {"snellius_a100", "snellius_h100", "lumi_g", "leonardo", "marenostrum5", "jupiter", "juwels_booster"}
ASKED |= {"meluxina", "karolina", "vega", "deucalion", "discoverer_plus", "isambard_ai", "clariden", "dgx_h200"}
ASKED |= {"gb200_nvl72", "groningen", "local_slurm"}

LUMI = "base: lumi_g\n"


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """The environment of a person with a folder for profiles."""
    own_folder({"HOME": str(tmp_path)}).mkdir(parents=True)
    return {"HOME": str(tmp_path)}


def write(home: dict[str, str], name: str, text: str) -> Path:
    path = own_folder(home) / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(home: dict[str, str], text: str, name: str = "mine") -> str:
    """Return what is said of a profile of the user's."""
    path = write(home, name, text)
    with pytest.raises(RecipeError) as caught:
        load(name, home)
    return str(caught.value).replace(str(path), "mine.yaml")


def test_every_cluster_that_was_asked_for_is_there() -> None:
    assert set(PROFILES) >= ASKED and names(NOBODY) == PROFILES


@pytest.mark.parametrize("name", PROFILES)
def test_every_value_of_a_shipped_profile_names_its_source(name: str) -> None:
    cluster = load(name, NOBODY)
    assert unsourced(cluster) == []
    for keys, evidence in cluster.origins.items():
        assert evidence.source.strip(), f"{keys} has an empty source"
        assert "gh-text" not in evidence.source, "that is a note of ours, no source for a user"


@pytest.mark.parametrize("name", PROFILES)
def test_every_source_of_a_shipped_profile_speaks_of_something(name: str) -> None:
    """A key that was renamed must not leave its source behind, speaking of nothing."""
    text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    keys = {".".join(keys) for keys in load(name, NOBODY).origins}
    for listed in re.findall(r"- keys: \[([^\]]+)\]", text):
        for key in re.split(r", *", listed):
            assert any(known == key or known.startswith(f"{key}.") for known in keys), f"{name}: no value under {key}"


def test_unverified_facts_are_marked_as_such() -> None:
    origins = {".".join(keys): evidence for keys, evidence in load("snellius_h100", NOBODY).origins.items()}
    assert origins["internet.compute"].confidence is Confidence.unverified
    assert origins["fabric.environment_practice.NCCL_SOCKET_IFNAME"].confidence is Confidence.practice
    assert origins["partitions.gpu_h100.max_hours"].confidence is Confidence.transcribed


def test_the_machine_in_groningen_is_a_placeholder() -> None:
    profile = load("groningen", NOBODY).profile
    assert profile.kind is Kind.placeholder and "assumption" in str(warning(profile))
    hardware = [e for keys, e in load("groningen", NOBODY).origins.items() if keys[0] in ("device", "node")]
    assert all(evidence.confidence is Confidence.unverified for evidence in hardware)
    assert warning(load("lumi_g", NOBODY).profile) is None


def test_a_base_is_laid_under(home: dict[str, str]) -> None:
    old, new = load("snellius_a100", NOBODY).profile, load("snellius_h100", NOBODY).profile
    assert list(new.partitions) == ["gpu_h100"] and list(old.partitions) == ["gpu_a100"]
    assert (new.node.cores_per_device, old.node.cores_per_device) == (16, 18)
    assert new.storage == old.storage and new.device.runtime is Runtime.cuda


def test_a_users_file_with_the_name_of_a_shipped_profile_changes_it(home: dict[str, str]) -> None:
    path = write(
        home,
        "lumi_g",
        "account: project_465000001\nfabric: {environment: {NCCL_DEBUG: INFO, NCCL_NET_GDR_LEVEL: null}}\n"
        "partitions: {bench: {max_hours: 6}, dev-g: null}\n",
    )
    cluster, shipped = load("lumi_g", home), load("lumi_g", NOBODY)
    profile = cluster.profile
    assert profile.account == "project_465000001" and profile.device == shipped.profile.device
    assert profile.fabric.environment == {"NCCL_SOCKET_IFNAME": "hsn0,hsn1,hsn2,hsn3", "NCCL_DEBUG": "INFO"}
    assert list(profile.partitions) == ["standard-g", "small-g", "bench"]
    assert cluster.origins[("account",)].confidence is Confidence.yours
    assert cluster.origins[("account",)].source == str(path)
    assert cluster.origins[("partition",)] == shipped.origins[("partition",)]


def test_a_users_file_may_be_a_new_profile(home: dict[str, str]) -> None:
    path = write(home, "ours", "title: Our cluster\npartition: gpu\ndevice: {per_node: 8}\ninternet: {compute: open}\n")
    cluster = load("ours", home)
    assert cluster.profile.device.per_node == 8 and cluster.profile.internet.compute is Network.open
    assert "ours" in names(home) and cluster.files == [path]
    assert load(str(path), NOBODY).profile == cluster.profile


def test_a_new_profile_may_rest_on_another(home: dict[str, str]) -> None:
    write(home, "ours", "base: dgx_h200\ntitle: Our DGX\npartition: h200\naccount: team\nkind: site\n")
    write(home, "ours_small", "base: ours\ndevice: {per_node: 4}\nnode: {cores: 56}\n")
    profile = load("ours_small", home).profile
    assert (profile.title, profile.device.model, profile.device.per_node) == ("Our DGX", "H200", 4)


def test_a_users_file_may_bring_its_own_sources(home: dict[str, str]) -> None:
    evidence = "evidence:\n  - {keys: [account], confidence: documented, source: our wiki}\n"
    write(home, "lumi_g", f"account: a\nqos: b\n{evidence}")
    origins = load("lumi_g", home).origins
    assert origins[("account",)].source == "our wiki" and origins[("qos",)].confidence is Confidence.yours


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("title: X\nacount: a\n", "mine.yaml:2: acount is not a key of a cluster profile: did you mean account?"),
        (LUMI + "device: {per_nod: 4}\n", "mine.yaml:2: device.per_nod is not a key of device: did you mean per_node?"),
        (LUMI + "per_node: 4\n", "per_node is not a key of a cluster profile: did you mean device.per_node?"),
        (
            LUMI + "partitions: {x: {max_hour: 4}}\n",
            "partitions.x.max_hour is not a key of partitions.x: did you mean max_h",
        ),
        (LUMI + "device: {per_node: many}\n", "mine.yaml:2: device.per_node=many is not a whole number"),
        (LUMI + "device: {per_node: null}\n", "device.per_node=null: a value is required"),
        (LUMI + "account: 4711\n", "account=4711 must be text, but it reads as a number: put it in quotes"),
        (LUMI + "account_required: maybe\n", "account_required=maybe is neither true nor false"),
        (
            LUMI + "internet: {compute: closd}\n",
            "closd is not one of open, closed, unknown: did you mean closed?",
        ),
        (LUMI + "fabric: {environment: {NCCL_DEBUG: 1}}\n", "fabric.environment.NCCL_DEBUG=1 must be text"),
        (LUMI + "software: {modules: Python}\n", "software.modules=Python is not a list of texts"),
        (LUMI + "device: 4\n", "device=4 is a group of keys: write them below it, indented"),
        (LUMI + "partitions: {x: 4}\n", "partitions.x=4 is a group of keys"),
        ("base: lumi\n", "mine.yaml: base: cluster lumi is not known: did you mean lumi_g?"),
        ("base: mine\n", "mine.yaml: base: mine is based on itself"),
        ("account: a\n", "mine.yaml: title is missing"),
        (
            LUMI + "node: {cores_per_device: 8}\n",
            "x device.per_node=8 is more than node.cores=56",
        ),
        (LUMI + "partition: huge\n", "partition=huge is not in partitions: choose from standard-g, small-g, dev-g"),
        (LUMI + "device: {per_node: 4}\n", "request.cpu_bind_full_node has 8 masks, but device.per_node=4"),
        ("a: [b\n", "mine.yaml:2: broken YAML"),
        ("", "mine.yaml is not a cluster profile, because it holds no keys with values: begin with `base: NAME`"),
        ("- a\n", "mine.yaml is not a cluster profile"),
        (LUMI + "evidence: {keys: [account]}\n", "mine.yaml:2: evidence must be a list of sources: write for instance"),
        (LUMI + "evidence: [our wiki]\n", "mine.yaml:2: evidence must be a list of sources"),
        (
            LUMI + "account: a\nevidence: [{keys: [acount], source: x}]\n",
            "mine.yaml:3: evidence is given for acount, which this file does not set: did you mean account?",
        ),
        (LUMI + "account: a\nevidence: [{keys: [zzz], source: x}]\n", "remove it, or set the value"),
        (LUMI + "evidence:\n  - {keys: [account], confidence: sure}\n", "evidence.confidence=sure is not one of"),
    ],
)
def test_mistakes_in_a_profile_are_told_like_those_in_a_recipe(home: dict[str, str], text: str, says: str) -> None:
    assert says in refused(home, text)


def test_every_mistake_is_told_at_once(home: dict[str, str]) -> None:
    said = refused(home, "base: lumi_g\nacount: a\ndevice: {per_node: many}\npartiton: x\n").splitlines()
    assert len(said) == 3


def test_two_profiles_that_rest_on_each_other_are_refused(home: dict[str, str]) -> None:
    write(home, "other", "base: mine\n")
    assert "is based on itself" in refused(home, "base: other\n")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("lumi", "cluster lumi is not known: did you mean lumi_g?"),
        ("marenostrum", "did you mean marenostrum5?"),
        ("qqq", "Choose from clariden, deucalion,"),
        ("./none.yaml", "cluster ./none.yaml does not exist: name a YAML file, or one of clariden"),
        ("/tmp/", "cluster /tmp/ is a folder"),
    ],
)
def test_an_unknown_cluster_is_refused_with_the_nearest(word: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(word, NOBODY)
    assert says in str(caught.value)


def test_the_users_folder_follows_xdg() -> None:
    assert own_folder({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == Path("/x/aitrain/clusters")
    assert own_folder({"HOME": "/h"}) == Path("/h/.config/aitrain/clusters")
