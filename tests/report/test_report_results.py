"""The report of results alone: any models, without a run's stages, from one file or several."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from test_report import Page

from instructgpt.cli import run_command as command
from instructgpt.report.comparison import combine_rows, read_groups
from instructgpt.report.sections.public import TABLE_14_METRICS, TAX_TASK_METRICS
from instructgpt.results import ResultRow, write_result_rows

MODELS = ("pythia-1b", "ours <b>")


def rows_of_everything(models=MODELS):
    """A row of everything that `evaluate` measures, for models of any name."""
    shapes = [
        (name, metric, condition)
        for name, metric in TAX_TASK_METRICS.items()
        for condition in ("zero_shot", "few_shot")
    ]
    shapes += [
        (name, "entropy_bits", condition)
        for name in ("winogender", "crows_pairs")
        for condition in ("none", "respectful", "biased")
    ]
    shapes += [
        ("real_toxicity", "mean_toxicity", condition)
        for condition in ("none", "respectful", "biased", "none/toxic_prompts")
    ]
    shapes += [
        ("truthfulqa", metric, "qa") for metric in ("truthful", "truthful_and_informative", "mc1", "mc2", "binary")
    ]
    shapes += [
        ("preference", "win_rate_vs_pythia-1b", "training"),
        ("preference", "rating", "training"),
        ("labels", "hallucination", ""),
    ]
    shapes += [("harness/arc_easy", "acc", ""), ("harness/wikitext", "word_perplexity", "")]
    return [
        ResultRow(name, metric, model, condition, 0.3 + 0.1 * place, 0.2 + 0.1 * place, 0.4 + 0.1 * place, 50)
        for name, metric, condition in shapes
        for place, model in enumerate(models)
    ]


@pytest.fixture
def results(tmp_path):
    write_result_rows(tmp_path / "results.json", rows_of_everything())
    return tmp_path / "results.json"


def page_of(path):
    return Page(path.read_text(encoding="utf-8"))


def test_every_evaluation_has_its_section_whatever_the_models_are_called(results):
    assert command(["report", str(results)]) == 0
    page = page_of(results.with_name("results.html"))
    expected = (
        "preference ratings labels truthfulness toxicity bias-public tax-public truthfulqa-choices harness table-14"
    )
    assert page.sections == expected.split()
    assert page.open == []
    words = " ".join(page.words)
    assert "ours <b>" in words
    assert "SQuADv2" in words
    assert "preferred to pythia-1b" in words


def test_figures_6_and_7_are_drawn_from_public_data(results):
    assert command(["report", str(results)]) == 0
    text = results.with_name("results.html").read_text(encoding="utf-8")
    for number in (1, 3, 4, 5, 6, 7):
        assert f"Figure {number}" in text or f"Figures {number}" in text or f"and {number})" in text, number
    figure = text.split('id="toxicity"')[1].split("</section>")[0].lower()
    assert "toxic prompts" not in figure


def test_table_14_has_the_order_of_the_paper(results):
    assert command(["report", str(results)]) == 0
    text = results.with_name("results.html").read_text(encoding="utf-8")
    table = text[text.index('id="table-14"') :]
    places = [
        table.index(name)
        for name in ("Winogender", "CrowS-Pairs", "RealToxicity", "TruthfulQA", "HellaSwag", "QuAC", "DROP", "TL;DR")
    ]
    assert places == sorted(places)
    assert len(TABLE_14_METRICS) == 15


def test_what_was_not_measured_is_named(tmp_path):
    write_result_rows(tmp_path / "squad.json", [row for row in rows_of_everything() if row.evaluation == "squad"])
    assert command(["report", str(tmp_path / "squad.json"), "--out", str(tmp_path / "page.html")]) == 0
    page = page_of(tmp_path / "page.html")
    assert page.sections == ["tax-public", "table-14", "missing"]
    words = " ".join(page.words)
    assert "not measured: preferences (Figures 1, 3, 5)" in words
    assert "not measured: RealToxicityPrompts (Figure 7)" in words
    assert "HellaSwag" in words
    assert "run.json" not in words  # nothing is said of stages where there are none


def test_models_of_one_name_from_several_files_stand_side_by_side(results, tmp_path):
    (tmp_path / "other").mkdir()
    write_result_rows(tmp_path / "other" / "results.json", rows_of_everything(("pythia-1b", "third")))
    rows = combine_rows(read_groups([results, tmp_path / "other" / "results.json"]))
    names = {row.model for row in rows}
    assert names == {f"pythia-1b ({tmp_path.name}/results)", "pythia-1b (other/results)", "ours <b>", "third"}
    assert command(["report", str(results), str(tmp_path / "other"), "--out", str(tmp_path / "both.html")]) == 0
    assert page_of(tmp_path / "both.html").open == []


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such run directory or file of results"),
        ("[", "not valid JSON"),
        ("[]", "no results in it"),
        ('[{"model": "x"}]', "a row needs"),
    ],
)
def test_bad_results_are_one_line(tmp_path, capsys, content, complaint):
    file = tmp_path / "results.json"
    if content is not None:
        file.write_text(content)
    assert command(["report", str(file)]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_rows_of_a_run_and_of_public_data_share_a_page(tmp_path):
    rows = [ResultRow("truthfulness", "truthful", "sft", "qa", 0.5, 0.4, 0.6, 9), *rows_of_everything(("sft", "ppo"))]
    (tmp_path / "results.json").write_text(json.dumps([asdict(row) for row in rows]))
    assert command(["report", str(tmp_path)]) == 0
    page = page_of(tmp_path / "report.html")
    assert {"truthfulness", "tax-public", "table-14"} <= set(page.sections)
