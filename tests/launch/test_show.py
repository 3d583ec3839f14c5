"""`aitrain show cluster NAME`: every value with its source and confidence, and a mark on what is unverified."""

from pathlib import Path

import pytest

from aitrain import cli
from aitrain.launch.clusters import load, names
from aitrain.launch.show import listing, profile_text

from .specimens import PROFILES


@pytest.mark.parametrize("name", PROFILES)
def test_every_value_is_shown_with_its_source(name: str) -> None:
    text = profile_text(name)
    cluster = load(name)
    for keys, evidence in cluster.origins.items():
        if keys[0] not in ("title", "docs", "note"):
            assert ".".join(keys) in text and evidence.source in text


def test_unverified_values_are_marked_and_counted() -> None:
    lines = profile_text("snellius_h100").splitlines()
    (internet,) = [line for line in lines if " internet.compute " in line]
    assert internet.startswith("? ") and "unknown  [unverified " in internet
    (cores,) = [line for line in lines if " node.cores_per_device " in line]
    assert cores.startswith("  ") and "16  [transcribed " in cores
    marked = sum(line.startswith("? ") for line in lines)
    assert f"Unverified: {marked} value{'' if marked == 1 else 's'}, marked ?. Check with the site." in lines


def test_a_placeholder_says_so_first() -> None:
    assert "every value is an assumption" in "\n".join(profile_text("groningen").splitlines()[:4])


def test_all_clusters_are_listed() -> None:
    text = listing()
    assert all(f"  {name} " in text for name in names()) and "8 x MI250X GCD 64 GB per node" in text


def test_a_broken_file_of_the_users_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "aitrain/clusters").mkdir(parents=True)
    (tmp_path / "aitrain/clusters/ours.yaml").write_text("titel: Ours\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    lines = listing().splitlines()
    (ours,) = [line for line in lines if line.startswith("  ours ")]
    assert "cannot be used: " in ours and "titel is not a key of a cluster profile: did you mean title?" in ours
    assert any("LUMI-G (CSC, FI)" in line for line in lines)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "cluster"]) == 0
    out = capsys.readouterr().out
    assert "cluster.account  (text or null; default null)" in out and "snellius_h100" in out
    assert cli.main(["show", "cluster", "lumi_g"]) == 0
    assert "hsn0,hsn1,hsn2,hsn3" in capsys.readouterr().out
    assert cli.main(["show", "cluster", "lumi"]) == 2
    assert "did you mean lumi_g?" in capsys.readouterr().err
    assert cli.main(["show", "optim", "lumi_g"]) == 2
    assert "only `cluster` takes a name" in capsys.readouterr().err
