"""A site with work of every kind written straight into its tables, for tests of exports and archives."""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit, urlunsplit

import psycopg
from support.site import make_site

from instructgpt.label.context import Site
from instructgpt.label.db.models import (
    Assignment,
    Batch,
    CompletionRow,
    DemonstrationRow,
    Instructions,
    Person,
    PromptReview,
    PromptRow,
    RankingItem,
    RankingRow,
    Rating,
    Submission,
    Task,
    TaskCompletion,
)
from instructgpt.label.tasks.batches import OverlapPolicy

HOUR = 3_600_000


def add_batch(db, name: str, kind: str = "rank", purpose: str = "training", state: str = "closed", **more) -> Batch:
    batch = Batch(
        name=name,
        kind=kind,
        purpose=purpose,
        state=state,
        policy=OverlapPolicy(overlap=1).model_dump(mode="json"),
        intake={},
        **more,
    )
    db.add(batch)
    db.flush()
    return batch


def add_prompt(db, text: str, **more) -> PromptRow:
    prompt = PromptRow(text=text, text_hash=f"h-{text}", **more)
    db.add(prompt)
    db.flush()
    return prompt


def add_task(db, batch: Batch, prompt: PromptRow | None, texts: list[tuple[str, list[str]]] = (), **more) -> Task:
    """A task; `texts` are its completions with the models that gave each."""
    task = Task(batch_id=batch.id, kind=batch.kind, prompt_id=prompt and prompt.id, overlap=3, **more)
    db.add(task)
    db.flush()
    for position, (text, models) in enumerate(texts):
        completion = CompletionRow(
            prompt_id=prompt.id, text=text, text_hash=f"h-{text}", model=models[0], sampling={"temperature": 1.0}
        )
        db.add(completion)
        db.flush()
        db.add(TaskCompletion(task_id=task.id, completion_id=completion.id, position=position, models=models))
    db.flush()
    return task


def hand_in(
    db, task: Task, person: Person, at: int = HOUR, round: int = 0, instructions: str | None = None, **more
) -> Submission:
    """An assignment that was submitted; what was submitted is added by whoever calls."""
    held = Assignment(
        task_id=task.id,
        person_id=person.id,
        round=round,
        state="submitted",
        lease_until=at,
        shown=[],
        instructions_id=instructions,
    )
    db.add(held)
    db.flush()
    submission = Submission(
        assignment_id=held.id, version=1, key=f"k-{held.id}", kind=task.kind, active_ms=1500, created_at=at, **more
    )
    db.add(submission)
    db.flush()
    return submission


def rank(
    db, task: Task, person: Person, tiers: list[int], ratings: list[int | None] = (), labels: list[dict] = (), **more
) -> Submission:
    """A ranking of a task's completions in their order; `tiers` as they were put, ranks follow."""
    submission = hand_in(db, task, person, **more)
    dense = sorted(set(tiers))
    db.add(RankingRow(submission_id=submission.id, none_acceptable=False, confidence=7))
    places = db.query(TaskCompletion).filter_by(task_id=task.id).order_by(TaskCompletion.position).all()
    for index, place in enumerate(places):
        db.add(
            RankingItem(
                submission_id=submission.id,
                completion_id=place.completion_id,
                tier=tiers[index],
                rank=dense.index(tiers[index]) + 1,
                shown=len(places) - 1 - index,
            )
        )
        if ratings or labels:
            db.add(
                Rating(
                    submission_id=submission.id,
                    completion_id=place.completion_id,
                    rating=ratings[index] if ratings else None,
                    labels=labels[index] if labels else {},
                )
            )
    db.flush()
    return submission


def fill(site: Site, people: dict[str, Person]) -> dict[str, Submission]:
    """Write work of every kind. `people`: ada and bob train, hal is held out. -> submissions by a name."""
    labelers = [people[name] for name in ("ada", "bob", "hal")]
    with site.database.write() as db:
        rankings, prompt = _fill_rankings(db, *labelers)
        return rankings | _fill_writing(db, prompt, *labelers)


