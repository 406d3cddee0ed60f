"""From files to tasks: merged, excluded and counted records, overlap policies."""

from __future__ import annotations

import random

import pytest
from pydantic import ValidationError
from sqlalchemy import select
from support.site import add_person, make_site
from support.tasks import PLAIN, prompt_batch, rank_batch

from instructgpt.errors import InputError
from instructgpt.label.db.models import Batch, CompletionRow, GoldAnswer, PromptRow, Task, TaskCompletion
from instructgpt.label.tasks.assignments import claim_next_task
from instructgpt.label.tasks.batches import (
    UNLIMITED_OVERLAP,
    OverlapPolicy,
    create_batch_with_tasks,
    get_batch_progress,
    mark_batch_closed,
    sample_exact_share,
    withdraw_prompt,
)
from instructgpt.label.tasks.ingest import reveals_model
from instructgpt.records import Completion as Answer
from instructgpt.records import Message
from instructgpt.records import Prompt as Asked


@pytest.fixture
def small(tmp_path):
    """A site on SQLite."""
    return make_site(tmp_path)


def completions_of(prompt, *texts, model=None):
    """One completion a text, from models a, b, c …"""
    return [
        Answer(prompt=prompt, completion=text, model=model or chr(ord("a") + number))
        for number, text in enumerate(texts)
    ]


def create_batch(site, prompts, completions, kind="rank", name="x", policy=PLAIN, **options):
    """(intake, {prompt text: [(completion text, models)]}) of a batch."""
    with site.database.write() as db:
        batch = create_batch_with_tasks(
            db, name, kind, options.pop("purpose", "training"), prompts, completions, policy, **options
        )
        found = {}
        for task in db.scalars(select(Task).where(Task.batch_id == batch.id)):
            rows = db.scalars(
                select(TaskCompletion).where(TaskCompletion.task_id == task.id).order_by(TaskCompletion.position)
            ).all()
            found[db.get(PromptRow, task.prompt_id).text] = [
                (db.get(CompletionRow, row.completion_id).text, row.models) for row in rows
            ]
        return {name: count for name, count in batch.intake.items() if count}, found


def test_identical_completions_are_merged(site):
    offered = completions_of("p", "yes", "no", " yes\n", "Yes") + completions_of("q", "same", "same ")
    intake, found = create_batch(site, [Asked(prompt="p"), Asked(prompt="q")], offered)
    assert found == {"p": [("yes", ["a", "c"]), ("no", ["b"]), ("Yes", ["d"])]}
    assert intake == {"prompts": 2, "completions": 6, "tasks": 1, "merged": 2, "too_few": 1}


def test_prompts_default_to_those_of_the_completions(small):
    _, found = create_batch(small, [], completions_of("p", "1", "2") + completions_of("q", "1", "2"))
    assert set(found) == {"p", "q"}


def test_excluded_records_are_counted(small):
    prompts = [Asked(prompt="p"), Asked(prompt="p"), Asked(prompt="lonely")]
    intake, found = create_batch(
        small, prompts, completions_of("p", "1", "2") + completions_of("elsewhere", "1", "2", "3")
    )
    assert set(found) == {"p"}
    assert intake == {"prompts": 3, "completions": 5, "tasks": 1, "same_prompt": 1, "without_prompt": 3, "too_few": 1}


@pytest.mark.parametrize(
    ("k", "sizes", "beyond", "too_few"), [(None, [2, 4, 9], 3, 0), ((4, 6), [4, 6], 6, 1), ((2, 3), [2, 3, 3], 10, 0)]
)
def test_k_limits_the_completions_of_a_task(small, k, sizes, beyond, too_few):
    offered = [each for number in (2, 4, 12) for each in completions_of(f"p{number}", *map(str, range(number)))]
    intake, found = create_batch(small, [], offered, policy=PLAIN.model_copy(update={"k": k}))
    assert sorted(map(len, found.values())) == sizes
    assert (intake.get("beyond_k", 0), intake.get("too_few", 0)) == (beyond, too_few)


def test_the_baseline_is_in_every_task(small):
    offered = (
        completions_of("p", *map(str, range(9)))
        + completions_of("q", "1", "2")[:1]
        + completions_of("q", "3", "4", "5", model="z")
    )
    policy = PLAIN.model_copy(update={"k": (2, 3)})
    for seed in range(8):
        _, found = create_batch(
            small,
            [],
            offered,
            purpose="evaluation",
            name=f"{seed}",
            baseline="c",
            policy=policy.model_copy(update={"seed": seed}),
        )
        assert set(found) == {"p"}
        assert "c" in [model for _, models in found["p"] for model in models]


