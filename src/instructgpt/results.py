"""One number of results.json, the same wherever it is measured: by `evaluate`, or by people on the labelers' site. No scipy in here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ResultRow:
    """One number of results.json. `low` and `high` are the ends of its 95 % interval, `n` the observations; None is not available.

    `judge` is who judged, where a scorer or a judge model did: its name, version and hash. Without one the key is not written.
    """

    evaluation: str
    metric: str
    model: str
    condition: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    judge: str = ""


def result_row_to_dict(row: ResultRow) -> dict[str, Any]:
    """A row as it is written: `judge` only where there is one."""
    return {name: value for name, value in asdict(row).items() if name != "judge" or value}
