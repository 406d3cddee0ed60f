"""Sections on the evaluations of public data, for any set of models: alignment tax, bias, the harness's tasks, and the paper's Table 14."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.evaluate.aggregate import Row
from instructgpt.report import charts
from instructgpt.report.naming import condition_name, in_order, interval, metric_name, model_name, number, task_name
from instructgpt.report.paper_table14 import MODELS, printed
from instructgpt.report.results import Results
from instructgpt.report.section import Section, Table, table_of

TASKS = {
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
"""The tasks of the alignment tax (Figures 28 and 29), each with the paper's metric, in the order of Table 14."""

OTHERS = ("arc_easy", "piqa", "winogrande", "gsm8k")
"""Tasks that the paper does not have, all with `accuracy`."""

PAIRS = ("winogender", "crows_pairs", "bbq")

TABLE_14 = (
    ("winogender", "entropy_bits"),
    ("crows_pairs", "entropy_bits"),
    ("real_toxicity", "mean_toxicity"),
    ("truthfulqa", "truthful"),
    ("truthfulqa", "truthful_and_informative"),
    *TASKS.items(),
)

SAME = {"truthfulqa": "truthfulness", "real_toxicity": "toxicity"}
"""Evaluations of public data whose figure is that of the small world's evaluation."""

HARNESS = "harness/"


def with_figures_of_the_paper(rows: Sequence[Row]) -> list[Row]:
    """Rows of TruthfulQA and RealToxicityPrompts under the names that Figures 6 and 7 are drawn from, where nothing else has them."""
    taken = {row.evaluation for row in rows}
    return [
        Row(SAME[row.evaluation], row.metric, row.model, row.condition, row.value, row.low, row.high, row.n)
        for row in rows
        if row.evaluation in SAME and SAME[row.evaluation] not in taken and "/" not in row.condition
    ]


def public_sections(results: Results) -> list[Section]:
    """A section for each part that has rows."""
    built = (public_bias(results), public_tax(results), other_tasks(results), multiple_choice(results), harness(results), table_14(results))
    return [section for section in built if section is not None]


def public_bias(results: Results) -> Section | None:
    """Winogender, CrowS-Pairs and BBQ: entropies, and what else was measured, in a table."""
    rows = [row for name in PAIRS for row in results.rows(name) if row.value is not None and "/" not in row.condition]
    if not rows:
        return None
    return Section(
        id="bias-public",
        title="Bias on public data",
        headline="How evenly models spread their belief over two sentences that differ in a person or a group: 1 bit is even.",
        paper="InstructGPT is not less biased than GPT-3 (Winogender .737 against .735 bits, CrowS-Pairs .413 against .410 at 175B), and "
        "more so when told to be respectful (Table 14).",
        figure=charts.grid(results, [(name, "entropy_bits") for name in PAIRS], mark=1.0),
        caption="Entropy, bits; higher is less biased; 95 % intervals over pairs.",
        tables=tuple(table_of(task_name(name), found) for name in PAIRS if (found := [row for row in rows if row.evaluation == name])),
    )


def public_tax(results: Results) -> Section | None:
    """Public tasks before and after alignment."""
    rows = [row for name in TASKS for row in results.rows(name) if row.value is not None]
    if not rows:
        return None
    shown = tuple(table_of(task_name(name), found) for name in TASKS if (found := [row for row in rows if row.evaluation == name]))
    return Section(
        id="tax-public",
        title="Alignment tax on public data",
        headline="What alignment costs on public tasks, without examples and with some in front of the question.",
        paper="PPO loses on SQuADv2, DROP, HellaSwag and translation, most with examples; PPO-ptx repairs it and on HellaSwag goes beyond "
        "GPT-3, and stays behind on DROP and translation.",
        figure=charts.grid(results, list(TASKS.items())),
        caption="Accuracy, F1, ROUGE-L or BLEU, higher is better; 95 % intervals over passages or questions (paper, Figures 28 and 29).",
        tables=shown,
    )


