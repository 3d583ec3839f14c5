"""Checkpoints that are written, found, verified, damaged, killed in the middle and pruned."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from aitrain.checkpoint import store
from aitrain.checkpoint.store import Checkpoint, choose, committed, prune, save
from aitrain.dist.group import Group
from aitrain.dist.processes import run_ranks
from aitrain.dist.ranks import Ranks
from aitrain.errors import CheckpointError
from aitrain.io import remove_leftovers

ALONE = Group(Ranks(), "cpu")


def content(step: int) -> dict[str, store.Named]:
    """Return tensors of several kinds and dtypes that depend on the step."""
    generator = torch.Generator().manual_seed(step)
    return {
        "weights": [(f"layer{n}.weight", torch.randn(40, 10, generator=generator)) for n in range(3)],
        "optimizer": [("layer0.weight:step", torch.tensor(float(step))), ("layer0.weight:exp_avg", torch.ones(4, 2).T)],
        "rng": [("rank0.cpu", torch.arange(5, dtype=torch.uint8))],
    }


def write(folder: Path, step: int, **state: Any) -> Path:
    return save(folder, step, content(step), {"best_step": None, **state}, ALONE)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_whole(checkpoint: Checkpoint) -> None:
    """Compare every tensor of a checkpoint with what was saved."""
    for kind, expected in content(checkpoint.step).items():
        assert checkpoint.names(kind) == [name for name, _ in expected]
        for name, tensor in expected:
            found = checkpoint.read(kind, name)
            assert found.dtype is tensor.dtype and torch.equal(found, tensor), name


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "new" / "checkpoints", 100, tokens=12_345, validation={"50": 1.25})
    assert path == tmp_path / "new" / "checkpoints" / "step-00000100"
    (found,) = committed(path.parent)
    assert (found.path, found.step) == (path, 100)
    assert found.state == {"best_step": None, "tokens": 12_345, "validation": {"50": 1.25}}
    assert_whole(found)
    found.verify()
    assert_whole(choose(path.parent, "newest"))


def test_manifest_names_every_file_with_size_and_checksum(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted(entry["name"] for entry in manifest["files"]) == [n for n in names(path) if n != "manifest.json"]
    for entry in manifest["files"]:
        data = (path / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_large_kinds_are_cut_into_shards_that_plain_safetensors_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SHARD_BYTES", 2 * 40 * 10 * 4)  # two of the three weights fill a shard
    path = write(tmp_path, 1)
    shards = [load_file(path / f"weights-{number:05d}.safetensors") for number in (1, 2)]
    assert [sorted(shard) for shard in shards] == [["layer0.weight", "layer1.weight"], ["layer2.weight"]]
    assert_whole(choose(tmp_path, "newest"))


def test_files_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write(tmp_path, 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}


def test_a_step_saved_again_counts_as_the_newer_one(tmp_path: Path) -> None:
    write(tmp_path, 1, tokens=1)
    write(tmp_path, 1, tokens=2)
    assert [found.state["tokens"] for found in committed(tmp_path)] == [2]
    assert names(tmp_path) == ["step-00000001"]


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for kind, name in (("weights", "other.weight"), ("ema", "layer0.weight")):
        with pytest.raises(CheckpointError, match=f"no {kind} tensor '{name}'"):
            choose(tmp_path, "newest").read(kind, name)
    assert choose(tmp_path, "newest").names("ema") == []


def test_choose(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step, best_step=20 if step > 10 else None)
    assert [choose(tmp_path, which).step for which in ("newest", "best", "10", "00000010")] == [30, 20, 10, 10]


def test_best_is_the_newest_when_nothing_was_measured(tmp_path: Path) -> None:
    write(tmp_path, 10)
    write(tmp_path, 20)
    assert choose(tmp_path, "best").step == 20


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("15", r"no checkpoint of step 15: choose from \[10\]"),
        ("latest", r"'latest' is not known: write newest, best or one of the steps \[10\]"),
        ("-1", "'-1' is not known"),
        ("best", r"no checkpoint of step 5: choose from \[10\]"),
    ],
)
def test_choose_refuses(tmp_path: Path, which: str, said: str) -> None:
    write(tmp_path, 10, best_step=5)
    with pytest.raises(CheckpointError, match=said):
        choose(tmp_path, which)


@pytest.mark.parametrize("folder", ["empty", "not there"])
def test_choose_without_any_checkpoint(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=f"{folder} has no checkpoint"):
        choose(tmp_path / folder, "newest")


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_a_bit, "does not match the checksum in its manifest"),
        (truncate, r"has \d+ bytes, but its manifest says \d+"),
        (Path.unlink, "is missing"),
    ],
)
@pytest.mark.parametrize("shard", ["weights-00001", "optimizer-00001", "rng-00001"])
def test_damage_is_named(tmp_path: Path, damage: Any, said: str, shard: str) -> None:
    write(tmp_path, 10)
    file = write(tmp_path, 20) / f"{shard}.safetensors"
    damage(file)
    told: list[str] = []
    chosen = choose(tmp_path, "newest", told.append)
    assert chosen.step == 10, "the one before is used"
    assert_whole(chosen)
    [sentence] = told
    assert re.search(rf"step-00000020/{shard}\.safetensors {said}.*: skipped", sentence)
    with pytest.raises(CheckpointError, match=rf"{shard}\.safetensors {said}.*: choose one of \[10\]"):
        choose(tmp_path, "20")


def test_when_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    for step in (10, 20):
        (write(tmp_path, step) / "weights-00001.safetensors").unlink()
    (write(tmp_path, 30) / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        choose(tmp_path, "newest", lambda _: None)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"every checkpoint in {tmp_path} is damaged: restore one") and len(lines) == 4


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', '{"step": 3}', "[]", "null"])
def test_damaged_manifest_is_named(tmp_path: Path, text: str) -> None:
    (write(tmp_path, 10) / "manifest.json").write_text(text)
    for step in (20, 30):
        write(tmp_path, step)
    found, [sentence] = store.scan(tmp_path)
    assert [one.step for one in found] == [20, 30] and "step-00000010/manifest.json is damaged (" in sentence
    prune(tmp_path, 1, None)
    assert [one.step for one in committed(tmp_path)] == [30], "it stops neither reading nor pruning"
    assert (tmp_path / "step-00000010").is_dir(), "what cannot be read is not deleted"


def test_what_a_run_leaves_behind_is_set_aside(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    moved = store.set_aside(tmp_path, 10, "superseded")
    assert [path.name for path in moved] == ["superseded-step-00000020", "superseded-step-00000030"]
    assert [one.step for one in committed(tmp_path)] == [10]
    write(tmp_path, 20)
    assert [path.name for path in store.set_aside(tmp_path, 10, "superseded")] == ["superseded-2-step-00000020"]


def test_what_is_not_committed_is_no_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (tmp_path / "step-00000020").mkdir()
    (tmp_path / "step-00000020" / "weights-00001.safetensors").write_bytes(b"half")
    for other in (".step-00000030.host.1.part", "step-00000030-copy", "step-30", "notes"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "manifest.json").write_text("{}")
    assert [found.step for found in committed(tmp_path)] == [10]


@pytest.mark.parametrize(("keep", "best", "left"), [(2, None, [40, 50]), (2, 10, [10, 40, 50]), (1, 50, [50])])
def test_prune_keeps_the_newest_and_the_best(tmp_path: Path, keep: int, best: int | None, left: list[int]) -> None:
    for step in (10, 20, 30, 40, 50):
        write(tmp_path, step)
    prune(tmp_path, keep, best)
    assert [found.step for found in committed(tmp_path)] == left
    assert names(tmp_path) == [f"step-{step:08d}" for step in left]
    prune(tmp_path, 9, None)
    assert [found.step for found in committed(tmp_path)] == left


def test_prune_killed_in_the_middle_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (10, 20):
        write(tmp_path, step)

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 1, None)
    assert [found.step for found in committed(tmp_path)] == [20]
    monkeypatch.undo()
    assert len(remove_leftovers(tmp_path, exclusive=True)) == 1 and names(tmp_path) == ["step-00000020"]


SAVE = """
import os, resource, signal, sys
from pathlib import Path
import torch
from aitrain.checkpoint import store
from aitrain.dist.group import Group
from aitrain.dist.ranks import detect
from aitrain.errors import CheckpointError

