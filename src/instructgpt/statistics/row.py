"""One number of results.json, the same wherever it is measured: by `evaluate`, or by people on the labelers' site. No scipy in here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """One number of results.json. `low` and `high` are the ends of its 95 % interval, `n` the observations; None is not available."""

    evaluation: str
    metric: str
    model: str
    condition: str
    value: float | None
    low: float | None
    high: float | None
    n: int