def other_tasks(results: Results) -> Section | None:
    """Tasks that are asked today and that the paper does not have."""
    rows = [row for name in OTHERS for row in results.rows(name) if row.value is not None]
    if not rows:
        return None
    return Section(
        id="tasks-others",
        title="Other tasks",
        headline="School questions, everyday goals, pronouns, mathematics: tasks that the paper does not have.",
        figure=charts.grid(results, [(name, "accuracy") for name in OTHERS], limits=(0, 1)),
        caption="Accuracy, higher is better; 95 % intervals over questions.",
        tables=tuple(table_of(task_name(name), found) for name in OTHERS if (found := [row for row in rows if row.evaluation == name])),
    )


def multiple_choice(results: Results) -> Section | None:
    """TruthfulQA by likelihood, which the paper does not have."""
    metrics = [metric for metric in ("mc1", "mc2", "binary") if results.models("truthfulqa", metric)]
    if not metrics:
        return None
    rows = [row for metric in metrics for row in results.rows("truthfulqa", metric)]
    return Section(
        id="truthfulqa-choices",
        title="TruthfulQA by likelihood",
        headline="Do models find the true answers likelier than the popular false ones?",
        figure=charts.grid(results, [("truthfulqa", metric) for metric in metrics], limits=(0, 1)),
        caption="MC1: the best answer is the likeliest. MC2: the share of probability on true answers. Binary: the best against the best "
        "false one, which its authors recommend. 95 % intervals over questions. Not in the paper.",
        tables=(table_of("The numbers", rows),),
    )


def harness(results: Results) -> Section | None:
    """Tasks of lm-evaluation-harness."""
    rows = [row for row in results.by_name.values() if row.evaluation.startswith(HARNESS) and row.value is not None]
    if not rows:
        return None
    names = list(dict.fromkeys((row.evaluation, row.metric) for row in rows))
    return Section(
        id="harness",
        title="lm-evaluation-harness",
        headline="The same models on the harness's own versions of tasks.",
        figure=charts.grid(results, names),
        caption="Metrics as the harness names them; intervals are 1.96 of its standard errors to either side.",
        tables=tuple(
            table_of(task_name(name), [row for row in rows if row.evaluation == name])
            for name in dict.fromkeys(row.evaluation for row in rows)
        ),
    )


def table_14(results: Results) -> Section | None:
    """One line a task and prompt, one column a model, in the paper's order."""
    rows = [row for name, metric in TABLE_14 for row in results.rows(name, metric) if row.value is not None and "/" not in row.condition]
    if not rows:
        return None
    models = in_order(row.model for row in rows)
    if set(models) <= set(MODELS):
        models = [model for model in MODELS if model in models]
    cells = {(row.evaluation, row.metric, row.condition, row.model): row for row in rows}
    lines = []
    for name, metric, condition in dict.fromkeys((row.evaluation, row.metric, row.condition) for row in rows):
        label = ", ".join(part for part in (task_name(name), metric_name(metric), condition_name(condition)) if part)
        found = [cells.get((name, metric, condition, model)) for model in models]
        lines.append((label, *(_cell(row) for row in found)))
    return Section(
        id="table-14",
        title="Table 14",
        headline="Every automatic evaluation in one table, in the order of the paper's.",
        tables=(Table("Table 14 with these models", ("", *(model_name(model) for model in models)), tuple(lines)),),
    )


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    paper = printed(row)
    beside = "" if paper is None else f"\npaper: {number(paper, row.metric)}"
    return f"{number(row.value, row.metric)} {interval(row)}".strip() + beside


NAMES = {
    "preference": "preferences (Figures 1, 3, 5)",
    "labels": "labels (Figure 4)",
    "truthfulness": "answers to TruthfulQA (Figure 6)",
    "toxicity": "RealToxicityPrompts (Figure 7)",
}


def not_measured(results: Results) -> list[str]:
    """What the paper has a figure of and these results have no rows of."""
    there = {row.evaluation for row in results.by_name.values() if row.value is not None}
    lost = [told for name, told in NAMES.items() if name not in there]
    tasks = [task_name(name) for name in (*PAIRS[:2], *TASKS) if name not in there]
    return [f"not measured: {told}" for told in lost] + ([f"not measured: {', '.join(tasks)} (Table 14)"] if tasks else [])
