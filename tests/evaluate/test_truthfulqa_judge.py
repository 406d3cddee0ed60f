"""Judges of truth and informativeness: training, agreement, and use by `evaluate`."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from instructgpt.cli import run_command as command
from instructgpt.data.splits import is_heldout
from instructgpt.errors import InputError
from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.judges import truthfulqa_judge
from instructgpt.evaluate.judges.truthfulqa_judge import (
    TruthfulQAJudge,
    extract_question,
    format_truthfulqa_judge_prompt,
    load_truthfulqa_judge,
    split_by_question,
)
from instructgpt.evaluate.tasks import truthfulqa
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, ModelReply
from instructgpt.records import Demonstration, read_records

TRUE, FALSE = "It is blue.", "It is deep."
CPU = torch.device("cpu")


def records(kind, questions=40):
    """Return two answers per question; the right one is always the same."""
    return [
        Demonstration(prompt=format_truthfulqa_judge_prompt(kind, f"What is {number}?", answer), completion=said)
        for number in range(questions)
        for answer, said in ((TRUE, " yes"), (FALSE, " no"))
    ]


@pytest.fixture(scope="module")
def judges(tmp_path_factory, save):
    """Both judges, trained by the command on data that a two-layer model can learn."""
    folder = tmp_path_factory.mktemp("judges")
    for kind in ("truth", "info"):
        data = folder / f"{kind}.jsonl"
        data.write_text(
            "".join(json.dumps({"prompt": one.prompt, "completion": one.completion}) + "\n" for one in records(kind))
        )
        line = [
            "judge",
            kind,
            "--base",
            str(save("gpt2")),
            "--data",
            str(data),
            "--out",
            str(folder / kind),
            "--device",
            "cpu",
        ]
        assert command([*line, "--epochs", "6", "--lr", "1e-2", "--batch", "8"]) == 0
    return folder


def test_questions_stay_in_one_split(judges):
    parts = {
        name: read_records(Demonstration, judges / "truth" / f"{name}.jsonl") for name in truthfulqa_judge.JUDGE_SPLITS
    }
    asked = {name: {extract_question(record.prompt) for record in chosen} for name, chosen in parts.items()}
    assert sum(map(len, asked.values())) == len(set().union(*asked.values())) == 40
    assert asked["heldout"] == {f"What is {number}?" for number in range(40) if is_heldout(f"What is {number}?")}
    assert sum(map(len, parts.values())) == 80


def test_agreement_is_measured_on_heldout_questions(judges):
    found = json.loads((judges / "truth" / "judge.json").read_text())
    fresh = read_records(Demonstration, judges / "truth" / "heldout.jsonl")
    judge = load_truthfulqa_judge("truth", judges, "cpu")
    said = judge([record.prompt for record in fresh])
    same = [(score >= 0.5) == (record.completion == " yes") for score, record in zip(said, fresh, strict=True)]
    assert found["heldout"]["agreement"] == pytest.approx(np.mean(same)) == 1.0
    assert found["heldout"]["majority"] == 0.5
    assert found["heldout"]["answers"] == len(fresh)
    assert found["heldout"]["questions"] == len(fresh) / 2
    assert (found["kind"], found["sha256"]) == ("truth", judge.sha256)
    assert json.loads((judges / "truth" / "run.json").read_text())["heldout"] == found["heldout"]


def test_yes_probability_matches_a_plain_forward(judges):
    judge = load_truthfulqa_judge("info", judges, "cpu")
    model, render = judge.model.lm, judge.model.tokenizer
    text = format_truthfulqa_judge_prompt("info", "What is 3?", TRUE)
    chances = []
    for word in (" yes", " no"):
        before, after = render.encode_prompt(text), render.encode_completion(word)
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0].double().log_softmax(-1)
        chances.append(sum(float(logits[len(before) - 1 + place, token]) for place, token in enumerate(after)))
    assert judge([text])[0] == pytest.approx(1 / (1 + np.exp(chances[1] - chances[0])), abs=1e-5)
    assert judge([text, format_truthfulqa_judge_prompt("info", "What is 5?", FALSE)])[0] == pytest.approx(
        judge([text])[0], abs=1e-6
    )
    assert (
        0 <= judge([format_truthfulqa_judge_prompt("info", "What is 3? " * 50, TRUE)])[0] <= 1
    )  # longer than its context


def test_agreement_matches_hand_computation():
    """Six answers to three questions; the judge says yes to those with 'blue'."""

    class Blue(TruthfulQAJudge):
        def __call__(self, texts):
            return [0.9 if "blue" in text else 0.2 for text in texts]

    def people(said):
        return [
            Demonstration(prompt=format_truthfulqa_judge_prompt("truth", question, answer), completion=completion)
            for question, answer, completion in said
        ]

    fresh = people(
        [
            ("a", "blue", " yes"),
            ("a", "deep", " no"),
            ("b", "blue", " no"),
            ("b", "deep", " no"),
            ("c", "deep", " yes"),
            ("c", "wide", " no"),
        ]
    )
    found = truthfulqa_judge.measure_truthfulqa_agreement(
        Blue("truth", None, ""), fresh, people([("d", "x", " no"), ("d", "y", " no"), ("d", "z", " yes")])
    )
    assert found["agreement"] == pytest.approx(4 / 6)
    assert found["majority"] == pytest.approx(4 / 6)  # "no" is more common in training; four are "no"
    assert found["balanced"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert found["auc"] == pytest.approx(
        (3 + 0.5 * 4 + 0.5 * 0 + 1 * 0) / 8
    )  # yes at .9 beats three of four and ties one; yes at .2 ties three
    assert (found["answers"], found["questions"]) == (6, 3)
    assert found["low"] <= found["agreement"] <= found["high"]


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (Demonstration(prompt="Q: a\nA: b\nHelpful:", completion=" yes"), "a line 'True:' and completions yes or no"),
        (Demonstration(prompt="Q: a\nA: b\nTrue:", completion=" perhaps"), "found .* and ' perhaps'"),
    ],
)
def test_data_of_another_judge_is_rejected(record, complaint):
    with pytest.raises(InputError, match=complaint):
        split_by_question("truth", [*records("truth"), record])


def test_subsample_keeps_whole_questions():
    kept = truthfulqa_judge.subsample_questions(records("truth"), 5, seed=1)
    assert len(kept) == 10
    assert (
        kept
        == truthfulqa_judge.subsample_questions(records("truth"), 5, seed=1)
        != truthfulqa_judge.subsample_questions(records("truth"), 5, seed=2)
    )
    assert truthfulqa_judge.subsample_questions(records("truth"), 400, seed=1) == records("truth")


def test_too_little_data_is_rejected():
    with pytest.raises(InputError, match="are too few"):
        split_by_question("truth", records("truth", questions=3))


def spoken(condition, question, said, model="m"):
    asked = EvalQuestion(question, condition, "?", max_tokens=5, target={"question": question})
    return asked, ModelReply(model=model, id=question, condition=condition, said=said)


def test_empty_answers_are_true_and_not_informative(judges, tmp_path):
    asked = [spoken("qa", "What is 1?", TRUE), spoken("qa", "What is 2?", FALSE), spoken("qa", "What is 4?", "")]
    rows = truthfulqa.measure(asked, EvalSettings(judges_dir=judges, device="cpu", verdict_cache_dir=tmp_path))
    values = {(row.metric, row.condition): row for row in rows}
    assert values["truthful", "qa"].value == pytest.approx(2 / 3)
    assert values["informative", "qa"].value == pytest.approx(1 / 3)
    assert values["truthful_and_informative", "qa"].value == pytest.approx(1 / 3)
    assert values["no_answer", "qa"].value == pytest.approx(1 / 3)
    (judge,) = {row.judge for row in rows}
    for kind in ("truth", "info"):
        assert load_truthfulqa_judge(kind, judges, "cpu").identity in judge


QUESTIONS = """Category,Question,Best Answer,Correct Answers,Incorrect Answers
a,What is 1?,It is blue,It is blue,It is deep
"""


def test_evaluate_uses_the_papers_prompts_and_caches_verdicts(judges, save, tmp_path, monkeypatch, capsys):
    file, out = tmp_path / "truthfulqa.csv", tmp_path / "results.json"
    file.write_text(QUESTIONS)
    questions = truthfulqa.load(file, EvalSettings(judges_dir=judges))
    prompts = {question.condition: question.text for question in questions if not question.choices}
    assert list(prompts) == ["qa", "instruction_qa", "instruction"]
    assert prompts["qa"].count("Q: ") == 7
    assert prompts["qa"].endswith("\n\nQ: What is 1?\n\nA:")
    assert "A: I have no comment.\n" in prompts["qa"]
    assert prompts["instruction_qa"] == truthfulqa.TRUTHFULQA_INSTRUCTION + "\n\n" + prompts["qa"]
    assert prompts["instruction"] == truthfulqa.TRUTHFULQA_INSTRUCTION + "\n\nQ: What is 1?\n\nA:"
    assert all(
        question.choices for question in truthfulqa.load(file, EvalSettings())
    )  # without judges nothing is generated

    line = [
        "evaluate",
        "truthfulqa",
        "--model",
        f"m={save('gpt2')}",
        "--data",
        str(file),
        "--judges",
        str(judges),
        "--out",
        str(out),
    ]
    assert command(line) == 0
    rows = {(row["metric"], row["condition"]): row for row in json.loads(out.read_text())}
    for condition in prompts:
        assert {"truthful", "informative", "truthful_and_informative", "no_answer"} <= {
            name for name, where in rows if where == condition
        }
        assert "sha256:" in rows["truthful", condition]["judge"]
    assert "judge" not in rows["mc1", "qa"]  # only the contract's eight keys
    first = out.read_bytes()
    monkeypatch.setattr(TruthfulQAJudge, "__call__", lambda *_: pytest.fail("a verdict was asked twice"))
    assert command(line) == 0
    assert out.read_bytes() == first
    assert command([*line[:-4], "--judges", str(tmp_path), "--out", str(out)]) == 2
    assert "no judge in" in capsys.readouterr().err


def test_judge_of_another_kind_is_rejected(judges, tmp_path):
    (tmp_path / "truth").symlink_to(judges / "info")
    with pytest.raises(InputError, match="a judge of 'info', not of 'truth'"):
        load_truthfulqa_judge("truth", tmp_path, "cpu")


def test_judge_works_without_a_directory(save):
    from instructgpt.models.policy import load_policy

    model, render = load_policy(save("llama"), CPU)
    judge = TruthfulQAJudge("truth", EvaluatedModel("truth", model, render), "0" * 64)
    assert judge.identity == "truth judge 1 sha256:" + "0" * 16
    assert len(judge([format_truthfulqa_judge_prompt("truth", "a", "b")])) == 1


def test_completions_without_verdicts_are_judged(judges, tmp_path):
    file, out = tmp_path / "samples.csv", tmp_path / "results.json"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer", "model_type", "prompt_type"])
        writer.writerows([("What is 1?", TRUE, "m", "qa"), ("What is 2?", FALSE, "m", "qa")])
    assert (
        command(["evaluate", "truthfulqa", "--completions", str(file), "--judges", str(judges), "--out", str(out)]) == 0
    )
    rows = {row["metric"]: row for row in json.loads(out.read_text())}
    assert rows["truthful"]["value"] == 0.5
    assert "truth judge" in rows["truthful"]["judge"]
