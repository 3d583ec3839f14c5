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


@dataclass
class RecordFaults:
    """The refused records of one file."""

    count: int = 0
    """Refused records."""

    sentences: dict[str, list[str]] = field(default_factory=dict)
    """Fault without its place -> places of the records that have it."""

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
        if text not in self.sentences and len(self.sentences) >= SHOWN:
            return
        self.sentences.setdefault(text, []).append(place)
        self.help += [line for line in rest if line not in self.help]

    @property
    def lines(self) -> list[str]:
        """The faults as reported: one line each, or one for all records with the same fault."""
        lines: list[str] = []
        for text, places in self.sentences.items():
            if len(places) <= _ALIKE:
                lines += [f"{place}{text}" for place in places]
            else:
                more = ", ".join(places[1:4])
                lines.append(f"{places[0]}{text} (also {more}, ... {len(places):,} records in all)")
        return lines

    def refuse(self, *others: str) -> None:
        """Refuse the file if a record was refused or there are other faults.

        Args:
            others: Faults of the file as a whole.

        Raises:
            DataError: All of them.
        """
        lines = self.lines
        told = sum(len(places) for places in self.sentences.values())
        if self.count > told:
            lines.append(f"... and {self.count - told:,} more faulty records, {self.count:,} in all")
        lines += [*self.help, *others]
        if lines:
            raise DataError("\n".join(lines))
