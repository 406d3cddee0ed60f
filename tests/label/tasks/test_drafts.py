"""Drafts, questions about a task, and a labeler's history."""

from __future__ import annotations

from sqlalchemy import select
from support.site import add_person
from support.tasks import PLAIN, rank_batch, ranking, refused

from instructgpt.label.db.models import Assignment
from instructgpt.label.tasks import drafts, submission_history, threads
from instructgpt.label.tasks.assignments import claim_next_task, skip_assignment
from instructgpt.label.tasks.submissions import submit_form

MINUTE = 60_000
DAY = 24 * 60 * MINUTE


def test_two_tabs_never_overwrite_each_other(site, desk):
    _, mine, do = desk
    assert do(drafts.store_draft, mine, 0, {"a": 1}, 2) == 1
    assert do(drafts.store_draft, mine, 1, {"a": 2}, 3) == 2
    for stale in (0, 1, 3):
        problem = refused("draft_conflict", do, drafts.store_draft, mine, stale, {"a": "mine"}, 4)
        assert problem.values == {"rev": 2, "payload": {"a": 2}}
    assert do(drafts.store_draft, mine, 2, {"chosen": "물\x00"}, 5) == 3
    with site.database.read() as db:
        assert drafts.get_draft(db, mine).payload == {"chosen": "물\x00"}
    do(submit_form, site.settings, mine, ranking(mine.shown), "k", 6)
    with site.database.read() as db:
        assert drafts.get_draft(db, mine) is None
    problem = refused("draft_conflict", do, drafts.store_draft, mine, 3, {}, 7)
    assert problem.values == {"rev": 0, "payload": None}
    assert do(drafts.store_draft, mine, 0, {"edit": 1}, 8) == 1, "a draft of an edit"


def test_invalid_drafts_are_refused(site, desk):
    _, mine, do = desk
    refused("draft_too_long", do, drafts.store_draft, mine, 0, {"text": "물" * 700_000}, 2)
    refused("bad_text", do, drafts.store_draft, mine, 0, {"text": "\ud800"}, 2)
    do(skip_assignment, site.settings, mine, "other", "", 3)
    refused("already_skipped", do, drafts.store_draft, mine, 0, {}, 4)


def test_a_draft_outlives_its_lease(site, desk):
    ada, mine, do = desk
    do(drafts.store_draft, mine, 0, {"a": 1}, 2)
    again = do(claim_next_task, site.settings, ada, None, mine.lease_until + 1)
    assert again.id == mine.id
    with site.database.read() as db:
        assert drafts.get_draft(db, again).payload == {"a": 1}


# ---------------------------------------------------------------- threads and history


def test_questions_are_open_until_answered(site, desk):
    ada, mine, do = desk
    bob, eve = add_person(site, "bob"), add_person(site, "eve", role="researcher")
    do(threads.post_question, mine, "What is meant?", 2)
    do(lambda db: threads.post_question(db, mine, "Somebody's telephone number!", 3, reported=True))
    with site.database.read() as db:
        assert [each.body for each in threads.list_unanswered_messages(db)] == [
            "What is meant?",
            "Somebody's telephone number!",
        ]
    do(threads.post_answer, mine.task_id, ada, eve, "The second one.", 4)
    with site.database.read() as db:
        assert threads.list_unanswered_messages(db) == []
        lines = threads.list_thread_messages(db, mine.task_id, ada.id)
        assert [(line.body, line.mine, line.reported, line.settled) for line in lines] == [
            ("What is meant?", True, False, True),
            ("Somebody's telephone number!", True, True, True),
            ("The second one.", False, False, False),
        ]
        assert threads.list_thread_messages(db, mine.task_id, bob.id) == []
    for body, code in ((" ", "empty_message"), ("x" * 10_001, "message_too_long"), ("\x00", "bad_text")):
        refused(code, do, threads.post_question, mine, body, 5)


def test_history_is_paginated(site):
    ada, bob = add_person(site, "ada"), add_person(site, "bob")
    with site.database.write() as db:
        rank_batch(db, tasks=5, k=2, policy=PLAIN.model_copy(update={"overlap": 2, "cohort_overlap": 2}))

    def do(function, *arguments):
        return site.database.write_with_retry(lambda db: function(db, site.settings, *arguments))

    mine = []
    for number in range(5):
        mine.append(do(claim_next_task, ada, None, number))
        if number == 1:
            do(skip_assignment, mine[-1], "other", "", number)
        elif number < 4:
            do(submit_form, mine[-1], ranking(mine[-1].shown), "k", 100 + number)
    do(claim_next_task, bob, None, 9)
    with site.database.read() as db:
        first = submission_history.get_history_page(db, site.settings, ada, size=3)
        second = submission_history.get_history_page(db, site.settings, ada, first.before, size=3)
    assert [entry.assignment for entry in (*first.entries, *second.entries)] == [each.id for each in mine[::-1]]
    assert [entry.state for entry in (*first.entries, *second.entries)] == [
        "open",
        "submitted",
        "submitted",
        "skipped",
        "submitted",
    ]
    assert second.before is None
    assert first.entries[1].editable_until == 103 + DAY
    assert first.entries[1].prompt.startswith("batch prompt")
    with site.database.read() as db:
        assert len(db.scalars(select(Assignment)).all()) == 6
