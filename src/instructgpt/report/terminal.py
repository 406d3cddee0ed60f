"""What a run shows, as two tables on the terminal: the numbers of every model, and the paper's findings held against them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from instructgpt.evaluate.aggregate import Row
from instructgpt.report.findings import Finding, judge
from instructgpt.report.naming import MODELS, condition_name, in_order, interval, metric_name, model_name, number
from instructgpt.report.results import Results

STYLES = {"shown": "green", "partly": "yellow", "not shown": "default", "opposite": "red", "not measured": "dim"}

WINS = ("preference", "win_rate_vs_sft")
"""The first metric of the first table, under each of its conditions: whoever judged."""
MAIN = (
    ("preference", "rating", "training"),
    ("labels", "fails_instruction", ""), ("labels", "hallucination", ""), ("truthfulness", "truthful_and_informative", "qa"),
    ("toxicity", "mean_toxicity", "none"), ("toxicity", "mean_toxicity", "respectful"), ("bias", "entropy_bits", ""),
)  # fmt: skip
"""The metrics after it; every task of the alignment tax follows them."""


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print both tables, and the reward model's numbers under them."""
    (console or Console()).print(tables(rows))


def tables(rows: Sequence[Row]) -> Group:
    """Models and findings, for rich to print."""
    results = Results.of(rows)
    findings = [finding for finding in judge(results) if finding.verdict != "not measured"]
    compared = numbers(results)
    parts: list[Table | Text] = [compared] if compared.row_count else []
    accuracy = _reward_model(results)
    if accuracy:
        parts.append(Text(accuracy, style="dim"))
    if findings:
        parts.append(verdicts(findings))
    return Group(*parts)


def numbers(results: Results) -> Table:
    """Every main metric, a column a model, with its 95 % interval below."""
    judges = [condition for condition in results.conditions(*WINS) if "/" not in condition]
    wanted = [*((*WINS, judge) for judge in judges), *MAIN, *(("tax", task, "") for task in results.metrics("tax"))]
    found = [(names, rows) for names in wanted if (rows := results.rows(names[0], names[1], names[2]))]
    models = [model for model in in_order(row.model for _, rows in found for row in rows) if model in MODELS] or in_order(
        row.model for _, rows in found for row in rows
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption="95 % intervals in brackets", caption_justify="left")
    table.add_column("")
    for model in models:
        table.add_column(model_name(model), justify="right", min_width=9)
    for (evaluation, metric, condition), _ in found:
        name = ", ".join(part for part in (metric_name(metric), condition_name(condition)) if part)
        table.add_row(Text(name), *(_cell(results.get(evaluation, metric, model, condition)) for model in models))
    return table


def _cell(row: Row | None) -> Text:
    if row is None:
        return Text("–", style="dim")
    return Text.assemble(number(row.value, row.metric), ("\n" + interval(row), "dim"))


def _reward_model(results: Results) -> str:
    """The reward model between its yardsticks, in one line a cohort."""
    lines = []
    for condition in results.conditions("reward_model", "pair_accuracy"):
        rows = [
            results.get("reward_model", metric, "reward", condition) for metric in ("pair_accuracy", "length_baseline", "labeler_agreement")
        ]
        told = ", ".join(f"{metric_name(row.metric)} {number(row.value, row.metric)} {interval(row)}" for row in rows if row is not None)
        if "/" not in condition and told:
            lines.append(f"pairs of {condition_name(condition) or 'all labelers'}: {told}")
    return "\n".join(lines)


def verdicts(findings: Sequence[Finding]) -> Table:
    """What the paper found, and whether these numbers show it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("what the paper found", ratio=3)
    table.add_column("here", no_wrap=True)
    table.add_column("numbers", ratio=4, style="dim")
    for finding in findings:
        table.add_row(Text(finding.paper), Text(finding.verdict, style=STYLES[finding.verdict]), Text(finding.evidence))
    return table