def _fill_rankings(db, ada: Person, bob: Person, hal: Person) -> tuple[dict[str, Submission], PromptRow]:
    """Write rankings with ties, repeats, an invalid one, a withdrawn prompt. -> them, and a prompt to share."""
    made: dict[str, Submission] = {}
    rules = Instructions(purpose="training", version=1, body="Be helpful.", quiz={})
    db.add(rules)
    db.flush()
    ranked, measured = add_batch(db, "ranked"), add_batch(db, "measured", purpose="evaluation")
    capital = add_prompt(db, "The capital?", external_id="p-1", user="u-1", use_case="open_qa")
    task = add_task(db, ranked, capital, [("Paris", ["sft", "ppo"]), ("Rome", ["base"]), ("Oslo\u2028?", ["ptx"])])
    told = [{"opinion": False, "hallucination": None}, {"opinion": True}, {}]
    made["ada"] = rank(db, task, ada, [2, 4, 2], [7, 2, 6], told, instructions=rules.id, note="close")
    made["bob"] = rank(db, task, bob, [1, 2, 3])
    made["hal"] = rank(db, task, hal, [3, 2, 1], [1, None, 5])
    made["again"] = rank(db, task, bob, [1, 2, 2], round=1)
    made["invalid"] = rank(
        db,
        add_task(db, ranked, add_prompt(db, "Broken?"), [("a", ["m"]), ("b", ["n"])]),
        ada,
        [1, 2],
        invalid_reason="bot",
    )
    gone = add_prompt(db, "Taken back?", withdrawn_at=5)
    made["gone"] = rank(db, add_task(db, ranked, gone, [("c", ["m"]), ("d", ["n"])], state="withdrawn"), ada, [1, 2])
    compared = add_task(db, measured, add_prompt(db, "Which?", split="test"), [("one", ["sft"]), ("two", ["ppo"])])
    made["evaluation"] = rank(db, compared, ada, [2, 1], [3, 5])
    return made, capital


def _fill_writing(db, capital: PromptRow, ada: Person, bob: Person, hal: Person) -> dict[str, Submission]:
    """Write demonstrations, a review and prompts."""
    made: dict[str, Submission] = {}
    shown = add_batch(db, "shown", kind="demonstrate")
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Add 1 and 2"},
    ]
    talk = add_prompt(db, "Hi\n\nYes?\n\nAdd 1 and 2", messages=turns)
    made["demonstration"] = hand_in(db, add_task(db, shown, talk), ada)
    db.add(
        DemonstrationRow(
            submission_id=made["demonstration"].id, person_id=ada.id, prompt_id=talk.id, text="3", text_hash="h"
        )
    )
    made["heldout demonstration"] = hand_in(db, add_task(db, shown, capital), hal)
    db.add(
        DemonstrationRow(
            submission_id=made["heldout demonstration"].id,
            person_id=hal.id,
            prompt_id=capital.id,
            text="Paris it is",
            text_hash="h2",
        )
    )
    described = add_batch(db, "described", kind="review")
    made["review"] = hand_in(db, add_task(db, described, capital), bob)
    db.add(
        PromptReview(
            submission_id=made["review"].id,
            use_case="closed_qa",
            personal_data=False,
            sensitive=None,
            labels={"ambiguous": True},
        )
    )
    writing = add_batch(db, "written", kind="write")
    made["prompt"] = hand_in(db, add_task(db, writing, None), bob)
    add_prompt(
        db,
        "Write a poem",
        written={"text": "Write a poem"},
        author_id=bob.id,
        submission_id=made["prompt"].id,
        source="labeler",
    )
    made["heldout prompt"] = hand_in(db, add_task(db, writing, None), hal)
    add_prompt(
        db,
        "Write a song",
        written={"text": "Write a song"},
        author_id=hal.id,
        submission_id=made["heldout prompt"].id,
        source="labeler",
    )
    return made


def empty_site(folder, request, kind: str | None = None) -> Site:
    """An empty site on a database of a kind; without one, what the parameter of the fixture `filled` says.

    It is closed after the test.
    """
    kind = kind or request.node.callspec.params.get("filled", "sqlite")
    site = make_site(folder, new_database(request) if kind == "postgresql" else None)
    request.addfinalizer(site.database.close)
    return site


def new_database(request) -> str:
    """The address of a new, empty PostgreSQL database."""
    server = request.getfixturevalue("postgres_server")
    name = f"db_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
