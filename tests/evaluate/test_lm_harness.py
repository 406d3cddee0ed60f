"""lm-evaluation-harness tasks with our scoring: the same numbers as the harness's own model."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from random import Random

import pytest
import torch
import transformers

from instructgpt.cli import run_command as command
from instructgpt.evaluate.inference import EvaluatedModel
from instructgpt.evaluate.lm_harness import generate_until_stop, iter_harness_rows, parse_generation_args
from instructgpt.evaluate.metrics.text_metrics import drop_exact_match, drop_f1
from instructgpt.evaluate.tasks import drop, hellaswag, rte, sst2
from instructgpt.evaluate.tasks.base import EvalSettings, generate_replies
from instructgpt.models.policy import load_policy

WITHOUT = "lm-evaluation-harness is not installed: pip install 'instructgpt[harness]'"
SENTENCES = [
    {"sentence": f"the sea {i} is {word} .", "label": i % 2}
    for i, word in enumerate(["wide", "deep", "blue", "no frog"] * 5)
]
PASSAGES = [
    {"premise": f"The sea {i} is wide.", "hypothesis": f"A sea {i} {word}.", "label": i % 2}
    for i, word in enumerate(["is blue", "has frogs"] * 5)
]
ACTIVITIES = [
    {
        "activity_label": "Swimming",
        "ctx_a": f"A frog [step] {i} looks.",
        "ctx_b": "it",
        "endings": ["swims in the sea.", "flies [title] over it.", "has no legs.", "is wide."],
        "label": str(i % 4),
    }
    for i in range(12)
]
ARC = [
    {
        "id": f"{i}",
        "question": f"What does frog {i} say?",
        "choices": {"text": ["croak", "moo moo", "baa"], "label": ["A", "B", "C"]},
        "answerKey": "ABC"[i % 3],
    }
    for i in range(12)
]
DOCUMENTS = "The sea is wide and deep. A frog says croak, a cow says moo. " * 6


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def yaml(folder, task, kind, rows, **keys):
    """Write a harness task on a local file; JSON is YAML."""
    file = write(folder / f"{task}-data.jsonl", rows)
    config = {
        "task": task,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
    }
    (folder / f"{task}.yaml").write_text(json.dumps(config | {"output_type": kind} | keys))


@pytest.fixture
def tasks(tmp_path):
    """Tasks of every request type: choices, whole texts, continuations."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    both = [{"metric": "acc"}, {"metric": "acc_norm"}]
    yaml(
        folder,
        "our_sst2",
        "multiple_choice",
        SENTENCES,
        doc_to_text="{{sentence}}\nLabel:",
        doc_to_target="label",
        doc_to_choice=["negative", "positive"],
        metric_list=both,
    )
    yaml(
        folder,
        "our_arc",
        "multiple_choice",
        ARC,
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_target="{{choices.label.index(answerKey)}}",
        doc_to_choice="{{choices.text}}",
        metric_list=both,
    )
    yaml(
        folder,
        "our_text",
        "loglikelihood_rolling",
        [{"text": DOCUMENTS}, {"text": "The sea."}],
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    )
    yaml(
        folder,
        "our_words",
        "generate_until",
        SENTENCES,
        doc_to_text="{{sentence}}\n",
        doc_to_target="{{sentence}}",
        generation_kwargs={"until": [".", " a"], "max_gen_toks": 8},
        metric_list=[{"metric": "exact_match"}],
    )
    return folder


@pytest.fixture
def harness():
    found = pytest.importorskip("lm_eval", reason=WITHOUT)
    importlib.import_module("lm_eval.tasks")
    return found, importlib.import_module("lm_eval.models.huggingface").HFLM


