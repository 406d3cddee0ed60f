"""Drafts that two tabs cannot overwrite, questions, and a labeler's own history."""

from __future__ import annotations

from site_support import add_person
from sqlalchemy import select
from work_support import PLAIN, rank_batch, ranking, refused

from instructgpt.label.db.models import Assignment
from instructgpt.label.tasks import drafts, submission_history, threads
from instructgpt.label.tasks.assignments import claim, skip
from instructgpt.label.tasks.submissions import submit

MINUTE = 60_000
DAY = 24 * 60 * MINUTE


def test_two_tabs_never_overwrite_each_other(site, desk):
    _, mine, do = desk
    assert do(drafts.save, mine, 0, {"a": 1}, 2) == 1
    assert do(drafts.save, mine, 1, {"a": 2}, 3) == 2
    for stale in (0, 1, 3):
        problem = refused("draft_conflict", do, drafts.save, mine, stale, {"a": "mine"}, 4)
        assert problem.values == {"rev": 2, "payload": {"a": 2}}
    assert do(drafts.save, mine, 2, {"chosen": "물\x00"}, 5) == 3
    with site.database.read() as db:
        assert drafts.draft_of(db, mine).payload == {"chosen": "물\x00"}
    do(submit, site.settings, mine, ranking(mine.shown), "k", 6)
    with site.database.read() as db:
        assert drafts.draft_of(db, mine) is None
    problem = refused("draft_conflict", do, drafts.save, mine, 3, {}, 7)
    assert problem.values == {"rev": 0, "payload": None}
    assert do(drafts.save, mine, 0, {"edit": 1}, 8) == 1, "a draft of an edit"


def test_drafts_that_cannot_be_kept(site, desk):
    _, mine, do = desk
    refused("draft_too_long", do, drafts.save, mine, 0, {"text": "물" * 700_000}, 2)
    refused("bad_text", do, drafts.save, mine, 0, {"text": "\ud800"}, 2)
    do(skip, site.settings, mine, "other", "", 3)
    refused("already_skipped", do, drafts.save, mine, 0, {}, 4)


def test_a_draft_outlives_its_lease(site, desk):
    ada, mine, do = desk
    do(drafts.save, mine, 0, {"a": 1}, 2)
    again = do(claim, site.settings, ada, None, mine.lease_until + 1)
    assert again.id == mine.id
    with site.database.read() as db:
        assert drafts.draft_of(db, again).payload == {"a": 1}


# ---------------------------------------------------------------- threads and history


def test_questions_wait_for_an_answer(site, desk):
    ada, mine, do = desk
    bob, eve = add_person(site, "bob"), add_person(site, "eve", role="researcher")
    do(threads.ask, mine, "What is meant?", 2)
    do(lambda db: threads.ask(db, mine, "Somebody's telephone number!", 3, reported=True))
    with site.database.read() as db:
        assert [each.body for each in threads.unanswered(db)] == ["What is meant?", "Somebody's telephone number!"]
    do(threads.answer, mine.task_id, ada, eve, "The second one.", 4)
    with site.database.read() as db:
        assert threads.unanswered(db) == []
        lines = threads.thread(db, mine.task_id, ada.id)
        assert [(line.body, line.mine, line.reported, line.settled) for line in lines] == [
            ("What is meant?", True, False, True),
            ("Somebody's telephone number!", True, True, True),
            ("The second one.", False, False, False),
        ]
        assert threads.thread(db, mine.task_id, bob.id) == []
    for body, code in ((" ", "empty_message"), ("x" * 10_001, "message_too_long"), ("\x00", "bad_text")):
        refused(code, do, threads.ask, mine, body, 5)


def test_history_comes_in_pages(site):
    ada, bob = add_person(site, "ada"), add_person(site, "bob")
    with site.database.write() as db:
        rank_batch(db, tasks=5, k=2, policy=PLAIN.model_copy(update={"overlap": 2, "cohort_overlap": 2}))

    def do(function, *arguments):
        return site.database.attempt(lambda db: function(db, site.settings, *arguments))

    mine = []
    for number in range(5):
        mine.append(do(claim, ada, None, number))
        if number == 1:
            do(skip, mine[-1], "other", "", number)
        elif number < 4:
            do(submit, mine[-1], ranking(mine[-1].shown), "k", 100 + number)
    do(claim, bob, None, 9)
    with site.database.read() as db:
        first = submission_history.page(db, site.settings, ada, size=3)
        second = submission_history.page(db, site.settings, ada, first.before, size=3)
    assert [entry.assignment for entry in (*first.entries, *second.entries)] == [each.id for each in mine[::-1]]
    assert [entry.state for entry in (*first.entries, *second.entries)] == ["open", "submitted", "submitted", "skipped", "submitted"]
    assert second.before is None
    assert first.entries[1].editable_until == 103 + DAY
    assert first.entries[1].prompt.startswith("batch prompt")
    with site.database.read() as db:
        assert len(db.scalars(select(Assignment)).all()) == 6
