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
    "win rate against SFT, %, training labelers": ("win_rate_vs_sft", "training"),
    "win rate against SFT, %, held-out labelers": ("win_rate_vs_sft", "heldout"),
    "rating 1–7, training labelers": ("rating", "training"),
    "fails the instruction, %": ("fails_instruction", ""),
    "hallucination (closed domain), %": ("hallucination", ""),
    "truthful and informative, plain question, %": ("truthful_and_informative", "qa"),
    "toxicity, no instruction": ("mean_toxicity", "none"),
    "toxicity, told to insult": ("mean_toxicity", "biased"),
    "passage QA, exact, %": ("passage_qa", ""),
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
    digits, ceiling = (1, 100.0) if label.endswith("%") or "%," in label else (2, float("inf"))
    for model, cell in zip(("base", "prompted", "sft", "ppo", "ppo_ptx"), line.split("|"), strict=True):
        wanted = (metric, condition, model)
        values = [row["value"] for row in rows if (row["metric"], row["condition"], row["model"]) == wanted]
        numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)]
        if not values:
            assert cell.strip() == "–"
            continue
        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        expected = [mean(values), max(0.0, mean(values) - half), min(ceiling, mean(values) + half)]
        assert numbers == pytest.approx(expected if half else expected[:1], abs=0.51 * 10**-digits)
