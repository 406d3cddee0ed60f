"""The tasks of the alignment tax: prompts from every data layout, and scores by hand."""

from __future__ import annotations

import csv
import gzip
import json
from random import Random

import datasets
import pytest
import sacrebleu
from rouge_score import rouge_scorer

from instructgpt.cli import run_command as command
from instructgpt.errors import InputError
from instructgpt.evaluate.metrics.text_metrics import exact_match, max_over_references, quac_f1, squad2_metric, word_f1
from instructgpt.evaluate.tasks import cnn_dm, drop, few_shot, hellaswag, loading, quac, rte, squad, tldr, wmt15, wsc
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, ModelReply

BARE = EvalSettings(shots=0)


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def replied(question, said, model="m"):
    return question, ModelReply(model=model, id=question.id, condition=question.condition, said=said)


def values(rows):
    return {(row.metric, row.condition): row.value for row in rows}


SEA = {"title": "Sea", "context": "The sea is wide and blue."}
ASKED = [("What is wide?", ["The sea", "sea"]), ("What is deep?", []), ("What colour has it?", ["blue"])]


def test_squad_prompt_has_earlier_questions_and_answers(tmp_path):
    rows = [SEA | {"id": f"{i}", "question": q, "answers": a} for i, (q, a) in enumerate(ASKED)]
    last = squad.load(save(tmp_path / "a.jsonl", rows), BARE)[2]
    assert last.text == (
        "Answer each question using information in the preceding background paragraph. "
        "If there is not enough information provided, answer with “Not in background.”\n\n"
        "Title: Sea\n\nBackground: The sea is wide and blue.\n\n"
        "Q: What is wide?\n\nA: The sea\n\nQ: What is deep?\n\nA: Not in background.\n\nQ: What colour has it?\n\nA:"
    )


