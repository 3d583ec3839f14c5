"""Every kernel compiles for the GPUs that aitrain is meant for, with wide accesses and without spills."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ops.aot import TARGETS, Compiled, compile_all, faults, specimens
from ops.specimen import Specimen

pytest.importorskip("triton", reason="Triton is not installed, so no kernel can be compiled")

FOUND = specimens()
DAILY = "sm_80"
"""The target of every run of the tests; the others are compiled by `make test-all`, and where kernels have changed."""

PAIRS = [
    pytest.param(name, target, marks=() if target == DAILY else pytest.mark.slow, id=f"{name}-{target}")
    for name in FOUND
    for target in TARGETS
]

SOUND = Specimen(
    name="copy",
    module="ops.planted_kernels",
    function="copy",
    signature={"source": "*bf16", "target": "*bf16", "size": "i32"},
    constexprs={"BLOCK": 4096},
    divisible=("source", "target", "size"),
)
SPILLING = replace(SOUND, name="hoard", function="hoard", constexprs={"BLOCK": 4096}, num_warps=1)
PLANTED = {
    "sound, sm_80": (SOUND, "sm_80", None),
    "sound, sm_90": (SOUND, "sm_90", None),
    "sound, gfx90a": (SOUND, "gfx90a", None),
    "no such word": (replace(SOUND, function="unknown_word"), "sm_80", "no_such_function"),
    "no such kernel": (replace(SOUND, function="gone"), "sm_80", "gone"),
    "an argument without a type": (replace(SOUND, signature={"source": "*bf16", "target": "*bf16"}), "sm_80", "size"),
    "narrow loads": (replace(SOUND, divisible=("target", "size")), "sm_80", "no load of 16 bytes"),
    "narrow stores": (replace(SOUND, divisible=("source", "size")), "sm_80", "no store of 16 bytes"),
    "narrow on AMD": (replace(SOUND, divisible=()), "gfx90a", "no load of 16 bytes"),
    "spills": (SPILLING, "sm_80", "spills"),
    "spills on AMD": (replace(SPILLING, constexprs={"BLOCK": 32768}, num_warps=16), "gfx90a", "spills"),
    "too many registers": (replace(SOUND, max_registers=4), "sm_80", "registers, at most 4"),
    "too many threads": (replace(SOUND, num_warps=32), "gfx90a", "2048 threads"),
}


@pytest.fixture(scope="session")
def compiled(request: pytest.FixtureRequest) -> dict[str, Compiled]:
    """Everything that the chosen tests need, compiled at once."""
    chosen: dict[str, tuple[Specimen, str]] = {}
    for item in request.session.items:
        words = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.name != "test_aot.py":
            continue
        if "planted" in words:
            chosen[words["planted"]] = PLANTED[words["planted"]][:2]
        elif words.get("name") in FOUND:
            chosen[f"{words['name']} {words['target']}"] = (FOUND[words["name"]], words["target"])
    return dict(zip(chosen, compile_all(chosen.values()), strict=True))


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_kernel(name: str, target: str, compiled: dict[str, Compiled]) -> None:
    wrong = faults(FOUND[name], target, compiled[f"{name} {target}"])
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "planted",
    [pytest.param(name, marks=() if what[1] == DAILY else pytest.mark.slow) for name, what in PLANTED.items()],
)
def test_the_check_finds_what_was_planted(planted: str, compiled: dict[str, Compiled]) -> None:
    specimen, target, expected = PLANTED[planted]
    wrong = faults(specimen, target, compiled[planted])
    if expected is None:
        assert not wrong
    else:
        assert len(wrong) >= 1 and any(expected in line for line in wrong), wrong
