"""Sections on public benchmarks for any models: alignment tax, bias, harness tasks, Table 14."""

from __future__ import annotations

import re
from collections.abc import Sequence

from instructgpt.report import charts
from instructgpt.report.captions import describe_intervals, join_sentences, list_metrics
from instructgpt.report.language import join_list, translate
from instructgpt.report.naming import (
    condition_name,
    format_interval,
    format_metric_value,
    metric_name,
    model_name,
    sort_models,
    task_name,
    truthfulqa_prompt_name,
)
from instructgpt.report.paper_table14 import EXCHANGED_ROWS, PAPER_MODELS, table14_value
from instructgpt.report.results import Results
from instructgpt.report.section import ReportTable, Section, build_rows_table
from instructgpt.results import ResultRow

TAX_TASK_METRICS = {
    "hellaswag": "accuracy",
    "wsc": "accuracy",
    "rte": "accuracy",
    "sst2": "accuracy",
    "quac": "f1",
    "squad": "f1",
    "drop": "f1",
    "wmt15": "bleu",
    "cnn_dm": "rouge_l",
    "tldr": "rouge_l",
}
"""Tasks of the alignment tax (Figures 28 and 29) with the paper's metric, in the order of Table 14."""

_EXTRA_TASKS = ("arc_easy", "piqa", "winogrande", "gsm8k")
"""Tasks that the paper does not have, all with `accuracy`."""

_BIAS_TASKS = ("winogender", "crows_pairs", "bbq")

TABLE_14_METRICS = (
    ("winogender", "entropy_bits"),
    ("crows_pairs", "entropy_bits"),
    ("real_toxicity", "mean_toxicity"),
    ("truthfulqa", "truthful"),
    ("truthfulqa", "truthful_and_informative"),
    *TAX_TASK_METRICS.items(),
)

_CHOICE_METRICS = ("mc1", "mc2", "binary")

_PAPER_EVALUATIONS = {"truthfulqa": "truthfulness", "real_toxicity": "toxicity"}
"""Public evaluations that share a figure with the small world's."""

_HARNESS_PREFIX = "harness/"
_MAX_WIDE_COLUMNS = 5
"""Models beside each other in columns of ordinary width."""
_MAX_DENSE_CHARS = 11
"""Of a line in a dense table."""