def test_squad_layouts_give_the_same_questions(tmp_path):
    flat = [SEA | {"id": f"{i}", "question": q, "answers": a} for i, (q, a) in enumerate(ASKED)]
    expected = squad.load(save(tmp_path / "flat.jsonl", flat), BARE)
    qas = [
        {"id": f"{i}", "question": q, "answers": [{"text": t, "answer_start": 0} for t in a]}
        for i, (q, a) in enumerate(ASKED)
    ]
    official = {"version": "v2.0", "data": [{"title": "Sea", "paragraphs": [{"context": SEA["context"], "qas": qas}]}]}
    (tmp_path / "dev-v2.0.json").write_text(json.dumps(official, indent=1))
    with gzip.open(tmp_path / "dev.json.gz", "wt") as file:
        json.dump(official, file)
    hub = [row | {"answers": {"text": row["answers"], "answer_start": [0] * len(row["answers"])}} for row in flat]
    features = datasets.Features(
        {name: datasets.Value("string") for name in ("title", "context", "id", "question")}
        | {
            "answers": {
                "text": datasets.List(datasets.Value("string")),
                "answer_start": datasets.List(datasets.Value("int32")),
            }
        }
    )
    saved = datasets.Dataset.from_list(hub, features=features)
    datasets.DatasetDict(validation=saved).save_to_disk(str(tmp_path / "hub"))
    saved.to_parquet(str(tmp_path / "hub.parquet"))
    with (tmp_path / "flat.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, flat[0])
        writer.writeheader()
        writer.writerows(row | {"answers": "|".join(row["answers"])} for row in flat)
    for name in ("dev-v2.0.json", "dev.json.gz", "hub", "hub.parquet", "flat.csv"):
        assert squad.load(tmp_path / name, BARE) == expected, name


def test_squad_paper_and_official_scores_differ_on_unanswerable():
    """For the reply `background` the paper matches one of the words `Not in background.`; SQuAD's script wants none."""
    there = EvalQuestion("1", "zero_shot", "", target={"answers": ["The sea", "sea"], "context": "a"})
    nothing = EvalQuestion("2", "zero_shot", "", target={"answers": ["Not in background."], "context": "b"})
    rows = values(squad.measure([replied(there, "the wide sea"), replied(nothing, "background")], BARE))
    assert rows["f1", "zero_shot/answerable"] == pytest.approx(
        2 / 3
    )  # one shared word of two predicted and one expected
    assert rows["f1", "zero_shot/unanswerable"] == pytest.approx(1 / 2)
    assert rows["official_f1", "zero_shot/unanswerable"] == 0.0
    assert rows["official_f1", "zero_shot"] == pytest.approx(1 / 3)
    rows = values(squad.measure([replied(there, "Not in background"), replied(nothing, "not in background")], BARE))
    assert (rows["exact_match", "zero_shot"], rows["official_exact_match", "zero_shot"]) == (0.5, 0.5)
    assert (rows["f1", "zero_shot/answerable"], rows["official_f1", "zero_shot/unanswerable"]) == (0.0, 1.0)


def squad_script(said, golds):
    """SQuAD 2.0's rules by slow definitions: characters one by one, words counted in a shrinking list."""

    def normal(text):
        kept = "".join(letter for letter in text.lower() if letter not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    scores = []
    for gold in [gold for gold in golds if normal(gold)] or [""]:
        mine, right = normal(said), normal(gold)
        left, shared = list(right), 0
        for word in mine:
            if word in left:
                left.remove(word)
                shared += 1
        if not mine or not right:
            f1 = float(mine == right)
        else:
            f1 = (
                0.0
                if not shared
                else 2 * (shared / len(mine)) * (shared / len(right)) / (shared / len(mine) + shared / len(right))
            )
        scores.append((float(mine == right), f1))
    return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def test_squad_scores_match_the_official_script():
    rng = Random(1)
    words = ["the", "The", "sea,", "sea", "wide", "a", "U.S.", "us", "12", "—", "an", "it's"]
    for _ in range(2000):
        said = " ".join(rng.choice(words) for _ in range(rng.randint(0, 5)))
        golds = [" ".join(rng.choice(words) for _ in range(rng.randint(1, 4))) for _ in range(rng.randint(0, 3))]
        exact, f1 = squad_script(said, golds)
        shown = golds or ["Not in background."]
        assert squad2_metric(exact_match, "Not in background.")(said, shown) == exact
        assert squad2_metric(word_f1, "Not in background.")(said, shown) == pytest.approx(f1)
        if any(squad_script("", [gold]) != (1.0, 1.0) for gold in golds):
            assert max_over_references(word_f1)(said, golds) == pytest.approx(
                max(squad_script(said, [gold])[1] for gold in golds)
            )


DROPPED = {
    "passage": "Smith threw for 12 yards, Jones for 7.",
    "qa_pairs": [
        {
            "question": "How many yards did Smith throw?",
            "query_id": "q1",
            "answer": {"number": "12", "date": {"day": "", "month": "", "year": ""}, "spans": []},
            "validated_answers": [{"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": ["12 yards"]}],
        },
        {
            "question": "Who threw?",
            "query_id": "q2",
            "answer": {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": ["Smith", "Jones"]},
            "validated_answers": [],
        },
    ],
}


def test_drop_official_layout_and_scores(tmp_path):
    (tmp_path / "drop.json").write_text(
        json.dumps({"nfl_1": DROPPED, "nfl_2": DROPPED | {"passage": "Another."}}, indent=2)
    )
    questions = drop.load(tmp_path / "drop.json", BARE)
    assert [question.target["answers"] for question in questions[:2]] == [
        [("12",), ("12 yards",)],
        [("Smith", "Jones")],
    ]
    assert questions[1].text.endswith("Passage: Smith threw for 12 yards, Jones for 7.\nQuestion: Who threw?\nAnswer:")
    shown = drop.load(tmp_path / "drop.json", EvalSettings(shots=1))[3]
    assert shown.condition == "few_shot"
    assert (
        "Passage: Another.\nQuestion: How many yards did Smith throw?\nAnswer: 12\n"
        "Question: Who threw?\nAnswer: Smith, Jones\n\n" in shown.text
    )
    rows = values(drop.measure([replied(questions[0], "12 yards"), replied(questions[1], "Smith")], BARE))
    assert rows["exact_match", "zero_shot"] == 0.5
    assert rows["f1", "zero_shot"] == 0.75  # 1, and a half of two spans


def test_quac_dialogues_and_scores(tmp_path):
    qas = [
        {
            "id": "d_0",
            "question": "Is it wide?",
            "answers": [{"text": "wide sea"}, {"text": "CANNOTANSWER"}, {"text": "the sea"}],
        },
        {"id": "d_1", "question": "Is it deep?", "answers": [{"text": "CANNOTANSWER"}, {"text": "deep"}]},
    ]
    paragraph = {"id": "d", "context": "The wide sea. CANNOTANSWER", "qas": qas}
    (tmp_path / "val.json").write_text(
        json.dumps({"data": [{"title": "Sea", "paragraphs": [paragraph, paragraph | {"id": "e"}]}]})
    )
    questions = quac.load(tmp_path / "val.json", BARE)
    assert len(questions) == 4  # the same paragraph in two dialogues: neither sees the other's questions
    assert questions[3].text.count("Is it deep?") == 1
    assert questions[1].text.endswith(
        "TITLE: Sea\n\nPARAGRAPH: The wide sea.\n\nQ: Is it wide?\n\nA: wide sea\n\nQ: Is it deep?\n\nA:"
    )
    whole = {"dialogue_id": "d", "wikipedia_page_title": "Sea", "context": paragraph["context"]}
    texts = [[one["text"] for one in each["answers"]] for each in qas]
    hub = [whole | {"questions": [each["question"] for each in qas], "answers": {"texts": texts}}]
    assert [each.text for each in quac.load(save(tmp_path / "hub.jsonl", hub), BARE)] == [
        each.text for each in questions[:2]
    ]


@pytest.mark.parametrize(
    ("said", "references", "f1"),
    [
        (
            "wide sea",
            ["wide sea", "sea"],
            (2 / 3 + 1) / 2,
        ),  # without the first only `sea` is left: 2/3; without the second: 1
        (
            "wide sea",
            ["wide sea", "I don't know.", "sea"],
            (2 / 3 + 1) / 2,
        ),  # a minority of "no answer" is dropped
        ("I don't know", ["I don't know.", "deep"], 1.0),  # half are "no answer"
        ("deep", ["I don't know.", "deep"], 0.0),
        ("deep", ["deep"], 1.0),
    ],
)
def test_quac_leaves_each_reference_out_once(said, references, f1):
    assert quac_f1(said, references, "I don't know.") == pytest.approx(f1)


ENDINGS = {
    "activity_label": "Swimming",
    "ctx_a": "A frog [header] looks.",
    "ctx_b": "it",
    "endings": ["swims.", "flies [title] up."],
    "label": "1",
}


def test_hellaswag_questions_and_accuracy(tmp_path):
    rows = [ENDINGS, ENDINGS | {"ctx_a": "A cow stands.", "label": 0}]
    zero, few, *_ = hellaswag.load(save(tmp_path / "a.jsonl", rows), EvalSettings(shots=1))
    start = "Complete each independent paragraph using common-sense reasoning.\n\n"
    assert zero.text == start + "Swimming: A frog looks. It"
    assert few.text == start + "Swimming: A cow stands. It swims.\n\nSwimming: A frog looks. It"
    assert zero.choices == (" swims.", " flies. up.")
    reply = ModelReply(model="m", id="0", condition="zero_shot", logp=(-4.0, -4.9), tokens=(2, 4))
    measured = values(hellaswag.measure([(zero, reply)], BARE))  # -2 and -1.2 a token; -4/6 and -4.9/10 a character
    assert measured == {
        ("accuracy", "zero_shot"): 1.0,
        ("accuracy_total", "zero_shot"): 0.0,
        ("accuracy_characters", "zero_shot"): 1.0,
    }


def test_examples_come_from_the_training_split(tmp_path):
    train = datasets.Dataset.from_list(
        [{"sentence1": f"Frog {i}.", "sentence2": "It croaks.", "label": 0} for i in range(20)]
    )
    valid = datasets.Dataset.from_list([{"sentence1": "Sea.", "sentence2": "It is wide.", "label": 1}])
    datasets.DatasetDict(train=train, validation=valid).save_to_disk(str(tmp_path / "rte"))
    zero, few = rte.load(tmp_path / "rte", EvalSettings())
    assert few.text.count("Passage: Frog") == 15
    assert zero.text.count("Passage:") == 1
    assert few.target == {"label": 1}


def test_wmt15_is_scored_as_one_corpus(tmp_path):
    english = ["the sea is wide and deep", "a frog says croak to a cow", "the sky is blue as the sea"]
    rows = [{"translation": {"fr": f"phrase {i}", "en": text}} for i, text in enumerate(english)]
    questions = wmt15.load(save(tmp_path / "a.jsonl", rows), EvalSettings(shots=2))
    assert (
        questions[0].text == "Translate the following sentences from French into English.\n\nFrench: phrase 0\nEnglish:"
    )
    assert questions[1].text.count("French:") == 3
    (tmp_path / "a.tsv").write_text("fr\ten\n" + "".join(f"phrase {i}\t{text}\n" for i, text in enumerate(english)))
    assert wmt15.load(tmp_path / "a.tsv", EvalSettings(shots=2)) == questions
    said = ["the sea is wide", "a frog says croak to me", "the sky is blue"]
    rows = wmt15.measure([replied(question, text) for question, text in zip(questions[::2], said, strict=True)], BARE)
    assert rows[0].value == sacrebleu.corpus_bleu(said, [english]).score


@pytest.mark.parametrize(
    ("task", "columns"),
    [(cnn_dm, ("article", "highlights")), (tldr, ("content", "summary")), (tldr, ("prompt", "label"))],
)
def test_summary_prompts_and_scores(tmp_path, task, columns):
    rows = [{columns[0]: "The sea is wide.\n\nTL;DR:", columns[1]: "Seas are wide"}]
    (question,) = task.load(save(tmp_path / "a.jsonl", rows), BARE)
    assert (question.text, question.tail) == ("The sea is wide.", "\n\nTL;DR:")
    (row,) = task.measure([replied(question, "The wide sea")], BARE)
    theirs = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True).score("Seas are wide", "The wide sea")
    assert row.value == theirs["rougeL"].fmeasure


WINOGRAD = {
    "text": "The frog saw the cow because it croaked.",
    "label": True,
    "target": {"span1_text": "The frog", "span1_index": 0, "span2_text": "it", "span2_index": 6},
}


def test_wsc_prompt_and_noun_matching(tmp_path):
    other = WINOGRAD | {"label": False, "target": WINOGRAD["target"] | {"span1_text": "the cow"}}
    rows = [WINOGRAD, other, WINOGRAD | {"text": "The cow saw the frog because it mooed."}]
    questions = wsc.load(save(tmp_path / "a.jsonl", rows), EvalSettings(shots=1))
    passage = "Passage: The frog saw the cow because *it* croaked."
    assert (
        passage + '\nQuestion: In the passage above, what does the pronoun "*it*" refer to?\nAnswer:'
        in questions[0].text
    )
    assert "Answer: the cow" not in "".join(question.text for question in questions)  # examples have the label true
    zero = [question for question in questions if question.condition == "zero_shot"]
    asked = [replied(each, said) for each, said in zip(zero, ["frog", "the frog.", ""], strict=True)]
    assert values(wsc.measure(asked, BARE)) == {("accuracy", "zero_shot"): pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("task", "row", "complaint"),
    [
        (squad, {"question": "x", "answers": []}, "column 'context' is missing"),
        (drop, {"passage": "x"}, "a.jsonl:1: column 'question' is missing"),
        (drop, {"passage": "x", "question": "y"}, "a.jsonl:1: the question has no answer"),
        (quac, {"context": "x", "answers": []}, "column 'question' is missing"),
        (hellaswag, ENDINGS | {"label": 7}, "a.jsonl:1: the label is 7; expected the index of one of 2"),
        (wmt15, {"fr": "x"}, "a.jsonl:1: 'fr' or 'en' is missing"),
        (cnn_dm, {"article": "x"}, "column 'highlights' is missing"),
        (wsc, {"text": "x", "label": True}, "column 'span1_text' is missing"),
        (squad, {"data": [{"title": "x"}]}, "expected articles with 'paragraphs'"),
    ],
)
def test_invalid_row_is_reported_in_one_line(tmp_path, task, row, complaint):
    with pytest.raises(InputError) as found:
        task.load(save(tmp_path / "a.jsonl", [row]), BARE)
    assert complaint in str(found.value)
    assert "\n" not in str(found.value)


def test_too_few_example_rows_is_an_error(tmp_path):
    with pytest.raises(InputError, match="give --shots 0"):
        hellaswag.load(save(tmp_path / "a.jsonl", [ENDINGS]), EvalSettings())
    with pytest.raises(InputError, match="found 0; give --shots 0"):
        squad.load(save(tmp_path / "b.jsonl", [SEA | {"question": "x", "answers": []}]), EvalSettings())


def test_missing_or_empty_data_is_an_error(tmp_path):
    with pytest.raises(InputError, match="the data set does not load"):
        loading.load_task_rows(tmp_path / "nothing")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="the file has no rows"):
        loading.load_task_rows(tmp_path / "empty.jsonl")


def test_list_columns_are_parsed():
    assert loading.as_list("a | b") == ["a", "b"]
    assert loading.as_list('["a", "b|c"]') == ["a", "b|c"]
    assert loading.as_list({"text": ["a"]}) == ["a"]
    assert loading.as_list("") == []


def test_few_shot_examples_exclude_the_row_itself():
    rows = [{"n": i} for i in range(6)]
    for number, condition, row, examples in few_shot.iter_shot_conditions(rows, EvalSettings(seed=3), shots=5):
        if condition == "few_shot":
            assert sorted(example["n"] for example in examples) == [i for i in range(6) if i != number]
            assert row not in examples


def test_precomputed_completions_of_every_task(tmp_path):
    shared = {"model_type": "m", "prompt_type": "few-shot"}
    files = {
        "drop": ([("12|12 yards", "12 yards\nmore"), ("7", "12")], {"f1": 0.5, "exact_match": 0.5}),
        "quac": ([("wide sea|sea", "wide sea"), ("I don't know.", "I don't know")], {"f1": (5 / 6 + 1) / 2}),
        "cnn_dm": ([("the sea is wide", "the sea"), ("a frog", "a frog")], {"rouge_l": (2 / 3 + 1) / 2}),
    }
    for name, (samples, expected) in files.items():
        rows = [
            shared | {"index": i, "context": f"c{i}", "ref_text": right, "sample": said}
            for i, (right, said) in enumerate(samples)
        ]
        file = save(tmp_path / f"{name}.jsonl", rows)
        assert command(["evaluate", name, "--completions", str(file), "--out", str(tmp_path / "r.json")]) == 0
        rows = json.loads((tmp_path / "r.json").read_text())
        found = {row["metric"]: row["value"] for row in rows if row["evaluation"] == name}
        assert found == pytest.approx(expected), name
