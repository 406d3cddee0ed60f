"""Assignments: leases, overlap, gold, repeats, and labelers whom a task is not for."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import select, update
from support.site import add_person, client_of
from support.tasks import (
    PLAIN,
    completions_of,
    hand_in,
    make,
    prompt_batch,
    rank_batch,
    refused,
    sound,
    state,
    take,
    task_of,
)

from instructgpt.label.db.models import Assignment, Instructions, InstructionsRead, PromptRow, Task
from instructgpt.label.tasks import assignments as work
from instructgpt.label.tasks.assignments import expire_leases, find_counter_mismatches, renew_lease, skip_assignment
from instructgpt.label.tasks.batches import OverlapPolicy, create_batch_with_tasks, mark_batch_open, withdraw_prompt
from instructgpt.label.tasks.forms import DemonstrationForm
from instructgpt.label.tasks.submissions import submit_form
from instructgpt.records import Completion as Answer
from instructgpt.records import Prompt as Asked

MINUTE = 60_000


# ---------------------------------------------------------------- leases


def test_an_active_task_is_assigned_again_to_its_labeler(site):
    make(site, rank_batch, tasks=2)
    ada, bob = add_person(site, "ada"), add_person(site, "bob")
    mine = take(site, ada)
    assert take(site, ada, at=2_000).id == mine.id, "loading the page again gives the same task"
    theirs = take(site, bob)
    assert theirs.task_id != mine.task_id
    assert mine.lease_until == 1_000 + 30 * MINUTE
    hand_in(site, mine)
    hand_in(site, theirs)
    assert take(site, ada) is None
    assert take(site, bob) is None
    sound(site)


def test_leases_depend_on_the_kind_of_task(site):
    ada = add_person(site)
    for kind in ("demonstrate", "write", "review"):
        make(site, prompt_batch, kind, name=kind)
    make(site, rank_batch, name="rank")
    leases = {
        kind: take(site, ada, kind=kind).lease_until - 1_000 for kind in ("demonstrate", "write", "review", "rank")
    }
    assert leases == {"demonstrate": 90 * MINUTE, "write": 90 * MINUTE, "review": 30 * MINUTE, "rank": 30 * MINUTE}
    assert take(site, ada).lease_until - 1_000 == 90 * MINUTE, "any kind: what was taken first"


def test_expired_tasks_go_to_another_labeler(site):
    make(site, rank_batch, tasks=1)
    ada, bob = add_person(site, "ada"), add_person(site, "bob")
    mine = take(site, ada)
    assert take(site, bob, at=mine.lease_until) is None
    theirs = take(site, bob, at=mine.lease_until + 1)
    assert theirs.task_id == mine.task_id
    assert state(site, mine) == "expired"
    sound(site)


def test_returning_labelers_get_their_expired_task(site):
    make(site, rank_batch, tasks=3)
    ada = add_person(site)
    mine = take(site, ada)
    again = take(site, ada, at=mine.lease_until + 1)
    assert (again.id, again.shown, again.state) == (mine.id, mine.shown, "open")
    sound(site)


def test_a_heartbeat_renews_the_lease(site):
    make(site, rank_batch, tasks=1)
    ada, bob = add_person(site, "ada"), add_person(site, "bob")
    mine = take(site, ada)

    def beat(at):
        return site.database.write_with_retry(lambda db: renew_lease(db, site.settings, mine, at))

    assert beat(mine.lease_until - 1) == mine.lease_until - 1 + 30 * MINUTE
    assert beat(5_000) == mine.lease_until - 1 + 30 * MINUTE, "never shorter"
    late = mine.lease_until + 60 * MINUTE
    assert make(site, expire_leases, late) == 1
    assert beat(late) == late + 30 * MINUTE, "nobody had taken it"
    sound(site)
    theirs = take(site, bob, at=late + 31 * MINUTE)
    refused("lease_over", beat, late + 31 * MINUTE)
    assert theirs.task_id == mine.task_id
    sound(site)


def test_other_labelers_cannot_use_an_assignment(site):
    make(site, rank_batch)
    ada, bob = add_person(site, "ada"), add_person(site, "bob")
    mine = take(site, ada)
    with site.database.read() as db:
        assert work.get_own_assignment(db, ada, mine.id).id == mine.id
        for asked in (mine.id, mine.id.upper(), "nothing", "\x00", "0" * 36):
            assert refused("no_such_task", work.get_own_assignment, db, bob, asked).status == 404


# ---------------------------------------------------------------- whom a task is not for


def test_completions_are_shuffled_for_each_labeler(site):
    make(site, rank_batch, tasks=1, k=9, policy=PLAIN.model_copy(update={"overlap": 12, "cohort_overlap": 12}))
    orders = [tuple(take(site, add_person(site, f"p{number}")).shown) for number in range(12)]
    assert len(set(orders)) == 12
    assert len({frozenset(order) for order in orders}) == 1
    with site.database.read() as db:
        assert set(orders[0]) == set(completions_of(db, db.scalars(select(Task)).one().id))


def test_heldout_labelers_never_get_training_tasks(site):
    make(site, rank_batch, name="training")
    held = add_person(site, "held", cohort="heldout")
    assert take(site, held) is None
    make(site, rank_batch, name="evaluation", purpose="evaluation", tasks=1)
    assert take(site, held) is not None


def test_batches_can_be_limited_to_a_cohort(site):
    make(site, rank_batch, purpose="evaluation", cohort="heldout")
    assert take(site, add_person(site, "ada")) is None
    assert take(site, add_person(site, "held", cohort="heldout")) is not None


def test_screening_tasks_go_only_to_people_in_screening(site):
    make(site, rank_batch, name="test", screening="ranking", tasks=2)
    make(site, rank_batch, name="work", tasks=1)
    new, ada = add_person(site, "new", status="screening"), add_person(site, "ada")
    refused("not_active", take, site, new)
    refused("not_active", take, site, ada, screening="ranking")
    seen = set()
    for number in range(2):
        mine = take(site, new, screening="ranking")
        hand_in(site, mine, key=f"{number}")
        seen.add(mine.task_id)
    assert len(seen) == 2
    assert take(site, new, screening="ranking") is None
    assert take(site, new, screening="sensitive") is None
    other = add_person(site, "other", status="screening")
    assert take(site, other, screening="ranking").task_id in seen, "everybody gets all of it"
    hand_in(site, take(site, ada))
    assert take(site, ada) is None
    sound(site)


@pytest.mark.parametrize("account", ["paused", "declined", "withdrawn", "erased"])
def test_inactive_people_get_no_task(site, account):
    make(site, rank_batch)
    assert refused("not_active", take, site, add_person(site, status=account)).status == 403


def test_instructions_must_be_read_before_a_task(site):
    make(site, rank_batch)
    ada = add_person(site)
    with site.database.write() as db:
        db.add(Instructions(id="i1", purpose="training", version=1, body="", quiz={}))
        db.add(Instructions(id="i2", purpose="training", version=2, body="", quiz={}))
    with site.database.write() as db:
        db.add(InstructionsRead(person_id=ada.id, instructions_id="i1"))
    problem = refused("read_instructions", take, site, ada)
    assert problem.values == {"purpose": "training"}
    with site.database.read() as db:
        assert not db.scalars(select(Assignment)).all()
        assert find_counter_mismatches(db) == []
    with site.database.write() as db:
        db.add(InstructionsRead(person_id=ada.id, instructions_id="i2"))
    assert take(site, ada).instructions_id == "i2"


def test_sensitive_prompts_respect_the_labelers_choice(site):
    make(site, prompt_batch, tasks=3)
    with site.database.write() as db:
        for prompt in db.scalars(select(PromptRow).where(PromptRow.text != "batch prompt 1")):
            prompt.sensitive = True
    shy, ada = add_person(site, "shy", sees_sensitive=False), add_person(site, "ada")
    mine = take(site, shy)
    with site.database.read() as db:
        assert db.get(PromptRow, task_of(site, mine).prompt_id).text == "batch prompt 1"
    hand_in(site, mine)
    assert take(site, shy) is None
    assert take(site, ada) is not None


def test_opting_out_releases_sensitive_tasks(site):
    """Neither the one in their hands, nor one that ran out there, nor the repeat of one they did."""
    make(site, rank_batch, tasks=2, policy=OverlapPolicy(cohort_share=0, gold_share=0, repeat_share=1, repeat_gap=1))
    with site.database.write() as db:
        db.execute(update(PromptRow).values(sensitive=True))
    ada = add_person(site)
    hand_in(site, take(site, ada), key="first")
    in_hand = take(site, ada, at=3_000)
    assert (
        client_of(site, ada).post("/account/preferences", data={"language": "en", "theme": "auto"}).status_code == 303
    )
    assert state(site, in_hand) == "skipped"
    assert take(site, ada, at=4_000) is None, "the repeat is due"
    with site.database.write() as db:
        db.get_one(Assignment, in_hand.id).state = "expired"
    assert take(site, ada, at=5_000) is None, "what ran out in their own hands"
    with site.database.write() as db:
        db.execute(update(PromptRow).values(sensitive=False))
    assert take(site, ada, at=6_000) is not None


@pytest.mark.parametrize("how", ["column", "same text", "merged"])
def test_labelers_never_rank_their_own_demonstration(site, how):
    ada, bob = add_person(site, "ada"), add_person(site, "bob")
    make(site, prompt_batch, tasks=1)
    mine = take(site, ada, kind="demonstrate")
    site.database.write_with_retry(
        lambda db: submit_form(db, site.settings, mine, DemonstrationForm(text="By me "), "k", 5)
    )
    prompt = "batch prompt 0" if how != "column" else "other"
    own = {
        "column": [Answer(prompt=prompt, completion="whatever", model="people", labeler="p-ada")],
        "same text": [Answer(prompt=prompt, completion="By me", model="people")],
        "merged": [
            Answer(prompt=prompt, completion=text, model=f"m{number}")
            for number, text in enumerate(("By me", " By me"))
        ],
    }[how]
    with site.database.write() as db:
        batch = create_batch_with_tasks(
            db, "ranks", "rank", "training", [], [*own, Answer(prompt=prompt, completion="else", model="m")], PLAIN
        )
        mark_batch_open(db, batch)
    assert take(site, ada, kind="rank") is None
    assert take(site, bob, kind="rank") is not None


def test_labelers_never_review_their_own_prompt(site):
    ada, bob = add_person(site, "ada"), add_person(site, "bob")
    make(site, prompt_batch, "write", tasks=1, name="w")
    hand_in(site, take(site, ada, kind="write"))
    with site.database.write() as db:
        mark_batch_open(db, create_batch_with_tasks(db, "r", "review", "training", [Asked(prompt="text")], (), PLAIN))
    assert take(site, ada, kind="review") is None
    assert take(site, bob, kind="review") is not None


def test_batches_with_higher_priority_come_first(site):
    make(site, rank_batch, name="early", tasks=1)
    make(site, rank_batch, name="urgent", tasks=1, priority=5)
    ada = add_person(site)
    for name in ("urgent", "early"):
        mine = take(site, ada)
        with site.database.read() as db:
            assert db.get(PromptRow, db.get(Task, mine.task_id).prompt_id).text == f"{name} prompt 0"
        hand_in(site, mine)


def test_withdrawn_prompts_end_active_assignments(site):
    make(site, rank_batch, tasks=1)
    ada = add_person(site)
    mine = take(site, ada)
    with site.database.write() as db:
        withdraw_prompt(db, db.scalars(select(PromptRow)).one(), 1_500)
    assert take(site, ada) is None
    hand_in(site, mine)
    sound(site)


# ---------------------------------------------------------------- overlap, gold, repeats


def work_until_done(site, people):
    """All people in turn until nobody gets anything. -> assignments by person's name, in order."""
    done = {person.name: [] for person in people}
    at, busy = 1_000, True
    while busy:
        busy = False
        for person in people:
            at += 1_000
            if (mine := take(site, person, at=at)) is not None:
                hand_in(site, mine, at=at + 500)
                done[person.name].append(mine)
                busy = True
    return done


