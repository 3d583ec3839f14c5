"""The results as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

HEAD = (
    *("op", "shape", "mode", "provider", "ms", "p20-p80", "rate", "of the limit", "to ours", "peak MiB"),
    *("error", "host us", "remark"),
)


@dataclass(frozen=True)
class Row:
    """One provider on one case in one mode."""

    op: str
    shape: str
    mode: str
    provider: str
    verdict: str
    """`right`, `WRONG`, `failed`, `absent` or `left out`; only `right` is timed."""

    relative_error: float | None = None
    """Largest of all outputs and gradients, against float64."""

    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    launches: int = 0
    host_us: float | None = None
    """On a GPU, time until the call returned."""

    gb_per_s: float | None = None
    tflops: float | None = None
    share_of_limit: float | None = None
    """Least possible time by the measured ceilings, divided by the median."""

    to_ours: float | None = None
    """Median divided by ours: 2 = takes twice as long as ours."""

    peak_mib: float | None = None
    """Over the inputs; outputs and gradients count."""

    note: str = ""


def to_csv(rows: Sequence[Row], surroundings: Mapping[str, str]) -> str:
    """Return all rows, each with the surroundings, so that files can be joined.

    Args:
        rows: In the order they were measured.
        surroundings: Device, driver, versions, ceilings.
    """
    text = io.StringIO()
    names = [entry.name for entry in fields(Row)]
    writer = csv.DictWriter(text, [*names, *surroundings], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**asdict(row), **surroundings})
    return text.getvalue()


def to_markdown(rows: Sequence[Row], surroundings: Mapping[str, str], remarks: Sequence[str]) -> str:
    """Return the report as text.

    Args:
        rows: In the order they were measured.
        surroundings: Device, driver, versions, ceilings.
        remarks: What was skipped or is absent, and why.
    """
    lines = ["# Fused ops, measured", ""]
    lines += [f"- {key}: {value}" for key, value in surroundings.items()]
    lines += ["", *[f"- {remark}" for remark in remarks], ""] if remarks else [""]
    lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def in_a_line(row: Row) -> str:
    """Return a row as it is shown while the benchmark runs.

    Args:
        row: Just measured.
    """
    what = f"{row.op} {row.shape} {row.mode:<8} {row.provider:<19}"
    if row.median_ms is None:
        error = "" if row.relative_error is None else f" (error {row.relative_error:.1e})"
        return f"{what} {row.verdict}{error} {row.note}".rstrip()
    ratio = "" if row.to_ours is None else f"{row.to_ours:7.2f} x ours"
    share = "" if row.share_of_limit is None else f"{row.share_of_limit:6.1%} of the limit"
    return f"{what} {row.median_ms:10.4f} ms {share} {ratio} {_number(row.peak_mib, ',.0f')} MiB"


def _cells(row: Row) -> list[str]:
    spread = "-" if row.p20_ms is None else f"{row.p20_ms:.4f}-{row.p80_ms:.4f}"
    rate = f"{_number(row.tflops, ',.2f')} TFLOP/s" if row.tflops else f"{_number(row.gb_per_s, ',.0f')} GB/s"
    remark = row.note if row.verdict == "right" else f"{row.verdict} {row.note}".strip()
    return [
        row.op,
        row.shape,
        row.mode,
        row.provider,
        _number(row.median_ms, ".4f"),
        spread,
        "-" if row.median_ms is None else rate,
        _number(row.share_of_limit, ".1%"),
        _number(row.to_ours, ".2f"),
        _number(row.peak_mib, ",.1f"),
        _number(row.relative_error, ".1e"),
        _number(row.host_us, ",.0f"),
        remark.replace("|", "/").replace("\n", " "),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
