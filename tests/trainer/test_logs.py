"""Each rank has a log: libraries speak there and not on the terminal, and a failure leaves its traceback."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import pytest

from aitrain.dist.ranks import Ranks
from aitrain.errors import AitrainError
from aitrain.trainer.logs import hush_libraries, note, rank_log
from aitrain.trainer.run_directory import RunDirectory

from .conftest import Ended


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def test_a_real_run_has_a_readable_log(trained: Ended) -> None:
    text = (trained.directory.logs / "rank-0.log").read_text()
    assert "12 samples, 4 steps of 4 sequences" in text and "held-out loss" in text


def test_libraries_speak_in_the_log(directory: RunDirectory, capfd: pytest.CaptureFixture[str]) -> None:
    foreign = logging.getLogger("DeepSpeed")
    foreign.addHandler(logging.StreamHandler())
    foreign.setLevel(logging.DEBUG)
    with rank_log(directory, Ranks(rank=3, world=4, local_rank=3, local_world=4)):
        foreign.info("chatter")
        foreign.warning("a foreign warning")
        warnings.warn("a python warning", stacklevel=1)
        note("a line of ours")
        logging.getLogger("aitrain.models.load").warning("a warning of ours")
    said = capfd.readouterr()
    assert said.err == "a warning of ours\n" and said.out == ""
    text = (directory.logs / "rank-3.log").read_text()
    for line in ("a foreign warning", "a python warning", "a line of ours", "a warning of ours"):
        assert line in text
    assert "chatter" not in text
    hush_libraries()
    assert logging.StreamHandler not in [type(handler) for handler in foreign.handlers], "pytest adds its own"


def test_a_failure_leaves_its_traceback(directory: RunDirectory) -> None:
    with pytest.raises(ZeroDivisionError), rank_log(directory, Ranks()):
        _ = 1 / 0
    assert "ZeroDivisionError" in (directory.logs / "rank-0.log").read_text()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_reported_once_and_hides_no_error(
    directory: RunDirectory, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was not written stays in the buffer: closing fails too, and must not replace the error that ends the run."""
    directory.logs.mkdir()
    (directory.logs / "rank-0.log").symlink_to("/dev/full")
    with pytest.raises(AitrainError, match="the real reason"), rank_log(directory, Ranks()):
        note("first")
        note("second")
        raise AitrainError("the real reason")
    said = capfd.readouterr().err
    assert said.count("rank-0.log cannot be written any more ([Errno 28]") == 1 and "Traceback" not in said


def test_nothing_is_left_of_it(directory: RunDirectory) -> None:
    before = list(logging.getLogger().handlers), list(logging.getLogger("aitrain").handlers), warnings.showwarning
    with rank_log(directory, Ranks()):
        pass
    after = list(logging.getLogger().handlers), list(logging.getLogger("aitrain").handlers), warnings.showwarning
    assert after == before
