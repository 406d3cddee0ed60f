"""Stateful test: invariants of tasks and submissions hold after every step."""

from __future__ import annotations

import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from support.site import add_person, make_site
from support.tasks import rank_batch, ranking

from instructgpt.label.context import Site
from instructgpt.label.db.database import Database, sqlite_url
from instructgpt.label.db.models import Assignment, Batch, Person, PromptRow, RankingItem, Submission, Task
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import assignments as work
from instructgpt.label.tasks import batches, drafts, submissions
from instructgpt.label.tasks.batches import OverlapPolicy
from instructgpt.label.tasks.forms import RankingForm

PEOPLE = ("ada", "bob", "eve", "held")
HALF_HOUR = 30 * 60_000


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A site with four labelers, one of them held out, and two batches."""
    folder = tmp_path_factory.mktemp("template")
    site = make_site(folder, skips_to_review=2)
    for name in PEOPLE:
        add_person(site, name, cohort="heldout" if name == "held" else "training")
    policy = OverlapPolicy(
        overlap=1, cohort_share=0.5, cohort_overlap=2, gold_share=0.3, repeat_share=0.5, repeat_gap=1
    )
    gold = {"training prompt 0": {f"answer {model} to training prompt 0": 1 for model in range(3)}}
    with site.database.write() as db:
        rank_batch(db, 3, k=3, name="training", policy=policy, gold=gold)
        rank_batch(db, 2, k=2, name="evaluation", purpose="evaluation", policy=policy)
    site.database.close()
    return folder, site.settings


def form(now):
    """One of many whole forms: tiers by the digits of a number."""
    tiers = [[] for _ in now.mine.shown]
    for place, completion in enumerate(now.mine.shown):
        tiers[now.number // 3**place % len(tiers)].append(completion)
    return RankingForm(ratings=ranking(now.mine.shown).ratings, tiers=tiers)


def judge(now):
    if (there := submissions.get_current_submission(now.db, now.mine)) is not None:
        submissions.set_submission_validity(now.db, there, "careless" if now.number % 2 else None)


def withdraw(now):
    if now.number % 5 == 0:
        batches.withdraw_prompt(now.db, now.db.get(PromptRow, now.db.get(Task, now.mine.task_id).prompt_id), now.at)


def close(now):
    batch = now.db.get(Batch, now.db.get(Task, now.mine.task_id).batch_id)
    if now.number % 2:
        batches.mark_batch_closed(now.db, batch, now.at)
    else:
        batches.mark_batch_open(now.db, batch)


STEPS = {
    "hand in": lambda now: submissions.submit_form(
        now.db, now.settings, now.mine, form(now), f"{now.number % 3}", now.at
    ),
    "edit": lambda now: submissions.submit_edit(
        now.db, now.settings, now.mine, form(now), f"e{now.number % 3}", now.at
    ),
    "undo": lambda now: submissions.undo_submission(now.db, now.settings, now.mine, now.at),
    "skip": lambda now: work.skip_assignment(now.db, now.settings, now.mine, "other", "", now.at),
    "undo skip": lambda now: work.undo_skip(now.db, now.settings, now.mine, now.at),
    "heartbeat": lambda now: work.renew_lease(now.db, now.settings, now.mine, now.at),
    "return": lambda now: work.return_to_labeler(now.db, now.mine, now.at),
    "save": lambda now: drafts.store_draft(now.db, now.mine, now.number % 3, {"n": now.number}, now.at),
    "judge": judge,
    "withdraw": withdraw,
    "close": close,
}
"""Things that are done about an assignment; a claim and half an hour of waiting come besides."""


def step(site, what, name, number, at):
    """One thing that somebody does; what is refused changes nothing."""

    def do(db):
        person = db.scalars(select(Person).where(Person.name == name)).one()
        if what == "claim":
            work.claim_next_task(db, site.settings, person, None, at)
            return
        theirs = db.scalars(select(Assignment).where(Assignment.person_id == person.id).order_by(Assignment.id)).all()
        if theirs:
            mine = theirs[number % len(theirs)]
            STEPS[what](SimpleNamespace(db=db, settings=site.settings, mine=mine, at=at, number=number))

    try:
        site.database.write_with_retry(do)
    except SiteError as problem:
        assert problem.status in (409, 410)  # noqa: PT017 -- which refusals there may be is what is tested


def check_invariants(site, before):
    """Every rule about the work. -> the submissions there are."""
    with site.database.read() as db:
        assert work.find_counter_mismatches(db) == []
        rows = db.scalars(select(Submission)).all()
        assert before <= {row.id for row in rows}, "nothing is lost"
        assert max(Counter(row.assignment_id for row in rows if row.replaced_at is None).values(), default=0) <= 1
        for assignment_id in {row.assignment_id for row in rows}:
            versions = sorted(row.version for row in rows if row.assignment_id == assignment_id)
            assert versions == list(range(1, len(versions) + 1))
        assigned = db.execute(
            select(Assignment, Person, Batch)
            .join(Person, Person.id == Assignment.person_id)
            .join(Task, Task.id == Assignment.task_id)
            .join(Batch, Batch.id == Task.batch_id)
        ).all()
        assert not [1 for _, person, batch in assigned if person.cohort == "heldout" and batch.purpose == "training"]
        held = Counter((mine.task_id, mine.person_id, mine.round) for mine, _, _ in assigned)
        assert max(held.values(), default=0) <= 1
        by_ranking = {}
        for item in db.scalars(select(RankingItem)):
            by_ranking.setdefault(item.submission_id, []).append(item)
        shown = {mine.id: mine.shown for mine, _, _ in assigned}
        assert set(by_ranking) == {row.id for row in rows}
        for row in rows:
            items = by_ranking[row.id]
            assert sorted(item.completion_id for item in items) == sorted(shown[row.assignment_id])
            ranks = {item.rank for item in items}
            assert ranks == set(range(1, len(ranks) + 1)), "dense"
        return {row.id for row in rows}


done = st.tuples(
    st.sampled_from(["claim"] * 6 + ["hand in"] * 4 + ["wait", *STEPS]),
    st.sampled_from(PEOPLE),
    st.integers(min_value=0, max_value=80),
)


@settings(max_examples=20)
@given(steps=st.lists(done, min_size=12, max_size=30))
def test_invariants_hold_after_every_step(template, tmp_path_factory, steps):
    folder, config = template
    file = tmp_path_factory.mktemp("run") / "site.db"
    shutil.copy(folder / "site.db", file)
    site, at, there = Site(config, Database(sqlite_url(file))), 1_000, set()
    for what, name, number in steps:
        at += HALF_HOUR + 1 if what == "wait" else 1_000
        if what != "wait":
            step(site, what, name, number, at)
            there = check_invariants(site, there)
    site.database.close()
