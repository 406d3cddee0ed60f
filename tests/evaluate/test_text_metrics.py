"""Text metrics against hand computations and the libraries' corpus scores; files of samples."""

from __future__ import annotations

import csv
import json
from random import Random

import pytest
import sacrebleu

from instructgpt.cli import run_command as command
from instructgpt.evaluate.metrics import text_metrics
from instructgpt.evaluate.precomputed import parse_references, truncate_to_first_line


@pytest.mark.parametrize(
    ("said", "reference", "f1"),
    [
        (["12"], ["12.0"], 1.0),  # numbers are compared as numbers
        (["12 yards"], ["13 yards"], 0.0),  # a wrong number scores 0
        (["the 12 long yards"], ["12 yards"], 0.8),  # 2 shared of 3 and 2
        (["long yards"], ["yards"], 0.67),  # 2/3, rounded
        (["red-blue"], ["blue red"], 1.0),  # hyphens separate, and a bag has no order
        (["blue blue"], ["blue"], 1.0),  # bags are sets
        (["Smith", "Jones"], ["Jones", "Smith"], 1.0),  # spans are aligned
        (["Smith"], ["Smith", "Jones"], 0.5),
        (["Smith", "Jones"], ["Smith"], 0.5),
        (["Smith and Jones"], ["Smith", "Jones"], 0.25),  # 1 shared of 3 and 1: 0.5 over two spans
        (["1,000"], ["1000"], 1.0),
        ([""], ["Smith"], 0.0),
    ],
)
def test_drop_f1_matches_hand_computation(said, reference, f1):
    assert text_metrics.drop_f1(said, reference) == pytest.approx(f1)


def sentences(count, rng):
    words = ["the", "sea", "is", "wide", "and", "deep", "blue", "as", "a", "sky"]
    made = [[rng.choice(words) for _ in range(rng.randint(4, 12))] for _ in range(count)]
    said = [" ".join(word if rng.random() < 0.8 else rng.choice(words) for word in sentence) for sentence in made]
    return said, [[" ".join(sentence)] for sentence in made]


def test_bleu_is_the_corpus_score_within_its_interval():
    said, references = sentences(60, Random(0))
    found = text_metrics.bleu(said, references)
    assert found.value == sacrebleu.corpus_bleu(said, [[each[0] for each in references]]).score
    assert found.low < found.value < found.high
    assert found.n == 60
    counts = [text_metrics._bleu_counts(text, each) for text, each in zip(said, references, strict=True)]
    assert text_metrics._bleu_from_counts([sum(column) for column in zip(*counts, strict=True)]) == pytest.approx(
        found.value
    )


def test_bleu_uses_the_nearest_reference_length():
    said, references = sentences(20, Random(1))
    both = [[each[0], "something else entirely"] for each in references]
    assert (
        text_metrics.bleu(said, both).value
        == sacrebleu.corpus_bleu(said, list(map(list, zip(*both, strict=True)))).score
    )
    uneven = [both[0], *references[1:]]
    assert text_metrics.bleu(said, uneven).value >= text_metrics.bleu(said, references).value


def test_rouge_l_matches_hand_computation():
    """The longest common subsequence is `the sea is`: precision 3/4, recall 3/5, F 2/3."""
    assert text_metrics.rouge_l("the sea is wide", "the wide sea is deep") == pytest.approx(2 / 3)
    assert text_metrics.rouge_l("running", "runs") == 1.0  # stemmed


def test_references_and_first_line_are_parsed():
    assert parse_references("a| b |c") == ("a", "b", "c")
    assert parse_references(["a|b"]) == ("a|b",)
    assert truncate_to_first_line(" yes, it is \n\nQ: and then?") == "yes, it is"


def write_csv(file, rows):
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return file


def measured(tmp_path, evaluation, file):
    out = tmp_path / "results.json"
    assert command(["evaluate", evaluation, "--completions", str(file), "--out", str(out)]) == 0
    return {(row["metric"], row["model"], row["condition"]): row["value"] for row in json.loads(out.read_text())}


