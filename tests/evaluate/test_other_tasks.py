"""Tasks outside the paper, against lm-evaluation-harness's versions on the same model and rows."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from instructgpt.cli import run_command as command
from instructgpt.evaluate.tasks import EVAL_TASKS, gsm8k, winogrande
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, ModelReply

ARC = [
    {
        "id": f"{i}",
        "question": f"What does frog {i} say?",
        "choices": {"text": ["croak", "moo moo", "baa", "it is blue"], "label": ["A", "B", "C", "D"]},
        "answerKey": "ABCD"[i % 4],
    }
    for i in range(12)
]
GOALS = [
    {"goal": f"Reach the sea {i}.", "sol1": "swim and swim", "sol2": f"fly {i}", "label": i % 2} for i in range(12)
]
NOUNS = [
    {
        "sentence": f"The frog saw the ant {i} so the _ had swum away.",
        "option1": "frog",
        "option2": "ant",
        "answer": f"{i % 2 + 1}",
    }
    for i in range(12)
]
AS_HERE = {
    "arc_easy": [
        {"query": f"Question: {r['question']}", "choices": r["choices"]["text"], "gold": "ABCD".index(r["answerKey"])}
        for r in ARC
    ],
    "piqa": [{"query": f"Question: {r['goal']}", "choices": [r["sol1"], r["sol2"]], "gold": r["label"]} for r in GOALS],
    "winogrande": [
        {"contexts": [r["sentence"].partition(" _")[0] + f" {r[each]}" for each in ("option1", "option2")]}
        | {"continuation": r["sentence"].partition("_ ")[2], "gold": int(r["answer"]) - 1}
        for r in NOUNS
    ],
}
AS_ON_THE_HUB = {"arc_easy": ARC, "piqa": GOALS, "winogrande": NOUNS}
SHIPPED = {"arc_easy": "arc/arc_easy.yaml", "piqa": "piqa/piqa.yaml", "winogrande": "winogrande/default.yaml"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    """Write a file per task in the harness's layout and in the hub's."""
    for name, rows in AS_HERE.items():
        write(tmp_path / f"{name}.jsonl", rows)
        write(tmp_path / f"{name}-hub.jsonl", AS_ON_THE_HUB[name])
    return tmp_path


def test_scores_match_the_harness(folder, save):
    lm_eval = pytest.importorskip(
        "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'instructgpt[harness]'"
    )
    shipped = Path(lm_eval.__file__).parent / "tasks"
    for name, place in SHIPPED.items():
        data = {
            "dataset_path": "json",
            "dataset_name": None,
            "training_split": None,
            "fewshot_split": None,
            "test_split": None,
        }
        data |= {"dataset_kwargs": {"data_files": {"validation": str(folder / f"{name}-hub.jsonl")}}}
        (folder / f"{name}.yaml").write_text(json.dumps({"include": str(shipped / place), "task": name} | data))
    own = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=str(save("gpt2")), device="cpu", dtype="float32", batch_size=4
    )
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(model=own, tasks=list(SHIPPED), task_manager=manager, bootstrap_iters=0)["results"]

    line = [
        "evaluate",
        *SHIPPED,
        "--model",
        f"m={save('gpt2')}",
        "--data",
        str(folder),
        "--out",
        str(folder / "results.json"),
    ]
    assert command(line) == 0
    ours = {
        (row["evaluation"], row["metric"]): row["value"] for row in json.loads((folder / "results.json").read_text())
    }
    for name in ("arc_easy", "piqa"):
        assert ours[name, "accuracy_total"] == found[name]["acc,none"]
        assert ours[name, "accuracy_characters"] == found[name]["acc_norm,none"]
    assert ours["winogrande", "accuracy"] == found["winogrande"]["acc,none"]


@pytest.mark.parametrize("name", AS_HERE)
def test_both_layouts_give_the_same_questions(folder, name):
    read = EVAL_TASKS[name].load
    assert read(folder / f"{name}.jsonl", EvalSettings(shots=2)) == read(
        folder / f"{name}-hub.jsonl", EvalSettings(shots=2)
    )
    assert {question.condition for question in read(folder / f"{name}.jsonl", EvalSettings())} == {"zero_shot"}


def test_examples_include_their_answers(folder):
    few = [
        each
        for each in winogrande.load(folder / "winogrande.jsonl", EvalSettings(shots=2))
        if each.condition == "few_shot"
    ]
    assert all(question.text.count("had swum away.\n\n") == 2 for question in few)
    arc = [
        each
        for each in EVAL_TASKS["arc_easy"].load(folder / "arc_easy.jsonl", EvalSettings(shots=1))
        if each.condition == "few_shot"
    ]
    assert all(question.text.count("\nAnswer:") == 2 and question.text.endswith("\nAnswer:") for question in arc)


def test_winogrande_picks_the_more_likely_noun():
    def asked(number, right, first, second):
        for place, logp in enumerate((first, second)):
            question = EvalQuestion(
                f"{number}/{place}",
                "zero_shot",
                "x",
                (" y",),
                target={"right": right, "place": place, "sentence": number},
            )
            yield question, ModelReply(model="m", id=question.id, condition="zero_shot", logp=(logp,), tokens=(1,))

    pairs = [*asked(1, 0, -1.0, -2.0), *asked(2, 1, -1.0, -2.0), *asked(3, 1, -3.0, -2.0), *asked(4, 0, -1.0, -1.0)]
    (row,) = winogrande.measure(pairs, EvalSettings())
    assert (row.value, row.n) == (0.5, 4)


def test_gsm8k_numbers_are_extracted_as_in_the_harness():
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'instructgpt[harness]'")
    filters = importlib.import_module("lm_eval.filters.extraction")
    metric = importlib.import_module("lm_eval.api.metrics").exact_match_hf_evaluate
    strict = filters.RegexFilter(regex_pattern=r"#### (\-?[0-9\.\,]+)")
    flexible = filters.RegexFilter(group_select=-1, regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
    ignored = {
        "regexes_to_ignore": [",", r"\$", r"(?s).*#### ", r"\.$"],
        "ignore_case": True,
        "ignore_punctuation": False,
    }
    said = [
        "So 18.\n#### 18",
        "#### 1,200.",
        "It is $1,200.",
        "no number",
        "#### -5 or 7",
        "3 and 4",
        "#### x 9",
        "1.5",
        "####18",
        "..",
        "#### 12 #### 18",
    ]
    for text in said:
        for right in ("18", "1200", "-5", "4", "7", "1.5", "9"):
            for own, theirs in ((gsm8k.extract_marked_answer, strict), (gsm8k.extract_last_number, flexible)):
                ((found,),) = theirs.apply([[text]], [{}])
                expected = metric(predictions=[found], references=[f"words #### {right}"], **ignored)["exact_match"]
                assert (own(text) == right) == expected, (text, right)


@pytest.mark.parametrize(
    ("name", "row", "complaint"),
    [
        (
            "arc_easy",
            {"query": "q", "choices": ["a", "b"], "gold": 2},
            "rows.jsonl:1: the label is 2; expected the index of one of 2",
        ),
        ("piqa", {"goal": "q", "sol1": "a", "sol2": "b", "label": -1}, "rows.jsonl:1: the label is -1"),
        ("winogrande", {"contexts": ["a"], "continuation": "b", "gold": 0}, "rows.jsonl:1: 1 beginnings"),
        (
            "piqa",
            {"goal": "q", "sol1": "a", "label": 0},
            "rows.jsonl:1: column 'sol2' is missing (columns found: goal, sol1, label)",
        ),
        ("winogrande", {"contexts": ["a", "b"], "gold": 0}, "rows.jsonl:1: column 'continuation' is missing"),
        ("gsm8k", {"question": "q", "answer": "18"}, "rows.jsonl:1: the solution has no '#### '"),
    ],
)
def test_invalid_row_is_reported_in_one_line(tmp_path, save, capsys, name, row, complaint):
    file = write(tmp_path / "rows.jsonl", [row])
    assert (
        command(
            ["evaluate", name, "--model", str(save("gpt2")), "--data", str(file), "--out", str(tmp_path / "r.json")]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
