"""Diagnoses: one problem a line, with likely causes and remedy."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_Severity = Literal["bad", "notice"]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A problem or a notice.

    Args:
        weight: "bad": results cannot be trusted; "notice": worth a look.
        where: the stage's directory.
        what: observation, with numbers.
        mend: likely causes and remedy.
    """

    severity: _Severity
    stage: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class MetricHistory:
    """Logged metrics summarized by the median of the first and last tenth of a run (at least one row each)."""

    rows: tuple[Mapping[str, float], ...]

    def values(self, metric: str) -> list[float]:
        return [row[metric] for row in self.rows if metric in row]

    def first(self, metric: str) -> float | None:
        """Return the median of the first tenth; None if not logged."""
        values = self.values(metric)
        return statistics.median(values[: max(1, len(values) // 10)]) if values else None

    def last(self, metric: str) -> float | None:
        """Return the median of the last tenth; None if not logged."""
        values = self.values(metric)
        return statistics.median(values[-max(1, len(values) // 10) :]) if values else None

    def growth(self, metric: str) -> float | None:
        """Return last over first; None if either is missing or the first is 0."""
        first, last = self.first(metric), self.last(metric)
        return last / first if first and last is not None else None


@dataclass(frozen=True, slots=True)
class StageReport:
    name: str
    info: Mapping[str, Any]
    history: MetricHistory

    def setting(self, option: str) -> Any:
        """Return a configured option; None where the configuration lacks it."""
        config = self.info.get("config")
        return config.get(option) if isinstance(config, Mapping) else None

    def error(self, message: str, remedy: str) -> Diagnosis:
        return Diagnosis("bad", self.name, message, remedy)

    def warning(self, message: str, remedy: str) -> Diagnosis:
        return Diagnosis("notice", self.name, message, remedy)