def test_a_conversation_differs_from_its_text_as_a_prompt(small):
    talk = (
        Message(role="user", content="a"),
        Message(role="assistant", content="b"),
        Message(role="user", content="c"),
    )
    create_batch(small, [Asked(messages=talk), Asked(prompt="a\n\nb\n\nc")], (), kind="demonstrate")
    with small.database.read() as db:
        rows = db.scalars(select(PromptRow).order_by(PromptRow.messages.is_(None))).all()
    assert [row.text for row in rows] == ["User: a\n\nAssistant: b\n\nUser: c", "a\n\nb\n\nc"]
    assert rows[0].text_hash != rows[1].text_hash
    assert {tuple(message["role"] for message in row.messages or ()) for row in rows} == {
        ("user", "assistant", "user"),
        (),
    }


def test_existing_rows_are_reused(small):
    create_batch(small, [Asked(prompt="p", id="1", user="u")], completions_of("p", "1", "2"), name="first")
    create_batch(small, [Asked(prompt="p", user="u")], completions_of("p", "2", "1"), name="second")
    create_batch(small, [Asked(prompt="p", user="v")], completions_of("p", "1", "2"), name="third")
    with small.database.read() as db:
        assert [row.user for row in db.scalars(select(PromptRow).order_by(PromptRow.user))] == ["u", "v"], (
            "two users stay two"
        )
        assert len(db.scalars(select(CompletionRow)).all()) == 2 + 2 + 2, "by model: a said 1 and then 2"
        assert len(db.scalars(select(Task)).all()) == 3


def test_unstorable_characters_are_replaced(site):
    offered = completions_of("p\x00", "a\x00b", "c")
    offered[1] = offered[1].model_copy(update={"completion": "c\ud800"})
    intake, found = create_batch(site, [Asked(prompt="p\x00")], offered)
    assert found == {"p\ufffd": [("a\ufffdb", ["a"]), ("c\ufffd", ["b"])]}
    assert intake["mended"] == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guess"}, "unknown kind of task 'guess'"),
        ({"purpose": "fun"}, "unknown purpose 'fun'"),
        ({"screening": "maths"}, "unknown screening part"),
        ({"cohort": "heldout"}, "held-out labelers never get training tasks"),
        ({"name": " "}, "needs a name"),
        ({"name": "taken"}, "already a batch 'taken'"),
        ({"prompts": [Asked(prompt="other text", id="1")]}, "prompt id '1' already belongs to another text"),
        ({"completions": completions_of("p", "alone")}, "no task is left .*too few: 1"),
        ({"prompts": [], "completions": []}, "no task is left .no records"),
    ],
)
def test_invalid_batches_are_refused_and_change_nothing(small, change, message):
    create_batch(small, [Asked(prompt="p", id="1")], completions_of("p", "1", "2"), name="taken")

    def counts():
        with small.database.read() as db:
            return [len(db.scalars(select(table)).all()) for table in (Batch, Task, PromptRow, CompletionRow)]

    before = counts()
    options = {"prompts": [Asked(prompt="p")], "completions": completions_of("p", "1", "2")} | change
    with pytest.raises(InputError, match=message):
        create_batch(small, options.pop("prompts"), options.pop("completions"), **options)
    assert counts() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"cohort_overlap": 1, "overlap": 2},
        {"k": (1, 4)},
        {"k": (5, 4)},
        {"k": (4, 10)},
        {"gold_share": 1.5},
        {"share": 1},
    ],
)
def test_invalid_policies_are_refused(wrong):
    with pytest.raises(ValidationError):
        OverlapPolicy(**wrong)


@pytest.mark.parametrize("tasks", [1, 9, 250])
def test_shares_are_exact(small, tasks):
    with small.database.write() as db:
        batch = rank_batch(
            db, tasks, k=2, policy=OverlapPolicy(cohort_share=0.12, cohort_overlap=3, repeat_share=0.02, seed=5)
        )
        rows = db.scalars(select(Task).order_by(Task.position)).all()
        assert [row.position for row in rows] == list(range(tasks))
        assert sorted(row.overlap for row in rows) == [1] * (tasks - round(0.12 * tasks)) + [3] * round(0.12 * tasks)
        assert sum(row.repeat for row in rows) == round(0.02 * tasks)
        assert get_batch_progress(db, batch).wanted == tasks + 2 * round(0.12 * tasks)
        prompts = [row.prompt_id for row in rows]
    assert tasks < 9 or prompts != sorted(prompts), "not the order of the file"


