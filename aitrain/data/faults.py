"""Faults of single records, gathered over a whole file so that a user can mend them in one round."""

from __future__ import annotations

from dataclasses import dataclass, field

from aitrain.errors import DataError

SHOWN = 20
"""Faults that are shown in full; the others are counted."""


@dataclass
class RecordFaults:
    """The refused records of one file."""

    count: int = 0
    """Refused records."""

    lines: list[str] = field(default_factory=list)
    """One sentence for each of the first `SHOWN`, with its place."""

    help: list[str] = field(default_factory=list)
    """Further lines of these messages, each once: what stands below a sentence explains it for every record."""

    def add(self, fault: DataError) -> None:
        """Take in a refused record.

        Args:
            fault: Its message begins with the place of the record.
        """
        self.count += 1
        if len(self.lines) >= SHOWN:
            return
        sentence, *rest = str(fault).split("\n")
        self.lines.append(sentence)
        self.help += [line for line in rest if line not in self.help]

    def refuse(self, *others: str) -> None:
        """Refuse the file when a record was refused or something else speaks against it.

        Args:
            others: Faults of the file as a whole.

        Raises:
            DataError: All of them.
        """
        lines = list(self.lines)
        if self.count > SHOWN:
            lines.append(f"... and {self.count - SHOWN:,} more faulty records, {self.count:,} in all")
        lines += [*self.help, *others]
        if lines:
            raise DataError("\n".join(lines))
