"""Times of a series as numbers of steps: seconds apart, or calendar months."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

DAY, WEEK = 86_400, 604_800


def parsed(value: Any, pattern: str | None = None) -> datetime:
    """Return a time as UTC; one without a zone is used as it is.

    Args:
        value: A text, or a date or time of Python's.
        pattern: How texts are written; None = ISO 8601.

    Raises:
        ValueError: It is not a time.
    """
    if isinstance(value, str):
        value = datetime.fromisoformat(value.strip()) if pattern is None else datetime.strptime(value.strip(), pattern)
    if not isinstance(value, datetime):
        if not hasattr(value, "year"):
            raise ValueError(f"{value!r} is not a time")
        value = datetime(value.year, value.month, value.day)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


@dataclass(frozen=True)
class Grid:
    """Equal steps in time."""

    seconds: int
    """Seconds of a step; 0 where steps are months."""

    months: int = 0
    """Months of a step."""

    def number(self, time: datetime, first: datetime) -> float:
        """Return how many steps lie between two times; a whole number for times on the grid.

        Args:
            time: Any time.
            first: A time on the grid.
        """
        if not self.months:
            return (time - first).total_seconds() / self.seconds
        whole = (time.year - first.year) * 12 + time.month - first.month
        alike = (time.day, time.hour, time.minute, time.second) == (first.day, first.hour, first.minute, first.second)
        return whole / self.months if alike else whole / self.months + 0.5

    def time(self, first: datetime, number: int) -> datetime:
        """Return the time of a step.

        Args:
            first: Time of step 0.
            number: Number of the step.
        """
        if not self.months:
            return datetime.fromtimestamp(first.timestamp() + number * self.seconds, UTC)
        month = first.year * 12 + first.month - 1 + number * self.months
        return first.replace(year=month // 12, month=month % 12 + 1)

    @property
    def name(self) -> str:
        """The step in readable form."""
        if self.months:
            return "month" if self.months == 1 else f"{self.months} months"
        for unit, word in ((WEEK, "week"), (DAY, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
            if self.seconds % unit == 0:
                count = self.seconds // unit
                return word if count == 1 else f"{count} {word}s"
        raise AssertionError("a second divides every step")

    @property
    def season(self) -> int:
        """Steps of a day where steps are shorter; else of a week, or of a year."""
        if self.months:
            return max(1, 12 // self.months)
        if self.seconds < DAY:
            return DAY // self.seconds if DAY % self.seconds == 0 else 1
        return {DAY: 7, WEEK: 52}.get(self.seconds, 1)

    def calendar(self, first: datetime, count: int) -> npt.NDArray[np.float32]:
        """Return sine and cosine of the place within day, week and year, as far as steps are shorter than those.

        Args:
            first: Time of step 0.
            count: T, number of steps.

        Returns:
            `(T, 2 K)`.
        """
        times = [self.time(first, number) for number in range(count)]
        seconds = np.array([time.timestamp() for time in times])
        turns = []
        if not self.months and self.seconds < DAY:
            turns.append(seconds / DAY)
        if not self.months and self.seconds <= DAY:
            turns.append((seconds / DAY + 3) / 7)  # 1 January 1970 was a Thursday
        turns.append(np.array([(time.timetuple().tm_yday - 1) / 365.25 for time in times]))
        angles = 2 * np.pi * np.stack(turns, 1) if count else np.zeros((0, len(turns)))
        return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def found_grid(series: Sequence[Sequence[datetime]]) -> Grid:
    """Return the grid that fits most of the times.

    Args:
        series: Rising times of each series.

    Raises:
        ValueError: No series has two times.
    """
    gaps: Counter[int] = Counter()
    monthly = True
    for times in series:
        for earlier, later in zip(times, times[1:], strict=False):
            gaps[round((later - earlier).total_seconds())] += 1
            monthly = monthly and (earlier.day, earlier.hour) == (later.day, later.hour)
    if not gaps:
        raise ValueError("no series has two times")
    commonest = gaps.most_common(1)[0][0]
    if monthly and commonest >= 28 * DAY:
        return Grid(0, max(1, round(min(gaps) / (30.44 * DAY))))
    return Grid(commonest)