def test_halves_are_rounded_up():
    assert [len(sample_exact_share(range(n), 0.5, random.Random(0))) for n in (1, 2, 3)] == [1, 1, 2]


def test_gold_answers_are_stored_by_completion(small):
    gold = {"p": {"1": 2, " 2": 1}, "7": {"x": 1, "y": 1}, "r": {"1": 1}, "nowhere": {"1": 1}}
    prompts = [Asked(prompt="p"), Asked(prompt="q", id="7"), Asked(prompt="r"), Asked(prompt="s")]
    offered = [
        *completions_of("p", "1", "2"),
        *completions_of("q", "x", "y"),
        *completions_of("r", "1", "2"),
        *completions_of("s", "1", "2"),
    ]
    intake, _ = create_batch(small, prompts, offered, policy=OverlapPolicy(), gold=gold)
    assert intake["unused_gold"] == 2, "one is nobody's, one leaves a completion out"
    with small.database.read() as db:
        found = {}
        for task in db.scalars(select(Task)):
            answer = db.get(GoldAnswer, task.id)
            assert task.gold == (answer is not None) == (task.overlap == UNLIMITED_OVERLAP)
            if answer:
                found[db.get(PromptRow, task.prompt_id).text] = {
                    db.get(CompletionRow, each).text: rank for each, rank in answer.answer.items()
                }
    assert found == {"p": {"1": 2, "2": 1}, "q": {"x": 1, "y": 1}}


def test_withdrawn_prompts_enter_no_batch(small):
    ada = add_person(small)
    with small.database.write() as db:
        batch = prompt_batch(db, tasks=2)
        prompt = db.scalars(select(PromptRow).where(PromptRow.text == "batch prompt 0")).one()
        assert withdraw_prompt(db, prompt, 5) == 1
        assert withdraw_prompt(db, prompt, 6) == 0
        assert prompt.withdrawn_at == 5
        assert get_batch_progress(db, batch).tasks == 1
    intake, found = create_batch(
        small, [Asked(prompt=f"batch prompt {number}") for number in range(2)], (), kind="demonstrate", name="again"
    )
    assert (intake["withdrawn_prompts"], set(found)) == (1, {"batch prompt 1"})
    with small.database.write() as db:
        assert (
            db.get(PromptRow, db.get(Task, claim_next_task(db, small.settings, ada, None, 1).task_id).prompt_id).text
            == "batch prompt 1"
        )


def test_closed_batches_assign_no_task(small):
    ada = add_person(small)
    with small.database.write() as db:
        batch = prompt_batch(db)
        mark_batch_closed(db, batch, 7)
        assert claim_next_task(db, small.settings, ada, None, 8) is None
        assert (batch.state, batch.closed_at) == ("closed", 7)


@pytest.mark.parametrize(
    ("text", "models", "found"),
    [
        ("I'm ChatGPT, how can I help?", (), True),
        ("As an AI language model developed by OpenAI, I cannot.", (), True),
        ("i am a Llama 3 model", (), True),
        ("I’m Claude.", (), True),
        ("저는 챗GPT입니다.", (), True),
        ("The answer of sft_175b is above.", ("runs/demo/sft_175b",), True),
        ("The base of a triangle", ("base", "runs/sft"), False),
        ("A llama is an animal; Google is a search engine.", (), False),
        ("Claude Monet painted water lilies.", (), False),
        ("I am a gemini, born in June", (), True),
        ("my-model-2x is not it", ("model-2",), False),
    ],
)
def test_texts_that_reveal_their_model_are_found(text, models, found):
    assert reveals_model(text, models) == found


def test_completions_that_reveal_their_model_are_marked_and_counted(small):
    intake, _ = create_batch(small, [], completions_of("p", "Hello", "I am ChatGPT"))
    assert intake["name_themselves"] == 1
    with small.database.read() as db:
        assert [row.text for row in db.scalars(select(CompletionRow).where(CompletionRow.names_itself))] == [
            "I am ChatGPT"
        ]