def test_overlap_is_exact(site):
    policy = OverlapPolicy(overlap=1, cohort_share=0.25, cohort_overlap=3, gold_share=0, repeat_share=0)
    make(site, rank_batch, tasks=20, k=2, policy=policy)
    done = work_until_done(site, [add_person(site, f"p{number}") for number in range(5)])
    labelers = Counter(mine.task_id for assigned in done.values() for mine in assigned)
    assert Counter(labelers.values()) == {1: 15, 3: 5}
    for assigned in done.values():
        assert len({mine.task_id for mine in assigned}) == len(assigned), "nobody twice"
    with site.database.read() as db:
        assert {task.state for task in db.scalars(select(Task))} == {"done"}
    sound(site)


def test_gold_tasks_come_at_the_configured_rate(site):
    gold = {
        f"batch prompt {number}": {f"answer {model} to batch prompt {number}": model + 1 for model in range(2)}
        for number in range(8)
    }
    policy = OverlapPolicy(cohort_share=0, gold_share=0.2, repeat_share=0)
    make(site, rank_batch, tasks=36, k=2, policy=policy, gold=gold)
    done = work_until_done(site, [add_person(site, f"p{number}") for number in range(8)])
    starts = set()
    for assigned in done.values():
        marks = [task_of(site, mine).gold for mine in assigned]
        had = [sum(marks[:number]) - 0.2 * number for number in range(1, len(marks) + 1)]
        assert max(had) < min(had) + 1 + 1e-9, "floor(0.2 n + phase) for some phase"
        starts.add(marks.index(True) if True in marks else None)
    assert sum(not task_of(site, mine).gold for assigned in done.values() for mine in assigned) == 28
    assert len(starts) > 1, "each person's own phase"
    sound(site)


