"""Collects the faults of single records of a file, so that a user can fix them in one go."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from aitrain.errors import DataError

SHOWN = 20
"""Faults that are shown in full; the others are counted."""

_ALIKE = 3
"""Records with the same fault that are listed one by one; if there are more, the fault is reported once."""

_PLACE = re.compile(r"(?P<place>.*?(?::\d+|\[\d+\]))(?=: )")


class CellError(DataError):
    """A cell that cannot be used, for a reason that many cells may share although they hold different values."""

    def __init__(self, message: str, reason: str) -> None:
        """Say what is wrong.

        Args:
            message: It begins with the place of the record.
            reason: Equal for cells that are reported together.
        """
        super().__init__(message)
        self.reason = reason


@dataclass
class _Alike:
    """Records with the same fault."""

    count: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)
    """Place and fault of the first of them."""


@dataclass
class RecordFaults:
    """The refused records of one file."""

    count: int = 0
    """Refused records."""

    found: dict[str, _Alike] = field(default_factory=dict)
    """Fault without its place, or the reason of a cell's -> the records that have it."""

    help: list[str] = field(default_factory=list)
    """Additional lines of these messages, each once: the explanation is the same for every record."""

    def add(self, fault: DataError) -> None:
        """Add a refused record.

        Args:
            fault: Its message begins with the place of the record.
        """
        self.count += 1
        sentence, *rest = str(fault).split("\n")
        found = _PLACE.match(sentence)
        place = found["place"] if found else ""
        text = sentence[len(place) :]
        reason = fault.reason if isinstance(fault, CellError) else text
        if reason not in self.found and len(self.found) >= SHOWN:
            return
        alike = self.found.setdefault(reason, _Alike())
        alike.count += 1
        if alike.count <= _ALIKE + 1:
            alike.first.append((place, text))
        self.help += [line for line in rest if line not in self.help]

    @property
    def lines(self) -> list[str]:
        """The faults as reported: one line each, or one for all records with the same fault."""
        lines: list[str] = []
        for alike in self.found.values():
            if alike.count <= _ALIKE:
                lines += [f"{place}{text}" for place, text in alike.first]
            else:
                place, text = alike.first[0]
                more = ", ".join(place for place, _ in alike.first[1:])
                lines.append(f"{place}{text} (also {more}, ... {alike.count:,} records in all)")
        return lines

    def refuse(self, *others: str) -> None:
        """Refuse the file if a record was refused or there are other faults.

        Args:
            others: Faults of the file as a whole.

        Raises:
            DataError: All of them.
        """
        lines = self.lines
        told = sum(alike.count for alike in self.found.values())
        if self.count > told:
            lines.append(f"... and {self.count - told:,} more faulty records, {self.count:,} in all")
        lines += [*self.help, *others]
        if lines:
            raise DataError("\n".join(lines))
