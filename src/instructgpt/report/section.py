"""What a section of the report is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instructgpt.evaluate.aggregate import Row
from instructgpt.report.findings import Finding
from instructgpt.report.naming import condition_name, in_order, interval, metric_name, model_name, number


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts under a figure."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion beside others: whose it is, what was said of it."""

    name: str
    colour: str
    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """One prompt with everything that was written for it."""

    prompt: str
    kind: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section of the page. `figure` and `more` are drawings made here, everything else is text and is escaped."""

    id: str
    title: str
    headline: str
    paper: str = ""
    figure: str = ""
    caption: str = ""
    more: str = ""
    findings: tuple[Finding, ...] = ()
    tables: tuple[Table, ...] = ()
    shown: tuple[Shown, ...] = ()


def table_of(title: str, rows: Sequence[Row], *, conditions: bool = True) -> Table:
    """Rows as a table: a line a metric and condition, a column a model, each with value, interval and number of observations."""
    models = in_order(row.model for row in rows)
    cells = {(row.metric, row.condition, row.model): row for row in rows}
    lines = []
    for metric, condition in dict.fromkeys((row.metric, row.condition) for row in rows):
        name = ", ".join(part for part in (metric_name(metric), condition_name(condition) if conditions else "") if part)
        lines.append((name, *(_cell(cells.get((metric, condition, model))) for model in models)))
    return Table(title, ("", *(model_name(model) for model in models)), tuple(lines))


def _cell(row: Row | None) -> str:
    if row is None or row.value is None:
        return "–"
    return f"{number(row.value, row.metric)} {interval(row)}".strip() + f"\nn\u00a0{row.n:,}"
