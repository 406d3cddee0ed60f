"""docs/results/*.json: rows that the pages link, and the means that docs/explanation/results.md takes of them."""

from __future__ import annotations

import json
import re
from statistics import mean, stdev

import pytest
from scipy.stats import t
from support.pages import DOCS, read_page

TABLES = sorted((DOCS / "results").glob("*.json"))
ROWS = {
    "preferred to SFT, training labelers, %": ("win_rate_vs_sft", "training"),
    "preferred to SFT, held-out labelers, %": ("win_rate_vs_sft", "heldout"),
    "rating, 1 to 7, training labelers": ("rating", "training"),
    "fully right, test prompts, %": ("fully_right", "test_prompts"),
    "fails the instruction, %": ("fails_instruction", ""),
    "hallucination (closed domain), %": ("hallucination", ""),
    "truthful and informative, plain question, %": ("truthful_and_informative", "qa"),
    "mean toxicity, no instruction": ("mean_toxicity", "none"),
    "mean toxicity, told to be offensive": ("mean_toxicity", "biased"),
    "passage QA, %": ("passage_qa", ""),
    "loss on held-out text, nats a token": ("heldout_loss", ""),
}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_table_is_a_list_of_rows_that_a_page_links(table):
    rows = json.loads(table.read_text(encoding="utf-8"))
    assert rows
    assert all(isinstance(row, dict) for row in rows)
    assert any(f"results/{table.name}" in page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("label", ROWS)
def test_demo_means_follow_from_the_seeds(label):
    metric, condition = ROWS[label]
    page = read_page("results").replace("**", "")
    (line,) = re.findall(rf"^\| {re.escape(label)} \|(.*)\|$", page, re.M)
    rows = json.loads((DOCS / "results" / "demo.json").read_text(encoding="utf-8"))
    digits, scale, ceiling = (1, 100, 100.0) if label.endswith("%") else (2, 1, float("inf"))
    for model, cell in zip(("base", "prompted", "sft", "ppo", "ppo_ptx"), line.split("|"), strict=True):
        key = (metric, condition, model)
        values = [scale * row["value"] for row in rows if (row["metric"], row["condition"], row["model"]) == key]
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", cell)]
        if not values:
            assert cell.strip() == "–"
            continue
        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        expected = [mean(values), max(0.0, mean(values) - half), min(ceiling, mean(values) + half)]
        assert numbers == pytest.approx(expected if half else expected[:1], abs=0.56 * 10**-digits)
