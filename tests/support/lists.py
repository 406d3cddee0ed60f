"""A site with rankings in several states, for tests of the lists of owners."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
from sqlalchemy import select, update
from support.owner import fill, people
from support.tasks import hand_in, prompt_batch, take

from instructgpt.label.db.models import Assignment, PromptRow, Submission, Task
from instructgpt.label.tasks.assignments import return_to_labeler
from instructgpt.label.tasks.submissions import set_submission_validity

TEXTS = (
    "Wie schreibt man ÜBERALL richtig?",
    "100% of the_users said *yes* [maybe]",
    "날씨를 요약해 주세요",
    "Write the story of a fox and a crow",
    'quote " and back\\slash',
    "ÉCOLE and école are the same to a reader",
)


@pytest.fixture
def full(site):
    """Two batches of rankings by three labelers, in several states, and demonstrations. -> the labelers."""
    crew, rng = people(site, "ada", "Ben", "Çelik"), Random(5)
    for name, purpose in (("first", "training"), ("second", "evaluation")):
        filled = fill(site, tasks=6, name=name, purpose=purpose, use_cases=("chat", "rewrite"))
        for task, person in product(range(5), crew):
            if rng.random() < 0.7:
                labels = [
                    {"opinion": rng.random() < 0.4, "hallucination": None},
                    {},
                    {"denigrates": rng.random() < 0.4},
                ]
                filled.rank(task, person, [1, 2, 3], ratings=[rng.randint(1, 7) for _ in range(3)], labels=labels)
        filled.save()
    with site.database.write() as db:
        prompt_batch(db, "demonstrate", tasks=3, name="written")
    hand_in(site, take(site, crew[0], kind="demonstrate"))
    with site.database.write() as db:
        for number, prompt in enumerate(db.scalars(select(PromptRow).order_by(PromptRow.id))):
            prompt.source = ("api", "labeler", None)[number % 3]
            prompt.language, prompt.text = None, TEXTS[number % len(TEXTS)]
        rows = db.scalars(select(Submission).where(Submission.kind == "rank").order_by(Submission.id)).all()
        set_submission_validity(db, rows[0], "wrong")
        return_to_labeler(db, db.get_one(Assignment, rows[1].assignment_id), 5)
        rows[2].surplus = True
        db.execute(update(Task).where(Task.id == db.scalar(select(Task.id).limit(1))).values(state="review"))
    return crew