group = Group(detect(), "cpu", timeout_min=1.0)
asked = []

def weights():
    for number in range(3):
        asked.append(number)
        {inside}
        yield f"w{{number}}", torch.ones(200, 200)

{before}
try:
    store.save(Path(sys.argv[1]), 20, {{"weights": weights(), "rng": []}}, {{}}, group)
except CheckpointError as error:
    os.write(1, f"{{error}} after {{asked}}\\n".encode())
    sys.exit(error.exit_code)
"""
FULL = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # writes past it fail, as on a full disk
store.SHARD_BYTES = 100_000
"""


def saving(before: str = "pass", inside: str = "pass") -> list[str]:
    """Return the command that saves step 20 into the folder named after it."""
    return [sys.executable, "-c", textwrap.dedent(SAVE).format(before=before, inside=inside)]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*command, str(folder)], capture_output=True, text=True, check=False)


def test_full_disk_keeps_the_checkpoint_before_and_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path, 10)
    done = run(saving(before=FULL), tmp_path)
    assert done.returncode == 2, done.stderr
    assert f"the checkpoint {tmp_path}/step-00000020 could not be written" in done.stdout
    assert "free space there (only a new run can use another checkpoint.path)" in done.stdout
    assert names(tmp_path) == ["step-00000010"]
    assert_whole(choose(tmp_path, "newest"))


