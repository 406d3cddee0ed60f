"""The rows of results.json, to be looked up by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from instructgpt.evaluate.aggregate import DIFFERENCE, Row
from instructgpt.report.naming import colours_of, in_order

Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class Results:
    """Rows by (evaluation, metric, model, condition); of two with the same names the later counts."""

    by_name: Mapping[Key, Row]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Results:
        """From the rows of results.json."""
        return cls({(row.evaluation, row.metric, row.model, row.condition): row for row in rows})

    @cached_property
    def colours(self) -> dict[str, str]:
        """The colour of every model, the same in all figures of a page."""
        return colours_of(row.model for row in self.by_name.values())

    def get(self, evaluation: str, metric: str, model: str, condition: str = "") -> Row | None:
        """The row of these names where it holds a number, else None."""
        row = self.by_name.get((evaluation, metric, model, condition))
        return row if row is not None and row.value is not None else None

    def difference(self, evaluation: str, metric: str, model: str, other: str, condition: str = "") -> Row | None:
        """The paired difference model minus other, where it was measured."""
        return self.get(DIFFERENCE, "/".join(part for part in (evaluation, metric, condition) if part), model, other)

    def rows(self, evaluation: str, metric: str | None = None, condition: str | None = None) -> list[Row]:
        """All rows of an evaluation, metric and condition."""
        return [
            row
            for row in self.by_name.values()
            if row.evaluation == evaluation and metric in (None, row.metric) and condition in (None, row.condition)
        ]

    def models(self, evaluation: str, metric: str | None = None) -> list[str]:
        """Every model of an evaluation, in the paper's order."""
        return in_order(row.model for row in self.rows(evaluation, metric))

    def metrics(self, evaluation: str) -> list[str]:
        """Every metric of an evaluation, in the order of the file."""
        return list(dict.fromkeys(row.metric for row in self.rows(evaluation)))

    def conditions(self, evaluation: str, metric: str) -> list[str]:
        """Every condition of a metric, in the order of the file."""
        return list(dict.fromkeys(row.condition for row in self.rows(evaluation, metric)))
