"""Compares the measurements of all providers: first whether they did the same work, then how fast. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from aitrain.bench.job import Account

YARDSTICK = "bare"
"""The provider that every ratio is taken to, and whose losses are the reference."""

TOLERANCE = {"fp32": (1e-4, 1e-3), "bf16": (1e-2, 1e-1)}
"""Largest relative difference from the reference's losses, and from its gradient norms.

fp32: sums in another order differ by about 1e-6 per step and grow with the steps; a mean of means over micro-batches of
unequal length differs by 1e-2 and more. bf16: 8 bits of mantissa, 4e-3 per rounding.
"""

Rounds = list[dict[str, Account]]
"""Provider -> what it measured, per round."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    provider: str
    step_ms: float
    """Median over the measured steps of all rounds."""

    tokens_per_s: float
    """Median over the same steps, padding not counted."""

    peak_memory_gb: float
    """Largest of all rounds."""

    to_bare: float | None
    """Median, over steps and rounds, of its step time divided by the reference's on the same batch; None if the
    losses differ."""

    to_bare_rounds: list[float]
    """The same median within each round: their spread shows how reliable the ratio is."""

    to_trl: float | None
    """As `to_bare`, to TRL; None if TRL did not run or did other work."""

    loss_difference: float
    """Largest relative difference from the reference's losses, over all steps and rounds."""

    norm_difference: float
    """Largest relative difference from the reference's gradient norms."""

    right: bool
    """Whether both differences are within the tolerance."""

    own_step_ms: float | None
    """Median of the step times the provider reports itself."""


def step_seconds(account: Account, warm_up: int) -> list[float]:
    """Return the time of each step after the warm-up.

    Args:
        account: What a provider measured.
        warm_up: Steps left out, at least 1: the first contains the start of the program.
    """
    pairs = zip(account.begins_s, account.ends_s, strict=False)  # one more begins than ends
    return [end - begin for begin, end in pairs][warm_up:]


def judge(rounds: Rounds, tokens: list[int], warm_up: int, precision: str) -> list[Row]:
    """Compare all providers with the reference and with TRL.

    Args:
        rounds: What was measured; every round holds the same providers, the reference among them.
        tokens: Tokens of each step.
        warm_up: Steps left out of the times; losses of all steps count.
        precision: `fp32` or `bf16`, decides the tolerance.
    """
    differences = {name: _differences(rounds, name) for name in rounds[0]}
    loss_tolerance, norm_tolerance = TOLERANCE[precision]
    right = {name: loss <= loss_tolerance and norm <= norm_tolerance for name, (loss, norm) in differences.items()}
    rows = []
    for name in rounds[0]:
        seconds = [step_seconds(entry[name], warm_up) for entry in rounds]
        paced = [count / s for times in seconds for count, s in zip(tokens[warm_up:], times, strict=True)]
        own = [s for entry in rounds for s in (entry[name].own_step_s or [])[warm_up:]]
        to_bare = _ratios(rounds, name, YARDSTICK, warm_up) if right[name] else []
        to_trl = _ratios(rounds, name, "trl", warm_up) if right[name] and right.get("trl") else []
        rows.append(
            Row(
                provider=name,
                step_ms=1e3 * median(s for times in seconds for s in times),
                tokens_per_s=median(paced),
                peak_memory_gb=max(entry[name].peak_memory_gb for entry in rounds),
                to_bare=median(r for ratios in to_bare for r in ratios) if to_bare else None,
                to_bare_rounds=[median(ratios) for ratios in to_bare],
                to_trl=median(r for ratios in to_trl for r in ratios) if to_trl else None,
                loss_difference=differences[name][0],
                norm_difference=differences[name][1],
                right=right[name],
                own_step_ms=1e3 * median(own) if own else None,
            )
        )
    return rows


def table(rows: list[Row]) -> str:
    """Return the verdict as text.

    Args:
        rows: From `judge`.
    """
    head = ("provider", "step ms", "tokens/s", "peak GB", "to bare", "(rounds)", "to TRL", "losses and norms")
    lines = [head]
    for row in rows:
        spread = f"{min(row.to_bare_rounds):.3f}-{max(row.to_bare_rounds):.3f}" if row.to_bare_rounds else "-"
        verdict = "same" if row.right else "WRONG"
        lines.append(
            (
                row.provider,
                f"{row.step_ms:.1f}",
                f"{row.tokens_per_s:,.0f}",
                f"{row.peak_memory_gb:.2f}",
                "-" if row.to_bare is None else f"{row.to_bare:.3f}",
                spread,
                "-" if row.to_trl is None else f"{row.to_trl:.3f}",
                f"{verdict} ({row.loss_difference:.0e}, {row.norm_difference:.0e})",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    left = (0, len(head) - 1)
    aligned = []
    for line in lines:
        columns = enumerate(zip(line, widths, strict=True))
        aligned.append("  ".join(cell.ljust(w) if n in left else cell.rjust(w) for n, (cell, w) in columns))
    return "\n".join(line.rstrip() for line in aligned)


def _ratios(rounds: Rounds, name: str, other: str, warm_up: int) -> list[list[float]]:
    """Return, per round, the ratio of two providers' times on the same batch."""
    pairs = [(step_seconds(entry[name], warm_up), step_seconds(entry[other], warm_up)) for entry in rounds]
    return [[mine / theirs for mine, theirs in zip(*pair, strict=True)] for pair in pairs]


def _differences(rounds: Rounds, name: str) -> tuple[float, float]:
    def largest(mine: list[float], reference: list[float]) -> float:
        if len(mine) != len(reference):
            return float("inf")
        found = [abs(a - b) / max(abs(b), 1e-12) for a, b in zip(mine, reference, strict=True)]
        return max(float("inf") if value != value else value for value in found)  # not a number is no agreement

    pairs = [(entry[name], entry[YARDSTICK]) for entry in rounds]
    return (
        max(largest(mine.losses, reference.losses) for mine, reference in pairs),
        max(largest(mine.gradient_norms, reference.gradient_norms) for mine, reference in pairs),
    )
