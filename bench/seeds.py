"""What several seeds of the demo show: a table of means with Student's t intervals, and the paper's findings by seed.

    python bench/seeds.py runs/seed0 runs/seed1 runs/seed2 runs/seed3 runs/seed4 --rows docs/results/demo.json

A finding counts when it is shown in all seeds but at most one and opposite in none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from instructgpt.report.findings import check_findings
from instructgpt.report.naming import NON_PERCENT_METRICS, condition_name, metric_name, model_name
from instructgpt.report.results import Results
from instructgpt.results import ResultRow, read_result_rows
from instructgpt.run.directory import read_run_record
from instructgpt.statistics import intervals

MODELS = ("base", "prompted", "sft", "ppo", "ppo_ptx")
NUMBERS = (
    ("preference", "win_rate_vs_sft", "training"),
    ("preference", "win_rate_vs_sft", "heldout"),
    ("preference", "rating", "training"),
    ("generalization", "fully_right", "test_prompts"),
    ("labels", "fails_instruction", ""),
    ("labels", "hallucination", ""),
    ("labels", "satisfies_constraint", ""),
    ("generalization", "follows_instruction", "new_kind"),
    ("generalization", "follows_instruction", "second_language"),
    ("truthfulness", "truthful_and_informative", "qa"),
    ("truthfulness", "truthful_and_informative", "instruction"),
    ("toxicity", "mean_toxicity", "none"),
    ("toxicity", "mean_toxicity", "respectful"),
    ("toxicity", "mean_toxicity", "biased"),
    ("bias", "entropy_bits", ""),
    ("tax", "translation", ""),
    ("tax", "passage_qa", ""),
    ("tax", "heldout_loss", ""),
)
REWARD_NUMBERS = (("pair_accuracy", "training"), ("pair_accuracy", "heldout"), ("labeler_agreement", "training"))


def mean_and_interval(values: Sequence[float], scale: float) -> str:
    """Format the mean and Student's t interval of it over seeds; no number here is negative."""
    estimate, digits = intervals.mean(scale * np.asarray(values), range(len(values))), 1 if scale == 100 else 2
    text = f"{estimate.value:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    low, high = max(0.0, estimate.low), min(100.0 if scale == 100 else float("inf"), estimate.high)
    return f"{text} [{low:.{digits}f}, {high:.{digits}f}]"


def table_lines(runs: Sequence[Results]) -> Iterator[str]:
    yield "| | " + " | ".join(map(model_name, MODELS)) + " |"
    yield "|---" * (len(MODELS) + 1) + "|"
    for evaluation, metric, condition in NUMBERS:
        scale = 1 if metric in NON_PERCENT_METRICS else 100
        cells = []
        for model in MODELS:
            rows = [results.get(evaluation, metric, model, condition) for results in runs]
            values = [row.value for row in rows if row is not None and row.value is not None]
            cells.append(mean_and_interval(values, scale) if values else "–")
        name = (
            metric_name(metric)
            + (f", {condition_name(condition)}" if condition else "")
            + (", %" if scale == 100 else "")
        )
        yield f"| {name} | " + " | ".join(cells) + " |"
    for metric, condition in REWARD_NUMBERS:
        rows = [results.get("reward_model", metric, "reward", condition) for results in runs]
        values = [row.value for row in rows if row is not None and row.value is not None]
        yield f"{metric_name(metric)}, {condition_name(condition)}: {mean_and_interval(values, 100)} %"


def finding_lines(runs: Sequence[Results], seeds: Sequence[int]) -> Iterator[str]:
    yield "| finding of the paper | " + " | ".join(f"seed {seed}" for seed in seeds) + " | counts |"
    yield "|---" * (len(runs) + 2) + "|"
    by_run = [check_findings(results) for results in runs]
    for findings in zip(*by_run, strict=True):
        verdicts = [finding.verdict for finding in findings]
        counts = verdicts.count("shown") >= len(runs) - 1 and "opposite" not in verdicts
        cells = " | ".join(verdicts)
        yield f"| {findings[0].paper} | {cells} | {'yes' if counts else 'no'} |"


def data_rows(seed: int, rows: Sequence[ResultRow]) -> Iterator[dict[str, object]]:
    """Yield the numbers of the table as rows of data, each with its seed."""
    names = {*NUMBERS, *(("reward_model", *number) for number in REWARD_NUMBERS)}
    for row in rows:
        if (row.evaluation, row.metric, row.condition) in names and row.value is not None:
            fields = {"evaluation": row.evaluation, "metric": row.metric, "condition": row.condition}
            interval = (
                {} if row.low is None or row.high is None else {"low": round(row.low, 4), "high": round(row.high, 4)}
            )
            yield fields | {"seed": seed, "model": row.model, "value": round(row.value, 4)} | interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished runs of one preset, one a seed")
    parser.add_argument("--rows", type=Path, help="JSON file of every seed's numbers")
    options = parser.parse_args()
    seeds = [int((read_run_record(run) or {})["config"]["seed"]) for run in options.runs]
    rows = [read_result_rows(run / "results.json") for run in options.runs]
    runs = [Results.from_rows(run_rows) for run_rows in rows]
    print("\n".join([*table_lines(runs), "", *finding_lines(runs, seeds)]))
    if options.rows:
        data = [row for seed, run_rows in zip(seeds, rows, strict=True) for row in data_rows(seed, run_rows)]
        options.rows.write_text(json.dumps(data))


if __name__ == "__main__":
    main()
