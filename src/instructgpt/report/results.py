"""Rows of results.json, looked up by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from instructgpt.report.naming import assign_model_colors, sort_models
from instructgpt.results import DIFFERENCE, ResultRow

_RowKey = tuple[str, str, str, str]


@dataclass(frozen=True)
class Results:
    """Rows by (evaluation, metric, model, condition); a later row replaces an earlier one."""

    rows_by_key: Mapping[_RowKey, ResultRow]

    @classmethod
    def from_rows(cls, rows: Iterable[ResultRow]) -> Results:
        return cls({(row.evaluation, row.metric, row.model, row.condition): row for row in rows})

    @cached_property
    def model_colors(self) -> dict[str, str]:
        return assign_model_colors(row.model for row in self.rows_by_key.values())

    def get(self, evaluation: str, metric: str, model: str, condition: str = "") -> ResultRow | None:
        """Return the row of these names if it holds a number, else None."""
        row = self.rows_by_key.get((evaluation, metric, model, condition))
        return row if row is not None and row.value is not None else None

    def difference(
        self, evaluation: str, metric: str, model: str, baseline: str, condition: str = ""
    ) -> ResultRow | None:
        """Return the paired difference model minus baseline, if measured."""
        return self.get(DIFFERENCE, "/".join(part for part in (evaluation, metric, condition) if part), model, baseline)

    def rows(self, evaluation: str, metric: str | None = None, condition: str | None = None) -> list[ResultRow]:
        return [
            row
            for row in self.rows_by_key.values()
            if row.evaluation == evaluation and metric in (None, row.metric) and condition in (None, row.condition)
        ]

    def models(self, evaluation: str, metric: str | None = None) -> list[str]:
        """Return every model of an evaluation, in the paper's order."""
        return sort_models(row.model for row in self.rows(evaluation, metric))

    def metrics(self, evaluation: str) -> list[str]:
        """Return every metric of an evaluation, in file order."""
        return list(dict.fromkeys(row.metric for row in self.rows(evaluation)))

    def conditions(self, evaluation: str, metric: str) -> list[str]:
        """Return every condition of a metric, in file order."""
        return list(dict.fromkeys(row.condition for row in self.rows(evaluation, metric)))