def theirs(harness, folder, model, names):
    """Return the metrics of the harness's own Hugging Face model."""
    lm_eval, hf_model = harness
    manager = lm_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False)
    own = hf_model(pretrained=str(model), device="cpu", dtype="float32", batch_size=4)
    return lm_eval.simple_evaluate(model=own, tasks=names, task_manager=manager, bootstrap_iters=1000, log_samples=True)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_request_type_matches_the_harness_model(harness, tasks, save, tmp_path, kind):
    names = ["our_sst2", "our_arc", "our_text", "our_words"]
    out = tmp_path / "results.json"
    line = [
        "evaluate",
        "--harness",
        *names,
        "--include-path",
        str(tasks),
        "--model",
        f"m={save(kind)}",
        "--out",
        str(out),
    ]
    assert command(line) == 0
    ours = {(row["evaluation"], row["metric"]): row for row in json.loads(out.read_text())}
    found = theirs(harness, tasks, save(kind), names)["results"]
    assert {name for name, _ in ours} == {f"harness/{name}" for name in names}
    for (name, metric), row in ours.items():
        expected = found[name.removeprefix("harness/")]
        assert f"{row['value']:.6g}" == f"{expected[f'{metric},none']:.6g}", (name, metric)
        if metric in ("acc", "acc_norm", "exact_match"):
            assert row["high"] - row["low"] == pytest.approx(2 * 1.959964 * expected[f"{metric}_stderr,none"])
    first = out.read_bytes()
    assert command(line) == 0  # from the cache
    assert out.read_bytes() == first


@pytest.fixture
def roomy(tokenizer, tmp_path):
    """Save a random model whose context fits a few-shot prompt."""
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "n_positions": 1024, "n_embd": 16, "n_layer": 2, "n_head": 2}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**size)).save_pretrained(tmp_path / "roomy")
    tokenizer.save_pretrained(tmp_path / "roomy")
    return tmp_path / "roomy"


@pytest.mark.parametrize(
    ("evaluation", "rows", "show"),
    [
        (sst2, SENTENCES, sst2.format_sst2_question),
        (rte, PASSAGES, rte.format_rte_question),
        (hellaswag, ACTIVITIES, hellaswag.format_paragraph),
    ],
    ids=["sst2", "rte", "hellaswag"],
)
def test_own_tasks_match_the_harness_logps(harness, roomy, tmp_path, evaluation, rows, show):
    """Send the texts of our tasks to the harness's own model."""
    questions = evaluation.load(write(tmp_path / "rows.jsonl", rows), EvalSettings(shots=1))
    assert all(show(row) in question.text for row, question in zip(rows, questions[::2], strict=True))
    replies = generate_replies(EvaluatedModel("m", *load_policy(roomy, torch.device("cpu"))), questions, seed=0)
    own = harness[1](pretrained=str(roomy), device="cpu", dtype="float32", batch_size=4)
    instance = importlib.import_module("lm_eval.api.instance").Instance
    requests = [
        instance("loglikelihood", {}, (question.text, choice), place)
        for place, question in enumerate(questions)
        for choice in question.choices
    ]
    theirs = [total for total, _ in own.loglikelihood(requests, disable_tqdm=True)]
    ours = [logp for reply in replies for logp in reply.logp]
    assert ours == pytest.approx(theirs, abs=1e-4)  # nats; float32 summation order


def test_harness_hellaswag_on_local_data_matches_ours(harness, save, tmp_path):
    """The shipped task on local rows; only our instruction and a space differ."""
    file = write(tmp_path / "hellaswag_val.jsonl", ACTIVITIES)
    out = tmp_path / "results.json"
    shipped = Path(harness[0].__file__).parent / "tasks" / "hellaswag"
    line = ["evaluate", "--harness", "hellaswag", "--include-path", str(shipped), "--data", f"hellaswag={file}"]
    assert command([*line, "--model", f"m={save('gpt2')}", "--out", str(out)]) == 0
    rows = {row["metric"]: row for row in json.loads(out.read_text())}
    assert set(rows) == {"acc", "acc_norm"}
    assert rows["acc"]["n"] == 12
    manager = harness[0].tasks.TaskManager(include_path=str(shipped), include_defaults=False)
    config = {"include": str(shipped / "hellaswag.yaml"), "task": "hellaswag", "dataset_path": "json"}
    config |= {"dataset_kwargs": {"data_files": {"validation": str(file)}}, "training_split": None}
    (tmp_path / "theirs.yaml").write_text(json.dumps(config))
    own = harness[1](pretrained=str(save("gpt2")), device="cpu", dtype="float32", batch_size=4)
    found = harness[0].simple_evaluate(
        model=own, tasks=[str(tmp_path / "theirs.yaml")], task_manager=manager, bootstrap_iters=0
    )
    for metric, row in rows.items():
        assert row["value"] == found["results"]["hellaswag"][f"{metric},none"]


