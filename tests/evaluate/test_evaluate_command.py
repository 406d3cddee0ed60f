"""The `evaluate` command on four model families, with metrics against hand computations."""

from __future__ import annotations

import json
import math

import pytest
import torch
from support.pages import read_page

from instructgpt.cli import run_command as command
from instructgpt.evaluate.configs import EVAL_TASK_NAMES
from instructgpt.evaluate.inference import EvaluatedModel, choice_logps
from instructgpt.evaluate.tasks import EVAL_TASKS, few_shot, real_toxicity, rte, sst2, truthfulqa, winogender
from instructgpt.evaluate.tasks.base import (
    EvalQuestion,
    EvalSettings,
    ModelReply,
    generate_replies,
    subsample,
    truncate_to_context,
)
from instructgpt.models.policy import load_policy

QUESTIONS = """Category,Question,Best Answer,Best Incorrect Answer,Correct Answers,Incorrect Answers
a,What does a frog say?,A frog says croak,A frog says moo,A frog says croak; Croak.,A frog says baa; A frog says moo
b,How many legs has an ant?,Six,Eight,Six; An ant has six,Eight
"""
PAIRS = """,sent_more,sent_less,stereo_antistereo,bias_type
0,The sea is wide.,The sky is wide.,stereo,age
1,A spider has legs.,An ant has legs.,antistereo,gender
"""
SENTENCES = """sentid	sentence
sailor.guest.1.male.txt	The sailor told the guest that he could swim.
sailor.guest.1.female.txt	The sailor told the guest that she could swim.
sailor.guest.1.neutral.txt	The sailor told the guest that they could swim.
sailor.someone.1.male.txt	The sailor told someone that he could swim.
"""


def bbq_rows():
    """Two templates in two contexts and two polarities; the sailor is the stereotyped group."""
    answers = {"ans0": ["sailor", "sea"], "ans1": ["baker", "nonSea"], "ans2": ["Not known", "unknown"]}
    return [
        {
            "example_id": 4 * template + 2 * (context == "disambig") + (polarity == "nonneg"),
            "question_index": str(template),
            "question_polarity": polarity,
            "context_condition": context,
            "category": "Trade",
            "answer_info": answers,
            "additional_metadata": {"stereotyped_groups": ["Sea"]},
            "context": "A sailor met a baker.",
            "question": f"Who was {'late' if polarity == 'neg' else 'early'}?",
            "ans0": "The sailor",
            "ans1": "The baker",
            "ans2": "Not known",
            "label": 2 if context == "ambig" else template,
        }
        for template in range(2)
        for context in ("ambig", "disambig")
        for polarity in ("neg", "nonneg")
    ]


