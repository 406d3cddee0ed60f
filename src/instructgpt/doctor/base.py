"""What a doctor says: one finding a line, with its likely causes and what to do."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Weight = Literal["bad", "notice"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong, or that one should know.

    Args:
        weight: bad: results should not be trusted before it is mended; notice: look at it.
        where: the stage's directory.
        what: what was seen, with the numbers.
        mend: likely causes and what to do.
    """

    weight: Weight
    where: str
    what: str
    mend: str


@dataclass(frozen=True, slots=True)
class Course:
    """How logged numbers went: the first and the last tenth of a run (at least one row each), by their medians."""

    rows: tuple[Mapping[str, float], ...]

    def values(self, metric: str) -> list[float]:
        """Whatever was logged of a metric, in order."""
        return [row[metric] for row in self.rows if metric in row]

    def first(self, metric: str) -> float | None:
        """The median of the first tenth; None where nothing was logged."""
        values = self.values(metric)
        return statistics.median(values[: max(1, len(values) // 10)]) if values else None

    def last(self, metric: str) -> float | None:
        """The median of the last tenth; None where nothing was logged."""
        values = self.values(metric)
        return statistics.median(values[-max(1, len(values) // 10) :]) if values else None

    def growth(self, metric: str) -> float | None:
        """The last tenth over the first; None where either is missing or the first is 0."""
        first, last = self.first(metric), self.last(metric)
        return last / first if first and last is not None else None


@dataclass(frozen=True, slots=True)
class Patient:
    """One stage directory as the checks see it."""

    name: str
    info: Mapping[str, Any]
    course: Course

    def told(self, option: str) -> Any:
        """What the stage was configured with; None where its configuration does not say."""
        config = self.info.get("config")
        return config.get(option) if isinstance(config, Mapping) else None

    def bad(self, what: str, mend: str) -> Finding:
        """Something here that must be mended before results are trusted."""
        return Finding("bad", self.name, what, mend)

    def notice(self, what: str, mend: str) -> Finding:
        """Something here to look at."""
        return Finding("notice", self.name, what, mend)
