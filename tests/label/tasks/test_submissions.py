"""Submit, edit, undo: nothing is lost and nothing counts twice."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from sqlalchemy import select
from support.site import add_person
from support.tasks import everything, prompt_batch, rank_batch, ranking, refused, sound

from instructgpt.label.db.models import DemonstrationRow, Draft, PromptRow, RankingItem, Submission, Task
from instructgpt.label.tasks import drafts
from instructgpt.label.tasks.assignments import claim_next_task, expire_leases, return_to_labeler, skip_assignment
from instructgpt.label.tasks.batches import OverlapPolicy
from instructgpt.label.tasks.forms import DemonstrationForm, PromptForm, RankingForm, ReviewForm
from instructgpt.label.tasks.questions import QuestionSet, complete_form
from instructgpt.label.tasks.submission_contents import read_submission_form
from instructgpt.label.tasks.submissions import (
    get_current_submission,
    set_submission_validity,
    submit_edit,
    submit_form,
    undo_submission,
)

MINUTE = 60_000
DAY = 24 * 60 * MINUTE


def task_now(site, mine):
    with site.database.read() as db:
        task = db.get(Task, mine.task_id)
        return task.state, task.n_open, task.n_done


def test_rankings_are_stored_as_submitted(site, desk):
    _, mine, do = desk
    a, b, c = mine.shown
    form = RankingForm(
        ratings=[
            {"completion": b, "rating": 7, "labels": {"hallucination": None, "opinion": False}, "note": "good"},
            {"completion": a, "labels": {"hallucination": True}},
        ],
        tiers=[(), (c, a), (b,)],
        none_acceptable=True,
        confidence=4,
        note="hm",
        active_ms=77,
        pasted=0.5,
    )
    stored = do(submit_form, site.settings, mine, form, "k", 5_000)
    assert (stored.version, stored.surplus, stored.wall_ms, stored.active_ms, stored.pasted) == (
        1,
        False,
        4_000,
        77,
        0.5,
    )
    with site.database.read() as db:
        rows = {row.completion_id: (row.tier, row.rank, row.shown) for row in db.scalars(select(RankingItem))}
        assert rows == {a: (2, 1, 0), b: (3, 2, 1), c: (2, 1, 2)}
        back = read_submission_form(db, stored)
        assert back.ratings == (form.ratings[1], form.ratings[0])
        assert back.tiers == ((), (a, c), (b,))
        assert back.model_dump(exclude={"ratings", "tiers"}) == form.model_dump(exclude={"ratings", "tiers"})
    assert task_now(site, mine) == ("done", 0, 1)
    sound(site)


@pytest.mark.parametrize(
    "form",
    [
        DemonstrationForm(text="말 \U0001f30a\n\n x "),
        DemonstrationForm(text="  ", meant_empty=True),
        PromptForm(text="Say it", use_case="rewrite", sensitive=True),
        PromptForm(form="few_shot", text="Double it", examples=(("1", "2"), ("2", "4"))),
        ReviewForm(use_case="chat", personal_data=False, labels={"ambiguous": True}, rejected="other", note="n"),
        ReviewForm(),
    ],
)
def test_submissions_read_back_as_their_form(site, form):
    with site.database.write() as db:
        prompt_batch(db, form.kind, tasks=1)
    ada = add_person(site)
    mine = site.database.write_with_retry(lambda db: claim_next_task(db, site.settings, ada, None, 1))
    stored = site.database.write_with_retry(lambda db: submit_form(db, site.settings, mine, form, "k", 2))
    with site.database.read() as db:
        assert read_submission_form(db, db.get(Submission, stored.id)) == form
        if form.kind == "write":
            prompt = db.scalars(select(PromptRow)).one()
            assert (prompt.author_id, prompt.submission_id, prompt.source) == (
                ada.id,
                stored.id,
                f"labeler_{form.form}",
            )
            assert (
                prompt.text == "Say it"
                if form.form == "plain"
                else prompt.text == "Double it\n\nInput: 1\nOutput: 2\n\nInput: 2\nOutput: 4"
            )
        if form.kind == "demonstrate":
            row = db.get(DemonstrationRow, stored.id)
            assert (row.person_id, row.prompt_id) == (ada.id, db.get(Task, mine.task_id).prompt_id)


def test_the_same_key_submits_once(site, desk):
    _, mine, do = desk
    first = do(submit_form, site.settings, mine, ranking(mine.shown), "k", 2)
    before = everything(site)
    again = do(submit_form, site.settings, mine, ranking(mine.shown[::-1]), "k", 3)
    assert again.id == first.id
    assert do(submit_edit, site.settings, mine, ranking(mine.shown[::-1]), "k", 3).id == first.id
    assert everything(site) == before
    problem = refused("already_submitted", do, submit_form, site.settings, mine, ranking(mine.shown), "another tab", 4)
    assert problem.values == {"submission": first.id, "version": 1}
    assert everything(site) == before


def test_late_work_counts_while_there_is_room(site, desk):
    _, mine, do = desk
    do(expire_leases, mine.lease_until + 1)
    assert task_now(site, mine) == ("open", 0, 0)
    assert not do(submit_form, site.settings, mine, ranking(mine.shown), "k", mine.lease_until + 2).surplus
    assert task_now(site, mine) == ("done", 0, 1)
    sound(site)


def test_late_work_is_surplus_when_the_place_is_taken(site, desk):
    _, mine, do = desk
    bob = add_person(site, "bob")
    late = mine.lease_until + 1
    theirs = do(claim_next_task, site.settings, bob, None, late)
    assert theirs.task_id == mine.task_id
    assert do(submit_form, site.settings, mine, ranking(mine.shown), "k", late).surplus
    assert task_now(site, mine) == ("open", 1, 0)
    assert not do(submit_form, site.settings, theirs, ranking(theirs.shown), "k", late).surplus
    assert task_now(site, mine) == ("done", 0, 1)
    sound(site)
    assert do(submit_edit, site.settings, mine, ranking(mine.shown), "k2", late).surplus, (
        "an edit changes nothing about that"
    )
    do(undo_submission, site.settings, mine, late)
    assert task_now(site, mine) == ("done", 0, 1)
    sound(site)


def test_submitting_a_skipped_task_cancels_the_skip(site, desk):
    _, mine, do = desk
    do(skip_assignment, site.settings, mine, "other", "", 2)
    do(submit_form, site.settings, mine, ranking(mine.shown), "other tab", 3)
    assert task_now(site, mine) == ("done", 0, 1)
    sound(site)


def test_an_edit_adds_a_version(site, desk):
    _, mine, do = desk
    refused("not_submitted", do, submit_edit, site.settings, mine, ranking(mine.shown), "k", 1)
    do(submit_form, site.settings, mine, ranking(mine.shown), "k1", 2)
    second = do(submit_edit, site.settings, mine, ranking(mine.shown[::-1]), "k2", 3)
    with site.database.read() as db:
        rows = db.scalars(select(Submission).order_by(Submission.version)).all()
        assert [(row.version, row.replaced_at) for row in rows] == [(1, 3), (2, None)]
        assert [read_submission_form(db, row).tiers for row in rows] == [
            tuple((each,) for each in order) for order in (mine.shown, mine.shown[::-1])
        ]
        assert get_current_submission(db, mine).id == second.id
    assert task_now(site, mine) == ("done", 0, 1)
    do(submit_edit, site.settings, mine, ranking(mine.shown), "k3", 2 + DAY)
    refused("too_late_to_edit", do, submit_edit, site.settings, mine, ranking(mine.shown), "k4", 3 + DAY)
    refused("too_late_to_edit", do, undo_submission, site.settings, mine, 3 + DAY)
    sound(site)


def test_undo_restores_the_submission_as_a_draft(site, desk):
    ada, mine, do = desk
    form = ranking(mine.shown, note="mine")
    do(submit_form, site.settings, mine, form, "k1", 2)
    draft = do(undo_submission, site.settings, mine, 3)
    assert RankingForm.model_validate(draft.payload) == form
    assert task_now(site, mine) == ("open", 1, 0)
    refused("not_submitted", do, undo_submission, site.settings, mine, 4)
    sound(site)
    assert do(claim_next_task, site.settings, ada, None, 5).id == mine.id
    assert do(submit_form, site.settings, mine, form, "k2", 6).version == 2
    with site.database.read() as db:
        assert not db.scalars(select(Draft)).all()
        assert len(db.scalars(select(Submission)).all()) == 2
    sound(site)


def test_an_undone_prompt_is_withdrawn(site):
    ada = add_person(site)
    with site.database.write() as db:
        prompt_batch(db, "write", tasks=1)

    def do(function, *arguments):
        return site.database.write_with_retry(lambda db: function(db, site.settings, *arguments))

    mine = do(claim_next_task, ada, None, 1)
    do(submit_form, mine, PromptForm(text="one"), "1", 2)
    do(submit_edit, mine, PromptForm(text="two"), "2", 3)
    do(undo_submission, mine, 4)
    do(submit_form, mine, PromptForm(text="three"), "3", 5)
    with site.database.read() as db:
        assert [
            (row.text, row.withdrawn_at) for row in db.scalars(select(PromptRow).order_by(PromptRow.created_at))
        ] == [
            ("one", 3),
            ("two", 4),
            ("three", None),
        ]


def test_repeats_change_no_counter(site):
    ada = add_person(site)
    with site.database.write() as db:
        rank_batch(db, tasks=2, policy=OverlapPolicy(cohort_share=0, gold_share=0, repeat_share=0.5, repeat_gap=1))

    def do(function, *arguments):
        return site.database.write_with_retry(lambda db: function(db, site.settings, *arguments))

    rounds = []
    for number in range(3):
        mine = do(claim_next_task, ada, None, number)
        do(submit_form, mine, ranking(mine.shown), "k", number)
        rounds.append(mine.round)
    assert rounds == [0, 0, 1]
    do(undo_submission, mine, 9)
    sound(site)
    do(submit_form, mine, ranking(mine.shown), "k2", 10)
    sound(site)


def test_invalid_work_stays_and_does_not_count(site, desk):
    _, mine, do = desk
    bob = add_person(site, "bob")
    stored = do(submit_form, site.settings, mine, ranking(mine.shown), "k", 2)
    do(set_submission_validity, stored, "clicked through")
    assert task_now(site, mine) == ("open", 0, 0)
    sound(site)
    do(set_submission_validity, stored, None)
    assert task_now(site, mine) == ("done", 0, 1)
    do(set_submission_validity, stored, "clicked through")
    theirs = do(claim_next_task, site.settings, bob, None, 3)
    assert theirs.task_id == mine.task_id
    do(set_submission_validity, stored, None)
    with site.database.read() as db:
        assert db.get(Submission, stored.id).surplus
    sound(site)
    do(return_to_labeler, mine, 4)
    newer = do(submit_form, site.settings, mine, ranking(mine.shown), "k2", 5)
    assert newer.surplus
    refused("not_submitted", do, set_submission_validity, stored, "too old")
    sound(site)


def wrong_forms(shown):
    """Forms that are not whole, or not of this task."""
    whole = ranking(shown)
    return {
        "bad_form": [
            RankingForm(ratings=(), tiers=whole.tiers[:-1]),
            RankingForm(ratings=(), tiers=(*whole.tiers, ("stranger",))),
            RankingForm(ratings=(), tiers=(*whole.tiers[:-1], (shown[-1], shown[0]))),
            RankingForm(ratings=(), tiers=((), *whole.tiers)),
            whole.model_copy(update={"ratings": (*whole.ratings, whole.ratings[0])}),
        ],
        "wrong_form": [DemonstrationForm(text="x"), PromptForm(text="x"), ReviewForm()],
    }


def test_a_bad_form_changes_nothing(site, desk):
    _, mine, do = desk
    do(drafts.store_draft, mine, 0, {"kept": True}, 2)
    before = everything(site)
    for put in (submit_form, submit_edit):
        for code, forms in wrong_forms(mine.shown).items():
            for form in forms:
                refused(code, do, put, site.settings, mine, form, "k", 3)
        for key in ("", "  ", "x" * 201, "a\nb"):
            refused("no_key", do, put, site.settings, mine, ranking(mine.shown), key, 3)
    assert everything(site) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: DemonstrationForm(text=" \n"),
        lambda: DemonstrationForm(text="a\x00b"),
        lambda: DemonstrationForm(text="x", note="\x00"),
        lambda: DemonstrationForm(text="x" * 200_001),
        lambda: DemonstrationForm(text="x", pasted=1.5),
        lambda: PromptForm(text=" "),
        lambda: PromptForm(text="x", examples=(("a", "b"),)),
        lambda: PromptForm(text="x", form="few_shot"),
        lambda: PromptForm(text="x", use_case="juggling"),
        lambda: ReviewForm(use_case="juggling"),
        lambda: ReviewForm(labels={"nice": True}),
        lambda: RankingForm(ratings=[{"completion": "a", "rating": 21}], tiers=()),
        lambda: RankingForm(ratings=(), tiers=(), confidence=10),
        lambda: RankingForm(ratings=(), tiers=(), extra=1),
    ],
)
def test_invalid_forms_are_refused(make):
    with pytest.raises(ValidationError):
        make()


@pytest.mark.parametrize(
    ("labels", "reason"), [({"nice": True}, "no question 'nice'"), ({"opinion": None}, "'opinion' is yes or no")]
)
def test_answers_to_no_question_of_the_batch_are_refused(labels, reason):
    form = RankingForm(ratings=[{"completion": "a", "labels": labels}], tiers=[["a"], ["b"]])
    with pytest.raises(ValueError, match=reason):
        complete_form(QuestionSet(), form, ["a", "b"])
