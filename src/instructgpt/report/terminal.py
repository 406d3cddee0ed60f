"""Two terminal tables: the numbers of every model, and the paper's findings."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from instructgpt.console import OutputConsole
from instructgpt.report.findings import Finding, check_findings
from instructgpt.report.language import translate
from instructgpt.report.naming import (
    MODEL_NAMES,
    condition_name,
    format_interval,
    format_metric_value,
    metric_name,
    model_name,
    sort_models,
)
from instructgpt.report.results import Results
from instructgpt.results import ResultRow

_VERDICT_STYLES = {
    "shown": "green",
    "partly": "yellow",
    "not shown": "default",
    "opposite": "red",
    "not measured": "dim",
}

_WIN_RATE_METRIC = ("preference", "win_rate_vs_sft")
"""First metric of the first table, under each of its conditions."""
_MAIN_METRICS = (
    ("preference", "rating", "training"),
    ("labels", "fails_instruction", ""),
    ("labels", "hallucination", ""),
    ("truthfulness", "truthful_and_informative", "qa"),
    ("toxicity", "mean_toxicity", "none"),
    ("toxicity", "mean_toxicity", "respectful"),
    ("bias", "entropy_bits", ""),
)
"""Further metrics; the tasks of the alignment tax follow."""


def print_report_tables(rows: Sequence[ResultRow], console: Console | None = None) -> None:
    """Print both tables and the reward model's numbers."""
    (console or OutputConsole()).print(_build_tables(rows))


def _build_tables(rows: Sequence[ResultRow]) -> Group:
    results = Results.from_rows(rows)
    findings = [finding for finding in check_findings(results) if finding.verdict != "not measured"]
    metrics_table = _build_metrics_table(results)
    parts: list[Table | Text] = [metrics_table] if metrics_table.row_count else []
    reward_model_lines = _format_reward_model(results)
    if reward_model_lines:
        parts.append(Text(reward_model_lines, style="dim"))
    if findings:
        parts.append(_build_findings_table(findings))
    return Group(*parts)


def _build_metrics_table(results: Results) -> Table:
    judge_conditions = [condition for condition in results.conditions(*_WIN_RATE_METRIC) if "/" not in condition]
    metric_keys = [
        *((*_WIN_RATE_METRIC, judge_condition) for judge_condition in judge_conditions),
        *_MAIN_METRICS,
        *(("tax", task, "") for task in results.metrics("tax")),
    ]
    measured_metrics = [
        (metric_key, rows)
        for metric_key in metric_keys
        if (rows := results.rows(metric_key[0], metric_key[1], metric_key[2]))
    ]
    models = [
        model
        for model in sort_models(row.model for _, rows in measured_metrics for row in rows)
        if model in MODEL_NAMES
    ] or sort_models(row.model for _, rows in measured_metrics for row in rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=translate("terminal.intervals"), caption_justify="left")
    table.add_column("")
    for model in models:
        table.add_column(model_name(model), justify="right", min_width=9)
    for (evaluation, metric, condition), _ in measured_metrics:
        name = ", ".join(part for part in (metric_name(metric), condition_name(condition)) if part)
        table.add_row(
            Text(name), *(_format_cell(results.get(evaluation, metric, model, condition)) for model in models)
        )
    return table


def _format_cell(row: ResultRow | None) -> Text:
    if row is None:
        return Text("–", style="dim")
    return Text.assemble(format_metric_value(row.value, row.metric), ("\n" + format_interval(row), "dim"))


def _format_reward_model(results: Results) -> str:
    lines = []
    for condition in results.conditions("reward_model", "pair_accuracy"):
        rows = [
            results.get("reward_model", metric, "reward", condition)
            for metric in ("pair_accuracy", "length_baseline", "labeler_agreement")
        ]
        summary = ", ".join(
            f"{metric_name(row.metric)} {format_metric_value(row.value, row.metric)} {format_interval(row)}"
            for row in rows
            if row is not None
        )
        if "/" not in condition and summary:
            lines.append(
                translate(
                    "terminal.pairs", cohort=condition_name(condition) or translate("cohort.all"), summary=summary
                )
            )
    return "\n".join(lines)


def _build_findings_table(findings: Sequence[Finding]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(translate("terminal.paper"), ratio=3)
    table.add_column(translate("terminal.here"), no_wrap=True)
    table.add_column(translate("terminal.numbers"), ratio=4, style="dim")
    for finding in findings:
        table.add_row(
            Text(finding.paper),
            Text(translate(f"verdict.{finding.verdict.replace(' ', '_')}"), style=_VERDICT_STYLES[finding.verdict]),
            Text(finding.evidence),
        )
    return table
