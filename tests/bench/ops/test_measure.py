"""Who computes the wrong thing is not timed, and nobody's input is spoilt by a rival."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aitrain.bench.ops.case import Case, Function, Inputs, Outputs, Provider, Work, exact_by_autograd
from aitrain.bench.ops.ceilings import Ceilings
from aitrain.bench.ops.measure import Bench, run_case

CPU = torch.device("cpu")
BENCH = Bench(CPU, Ceilings(copy_bytes_per_s=1e9, flops_per_s=1e9), lambda provider: None, seconds=0.0)


def square(inputs: Inputs) -> Outputs:
    return (inputs["x"] * inputs["x"],)


class Spoiling(torch.autograd.Function):
    """Writes into its input and into the gradient it is given, as some published kernels do."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x.clone())
        y = x * x
        x.data.zero_()
        return y

    @staticmethod
    def backward(ctx, above):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        found = 2 * x * above
        above.zero_()
        return found


class HalfGradient(torch.autograd.Function):
    """The right output and the wrong gradient."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, above):  # type: ignore[no-untyped-def]
        return ctx.saved_tensors[0] * above


def absent() -> Function:
    raise ImportError("No module named 'rival'")


def fail() -> Function:
    raise RuntimeError("out of memory\nand more")


def case(*providers: Provider) -> Case:
    return Case(
        op="square",
        shape="100",
        inputs=lambda device: {"x": torch.randn(100), "above": torch.randn(100)},
        exact=exact_by_autograd(square, ("x",), ("above",)),
        providers=[Provider("ours", lambda: square), *providers],
        work={"forward": Work(bytes=800), "backward": Work(bytes=1200), "both": Work(bytes=2000)},
        leaves=("x",),
        upstream=("above",),
    )


def test_everyone_who_is_right_is_timed_in_each_mode() -> None:
    rows = run_case(case(Provider("eager", lambda: square)), BENCH)
    assert [(row.mode, row.provider) for row in rows] == [
        (mode, name) for mode in ("forward", "backward", "both") for name in ("ours", "eager")
    ]
    for row in rows:
        assert row.verdict == "right" and row.relative_error is not None and row.relative_error < 1e-6
        assert row.median_ms and row.p20_ms and row.p80_ms and row.p20_ms <= row.median_ms <= row.p80_ms
        least_ms = {"forward": 8e-4, "backward": 1.2e-3, "both": 2e-3}[row.mode]
        assert row.share_of_limit == pytest.approx(least_ms / row.median_ms)
    assert [row.to_ours for row in rows if row.provider == "ours"] == [1.0] * 3
    assert rows[1].to_ours == pytest.approx(rows[1].median_ms / rows[0].median_ms)
    assert rows[0].peak_mib == pytest.approx(512 / 2**20, rel=0.3), "100 numbers, in the allocator's steps"


@pytest.mark.parametrize(
    ("load", "verdict", "note"),
    [
        (lambda: lambda inputs: (HalfGradient.apply(inputs["x"]),), "WRONG", "0.0001"),
        (lambda: lambda inputs: (inputs["x"],), "WRONG", "0.0001"),
        (absent, "absent", "No module named 'rival'"),
        (fail, "failed", "RuntimeError: out of memory"),
    ],
    ids=["half a gradient", "a wrong output", "absent", "failed"],
)
def test_others_are_told_and_not_timed(load, verdict: str, note: str) -> None:  # type: ignore[no-untyped-def]
    rows = [row for row in run_case(case(Provider("rival", load)), BENCH) if row.provider == "rival"]
    assert [(row.verdict, row.median_ms) for row in rows] == [(verdict, None)]
    assert note in rows[0].note


def test_who_is_not_wanted_is_left_out() -> None:
    bench = replace(BENCH, wanted=lambda provider: "too slow" if provider.name == "rival" else None)
    rows = run_case(case(Provider("rival", fail)), bench)
    assert [(row.verdict, row.note) for row in rows if row.provider == "rival"] == [("left out", "too slow")]


def test_a_rival_that_overwrites_gets_fresh_copies_each_time() -> None:
    outputs: list[torch.Tensor] = []

    def load() -> Function:
        def run(inputs: Inputs) -> Outputs:
            y = Spoiling.apply(inputs["x"])
            outputs.append(y.detach().clone())
            return (y,)

        return run

    rows = run_case(case(Provider("rival", load, overwrites=("x", "above"))), BENCH)
    assert {row.verdict for row in rows} == {"right"}
    assert all(torch.equal(y, outputs[0]) and y.abs().sum() > 0 for y in outputs)


def test_our_own_fault_on_the_cpu_is_not_caught() -> None:
    broken = replace(case(), providers=[Provider("ours", fail)])
    with pytest.raises(RuntimeError, match="out of memory"):
        run_case(broken, BENCH)
