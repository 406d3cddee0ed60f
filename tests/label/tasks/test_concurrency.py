"""Concurrent labelers: no submission lost, no task assigned twice, few database steps with a hundred thousand tasks."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from sqlalchemy import event, func, select, text
from support.site import add_person, make_site
from support.tasks import rank_batch, ranking

from instructgpt.label.db.models import Assignment, Batch, PromptRow, Submission, Task
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks.assignments import (
    claim_next_task,
    find_counter_mismatches,
    renew_lease,
    skip_assignment,
    undo_skip,
)
from instructgpt.label.tasks.batches import OverlapPolicy
from instructgpt.label.tasks.queue import pending_task_statement
from instructgpt.label.tasks.submissions import submit_edit, submit_form, undo_submission

PEOPLE, TASKS = 10, 40
MINUTE = 60_000


def make_crowd(site):
    """Labelers who work, walk away, click twice, skip and take back, each in a thread; every step is a minute."""
    steps = itertools.count(1)

    def do(function, *arguments):
        return site.database.write_with_retry(lambda db: function(db, site.settings, *arguments, next(steps) * MINUTE))

    def get(person):
        return site.database.write_with_retry(
            lambda db: claim_next_task(db, site.settings, person, None, next(steps) * MINUTE)
        )

    return SimpleNamespace(
        site=site, steps=steps, do=do, get=get, stored=[], errors=[], busy=set(), lock=threading.Lock()
    )


def unfinished(site):
    with site.database.read() as db:
        return db.scalar(select(func.count()).select_from(Task).where(Task.state != "done"))


def start_step(crowd, person) -> bool:
    """Return False once all is done and nobody is inside a step, which may undo a submission or skip its task."""
    while True:
        with crowd.lock:
            if unfinished(crowd.site):
                crowd.busy.add(person.name)
                return True
            if not crowd.busy:
                return False
        time.sleep(0.001)


def work(crowd, person):
    """One labeler, until everything is done."""
    rng = random.Random(person.name)
    try:
        while start_step(crowd, person):
            try:
                step(crowd, person, rng.random())
            finally:
                crowd.busy.discard(person.name)
    except Exception as error:
        crowd.errors.append(error)


def step(crowd, person, what):
    """One task, and what becomes of it."""
    mine = crowd.get(person)
    if mine is None or what < 0.15:
        return  # walks away, comes back to it or not
    if what < 0.22:
        crowd.do(skip_assignment, mine, "other", "")
        if what < 0.2:
            ignore_too_late(lambda: crowd.do(undo_skip, mine))
        return
    if what < 0.3:
        ignore_too_late(lambda: crowd.do(renew_lease, mine))
    if what < 0.5:
        next(itertools.islice(crowd.steps, 31, None))  # half an hour later
    clicks = [threading.Thread(target=hand_in, args=(crowd, mine)) for _ in range(2 if what < 0.6 else 1)]
    for click in clicks:
        click.start()
    for click in clicks:
        click.join()
    if what > 0.9:
        ignore_too_late(lambda: crowd.do(submit_edit, mine, ranking(mine.shown[::-1]), "edit"))
    if what > 0.97:
        ignore_too_late(lambda: crowd.do(undo_submission, mine))


def hand_in(crowd, mine):
    try:
        crowd.stored.append(crowd.do(submit_form, mine, ranking(mine.shown), f"key of {mine.opened_at}").id)
    except SiteError as problem:
        if problem.code != "already_submitted":
            crowd.errors.append(problem)
    except Exception as error:
        crowd.errors.append(error)


TOO_LATE = ("task_taken", "not_skipped", "lease_over", "not_submitted", "too_late_to_edit")


def ignore_too_late(call):
    """A labeler may come too late for something; that is said, and nothing happens."""
    try:
        call()
    except SiteError as problem:
        if problem.code not in TOO_LATE:
            raise


def test_concurrent_labelers_lose_nothing_and_count_nothing_twice(database_url, tmp_path):
    site = make_site(tmp_path, database_url, skips_to_review=10_000)
    with site.database.write() as db:
        rank_batch(
            db,
            TASKS,
            k=2,
            policy=OverlapPolicy(cohort_share=0.25, cohort_overlap=3, gold_share=0, repeat_share=0.1, repeat_gap=2),
        )
    crowd = make_crowd(site)
    threads = [threading.Thread(target=work, args=(crowd, add_person(site, f"p{number}"))) for number in range(PEOPLE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert crowd.errors == []
    with site.database.read() as db:
        assert find_counter_mismatches(db) == []
        kept = set(db.scalars(select(Submission.id)))
        assert set(crowd.stored) <= kept, "nothing lost"
        counted = db.execute(
            select(Assignment.task_id, Assignment.person_id)
            .join(Submission, Submission.assignment_id == Assignment.id)
            .where(Submission.replaced_at.is_(None), ~Submission.surplus, Assignment.round == 0)
        ).all()
        assert len(set(counted)) == len(counted), "nobody twice"
        labelers = Counter(task for task, _ in counted)
        assert labelers == {task.id: task.overlap for task in db.scalars(select(Task))}, (
            "nobody too many, nobody missing"
        )
        assert Counter(labelers.values()) == {1: 30, 3: 10}
        assert all(
            each.version == 1 or each.key == "edit" or each.replaced_at for each in db.scalars(select(Submission))
        )
    site.database.close()


def test_two_tabs_of_one_person_get_one_task(site):
    ada = add_person(site)
    with site.database.write() as db:
        rank_batch(db, 20, k=2)
    start, taken = threading.Barrier(6), []

    def open_window():
        start.wait()
        taken.append(site.database.write_with_retry(lambda db: claim_next_task(db, site.settings, ada, None, 1)).id)

    windows = [threading.Thread(target=open_window) for _ in range(6)]
    for window in windows:
        window.start()
    for window in windows:
        window.join()
    assert len(taken) == 6
    assert len(set(taken)) == 1


def test_the_last_place_is_found_while_its_row_is_locked(postgres_url, tmp_path):
    site = make_site(tmp_path, postgres_url)
    ada, bob = add_person(site, "ada"), add_person(site, "bob")
    with site.database.write() as db:
        rank_batch(db, 1, k=2, policy=OverlapPolicy(overlap=2, cohort_overlap=2, gold_share=0, repeat_share=0))
    taken = []
    with site.database.write() as db:
        claim_next_task(db, site.settings, ada, None, 1)
        other = threading.Thread(
            target=lambda: taken.append(
                site.database.write_with_retry(lambda db: claim_next_task(db, site.settings, bob, None, 1))
            )
        )
        other.start()
        other.join(timeout=0.3)
        assert taken == [], "waits"
    other.join()
    assert taken[0] is not None
    site.database.close()


# ---------------------------------------------------------------- a hundred thousand tasks

MANY = 100_000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A site with 100,000 tasks: half of them done, one person has had 5,000, and another batch is a draft."""
    site = make_site(tmp_path_factory.mktemp("large"))
    with site.database.write() as db:
        options = {
            "kind": "rank",
            "purpose": "training",
            "policy": OverlapPolicy().model_dump(mode="json"),
            "intake": {},
        }
        db.add_all(
            [
                Batch(id="draft", name="d", state="draft", priority=9, **options),
                Batch(id="open", name="o", state="open", **options),
            ]
        )
        db.add(PromptRow(id="p", text="p", text_hash="p"))
    ada = add_person(site, "ada")
    rows = [
        {
            "id": f"{batch}{number}",
            "batch_id": batch,
            "kind": "rank",
            "prompt_id": "p",
            "overlap": 3,
            "position": number,
            "state": "done" if number % 2 else "open",
            "n_done": 3 if number % 2 else int(number < 10_000),
            "repeat": number % 50 == 0,
            "gold": False,
            "n_open": 0,
            "n_skipped": 0,
        }
        for batch in ("draft", "open")
        for number in range(MANY // 2)
    ]
    had = [
        {
            "id": f"a{n}",
            "task_id": f"open{n}",
            "person_id": ada.id,
            "state": "submitted",
            "lease_until": 0,
            "shown": [],
            "closed_at": 1,
            "opened_at": n,
        }
        for n in range(0, 10_000, 2)
    ]
    with site.database.write() as db:
        db.execute(Task.__table__.insert(), rows)
        db.execute(Assignment.__table__.insert(), had)
    return site, ada


@pytest.mark.parametrize(("who", "most"), [("new", 1_000), ("ada", 200_000)])  # ada has had 5,000 of the tasks
def test_claims_take_few_database_steps(large, who, most):
    """Steps are instructions of SQLite's virtual machine; for all 25,000 open tasks they would be 650,000."""
    site, ada = large
    person = ada if who == "ada" else add_person(site, "new")
    steps = 0

    def count_steps():
        nonlocal steps
        steps += 100
        return 0

    def watch(connection, *_):
        connection.connection.dbapi_connection.set_progress_handler(count_steps, 100)

    event.listen(site.database.engine, "before_cursor_execute", watch)
    try:
        for number in range(9):
            mine = site.database.write_with_retry(
                lambda db, at=number: claim_next_task(db, site.settings, person, None, 10**9 + at)
            )
            with site.database.write() as db:
                db.get(Assignment, mine.id).state = "skipped"
    finally:
        event.remove(site.database.engine, "before_cursor_execute", watch)
        site.database.engine.dispose()  # the connections with the handler
    assert 0 < steps / 9 < most


def test_choosing_a_task_uses_the_index(large):
    site, ada = large
    with site.database.read() as db:
        batch = db.get(Batch, "open")
        statement = pending_task_statement(ada, batch, gold=False).compile(
            db.get_bind(), compile_kwargs={"literal_binds": True}
        )
        plans = [row[3] for row in db.execute(text(f"EXPLAIN QUERY PLAN {statement}"))]
    assert plans[0] == "SEARCH task USING INDEX ix_task_queue (batch_id=? AND state=? AND gold=?)"
    assert not [plan for plan in plans if plan.startswith("SCAN") or "TEMP B-TREE" in plan], plans


def test_no_statement_of_a_claim_scans_a_table(large):
    site, ada = large
    statements = []

    def note(_connection, _cursor, statement, parameters, _context, _many):
        if statement.startswith("SELECT"):
            statements.append((statement, parameters))

    event.listen(site.database.engine, "before_cursor_execute", note)
    try:
        site.database.write_with_retry(lambda db: claim_next_task(db, site.settings, ada, None, 2 * 10**9))
    finally:
        event.remove(site.database.engine, "before_cursor_execute", note)
    assert len(statements) > 5
    with site.database.engine.connect() as connection:
        for statement, parameters in statements:
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
            assert not [
                step for step in plan if step.startswith("SCAN") and step not in ("SCAN batch", "SCAN CONSTANT ROW")
            ], (
                statement,
                plan,
            )
