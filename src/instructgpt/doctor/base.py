"""What a doctor says: one finding a line, with its likely causes and what to do."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_Severity = Literal["bad", "notice"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Something that is wrong, or that one should know.

    Args:
        weight: bad: results should not be trusted before it is mended; notice: look at it.
        where: the stage's directory.
        what: what was seen, with the numbers.
        mend: likely causes and what to do.
    """

    severity: _Severity
    stage: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class MetricHistory:
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
class StageReport:
    """One stage directory as the checks see it."""

    name: str
    info: Mapping[str, Any]
    history: MetricHistory

    def setting(self, option: str) -> Any:
        """What the stage was configured with; None where its configuration does not say."""
        config = self.info.get("config")
        return config.get(option) if isinstance(config, Mapping) else None

    def error(self, message: str, remedy: str) -> Diagnosis:
        """Something here that must be mended before results are trusted."""
        return Diagnosis("bad", self.name, message, remedy)

    def warning(self, message: str, remedy: str) -> Diagnosis:
        """Something here to look at."""
        return Diagnosis("notice", self.name, message, remedy)
