"""What figures, their captions and Table 14 say about each other, read from the page and seen in a real browser."""

from __future__ import annotations

import re

import pytest
from support.browser import chromium

from instructgpt.cli import run_command as command
from instructgpt.report.charts import reward_model_figure, size_offsets
from instructgpt.report.paper_table14 import PAPER_MODELS, PAPER_TABLE_14
from instructgpt.report.results import Results
from instructgpt.results import ResultRow, write_result_rows


def paper_rows():
    """Return rows of the paper's models near the printed numbers; DROP 10 and 15 points above, a quarter numbers."""
    rows = []
    for (evaluation, metric, condition), numbers in PAPER_TABLE_14.items():
        for place, (model, number) in enumerate(zip(PAPER_MODELS, numbers.split(), strict=True)):
            value = float(number) / (100 if evaluation in ("quac", "squad", "drop") else 1)
            value += (0.15 if place == 3 else 0.1) if evaluation == "drop" else 0
            margin = 2 if metric == "bleu" else 0.02
            rows.append(ResultRow(evaluation, metric, model, condition, value, value - margin, value + margin, 400))
            if evaluation == "drop":
                rows.append(ResultRow(evaluation, metric, model, f"{condition}/numbers", 0.1, 0.05, 0.15, 100))
    return rows