@pytest.mark.parametrize("gap", [3, 100])
def test_repeats_come_back_to_the_same_person(site, gap):
    make(
        site,
        rank_batch,
        tasks=20,
        k=6,
        policy=OverlapPolicy(cohort_share=0, gold_share=0, repeat_share=0.2, repeat_gap=gap),
    )
    people = [add_person(site, f"p{number}") for number in range(2)]
    done = work_until_done(site, people)
    repeats = 0
    for assigned in done.values():
        for place, mine in enumerate(assigned):
            if mine.round == 1:
                first = next(number for number, each in enumerate(assigned) if each.task_id == mine.task_id)
                assert place - first > (3 if gap == 3 and place < 9 else 1)
                assert assigned[first].round == 0
                assert sorted(assigned[first].shown) == sorted(mine.shown)
                repeats += assigned[first].shown != mine.shown
    assert sum(mine.round for assigned in done.values() for mine in assigned) == 4
    assert repeats >= 3, "shuffled anew (1 of 720 orders is the same)"
    sound(site)


def test_expired_repeats_do_not_count(site):
    make(site, rank_batch, tasks=2, policy=OverlapPolicy(cohort_share=0, gold_share=0, repeat_share=1, repeat_gap=1))
    ada = add_person(site)
    for number in range(2):
        hand_in(site, take(site, ada, at=1_000 + number), key=f"{number}", at=1_500 + number)
    again = take(site, ada, at=3_000)
    assert again.round == 1
    assert take(site, ada, at=again.lease_until + 1).id == again.id
    sound(site)
    site.database.write_with_retry(lambda db: skip_assignment(db, site.settings, again, "unclear", "", 9))
    sound(site)
    assert task_of(site, again).n_skipped == 0