def test_full_disk_while_the_manifest_is_written(tmp_path: Path) -> None:
    write(tmp_path, 10)
    before = """
def full(*_):
    raise OSError(28, "No space left on device")
store.write_text = full
"""
    done = run(saving(before=before), tmp_path)
    assert "could not be written (No space left on device)" in done.stdout, done.stderr
    assert names(tmp_path) == ["step-00000010"]


def test_full_disk_on_the_first_rank_is_told_to_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Gathering tensors is collective: both ranks run through all of them, whatever happened to the disk."""
    command = [*saving(before=f"if group.ranks.is_first:{textwrap.indent(FULL, '    ')}"), str(tmp_path)]
    assert run_ranks(command, 2) == 2
    said = capfd.readouterr().out.splitlines()
    assert len(said) == 2 and said[0] == said[1]
    assert said[0].endswith("after [0, 1, 2]")
    assert names(tmp_path) == []


def test_two_ranks_write_one_checkpoint(tmp_path: Path) -> None:
    assert run_ranks([*saving(), str(tmp_path)], 2) == 0
    found = choose(tmp_path, "newest")
    assert torch.equal(found.read("weights", "w2"), torch.ones(200, 200))


@pytest.mark.parametrize("when", ["between shards", "before the rename"])
def test_killed_while_saving_leaves_the_checkpoint_before(tmp_path: Path, when: str) -> None:
    write(tmp_path, 10)
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    if when == "between shards":
        command = saving(before="store.SHARD_BYTES = 1", inside=f"number and {kill}")
    else:
        command = saving(before=f"from aitrain.io import files\nfiles.os.rename = lambda *_: {kill}")
    assert run(command, tmp_path).returncode == -signal.SIGKILL
    assert [found.step for found in committed(tmp_path)] == [10]
    assert_whole(choose(tmp_path, "newest"))
    save(tmp_path, 20, content(20), {}, ALONE)
    assert_whole(choose(tmp_path, "newest"))


def test_a_fault_that_is_no_disk_stays_what_it_is(tmp_path: Path) -> None:
    def broken() -> Iterator[tuple[str, torch.Tensor]]:
        yield "good", torch.ones(2)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save(tmp_path, 1, {"weights": broken()}, {}, ALONE)
    assert names(tmp_path) == []