def page_of(folder, rows):
    write_result_rows(folder / "results.json", rows)
    assert command(["report", str(folder / "results.json"), "--out", str(folder / "page.html")]) == 0
    return (folder / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return page_of(tmp_path_factory.mktemp("paper"), paper_rows())


def section(page, name):
    return page.split(f'<section id="{name}"')[1].split("</section>")[0]


def caption(page, name):
    return re.search(r"<figcaption>(.*?)</figcaption>", section(page, name))[1]


def ticks(page, name):
    return set(re.findall(r">(-?[\d.]+(?:\u00a0%)?)</text>", section(page, name)))


def test_figures_have_the_unit_of_their_tables(page):
    """Shares are in percent in both; toxicity and bits are numbers in both."""
    assert all(tick.endswith("%") for tick in ticks(page, "truthfulness"))
    assert {tick.endswith("%") for tick in ticks(page, "tax-public")} == {True, False}  # BLEU is no share
    assert not any(tick.endswith("%") for tick in ticks(page, "toxicity") | ticks(page, "bias-public"))


def test_captions_describe_the_marks_that_are_drawn(page, tmp_path):
    curves = caption(page, "truthfulness")
    assert "Dashed: true" in curves
    assert "Gray" not in curves
    assert "Vertical lines are 95 % intervals" in curves
    metrics = ("truthful", "truthful_and_informative")
    bars = [ResultRow("truthfulqa", metric, model, "qa", 0.5, 0.4, 0.6, 9) for metric in metrics for model in "ab"]
    assert "Gray: true" in caption(page_of(tmp_path, bars), "truthfulness")
    without = [ResultRow("truthfulqa", metric, model, "qa", 0.5, None, None, 1) for metric in metrics for model in "ab"]
    assert "interval" not in caption(page_of(tmp_path, without), "truthfulness")


def test_captions_name_only_the_metrics_that_are_drawn(tmp_path):
    rows = [ResultRow("hellaswag", "accuracy", "m", "zero_shot", 0.5, 0.4, 0.6, 9)]
    assert caption(page_of(tmp_path, rows), "tax-public").startswith("Accuracy, higher")
    rows += [ResultRow("wmt15", "bleu", "m", "zero_shot", 30, 29, 31, 9)]
    assert caption(page_of(tmp_path, rows), "tax-public").startswith("Accuracy or BLEU, higher")
    rows = [ResultRow("bbq", metric, "m", "ambiguous", -0.2, -0.3, -0.1, 9) for metric in ("accuracy", "bias_score")]
    page = page_of(tmp_path, rows)
    assert "Entropy" not in caption(page, "bias-public")
    assert "BBQ" in caption(page, "bias-public")
    assert section(page, "bias-public").count("<svg") == 1


def test_reward_models_of_any_name_are_drawn(tmp_path):
    rows = [ResultRow("reward_model", "pair_accuracy", model, "", 0.7, 0.6, 0.8, 9) for model in ("small", "large")]
    drawn = section(page_of(tmp_path, rows), "reward-model")
    assert drawn.count("<svg") == 2
    assert "Small, all labelers" in drawn
    assert "Large, all labelers" in drawn


def test_a_single_source_of_rankings_has_no_panel_of_its_own():
    rows = [
        ResultRow("reward_model", "pair_accuracy", "reward", condition, 0.7, 0.6, 0.8, 99)
        for condition in ("training", "source/people", "source/simulated")
    ]
    assert "Source: people" in reward_model_figure(Results.from_rows(rows))
    assert "Source:" not in reward_model_figure(Results.from_rows(rows[:2]))


@pytest.mark.parametrize(("sizes", "families"), [([1.3e9, 6e9, 175e9], 4), ([1e9, 1.1e9, 70e9], 3), ([1e9, 2e9], 6)])
def test_families_stand_side_by_side_and_near_their_size(sizes, families):
    offsets = size_offsets(sizes, families)
    assert len(set(offsets)) == families
    places = sorted((size * offset, size) for size in sizes for offset in offsets)
    assert [size for _, size in places] == sorted(size for size in sizes for _ in range(families))  # no size overlaps
    assert offsets[0] * offsets[-1] == pytest.approx(1)  # centered


def test_error_bars_of_a_size_do_not_cover_each_other(page):
    """Twelve intervals at twelve places in every panel."""
    panel = section(page, "toxicity").split("<svg")[1]
    places = {float(x) for x in re.findall(r'<path d="M ([\d.]+) [\d.]+ L \1 [\d.]+', panel)}
    assert len(places) >= 12
    assert min(b - a for a, b in zip(sorted(places), sorted(places)[1:], strict=False)) > 2


def test_table_14_marks_exchanged_rows_and_says_what_is_not_comparable(page, tmp_path):
    table = section(page, "table-14")
    labels = re.findall(r"<tr><td>(.*?)</td>", table, re.DOTALL)
    exchanged = {label for label in labels if label.endswith("†")}
    names = ("QA prompt + instruction", "instruction")
    metrics = ("truthful", "truthful and informative")
    assert exchanged == {f"TruthfulQA, {metric}, {name}\u00a0†" for metric in metrics for name in names}
    assert {label for label in labels if label.endswith("§")} == {label for label in labels if label.startswith("DROP")}
    notes = "".join(re.findall(r"<li>(.*?)</li>", table))
    assert "+10 to +15 points" in notes
    assert "25\u00a0% have a number" in notes
    assert "under each other's names" in notes.replace("&#39;", "'")
    others = [ResultRow("drop", "f1", "mine", "zero_shot", 0.2, 0.1, 0.3, 9)]
    assert "§" not in section(page_of(tmp_path, others), "table-14")


def test_table_14_in_a_browser(page, tmp_path):
    """At 1280 pixels all twelve models are in view; on a phone the names of rows stay while the numbers scroll."""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    with chromium() as browser:
        for width, scheme in ((1280, "light"), (390, "dark")):
            view = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            view.goto((tmp_path / "page.html").as_uri())
            assert view.evaluate("document.documentElement.scrollWidth") <= width
            box = "document.querySelector('#table-14 .scroll')"
            overflow = view.evaluate(f"{box}.scrollWidth - {box}.clientWidth")
            view.evaluate(f"{box}.scrollLeft = 200")
            names = view.locator("#table-14 tbody td:first-child")
            edge = view.locator("#table-14 .scroll").bounding_box()["x"]
            assert names.first.bounding_box()["x"] == pytest.approx(edge, abs=2)
            background = "getComputedStyle(document.querySelector('#table-14 tbody td')).backgroundColor"
            assert "rgba(0, 0, 0, 0)" not in view.evaluate(background)
            assert overflow == 0 if width == 1280 else overflow > 200
