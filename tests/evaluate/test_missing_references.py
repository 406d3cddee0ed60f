"""What has no reference is never measured: completions that were made before, and the questions of every task."""

from __future__ import annotations

import csv
import json

import pytest
from rouge_score import rouge_scorer

from instructgpt.cli import run_command as command
from instructgpt.evaluate.precomputed import parse_references

SENTENCE = "the wide sea has no end at all"
METRICS = {"squad": "f1", "drop": "f1", "quac": "f1", "wmt15": "bleu", "cnn_dm": "rouge_l", "tldr": "rouge_l"}


def measured(tmp_path, evaluation, rows, ending="jsonl"):
    """Return the rows of one evaluation on samples, by model and metric; conditions with a part are left out."""
    file, out = tmp_path / f"samples.{ending}", tmp_path / f"{evaluation}.json"
    if ending == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command(["evaluate", evaluation, "--completions", str(file), "--out", str(out)]) == 0
    found = [row for row in json.loads(out.read_text()) if "/" not in row["condition"]]
    return {(row["model"], row["metric"]): row for row in found}


@pytest.mark.parametrize("missing", [None, "", "  ", "|", " | ", [], [""], [None], {"text": []}])
@pytest.mark.parametrize("evaluation", METRICS)
def test_samples_without_a_reference_are_left_out_and_counted(tmp_path, capsys, evaluation, missing):
    """A model's numbers are those of the samples that have a reference."""
    rows = [
        {"model": model, "prompt": f"p{number}", "completion": SENTENCE, "references": references}
        for model in ("a", "b")
        for number, references in enumerate((missing, [SENTENCE], missing, [SENTENCE]))
    ]
    found = measured(tmp_path, evaluation, rows)
    assert "left out 4 of 8 samples without a reference" in capsys.readouterr().out
    perfect = 100.0 if evaluation == "wmt15" else 1.0
    for model in ("a", "b"):
        row = found[model, METRICS[evaluation]]
        assert (row["value"], row["n"]) == (pytest.approx(perfect), 2)


def test_blank_alternatives_are_no_references(tmp_path):
    """An empty answer agrees with an empty reference, so that a trailing separator would reward silence."""
    rows = [{"model": "m", "context": "c", "completion": "", "references": "the sea|"}]
    assert measured(tmp_path, "squad", rows, "csv")["m", "f1"]["value"] == 0


@pytest.mark.parametrize("evaluation", ["cnn_dm", "tldr"])
def test_sentences_of_a_summary_are_one_reference(tmp_path, evaluation):
    sentences = ["A dog found a bone.", "The owner wants it back.", "Who is right?"]
    said = {"whole": " ".join(sentences), "part": sentences[1]}
    rows = [
        {"model": model, "context": "c", "sample": text, "ref_text": "|".join(sentences)}
        for model, text in said.items()
    ]
    found = measured(tmp_path, evaluation, rows, "csv")
    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    for model, text in said.items():
        expected = rouge.score(" ".join(sentences), text)["rougeL"].fmeasure
        assert found[model, "rouge_l"]["value"] == pytest.approx(expected)
    assert found["whole", "rouge_l"]["value"] == 1
    # a list holds alternatives, also of summaries
    rows = [row | {"ref_text": sentences} for row in rows]
    assert measured(tmp_path, evaluation, rows)["part", "rouge_l"]["value"] == 1


def test_references_are_parsed():
    assert parse_references("a| b |c") == ("a", "b", "c")
    assert parse_references("a| b |c", is_summary=True) == ("a b c",)
    assert parse_references(["a|b", None, " c "]) == ("a|b", "c")
    assert parse_references('["a", "b|c"]') == ("a", "b|c")
    assert parse_references("[sic] a|b") == ("[sic] a", "b")
    assert parse_references({"text": ["a", "b"]}) == ("a", "b")
    assert parse_references(12) == ("12",)


def test_drop_is_also_measured_by_kind_of_answer(tmp_path):
    """One number of three is right, the span is right: 1/3 and 1; over all 1/2."""
    samples = [("7761", "7761"), ("76.87", "12"), ("1,250", "no"), ("Elon Musk", "Elon Musk")]
    rows = [
        {"model": "m", "context": f"p{number}", "sample": said, "ref_text": right}
        for number, (right, said) in enumerate(samples)
    ]
    file, out = tmp_path / "drop.jsonl", tmp_path / "out.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert command(["evaluate", "drop", "--completions", str(file), "--out", str(out)]) == 0
    found = {
        row["condition"]: (row["value"], row["n"])
        for row in json.loads(out.read_text())
        if row["metric"] == "exact_match"
    }
    assert found == {"": (0.5, 4), "/numbers": (pytest.approx(1 / 3), 3), "/spans": (1.0, 1)}