@pytest.mark.usefixtures("harness")
def test_drop_scores_match_the_harness():
    utils = importlib.import_module("lm_eval.tasks.drop.utils")
    rng = Random(0)
    words = [
        "12",
        "12.0",
        "1,200",
        "the",
        "Smith",
        "smith's",
        "touch-down",
        "five",
        "yards",
        "3rd",
        "-7",
        "A.D.",
        "",
        "é",
        "U.S.",
    ]
    for _ in range(3000):
        said = " ".join(rng.choice(words) for _ in range(rng.randint(0, 5)))
        reference = tuple(
            " ".join(rng.choice(words) for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(1, 3))
        )
        exact, f1 = utils.get_metrics([said], reference)
        assert (drop_exact_match([said], reference), drop_f1([said], reference)) == (exact, f1), (said, reference)


@pytest.mark.usefixtures("harness")
def test_drop_references_match_the_harness():
    utils = importlib.import_module("lm_eval.tasks.drop.utils")
    date = {"day": "4", "month": "July", "year": "1776"}
    empty = {"number": "", "spans": [], "date": {"day": "", "month": "", "year": ""}}
    row = {
        "answer": empty | {"spans": ["Smith", "Jones"]},
        "validated_answers": {
            "number": ["", "12", "", ""],
            "spans": [["Smith"], [], [], ["Smith", "Jones"]],
            "date": [empty["date"], empty["date"], date, empty["date"]],
        },
    }
    assert drop.parse_drop_references(row) == [answer for answer in utils.get_answers(row) if answer[0].strip()]


def test_harness_results_become_rows():
    numbers = {
        "alias": "x",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "em,first": 0.25,
        "em_stderr,first": "N/A",
        "sample_len": 4,
    }
    acc, em = iter_harness_rows({"results": {"x": numbers}, "n-samples": {"x": {"effective": 4}}}, "m")
    assert (acc.evaluation, acc.metric, acc.model, acc.condition, acc.value, acc.n) == (
        "harness/x",
        "acc",
        "m",
        "",
        0.5,
        4,
    )
    assert (acc.low, acc.high) == (pytest.approx(0.304, abs=1e-4), pytest.approx(0.696, abs=1e-4))
    assert (em.condition, em.value, em.low, em.high) == ("first", 0.25, None, None)


def test_generation_args_are_parsed():
    assert parse_generation_args({"until": "\n"}) == (("\n",), 256, 0.0, 1.0)
    assert parse_generation_args({"until": ["a", "b"], "max_gen_toks": 3, "do_sample": False, "temperature": 1.0}) == (
        ("a", "b"),
        3,
        0.0,
        1.0,
    )
    assert parse_generation_args({"do_sample": True, "temperature": 0.8, "top_p": 0.9}) == ((), 256, 0.8, 0.9)


def test_continuations_end_before_the_first_stop_string(save):
    subject = EvaluatedModel("m", *load_policy(save("gpt2"), torch.device("cpu")))
    whole = generate_until_stop(subject, ["A frog"], ((), 12, 0.0, 1.0), 0)[0]
    assert len(whole) > 4
    stop = whole[3:5]
    assert generate_until_stop(subject, ["A frog"], (("no such text", stop), 12, 0.0, 1.0), 0) == [
        whole.partition(stop)[0]
    ]


def test_missing_library_is_reported_in_one_line(monkeypatch, save, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert (
        command(["evaluate", "--harness", "hellaswag", "--model", str(save("gpt2")), "--out", str(tmp_path / "r.json")])
        == 2
    )
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip install 'instructgpt[harness]'" in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--harness", "our_sst3"], "no task 'our_sst3'"),
        (["--include-path", "x"], "--include-path has no effect without --harness"),
        ([], "name an evaluation, or give --harness"),
    ],
)
def test_bad_input_is_reported_in_one_line(save, tmp_path, capsys, monkeypatch, words, complaint):
    if "--harness" in words:
        tasks = pytest.importorskip("lm_eval.tasks", reason=WITHOUT)
        whole = tasks.TaskManager
        monkeypatch.setattr(
            tasks, "TaskManager", lambda **how: whole(**{**how, "include_defaults": False})
        )  # saves half a minute
    assert command(["evaluate", *words, "--model", str(save("gpt2")), "--out", str(tmp_path / "r.json")]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
