"""Building blocks of a report section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instructgpt.report.findings import Finding
from instructgpt.report.language import find_message, join_list
from instructgpt.report.naming import (
    condition_name,
    format_interval,
    format_metric_value,
    metric_name,
    model_name,
    sort_models,
)
from instructgpt.results import ResultRow


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A table with notes below it. A `dense` table has small, narrow columns, so that a dozen fit the page."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    dense: bool = False


@dataclass(frozen=True, slots=True)
class ReportSample:
    """One completion with its author and a note."""

    name: str
    color: str
    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SampleGroup:
    """One prompt with its completions."""

    prompt: str
    kind: str
    samples: tuple[ReportSample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One section of the page. `figure` and `extra_figure` are trusted SVG, everything else is escaped text."""

    id: str
    title: str
    headline: str
    paper: str = ""
    figure: str = ""
    caption: str = ""
    extra_figure: str = ""
    findings: tuple[Finding, ...] = ()
    tables: tuple[ReportTable, ...] = ()
    sample_groups: tuple[SampleGroup, ...] = ()
    open_samples: int = 100
    """Groups that are open; the reader opens the others."""


def build_rows_table(title: str, rows: Sequence[ResultRow], *, conditions: bool = True) -> ReportTable:
    """Return rows as a table: a line a metric and condition, a column a model, each with value, interval and n."""
    models = sort_models(row.model for row in rows)
    cells = {(row.metric, row.condition, row.model): row for row in rows}
    table_rows = []
    for metric, condition in dict.fromkeys((row.metric, row.condition) for row in rows):
        name = join_list(
            part for part in (metric_name(metric), condition_name(condition) if conditions else "") if part
        )
        table_rows.append((name, *(_format_cell(cells.get((metric, condition, model))) for model in models)))
    return ReportTable(title, ("", *(model_name(model) for model in models)), tuple(table_rows))


def _caution_name(caution: str) -> str:
    return find_message(f"caution.{caution.replace(' ', '_')}") or caution


def _format_cell(row: ResultRow | None) -> str:
    if row is None or row.value is None:
        return "–"
    number = f"{format_metric_value(row.value, row.metric)} {format_interval(row)}".strip()
    return f"{number}\nn\u00a0{row.n:,}" + (f"\n({_caution_name(row.caution)})" if row.caution else "")