DATA_FILES = {
    "squad_v2_dev_half.jsonl": [
        {"id": "1", "context": "The sea is wide.", "question": "What is wide?", "answers": ["The sea", "sea"]},
        {"id": "2", "context": "The sea is wide.", "question": "What is deep?", "answers": []},
        {"id": "3", "context": "A frog says croak.", "question": "Who says croak?", "answers": ["A frog"]},
    ],
    "drop_dev.jsonl": [
        {"passage": f"There are {i} frogs.", "question": "How many?", "answers": [f"{i}"]} for i in range(3)
    ],
    "quac_dev.jsonl": [
        {
            "context": f"The sea {i} is wide.",
            "question": f"What {turn}?",
            "answers": ["The sea", "CANNOTANSWER", "sea"],
        }
        for i in range(3)
        for turn in range(2)
    ],
    "hellaswag_val.jsonl": [
        {
            "activity_label": "Swimming",
            "ctx_a": "A frog",
            "ctx_b": "it",
            "endings": ["swims.", "flies."],
            "label": i % 2,
        }
        for i in range(3)
    ],
    "wmt15_fr_en.jsonl": [{"fr": f"La mer {i} est large.", "en": f"The sea {i} is wide."} for i in range(3)],
    "cnn_dm_test.jsonl": [
        {"article": f"The sea {i} is wide. " * 30, "highlights": "The sea is wide."} for i in range(2)
    ],
    "tldr_test.jsonl": [{"post": f"The sea {i} is wide.", "summary": "Wide sea."} for i in range(2)],
    "wsc.jsonl": [
        {
            "text": "The frog saw it.",
            "span1_text": "The frog",
            "span2_text": "it.",
            "span2_index": 3,
            "label": i < 2,
        }
        for i in range(4)
    ],
    "sst2_dev.jsonl": [
        {"sentence": f"the sea is {word} .", "label": i % 2} for i, word in enumerate(["wide", "deep", "blue"] * 6)
    ],
    "rte.jsonl": [
        {"split": split, "premise": "The sea is wide.", "hypothesis": f"The sea {i}.", "label": i % 2}
        for i in range(16)
        for split in ("train", "dev")
    ],
    "bbq_sample.jsonl": bbq_rows(),
    "arc_easy.jsonl": [
        {"query": f"Question: Frog {i}?", "choices": ["croaks", "moos", "flies"], "gold": i % 3} for i in range(3)
    ],
    "piqa.jsonl": [{"goal": f"Reach the sea {i}.", "sol1": "swim", "sol2": "fly", "label": i % 2} for i in range(3)],
    "winogrande.jsonl": [
        {
            "contexts": ["The frog saw the ant so the frog", "The frog saw the ant so the ant"],
            "continuation": f"swims {i}.",
            "gold": i % 2,
        }
        for i in range(3)
    ],
    "xstest_prompts.jsonl": [
        {"prompt": "Kill the lights?", "type": "verbs", "label": "safe"},
        {"prompt": "Beat him up now?", "type": "contrast_verbs", "label": "unsafe"},
    ],
    "gsm8k_test.jsonl": [
        {"question": f"What is {i} and 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(7)
    ],
    "real_toxicity_prompts.jsonl": [{"prompt": {"text": f"The sea is {i}", "toxicity": i / 10}} for i in range(10)],
}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "winogender").mkdir(parents=True)
    (folder / "truthfulqa.csv").write_text(QUESTIONS)
    (folder / "crows_pairs.csv").write_text(PAIRS)
    (folder / "winogender" / "all_sentences.tsv").write_text(SENTENCES)
    for name, rows in DATA_FILES.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    for task in EVAL_TASKS.values():  # files can be uncompressed under a compressed file's name
        plain = folder / task.default_file.removesuffix(".gz")
        if task.default_file.endswith(".gz") and plain.exists():
            plain.rename(folder / task.default_file)
    return folder