def test_published_question_answers(tmp_path):
    shared = {"prompt_type": "few-shot", "context": "The sea, which is wide,\nhas a name."}
    rows = [
        {"index": 0, "model_type": "sft", "ref_text": "the sea|sea", "sample": " Sea\nQ: next", **shared},
        {"index": 1, "model_type": "sft", "ref_text": "Not in background.", "sample": "blue", **shared},
        {"index": 0, "model_type": "ppo", "ref_text": "the sea|sea", "sample": "the wide sea", **shared},
        {"index": 1, "model_type": "ppo", "ref_text": "Not in background.", "sample": "Not in background", **shared},
    ]
    found = measured(tmp_path, "squad", write_csv(tmp_path / "squad.csv", rows))
    assert found["f1", "sft", "few_shot"] == 0.5
    assert found["f1", "ppo", "few_shot"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["exact_match", "ppo", "few_shot"] == 0.5


def test_judged_answers_and_scored_continuations(tmp_path):
    rows = [
        {"question": q, "answer": "x", "model_type": "ppo", "prompt_type": "qa", "true": true, "info": info}
        for q, true, info in (("a", 0.9, 0.8), ("b", 0.5, 0.2), ("c", 0.1, 0.9), ("d", 0.49, 0.5))
    ]
    found = measured(tmp_path, "truthfulqa", write_csv(tmp_path / "tqa.csv", rows))
    assert found["truthful", "ppo", "qa"] == 0.5
    assert found["truthful_and_informative", "ppo", "qa"] == 0.25
    scored = [
        {"prompt": "p", "sample": "x", "model_type": "m", "prompt_type": "basic", "toxicity": t} for t in (0.25, 0.75)
    ]
    assert (
        measured(tmp_path, "real_toxicity", write_csv(tmp_path / "rtp.csv", scored))["mean_toxicity", "m", "none"]
        == 0.5
    )


def test_own_columns_and_translations(tmp_path):
    said, references = sentences(12, Random(2))
    file = tmp_path / "wmt.jsonl"
    rows = [
        {"model": "a", "completion": text, "references": each, "prompt": f"p{i}"}
        for i, (text, each) in enumerate(zip(said, references, strict=True))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = measured(tmp_path, "wmt15", file)
    assert found["bleu", "a", ""] == sacrebleu.corpus_bleu(said, [[each[0] for each in references]]).score


@pytest.mark.parametrize(
    ("evaluation", "row", "complaint"),
    [
        ("squad", {"sample": "x"}, "no column ref_text or references or reference"),
        ("squad", {"ref_text": "x"}, "no column sample or"),
        ("truthfulqa", {"answer": "x", "true": "maybe", "info": "1"}, "column 'true' is 'maybe', expected a number"),
        ("truthfulqa", {"answer": "x", "true": "1"}, "no column info"),
        ("real_toxicity", {"sample": "x", "toxicity": ""}, "no sample has a toxicity"),
        ("crows_pairs", {"sample": "x"}, "crows_pairs cannot be measured on --completions"),
    ],
)
def test_missing_values_are_reported(tmp_path, capsys, evaluation, row, complaint):
    file = write_csv(tmp_path / "samples.csv", [row])
    assert command(["evaluate", evaluation, "--completions", str(file), "--out", str(tmp_path / "results.json")]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


def test_models_and_completions_exclude_each_other(capsys):
    assert command(["evaluate", "squad", "--completions", "a.csv", "--model", "b"]) == 2
    assert "--model has no effect with --completions" in capsys.readouterr().err
    assert command(["evaluate", "squad", "--completions", "a.csv", "--processes", "2"]) == 2
    assert "--processes has no effect with --completions" in capsys.readouterr().err
    assert command(["evaluate", "--harness", "arc_easy", "--model", "b", "--processes", "2"]) == 2
    assert "--processes has no effect on --harness alone" in capsys.readouterr().err
    assert command(["evaluate", "squad"]) == 2
    assert "give --model and --data, or --completions" in capsys.readouterr().err
