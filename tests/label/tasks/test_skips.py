"""Skips, returned work, and counters that drift."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import select
from support.site import add_person
from support.tasks import (
    hand_in,
    make,
    rank_batch,
    refused,
    sound,
    state,
    take,
    task_of,
)

from instructgpt.label.db.models import CompletionRow, Skip, Task
from instructgpt.label.tasks.assignments import (
    expire_leases,
    find_counter_mismatches,
    return_to_labeler,
    skip_assignment,
    undo_skip,
)


def test_skips_lead_to_review(site):
    make(site, rank_batch, tasks=1)
    people = [add_person(site, f"p{number}") for number in range(4)]
    for number, person in enumerate(people[:3]):
        mine = take(site, person)
        site.database.write_with_retry(
            lambda db, mine=mine: skip_assignment(db, site.settings, mine, "unclear", "why?", 9)
        )
        assert take(site, person) is None, "not again to the same person"
        assert task_of(site, mine).state == ("review" if number == 2 else "open")
    assert take(site, people[3]) is None
    sound(site)
    back = site.database.write_with_retry(lambda db: undo_skip(db, site.settings, mine, 10))
    assert back.state == "open"
    assert task_of(site, mine).state == "open"
    with site.database.read() as db:
        assert Counter(each.undone_at for each in db.scalars(select(Skip))) == {None: 2, 10: 1}
    sound(site)


def test_reviewed_tasks_are_assigned_again(site):
    make(site, rank_batch, tasks=1)
    people = [add_person(site, f"p{number}") for number in range(6)]
    for number, person in enumerate(people):
        mine = take(site, person)
        site.database.write_with_retry(lambda db, mine=mine: skip_assignment(db, site.settings, mine, "unclear", "", 9))
        assert task_of(site, mine).state == ("review" if number in (2, 5) else "open")
        if number == 2:
            with site.database.write() as db:
                db.get(Task, mine.task_id).state = "open"
    sound(site)


def test_a_skip_cannot_be_undone_when_its_place_is_taken(site):
    make(site, rank_batch, tasks=1)
    ada, bob = add_person(site, "ada"), add_person(site, "bob")
    mine = take(site, ada)
    site.database.write_with_retry(lambda db: skip_assignment(db, site.settings, mine, "broken", "", 9))
    take(site, bob)
    refused("task_taken", site.database.write_with_retry, lambda db: undo_skip(db, site.settings, mine, 10))
    assert state(site, mine) == "skipped"
    sound(site)


def test_invalid_skips_are_refused(site):
    make(site, rank_batch, tasks=2)
    ada = add_person(site)
    mine = take(site, ada)

    def leave(reason="other"):
        return site.database.write_with_retry(lambda db: skip_assignment(db, site.settings, mine, reason, "", 9))

    refused("bad_reason", leave, "too long")
    refused("not_skipped", site.database.write_with_retry, lambda db: undo_skip(db, site.settings, mine, 10))
    leave()
    refused("already_skipped", leave)
    mine = take(site, ada)
    hand_in(site, mine)
    refused("already_submitted", leave)
    sound(site)


def test_a_skip_after_the_lease_counts(site):
    make(site, rank_batch, tasks=1)
    ada = add_person(site)
    mine = take(site, ada)
    make(site, expire_leases, mine.lease_until + 1)
    site.database.write_with_retry(lambda db: skip_assignment(db, site.settings, mine, "other", "", 9))
    assert (task_of(site, mine).n_skipped, task_of(site, mine).n_open) == (1, 0)
    sound(site)


def test_returned_work_comes_first(site):
    make(site, rank_batch, tasks=3)
    ada = add_person(site)
    mine = take(site, ada)
    refused("not_submitted", site.database.write_with_retry, lambda db: return_to_labeler(db, mine, 5))
    hand_in(site, mine)
    other = take(site, ada)
    site.database.write_with_retry(lambda db: return_to_labeler(db, mine, 5))
    sound(site)
    assert take(site, ada).id == mine.id
    assert hand_in(site, mine, key="again").version == 2
    assert task_of(site, mine).n_done == 1
    assert take(site, ada).id == other.id
    sound(site)


def test_counter_mismatches_are_found(site):
    make(site, rank_batch, tasks=2)
    mine = take(site, add_person(site))
    with site.database.write() as db:
        db.get(Task, mine.task_id).n_open = 0
        other = db.scalars(select(Task).where(Task.id != mine.task_id)).one()
        other.n_skipped, other.state = 3, "done"
    with site.database.read() as db:
        assert sorted(find_counter_mismatches(db)) == sorted(
            [
                f"task {mine.task_id}: n_open is 0, counted 1",
                f"task {other.id}: n_skipped is 3, counted 0",
                f"task {other.id}: state is done with 0 of 1 done",
            ]
        )


def test_authors_are_not_shown(site):
    make(site, rank_batch, tasks=1)
    with site.database.read() as db:
        assert {each.author_id for each in db.scalars(select(CompletionRow))} == {None}