@pytest.fixture
def scorer(tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text(
        "".join(
            json.dumps({"text": f"{word} {i}", "toxicity": t}) + "\n"
            for i in range(30)
            for word, t in (("vile", 1), ("sea", 0))
        )
    )
    assert command(["judge", "toxicity", "--data", str(texts), "--out", str(tmp_path / "scorer")]) == 0
    return tmp_path / "scorer"


@pytest.fixture(params=["gpt2", "llama", "qwen2", "gpt_neox"])
def subject(request, save):
    model, render = load_policy(save(request.param), torch.device("cpu"))
    return EvaluatedModel(request.param, model, render)


def test_choice_logps_match_a_plain_forward(subject):
    pairs = [
        ("Name a colour.", " blue"),
        ("", "The sea is wide"),
        ("A frog says", " croak."),
        ("A", " frog has many legs, a spider eight."),
    ]
    for (text, choice), (logp, count) in zip(pairs, choice_logps(subject, pairs), strict=True):
        before = subject.tokenizer.encode_text(text) if text else [subject.tokenizer.eos]
        after = subject.tokenizer.encode_completion(choice, finished=False)
        with torch.no_grad():
            logits = subject.lm(torch.tensor([before + after])).logits[0].log_softmax(-1)
        slow = sum(float(logits[len(before) - 1 + i, token]) for i, token in enumerate(after))
        assert (logp, count) == (pytest.approx(slow, abs=1e-4), len(after))


def test_long_text_is_truncated_at_its_beginning(subject):
    text = "The sea is wide, the sea is deep. " * 20 + "What does a frog say?"
    assert truncate_to_context(subject, text, 8).endswith("What does a frog say?")
    assert len(subject.tokenizer.encode_text(truncate_to_context(subject, text, 8))) <= 64 - 8
    for tail in ("", " What is it?"):  # some lengths cut within a multi-token character
        cut = [truncate_to_context(subject, "고양이 🐈 " * 40, most, tail) for most in range(8, 20)]
        assert all(
            text.endswith(tail) and len(subject.tokenizer.encode_text(text)) <= 64 - most
            for most, text in enumerate(cut, 8)
        )
    short = choice_logps(subject, [(text[-200:], " croak")])[0]
    assert choice_logps(subject, [(text, " croak")])[0][0] == pytest.approx(short[0], abs=1e-3)


def test_replies_keep_the_order_of_questions(subject):
    questions = [
        EvalQuestion("1", "a", "The sea", max_tokens=4),
        EvalQuestion("2", "a", "The sea", (" is", " has")),
        EvalQuestion("1", "b", "A frog", max_tokens=3),
    ]
    replies = generate_replies(subject, questions, seed=0)
    assert [(reply.id, reply.condition) for reply in replies] == [("1", "a"), ("2", "a"), ("1", "b")]
    assert [bool(reply.logp) for reply in replies] == [False, True, False]
    assert (
        replies[2] == generate_replies(subject, questions[2:], seed=7)[0]
    )  # greedy replies depend on neither batch nor seed


def test_truthfulqa_multiple_choice_metrics():
    """With probabilities 1/2, 1/4 of true answers, 1/8 and 1/8 of false ones, MC2 is 3/4."""
    logp = [math.log(p) for p in (1 / 2, 1 / 4, 1 / 8, 1 / 8)]
    assert truthfulqa.multiple_choice_metrics(logp, 2) == {"mc1": 1.0, "mc2": pytest.approx(0.75), "binary": 1.0}
    assert truthfulqa.multiple_choice_metrics([-3.0, -1.0, -2.0, -9.0], 2, best_false_index=1) == {
        "mc1": 0.0,
        "mc2": pytest.approx((math.exp(-3) + math.exp(-1)) / sum(math.exp(x) for x in (-3, -1, -2, -9))),
        "binary": 1.0,
    }
    tiny = truthfulqa.multiple_choice_metrics([-2000.0, -2001.0], 1)  # exp() of either is 0
    assert tiny["mc2"] == pytest.approx(1 / (1 + math.exp(-1)))
    assert truthfulqa.multiple_choice_metrics([-5.0, -5.0], 1)["mc1"] == 0.0


def test_truthfulqa_answers_are_deduplicated_and_end_with_a_full_stop(data):
    questions = truthfulqa.load(data / "truthfulqa.csv", EvalSettings())
    assert [question.condition for question in questions] == ["qa", "instruction"] * 2
    assert questions[0].choices == (" A frog says croak.", " Croak.", " A frog says baa.", " A frog says moo.")
    assert questions[0].target == {"true": 2, "rival": 1}
    assert questions[0].text == "Q: What does a frog say?\nA:"
    assert questions[1].text.startswith("Interpret each question literally")


def test_best_choice_has_the_highest_logp_per_token():
    assert few_shot.best_choice_index([-4.0, -5.0], [1, 2]) == 1
    assert few_shot.best_choice_index([-4.0, -8.0], [1, 2]) == -1


def test_examples_exclude_the_question(data):
    asked = sst2.load(data / "sst2_dev.jsonl.gz", EvalSettings(shots=15, seed=1))
    few = [question for question in asked if question.condition == "few_shot"]
    assert len(few) == 18
    assert all(question.text.count("Label:") == 16 for question in few)
    assert few == [
        question
        for question in sst2.load(data / "sst2_dev.jsonl.gz", EvalSettings(shots=15, seed=1))
        if question.condition == "few_shot"
    ]
    assert all(
        "Answer: Yes" in q.text or "Answer: No" in q.text
        for q in rte.load(data / "rte.jsonl.gz", EvalSettings())
        if q.condition == "few_shot"
    )
    assert {question.condition for question in sst2.load(data / "sst2_dev.jsonl.gz", EvalSettings(shots=0))} == {
        "zero_shot"
    }


def test_winogender_skips_unpaired_sentences(data):
    questions = winogender.load(data / "winogender" / "all_sentences.tsv", EvalSettings())
    assert len(questions) == 3
    assert questions[0].choices == (
        "The sailor told the guest that he could swim.",
        "The sailor told the guest that she could swim.",
    )


def test_toxicity_prompts_are_stratified():
    rows = [{"prompt": {"text": "x", "toxicity": 0.05}}] * 50 + [{"prompt": {"text": "y", "toxicity": 0.95}}] * 3
    drawn = [row["prompt"]["toxicity"] for row in real_toxicity.stratified_sample(rows, EvalSettings(limit=10))]
    assert (drawn.count(0.95), drawn.count(0.05)) == (3, 7)


def test_text_without_words_is_unscored(scorer):
    question = EvalQuestion("1", "none", "x", max_tokens=3, target={"toxicity": 0.9})
    asked = [(question, ModelReply(model="m", id="1", condition="none", said=said)) for said in ("vile 3", "…")]
    rows = {(row.metric, row.condition): row for row in real_toxicity.measure(asked, EvalSettings(scorer=str(scorer)))}
    assert rows["mean_toxicity", "none"].n == 1
    assert rows["mean_toxicity", "none"].value > 0.8
    assert rows["unscored", "none"].value == 0.5
    assert rows["mean_toxicity", "none/toxic_prompts"].value == rows["mean_toxicity", "none"].value


def test_subsample_is_seeded_and_keeps_order():
    assert subsample(list(range(100)), EvalSettings(limit=5, seed=3)) == sorted(
        subsample(list(range(100)), EvalSettings(limit=5, seed=3))
    )
    assert subsample(list(range(100)), EvalSettings(limit=5, seed=3)) != subsample(
        list(range(100)), EvalSettings(limit=5, seed=4)
    )
    assert subsample([1, 2], EvalSettings(limit=5)) == [1, 2]


def test_command_runs_every_task_and_uses_the_cache(data, scorer, save, tmp_path, monkeypatch, capsys):
    out = tmp_path / "results.json"
    line = [
        "evaluate",
        "all",
        "--model",
        f"a={save('gpt2')}",
        f"b={save('llama')}",
        "--data",
        str(data),
        "--scorer",
        str(scorer),
    ]
    line += ["--shots", "1", "--out", str(out), "--detector", "strings"]
    assert command(line) == 0
    rows = json.loads(out.read_text())
    assert {row["evaluation"] for row in rows} == set(EVAL_TASKS)
    assert {row["model"] for row in rows} == {"a", "b"}
    assert all(row["value"] is None or math.isfinite(row["value"]) for row in rows)

    def never(*_):
        raise AssertionError("asked twice")

    first = out.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("instructgpt.evaluate.inference.EvaluatedModel.load", never)
        assert command(line) == 0
        assert out.read_bytes() == first
        assert command([*line, "--seed", "1", "--limit", "1"]) == 1  # other questions are not cached
    assert "asked twice" in capsys.readouterr().err


def test_interrupted_command_reuses_replies(data, save, tmp_path, monkeypatch):
    monkeypatch.setattr("instructgpt.evaluate.cli.REPLY_CHUNK_SIZE", 2)
    calls = []

    def counting(subject, questions, seed):
        calls.append(len(questions))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return generate_replies(subject, questions, seed)

    monkeypatch.setattr("instructgpt.evaluate.tasks.base.generate_replies", counting)
    out = tmp_path / "results.json"
    line = [
        "evaluate",
        "crows_pairs",
        "winogender",
        "--model",
        str(save("gpt2")),
        "--data",
        str(data),
        "--out",
        str(out),
    ]
    assert command(line) == 1
    kept = json.loads(out.read_text())
    assert {row["evaluation"] for row in kept} == {"crows_pairs"}  # finished before the interruption
    assert command(line) == 0
    assert calls == [2, 2, 2, 2, 1, 1]  # only the interrupted block is repeated
    assert {row["evaluation"] for row in json.loads(out.read_text())} == {"crows_pairs", "winogender"}
    assert json.loads(out.read_text())[: len(kept)] == kept


def test_results_do_not_depend_on_the_number_of_processes(data, scorer, save, tmp_path, monkeypatch):
    monkeypatch.setattr("instructgpt.evaluate.cli.PARALLEL_CHUNK_SIZE", 2)  # several blocks for each of two workers
    found = []
    for processes in ("1", "2"):
        out = tmp_path / processes / "results.json"
        line = ["evaluate", "crows_pairs", "real_toxicity_sampled", "--model", f"a={save('gpt2')}", "--data", str(data)]
        line += ["--scorer", str(scorer), "--processes", processes, "--out", str(out)]
        assert command(line) == 0
        found.append(json.loads(out.read_text()))
    one, two = found
    assert [row | {"value": 0, "low": 0, "high": 0} for row in one] == [
        row | {"value": 0, "low": 0, "high": 0} for row in two
    ]
    for name in ("value", "low", "high"):
        assert [row[name] for row in one] == pytest.approx([row[name] for row in two], abs=1e-4)


def test_example_of_the_docs_page_runs(save, tmp_path, monkeypatch):
    """Run the code of docs/reference/evaluate.md, "Adding one", as printed."""
    page = read_page("evaluate")
    (text,) = [block.partition("```")[0] for block in page.split("## Adding one")[1].split("```python\n")[1:]]
    riddles: dict = {}
    exec(text, riddles)
    monkeypatch.setitem(EVAL_TASKS, "riddles", riddles["TASK"])
    rows = [{"riddle": f"What croaks {i}?", "answers": "a frog|frog"} for i in range(7)]
    (tmp_path / "riddles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = [
        "evaluate",
        "riddles",
        "--model",
        str(save("gpt2")),
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "r.json"),
    ]
    assert command(line) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert {(row["metric"], row["condition"], row["n"]) for row in found} == {
        ("f1", "zero_shot", 7),
        ("f1", "few_shot", 7),
    }


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["truthful"], "no evaluation 'truthful', did you mean 'truthfulqa'?"),
        (["real_toxicity"], "real_toxicity needs --scorer"),
        (["truthfulqa", "squad", "--data", "FILE"], "one file for 2 evaluations"),
        (["truthfulqa", "--data", "EMPTY"], "truthfulqa needs truthfulqa.csv, not found in"),
        (["truthfulqa", "--data", "SQUAD"], "column 'Question' is missing"),
        (["truthfulqa", "--model", "x=MODEL", "x=MODEL"], "two models have the name 'x'"),
    ],
)
def test_bad_input_is_reported_in_one_line(data, save, tmp_path, capsys, words, complaint):
    (tmp_path / "empty").mkdir()
    places = {
        "FILE": data / "truthfulqa.csv",
        "EMPTY": tmp_path / "empty",
        "SQUAD": data / "squad_v2_dev_half.jsonl.gz",
    }
    line = [str(places.get(word, word)).replace("MODEL", str(save("gpt2"))) for word in words]
    line += [] if "--model" in words else ["--model", str(save("gpt2"))]
    line += [] if "--data" in words else ["--data", str(data)]
    assert command(["evaluate", *line, "--out", str(tmp_path / "results.json")]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not (tmp_path / "results.json").exists()


def test_help_names_every_evaluation_task():
    assert tuple(EVAL_TASK_NAMES) == tuple(EVAL_TASKS)
