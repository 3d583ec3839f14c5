"""Every planted bug turns its test red, and a bug that nobody would notice is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ops.mutant import Mutant
from ops.mutate import ROOT, judge, read

FOUND: dict[str, Any] = {
    f"{path.parent.name}: {mutant.name}": mutant
    for path in sorted((ROOT / "tests").rglob("mutants.py"))
    for mutant in read(path)
}


@pytest.fixture(scope="session")
def verdicts(request: pytest.FixtureRequest) -> dict[str, str | None]:
    """What became of the chosen mutants; torch is loaded once for all of them."""
    chosen = {}
    for item in request.session.items:
        words = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.name == "test_mutants.py" and words.get("planted") in FOUND:
            chosen[words["planted"]] = FOUND[words["planted"]]
    return dict(zip(chosen, judge(list(chosen.values())), strict=True))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("planted", FOUND)
def test_planted_bug_is_noticed(planted: str, verdicts: dict[str, str | None]) -> None:
    assert verdicts[planted] is None, verdicts[planted]


def test_names_are_unique() -> None:
    listed = [m.name for path in (ROOT / "tests").rglob("mutants.py") for m in read(path)]
    assert len(FOUND) == len(listed), "two mutants of one op have the same name"


TOY = """
def double(x):
    return x + x


def triple(x):
    return x + x + x
"""
TOY_TESTS = """
import pytest

from aitrain.toy import double, triple


@pytest.mark.parametrize("x", [1, 3])
def test_double(x):
    assert double(x) == 2 * x


def test_blind():
    assert triple(0) == 0


def test_red():
    assert triple(1) == 4


def test_skipped():
    pytest.skip("not here")
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    for folder in ("aitrain", "tests"):
        (root / folder).mkdir()
    (root / "aitrain/__init__.py").write_text("")
    (root / "aitrain/toy.py").write_text(TOY)
    (root / "tests/test_toy.py").write_text(TOY_TESTS)
    return root


def test_the_judge_tells_good_mutants_from_bad(toy: Path) -> None:
    def mutant(old: str, new: str, test: str) -> Mutant:
        return Mutant("toy", "aitrain/toy.py", old, new, f"tests/test_toy.py::{test}")

    body = "return x + x\n\n"
    cases = {
        "is noticed": (mutant(body, "return x\n\n", "test_double"), None),
        "is noticed by one case": (mutant(body, "return x * x + 1\n\n", "test_double[3]"), None),
        "nobody looks": (mutant("x + x + x", "x + x", "test_blind"), "survived"),
        "text is gone": (mutant("return y", "return x", "test_double"), "0 times"),
        "text is not one place": (mutant("return x", "return y", "test_double"), "2 times"),
        "changes nothing": (mutant(body, body, "test_double"), "changes nothing"),
        "red before": (mutant("x + x + x", "x + x", "test_red"), "does not pass without the bug"),
        "skipped before": (mutant("x + x + x", "x + x", "test_skipped"), "does not pass without the bug"),
        "no such test": (mutant("x + x + x", "x + x", "test_gone"), "does not pass without the bug"),
        "no Python": (mutant(body, "return (\n\n", "test_double"), "broke off"),
        "no such file": (Mutant("toy", "aitrain/gone.py", "a", "b", "tests/test_toy.py::test_double"), "not there"),
    }
    for (name, (_, expected)), fault in zip(cases.items(), judge([m for m, _ in cases.values()], toy), strict=True):
        assert fault is None if expected is None else expected in str(fault), f"{name}: {fault}"
    assert (toy / "aitrain/toy.py").read_text() == TOY, "the tree itself must not change"
