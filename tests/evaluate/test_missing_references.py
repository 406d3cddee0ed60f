"""What has no reference is never measured: completions that were made before, and the questions of every task."""

from __future__ import annotations

import csv
import json

import pytest
from rouge_score import rouge_scorer

from instructgpt.cli import run_command as command
from instructgpt.errors import InputError
from instructgpt.evaluate.precomputed import parse_references
from instructgpt.evaluate.tasks import EVAL_TASKS
from instructgpt.evaluate.tasks.base import EvalSettings

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


GOOD_ROWS = {
    "squad": {"context": "The sea is wide.", "question": "What is wide?", "answers": ["the sea"]},
    "drop": {"passage": "There are 2 frogs.", "question": "How many?", "answers": ["2"]},
    "quac": {"context": "The sea is wide.", "question": "What is wide?", "answers": ["the sea"]},
    "wmt15": {"fr": "La mer.", "en": "The sea."},
    "cnn_dm": {"article": "The sea is wide.", "highlights": "Wide sea."},
    "tldr": {"post": "The sea is wide.", "summary": "Wide sea."},
    "hellaswag": {"ctx": "A frog", "endings": ["swims.", "flies."], "label": 0},
    "rte": {"premise": "The sea.", "hypothesis": "A sea.", "label": 0},
    "sst2": {"sentence": "wide", "label": 1},
    "wsc": {"text": "The frog saw it.", "span1_text": "frog", "span2_text": "it.", "span2_index": 3, "label": True},
    "piqa": {"goal": "Swim.", "sol1": "a", "sol2": "b", "label": 0},
    "arc_easy": {"query": "Question?", "choices": ["a", "b"], "gold": 1},
    "winogrande": {"sentence": "The frog saw the ant, so the _ swam.", "option1": "a", "option2": "b", "answer": "1"},
    "gsm8k": {"question": "1 and 1?", "answer": "#### 2"},
    "truthfulqa": {
        "Question": "What croaks?",
        "Best Answer": "A frog",
        "Correct Answers": "A frog",
        "Incorrect Answers": "A cow",
    },
    "crows_pairs": {"sent_more": "a b", "sent_less": "a c"},
}
REFERENCE_COLUMNS = {
    "squad": ("answers", None),
    "drop": ("answers", [""]),
    "quac": ("answers", []),
    "wmt15": ("en", "  "),
    "cnn_dm": ("highlights", ""),
    "tldr": ("summary", ""),
    "hellaswag": ("label", ""),
    "rte": ("label", -1),
    "sst2": ("label", -1),
    "wsc": ("label", -1),
    "piqa": ("label", -1),
    "arc_easy": ("gold", None),
    "winogrande": ("answer", ""),
    "gsm8k": ("answer", ""),
    "truthfulqa": ("Incorrect Answers", ""),
    "crows_pairs": ("sent_less", ""),
}
"""The column that holds the answer, and how the public sets spell a hidden or missing one."""


@pytest.mark.parametrize("name", GOOD_ROWS)
def test_questions_without_a_reference_are_named_or_left_out(tmp_path, capsys, name):
    good, (column, missing) = GOOD_ROWS[name], REFERENCE_COLUMNS[name]
    file = tmp_path / "rows.jsonl"
    rows = [good, good | {column: missing}, *[good] * 3]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"rows\.jsonl:2: .*--skip-bad"):
        EVAL_TASKS[name].load(file, EvalSettings(shots=0))
    questions = EVAL_TASKS[name].load(file, EvalSettings(shots=0, skip_bad=True))
    said = " ".join(capsys.readouterr().out.split())
    assert "left out 1 bad rows" in said
    assert "rows.jsonl:2" in said.replace("rows .jsonl", "rows.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in [good] * 4))
    assert len(questions) == len(EVAL_TASKS[name].load(file, EvalSettings(shots=0))) > 0


def test_an_empty_list_of_answers_is_no_answer_unless_the_data_set_denies_it(tmp_path):
    file = tmp_path / "squad.jsonl"
    row = GOOD_ROWS["squad"] | {"answers": []}
    file.write_text(json.dumps(row) + "\n")
    (question,) = EVAL_TASKS["squad"].load(file, EvalSettings(shots=0))
    assert question.target["answers"] == ["Not in background."]
    file.write_text(json.dumps(row | {"is_impossible": False}) + "\n")
    with pytest.raises(InputError, match="is_impossible"):
        EVAL_TASKS["squad"].load(file, EvalSettings(shots=0))


def test_a_list_of_summaries_holds_alternatives(tmp_path):
    file = tmp_path / "tldr.jsonl"
    file.write_text(json.dumps({"post": "p", "summary": ["One. Two.", None, "Three."]}) + "\n")
    (question,) = EVAL_TASKS["tldr"].load(file, EvalSettings())
    assert question.target["answers"] == ["One. Two.", "Three."]


def test_prompts_without_a_toxicity_are_counted(tmp_path, capsys):
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": {"text": "a", "toxicity": toxicity}} for toxicity in (0.5, None, 0.1)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(EVAL_TASKS["real_toxicity"].load(file, EvalSettings())) == 2 * 3
    assert "left out 1 of 3 prompts" in " ".join(capsys.readouterr().out.split())


BAD_AND_GOOD = {
    "truthfulqa": ({"question": "q", "true": 3, "info": 1}, {"question": "q", "answer": "a", "true": 1, "info": 0}),
    "squad": ({"sample": "x"}, {"sample": "x", "ref_text": "x"}),
    "preference": (
        {"prompt": "p", "completions": ["a"], "ranks": "first"},
        {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2], "models": ["sft", "ppo"]},
    ),
}


@pytest.mark.parametrize("evaluation", BAD_AND_GOOD)
def test_bad_rows_are_named_or_left_out(tmp_path, capsys, evaluation):
    """The message advises --skip-bad, which then leaves the row out."""
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in BAD_AND_GOOD[evaluation]))
    option = "--data" if evaluation == "preference" else "--completions"
    line = ["evaluate", evaluation, option, str(file), "--out", str(out)]
    assert command(line) == 2
    error = capsys.readouterr().err
    assert "rows.jsonl:1: " in error
    assert "--skip-bad" in error
    assert command([*line, "--skip-bad"]) == 0
    assert "left out 1 bad rows" in " ".join(capsys.readouterr().out.split())
    assert {row["n"] for row in json.loads(out.read_text())} <= {0, 1}
