"""One finding of the doctor: fine, a note, or wrong with what to do. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from aitrain.errors import EXIT_DONE, EXIT_GUARD, EXIT_USER


class Grade(Enum):
    """How something was found."""

    ok = "ok"
    note = "note"
    wrong = "WRONG"


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    what: str
    """Subject, in one or two words."""

    said: str
    """What was found, and what to do if needed."""

    grade: Grade = Grade.ok
    """How it is."""


def text_of(findings: Sequence[Finding]) -> str:
    """Return findings as a table, and a closing line.

    Args:
        findings: In the order of the table.
    """
    width = max((len(finding.what) for finding in findings), default=0)
    lines = [f"{finding.grade.value:<5}  {finding.what:<{width}}  {finding.said}" for finding in findings]
    wrong = sum(finding.grade is Grade.wrong for finding in findings)
    closing = "No problems found." if not wrong else f"{wrong} of {len(findings)} checks failed."
    return "\n".join([*lines, closing])


def exit_code(findings: Sequence[Finding], in_job: bool) -> int:
    """Return how the command ends: 4 for a faulty node, 2 for what the user can fix.

    Args:
        findings: All of them.
        in_job: Whether nodes were measured.
    """
    if not any(finding.grade is Grade.wrong for finding in findings):
        return EXIT_DONE
    return EXIT_GUARD if in_job else EXIT_USER
