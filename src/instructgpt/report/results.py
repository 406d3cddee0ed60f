"""The rows of results.json, to be looked up by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from instructgpt.evaluate.aggregate import DIFFERENCE, ResultRow
from instructgpt.report.naming import assign_model_colors, sort_models

_RowKey = tuple[str, str, str, str]


@dataclass(frozen=True)
class Results:
    """Rows by (evaluation, metric, model, condition); of two with the same names the later counts."""

    rows_by_key: Mapping[_RowKey, ResultRow]

    @classmethod
    def from_rows(cls, rows: Iterable[ResultRow]) -> Results:
        """From the rows of results.json."""
        return cls({(row.evaluation, row.metric, row.model, row.condition): row for row in rows})

    @cached_property
    def model_colors(self) -> dict[str, str]:
        """The colour of every model, the same in all figures of a page."""
        return assign_model_colors(row.model for row in self.rows_by_key.values())

    def get(self, evaluation: str, metric: str, model: str, condition: str = "") -> ResultRow | None:
        """The row of these names where it holds a number, else None."""
        row = self.rows_by_key.get((evaluation, metric, model, condition))
        return row if row is not None and row.value is not None else None

    def difference(
        self, evaluation: str, metric: str, model: str, baseline: str, condition: str = ""
    ) -> ResultRow | None:
        """The paired difference model minus other, where it was measured."""
        return self.get(DIFFERENCE, "/".join(part for part in (evaluation, metric, condition) if part), model, baseline)

    def rows(self, evaluation: str, metric: str | None = None, condition: str | None = None) -> list[ResultRow]:
        """All rows of an evaluation, metric and condition."""
        return [
            row
            for row in self.rows_by_key.values()
            if row.evaluation == evaluation and metric in (None, row.metric) and condition in (None, row.condition)
        ]

    def models(self, evaluation: str, metric: str | None = None) -> list[str]:
        """Every model of an evaluation, in the paper's order."""
        return sort_models(row.model for row in self.rows(evaluation, metric))

    def metrics(self, evaluation: str) -> list[str]:
        """Every metric of an evaluation, in the order of the file."""
        return list(dict.fromkeys(row.metric for row in self.rows(evaluation)))

    def conditions(self, evaluation: str, metric: str) -> list[str]:
        """Every condition of a metric, in the order of the file."""
        return list(dict.fromkeys(row.condition for row in self.rows(evaluation, metric)))
