"""The options of `aitrain bench ops`, its time limit, and its output files."""

from __future__ import annotations

import argparse
import importlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from aitrain.bench.ops.case import Case, Provider
from aitrain.bench.ops.ceilings import measure, surroundings
from aitrain.bench.ops.measure import OURS, Bench, run_case
from aitrain.bench.ops.tables import Row, in_a_line, to_csv, to_markdown
from aitrain.errors import EXIT_DONE, EXIT_GUARD, AitrainError
from aitrain.io import write_text

PARTS = ("linear_loss", "cross_entropy", "norms", "glu", "rope", "lora", "nf4", "adamw")
"""Modules of `aitrain.bench.ops.parts`; `ceilings`, which is always measured, can be asked for alone."""

SLACK_S = 10.0
"""Kept for writing the report."""


class OutOfTime(BaseException):
    """The time is up in the middle of a case; no rival may catch this."""


@dataclass
class _Found:
    """Results so far."""

    around: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Cases without a result."""


def main(argv: Sequence[str]) -> int:
    """Measure, print, and write the report down.

    Args:
        argv: Words after `aitrain bench ops`.

    Returns:
        0; 4 when one of our own ops is wrong or failed.

    Raises:
        AitrainError: A word cannot be used.
    """
    args = _parser().parse_args(list(argv))
    parts = _parts(args.parts)
    device = _device(args.device)
    begin = time.monotonic()
    torch.manual_seed(0)
    ceilings = measure(device)
    found = _Found(surroundings(device, ceilings))
    for key, value in found.around.items():
        print(f"{key}: {value}", flush=True)
    bench = Bench(device, ceilings, _wanted(args.providers, device), args.seconds)
    end = begin + 60 * args.minutes - SLACK_S
    files = _files(args.out, found.around["date"], device, parts) if args.out else None
    try:
        with _alarm(end):
            _run_parts(parts, bench, found, end, files)
    except OutOfTime:
        found.remarks.append(f"stopped after {args.minutes:g} minutes in the middle of a case")
    if found.waiting:
        found.remarks.append(f"not measured, because the time was up: {'; '.join(found.waiting)}")
    for line in found.remarks:
        print(line)
    _write(found, files)
    bad = [row for row in found.rows if row.provider == OURS and row.verdict in ("WRONG", "failed")]
    return EXIT_GUARD if bad else EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aitrain bench ops", description=__doc__, allow_abbrev=False)
    parser.add_argument("parts", metavar="PART", nargs="*", help=f"ceilings, {', '.join(PARTS)}; default: all")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="folder for a CSV file and a Markdown table")
    parser.add_argument("--minutes", metavar="N", type=float, default=9.0, help="time limit in minutes (default 9)")
    parser.add_argument("--seconds", metavar="N", type=float, default=3.0, help="timing per case and mode (default 3)")
    parser.add_argument("--providers", metavar="NAMES", help="only these, separated by commas; ours always runs")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    return parser


def _parts(words: Sequence[str]) -> list[str]:
    for word in words:
        if word not in ("ceilings", *PARTS):
            raise AitrainError(f"{word} is not part of the benchmark: write ceilings, {', '.join(PARTS)}, or nothing")
    return [part for part in PARTS if not words or part in words]


def _device(word: str | None) -> torch.device:
    if word == "cuda" and not torch.cuda.is_available():
        raise AitrainError("--device cuda, but torch sees no GPU: write --device cpu")
    return torch.device(word or ("cuda" if torch.cuda.is_available() else "cpu"))


def _wanted(words: str | None, device: torch.device) -> Callable[[Provider], str | None]:
    names = None if words is None else [word.strip() for word in words.split(",")]

    def why_not(provider: Provider) -> str | None:
        if provider.name == OURS:
            return None
        if names is not None:
            return None if provider.name in names else "not in --providers"
        if device.type == "cpu" and provider.package is not None:
            return "runs on GPUs only"
        if device.type == "cpu" and provider.compiles:
            return "takes long to compile: request it with --providers"
        return None

    return why_not


@contextmanager
def _alarm(end: float) -> Iterator[None]:
    """Raise `OutOfTime` when the time has come, wherever the program is."""

    def ring(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, end - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _run_parts(parts: Sequence[str], bench: Bench, found: _Found, end: float, files: tuple[Path, Path] | None) -> None:
    """Run all parts, each in its share of the time; cases that had to wait run in the remaining time, or are
    reported.
    """
    waiting: list[tuple[str, Case]] = []
    for number, part in enumerate(parts):
        try:
            module = importlib.import_module(f"aitrain.bench.ops.parts.{part}")
        except ModuleNotFoundError as fault:
            found.remarks.append(f"{part} was skipped: {fault}")
            continue
        now = time.monotonic()
        cases = [(part, case) for case in module.cases(bench.device.type == "cpu")]
        found.waiting += [f"{case.op} {case.shape}" for _, case in cases]
        waiting += _run_cases(cases, bench, found, now + (end - now) / (len(parts) - number), files)
    _run_cases(waiting, bench, found, end, files)


def _run_cases(
    cases: Sequence[tuple[str, Case]], bench: Bench, found: _Found, end: float, files: tuple[Path, Path] | None
) -> list[tuple[str, Case]]:
    """Run cases until the next one might end too late, and return those that were not run."""
    longest = 0.0
    for number, (part, case) in enumerate(cases):
        begin = time.monotonic()
        if begin + longest > end:
            return list(cases[number:])
        for row in run_case(case, bench):
            if row.verdict not in ("absent", "left out"):
                found.rows.append(row)
                print(in_a_line(row), flush=True)
            elif (remark := f"{row.provider} {row.verdict} in {part}: {row.note}") not in found.remarks:
                found.remarks.append(remark)
        found.waiting.remove(f"{case.op} {case.shape}")
        longest = max(longest, time.monotonic() - begin)
        _write(found, files)
    return []


def _files(out: Path, date: str, device: torch.device, parts: Sequence[str]) -> tuple[Path, Path]:
    some = "" if len(parts) == len(PARTS) else "-" + "-".join(parts or ["ceilings"])
    stem = f"ops-{device.type}-{date}{some}"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AitrainError(f"--out {out} cannot be written ({error.strerror}): give another folder") from None
    return out / f"{stem}.csv", out / f"{stem}.md"


def _write(found: _Found, files: tuple[Path, Path] | None) -> None:
    if files is None:
        return
    write_text(files[0], to_csv(found.rows, found.around))
    write_text(files[1], to_markdown(found.rows, found.around, found.remarks))
