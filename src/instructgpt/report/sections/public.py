"""Sections on public benchmarks for any models: alignment tax, bias, harness tasks, Table 14."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.report import charts
from instructgpt.report.naming import (
    condition_name,
    format_interval,
    format_metric_value,
    metric_name,
    model_name,
    sort_models,
    task_name,
)
from instructgpt.report.paper_table14 import PAPER_MODELS, table14_value
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

_PAPER_EVALUATIONS = {"truthfulqa": "truthfulness", "real_toxicity": "toxicity"}
"""Public evaluations that share a figure with the small world's."""

_HARNESS_PREFIX = "harness/"


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
    return Section(
        id="bias-public",
        title="Bias on public data",
        headline="How evenly models spread their belief over two sentences that differ in a person or a group: 1 bit "
        "is even.",
        paper="InstructGPT is not less biased than GPT-3 (Winogender .737 against .735 bits, CrowS-Pairs .413 against "
        ".410 at 175B), and "
        "more so when told to be respectful (Table 14).",
        figure=charts.metric_grid_figure(results, [(name, "entropy_bits") for name in _BIAS_TASKS], reference_line=1.0),
        caption="Entropy, bits; higher is less biased; 95 % intervals over pairs.",
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
    task_tables = tuple(
        build_rows_table(task_name(name), task_rows)
        for name in TAX_TASK_METRICS
        if (task_rows := [row for row in rows if row.evaluation == name])
    )
    return Section(
        id="tax-public",
        title="Alignment tax on public data",
        headline="What alignment costs on public tasks, without examples and with some in front of the question.",
        paper="PPO loses on SQuADv2, DROP, HellaSwag and translation, most with examples; PPO-ptx repairs it and on "
        "HellaSwag goes beyond "
        "GPT-3, and stays behind on DROP and translation.",
        figure=charts.metric_grid_figure(results, list(TAX_TASK_METRICS.items())),
        caption="Accuracy, F1, ROUGE-L or BLEU, higher is better; 95 % intervals over passages or questions (paper, "
        "Figures 28 and 29).",
        tables=task_tables,
    )


def _extra_tasks_section(results: Results) -> Section | None:
    rows = [row for name in _EXTRA_TASKS for row in results.rows(name) if row.value is not None]
    if not rows:
        return None
    return Section(
        id="tasks-others",
        title="Other tasks",
        headline="School questions, everyday goals, pronouns, mathematics: tasks that the paper does not have.",
        figure=charts.metric_grid_figure(results, [(name, "accuracy") for name in _EXTRA_TASKS], limits=(0, 1)),
        caption="Accuracy, higher is better; 95 % intervals over questions.",
        tables=tuple(
            build_rows_table(task_name(name), task_rows)
            for name in _EXTRA_TASKS
            if (task_rows := [row for row in rows if row.evaluation == name])
        ),
    )


def _multiple_choice_section(results: Results) -> Section | None:
    metrics = [metric for metric in ("mc1", "mc2", "binary") if results.models("truthfulqa", metric)]
    if not metrics:
        return None
    rows = [row for metric in metrics for row in results.rows("truthfulqa", metric)]
    return Section(
        id="truthfulqa-choices",
        title="TruthfulQA by likelihood",
        headline="Do models find the true answers likelier than the popular false ones?",
        figure=charts.metric_grid_figure(results, [("truthfulqa", metric) for metric in metrics], limits=(0, 1)),
        caption="MC1: the best answer is the likeliest. MC2: the share of probability on true answers. Binary: the "
        "best against the best "
        "false one, which its authors recommend. 95 % intervals over questions. Not in the paper.",
        tables=(build_rows_table("The numbers", rows),),
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
        headline="The same models on the harness's own versions of tasks.",
        figure=charts.metric_grid_figure(results, metrics),
        caption="Metrics as the harness names them; intervals are 1.96 of its standard errors to either side.",
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
    table_rows = []
    for name, metric, condition in dict.fromkeys((row.evaluation, row.metric, row.condition) for row in rows):
        label = ", ".join(part for part in (task_name(name), metric_name(metric), condition_name(condition)) if part)
        model_rows = [cells.get((name, metric, condition, model)) for model in models]
        table_rows.append((label, *(_format_cell(row) for row in model_rows)))
    return Section(
        id="table-14",
        title="Table 14",
        headline="Every automatic evaluation in one table, in the order of the paper's.",
        tables=(
            ReportTable(
                "Table 14 with these models", ("", *(model_name(model) for model in models)), tuple(table_rows)
            ),
        ),
    )


def _format_cell(row: ResultRow | None) -> str:
    if row is None:
        return "–"
    paper_value = table14_value(row)
    paper_suffix = "" if paper_value is None else f"\npaper: {format_metric_value(paper_value, row.metric)}"
    return f"{format_metric_value(row.value, row.metric)} {format_interval(row)}".strip() + paper_suffix


_EVALUATION_DESCRIPTIONS = {
    "preference": "preferences (Figures 1, 3, 5)",
    "labels": "labels (Figure 4)",
    "truthfulness": "answers to TruthfulQA (Figure 6)",
    "toxicity": "RealToxicityPrompts (Figure 7)",
}


def missing_evaluations(results: Results) -> list[str]:
    """List the paper's figures that these results have no rows for."""
    measured_evaluations = {row.evaluation for row in results.rows_by_key.values() if row.value is not None}
    missing_descriptions = [
        description for name, description in _EVALUATION_DESCRIPTIONS.items() if name not in measured_evaluations
    ]
    missing_tasks = [
        task_name(name) for name in (*_BIAS_TASKS[:2], *TAX_TASK_METRICS) if name not in measured_evaluations
    ]
    return [f"not measured: {description}" for description in missing_descriptions] + (
        [f"not measured: {', '.join(missing_tasks)} (Table 14)"] if missing_tasks else []
    )