def map_to_paper_metrics(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Rename rows of TruthfulQA and RealToxicityPrompts to the names of Figures 6 and 7,
    if these have no other rows.
    """
    present_evaluations = {row.evaluation for row in rows}
    return [
        ResultRow(
            _PAPER_EVALUATIONS[row.evaluation],
            row.metric,
            row.model,
            row.condition,
            row.value,
            row.low,
            row.high,
            row.n,
        )
        for row in rows
        if row.evaluation in _PAPER_EVALUATIONS
        and _PAPER_EVALUATIONS[row.evaluation] not in present_evaluations
        and "/" not in row.condition
    ]


def build_public_sections(results: Results) -> list[Section]:
    sections = (
        _public_bias_section(results),
        _public_tax_section(results),
        _extra_tasks_section(results),
        _multiple_choice_section(results),
        _harness_section(results),
        _table_14_section(results),
    )
    return [section for section in sections if section is not None]


def _public_bias_section(results: Results) -> Section | None:
    rows = [
        row for name in _BIAS_TASKS for row in results.rows(name) if row.value is not None and "/" not in row.condition
    ]
    if not rows:
        return None
    entropy_rows = [row for row in rows if row.metric == "entropy_bits"]
    score_rows = [row for row in rows if (row.evaluation, row.metric) == ("bbq", "bias_score")]
    return Section(
        id="bias-public",
        title=translate("public_bias.title"),
        headline=translate("public_bias.headline") if entropy_rows else translate("public_bias.bbq_headline"),
        paper=translate("public_bias.paper"),
        figure=charts.metric_grid_figure(results, [(name, "entropy_bits") for name in _BIAS_TASKS], reference_line=1.0)
        + charts.metric_grid_figure(results, [("bbq", "bias_score")], limits=(-1, 1), reference_line=0.0),
        caption=join_sentences(
            translate("public_bias.entropy") if entropy_rows else "",
            translate("public_bias.bbq") if score_rows else "",
            describe_intervals(entropy_rows, "pairs"),
            describe_intervals(score_rows, "templates", "point"),
        ),
        tables=tuple(
            build_rows_table(task_name(name), task_rows)
            for name in _BIAS_TASKS
            if (task_rows := [row for row in rows if row.evaluation == name])
        ),
    )


def _public_tax_section(results: Results) -> Section | None:
    rows = [row for name in TAX_TASK_METRICS for row in results.rows(name) if row.value is not None]
    if not rows:
        return None
    drawn_rows = [row for row in rows if TAX_TASK_METRICS[row.evaluation] == row.metric and "/" not in row.condition]
    task_tables = tuple(
        build_rows_table(task_name(name), task_rows)
        for name in TAX_TASK_METRICS
        if (task_rows := [row for row in rows if row.evaluation == name])
    )
    return Section(
        id="tax-public",
        title=translate("public_tax.title"),
        headline=translate("public_tax.headline"),
        paper=translate("public_tax.paper"),
        figure=charts.metric_grid_figure(results, list(TAX_TASK_METRICS.items())),
        caption=join_sentences(
            translate("public_tax.caption", metrics=list_metrics(drawn_rows)),
            describe_intervals(drawn_rows, "passages_or_questions"),
        ),
        tables=task_tables,
    )


def _extra_tasks_section(results: Results) -> Section | None:
    rows = [row for name in _EXTRA_TASKS for row in results.rows(name) if row.value is not None]
    if not rows:
        return None
    return Section(
        id="tasks-others",
        title=translate("other_tasks.title"),
        headline=translate("other_tasks.headline"),
        figure=charts.metric_grid_figure(results, [(name, "accuracy") for name in _EXTRA_TASKS], limits=(0, 1)),
        caption=join_sentences(
            translate("other_tasks.caption"),
            describe_intervals([row for row in rows if row.metric == "accuracy"], "questions"),
        ),
        tables=tuple(
            build_rows_table(task_name(name), task_rows)
            for name in _EXTRA_TASKS
            if (task_rows := [row for row in rows if row.evaluation == name])
        ),
    )


def _multiple_choice_section(results: Results) -> Section | None:
    metrics = [metric for metric in _CHOICE_METRICS if results.models("truthfulqa", metric)]
    if not metrics:
        return None
    rows = [row for metric in metrics for row in results.rows("truthfulqa", metric)]
    return Section(
        id="truthfulqa-choices",
        title=translate("choices.title"),
        headline=translate("choices.headline"),
        figure=charts.metric_grid_figure(results, [("truthfulqa", metric) for metric in metrics], limits=(0, 1)),
        caption=join_sentences(
            *(translate(f"choices.{metric}") for metric in metrics),
            translate("choices.not_in_paper"),
            describe_intervals(rows, "questions"),
        ),
        tables=(build_rows_table(translate("tables.numbers"), rows),),
    )


def _harness_section(results: Results) -> Section | None:
    rows = [
        row
        for row in results.rows_by_key.values()
        if row.evaluation.startswith(_HARNESS_PREFIX) and row.value is not None
    ]
    if not rows:
        return None
    metrics = list(dict.fromkeys((row.evaluation, row.metric) for row in rows))
    return Section(
        id="harness",
        title="lm-evaluation-harness",
        headline=translate("harness.headline"),
        figure=charts.metric_grid_figure(results, metrics),
        caption=join_sentences(
            translate("harness.metrics"),
            translate("harness.intervals") if any(row.low is not None for row in rows) else "",
        ),
        tables=tuple(
            build_rows_table(task_name(name), [row for row in rows if row.evaluation == name])
            for name in dict.fromkeys(row.evaluation for row in rows)
        ),
    )


def _table_14_section(results: Results) -> Section | None:
    rows = [
        row
        for name, metric in TABLE_14_METRICS
        for row in results.rows(name, metric)
        if row.value is not None and "/" not in row.condition
    ]
    if not rows:
        return None
    models = sort_models(row.model for row in rows)
    if set(models) <= set(PAPER_MODELS):
        models = [model for model in PAPER_MODELS if model in models]
    cells = {(row.evaluation, row.metric, row.condition, row.model): row for row in rows}
    table_rows, is_dense = [], len(models) > _MAX_WIDE_COLUMNS
    for key in dict.fromkeys((row.evaluation, row.metric, row.condition) for row in rows):
        model_rows = [cells.get((*key, model)) for model in models]
        mark = (
            _comparison_mark(key)
            if any(row is not None and table14_value(row) is not None for row in model_rows)
            else ""
        )
        table_rows.append((_row_label(*key) + mark, *(_format_cell(row, is_dense) for row in model_rows)))
    table = ReportTable(
        translate("table_14.with_models"),
        ("", *(model_name(model) for model in models)),
        tuple(table_rows),
        _comparison_notes(results, rows),
        dense=is_dense,
    )
    return Section(
        id="table-14",
        title=translate("table_14.title"),
        headline=translate("table_14.headline"),
        tables=(table,),
    )


def _row_label(evaluation: str, metric: str, condition: str) -> str:
    prompt = truthfulqa_prompt_name(condition) if evaluation == "truthfulqa" else condition_name(condition)
    return join_list(part for part in (task_name(evaluation), metric_name(metric), prompt) if part)


def _comparison_mark(key: tuple[str, str, str]) -> str:
    if key in EXCHANGED_ROWS:
        return "\u00a0†"
    return {"cnn_dm": "\u00a0‡", "drop": "\u00a0§"}.get(key[0], "")


def _comparison_notes(results: Results, rows: Sequence[ResultRow]) -> tuple[str, ...]:
    """Say under the table where the paper's number is printed elsewhere, and where it is not comparable."""
    compared = [(row, value) for row in rows if (value := table14_value(row)) is not None]
    notes = []
    if any((row.evaluation, row.metric, row.condition) in EXCHANGED_ROWS for row, _ in compared):
        notes.append(translate("table_14.exchanged"))
    if any(row.evaluation == "cnn_dm" for row, _ in compared):
        notes.append(translate("table_14.cnn_dm"))
    if drop := [(row, value) for row, value in compared if row.evaluation == "drop"]:
        gaps = [100 * ((row.value or 0.0) - value) for row, value in drop]
        shares = [
            numbers.n / row.n
            for row, _ in drop
            if row.n and (numbers := results.get("drop", row.metric, row.model, f"{row.condition}/numbers"))
        ]
        share = translate("table_14.numbers_share", share=f"{100 * min(shares):.0f}") if shares else ""
        notes.append(translate("table_14.drop", low=f"{min(gaps):+.0f}", high=f"{max(gaps):+.0f}", share=share))
    return tuple(notes)


def _format_cell(row: ResultRow | None, dense: bool) -> str:
    """Format a number, its interval, and the paper's number; in a dense table on short lines without leading zeros."""
    if row is None:
        return "–"
    paper_value = table14_value(row)
    value, interval = format_metric_value(row.value, row.metric), format_interval(row)
    paper = (
        "" if paper_value is None else translate("table_14.paper", value=format_metric_value(paper_value, row.metric))
    )
    if not dense:
        return "\n".join(filter(None, (f"{value} {interval}".strip(), paper)))
    lines = [re.sub(r"(?<!\d)0\.", ".", text) for text in (value, interval, paper) if text]
    return "\n".join(line.replace(",\u00a0", ",\n") if len(line) > _MAX_DENSE_CHARS else line for line in lines)


_FIGURE_EVALUATIONS = ("preference", "labels", "truthfulness", "toxicity")
"""Evaluations that the paper has figures of."""


def missing_evaluations(results: Results) -> list[str]:
    """List the paper's figures that these results have no rows for."""
    measured_evaluations = {row.evaluation for row in results.rows_by_key.values() if row.value is not None}
    missing_descriptions = [
        translate(f"missing.{name}") for name in _FIGURE_EVALUATIONS if name not in measured_evaluations
    ]
    missing_tasks = [
        task_name(name) for name in (*_BIAS_TASKS[:2], *TAX_TASK_METRICS) if name not in measured_evaluations
    ]
    return [translate("missing.not_measured", what=description) for description in missing_descriptions] + (
        [translate("missing.tasks", tasks=join_list(missing_tasks))] if missing_tasks else []
    )
