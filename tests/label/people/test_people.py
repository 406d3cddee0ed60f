"""Screening, decisions, folds, surveys, account settings."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select
from support.site import add_person, client_of

from instructgpt.label.auth import accounts
from instructgpt.label.db.models import (
    AuditLogEntry,
    CompletionRow,
    GoldAnswer,
    Person,
    PromptRow,
    Submission,
    SurveyReply,
    Task,
    UserSession,
    current_time_ms,
)
from instructgpt.label.errors import SiteError
from instructgpt.label.people import screening, surveys
from instructgpt.label.tasks import assignments as work
from instructgpt.label.tasks import batches, submissions
from instructgpt.label.tasks.batches import OverlapPolicy
from instructgpt.label.tasks.forms import CompletionRating, DemonstrationForm, RankingForm, ReviewForm
from instructgpt.records import Completion as CompletionRecord
from instructgpt.records import Prompt as PromptRecord

DATABASES = ("sqlite",)

GOOD = "correct horse battery"


@pytest.fixture
def owner(site):
    return add_person(site, "olga", role="owner")


def with_password(site, name, role="labeler", **more):
    with site.database.write() as db:
        return accounts.create_person(db, name, role, password=GOOD, **more)


def reload_person(site, person):
    with site.database.read() as db:
        return db.get_one(Person, person.id)


# --- screening ---


def screening_batch(site, part, number, completions=0):
    """An open screening batch. Gold answers: even prompts are sensitive; completions rank in their order."""
    kind = screening.SCREENING_KINDS[part]
    prompts = [PromptRecord(prompt=f"{part} {each}", id=f"{part}-{each}") for each in range(number)]
    texts = [
        CompletionRecord(
            prompt=f"{part} {each}", completion=f"text {place}", model=f"m{place}", finish="stop", sampling={}
        )
        for each in range(number)
        for place in range(completions)
    ]
    with site.database.write() as db:
        policy = OverlapPolicy(overlap=100, cohort_share=0, cohort_overlap=100, gold_share=0, repeat_share=0)
        batch = batches.create_batch_with_tasks(db, part, kind, "training", prompts, texts, policy, screening=part)
        batches.mark_batch_open(db, batch)
        for task in db.scalars(select(Task).where(Task.batch_id == batch.id)).all():
            prompt = db.get_one(PromptRow, task.prompt_id)
            if part == "sensitive":
                db.add(GoldAnswer(task_id=task.id, answer={"sensitive": int(prompt.text.split()[-1]) % 2 == 0}))
            elif part == "ranking":
                rows = db.scalars(select(CompletionRow).where(CompletionRow.prompt_id == prompt.id)).all()
                db.add(GoldAnswer(task_id=task.id, answer={row.id: int(row.text.split()[-1]) + 1 for row in rows}))


def submit_all(site, person, part, make_form, number):
    for _ in range(number):
        with site.database.write() as db:
            given = work.claim_next_task(
                db, site.settings, person, screening.SCREENING_KINDS[part], current_time_ms(), part
            )
            assert given is not None
            task = db.get_one(Task, given.task_id)
            text = db.get_one(PromptRow, task.prompt_id).text
            places = {
                row.id: row.text for row in db.scalars(select(CompletionRow).where(CompletionRow.id.in_(given.shown)))
            }
            submissions.submit_form(
                db,
                site.settings,
                given,
                make_form(int(text.split()[-1]), places),
                f"key-{text}-{person.id}",
                current_time_ms(),
            )


def test_sensitive_flags_are_compared_with_gold(site):
    person = add_person(site, status="screening")
    screening_batch(site, "sensitive", 8)
    answers = {0: True, 1: True, 2: None, 3: False, 4: True, 5: False, 6: True, 7: False}  # wrong: 1; unanswered: 2
    submit_all(site, person, "sensitive", lambda number, _: ReviewForm(sensitive=answers[number]), 8)
    with site.database.read() as db:
        measure = screening.compute_screening_metrics(db, person)["sensitive"]
        assert screening.get_screening_progress(db, person)[0].model_dump() == {
            "part": "sensitive",
            "kind": "review",
            "completed": 8,
            "total": 8,
        }
    assert measure.value == 6 / 8
    # Wilson's interval for 6 of 8 by hand: (0.75 + z²/16 ± z·sqrt(0.1875/8 + z²/256)) / (1 + z²/8), z = 1.959964
    assert (measure.low, measure.high) == (pytest.approx(0.40927, abs=1e-4), pytest.approx(0.92852, abs=1e-4))
    assert (measure.items, measure.cutoff, measure.enough) == (8, 0.75, False)


def test_rankings_are_compared_pair_by_pair(site):
    person = add_person(site, status="screening")
    screening_batch(site, "ranking", 2, completions=3)

    def ranks(number, places):
        by_place = {text: key for key, text in places.items()}
        tiers = [["text 0"], ["text 1", "text 2"]] if number == 0 else [["text 2"], ["text 0"], ["text 1"]]
        return RankingForm(
            ratings=tuple(CompletionRating(completion=key, rating=4) for key in places),
            tiers=tuple(tuple(by_place[text] for text in tier) for tier in tiers),
        )

    submit_all(site, person, "ranking", ranks, 2)
    with site.database.read() as db:
        agreed, items = screening.ranking_agreement(db, person)
    # first: 01 and 02 right, 12 tied: 2.5 of 3; second: 01 right, 02 and 12 the wrong way round: 1 of 3
    assert (agreed, items) == (pytest.approx(2.5 / 3 + 1 / 3), 2)


def test_ties_of_the_gold_ranking_are_ignored():
    assert screening.pair_agreement({"a": 1, "b": 2}, {"a": 1, "b": 1}) is None
    assert screening.pair_agreement({"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 2, "c": 3}) == 0.5


def test_demonstrations_are_graded_blind_and_a_researcher_decides(site, owner):
    person, helper = add_person(site, "ada", status="screening"), add_person(site, "ron", role="researcher")
    screening_batch(site, "demonstration", 2)
    submit_all(site, person, "demonstration", lambda number, _: DemonstrationForm(text=f"completion {number}"), 2)
    client = client_of(site, helper)
    shown = client.get("/screening/grade").text
    assert "completion 0" in shown
    assert "ada" not in shown
    assert person.pseudonym not in shown
    with site.database.read() as db:
        ids = db.scalars(select(Submission.id)).all()
    for each, score in zip(ids, (7, 6), strict=True):
        assert client.post("/screening/grade", data={"submission": each, "score": score}).status_code == 303
    assert client.post("/screening/grade", data={"submission": ids[0], "score": 8}).status_code == 422
    assert client.post("/screening/grade", data={"submission": "none", "score": 3}).status_code == 404
    client_of(site, owner).post("/screening/grade", data={"submission": ids[0], "score": 4})
    with site.database.read() as db:
        measure = screening.compute_screening_metrics(db, person)["demonstration"]
    assert (measure.value, measure.items) == (pytest.approx((5.5 + 6) / 2), 2)
    boss = client_of(site, owner)
    assert boss.post(f"/people/{person.id}/decision", data={"verdict": "admit", "reason": " "}).status_code == 422
    assert client.post(f"/people/{person.id}/decision", data={"verdict": "admit", "reason": "good"}).status_code == 403
    assert boss.post(f"/people/{person.id}/decision", data={"verdict": "admit", "reason": "good"}).status_code == 303
    assert (reload_person(site, person).status, reload_person(site, person).fold) == ("active", 0)
    with site.database.read() as db:
        (decision,) = screening.list_decisions(db, person)
    assert (decision.reason, decision.by_id, decision.measured["demonstration"]["value"]) == (
        "good",
        owner.id,
        pytest.approx(5.75),
    )
    assert boss.post(f"/people/{person.id}/decision", data={"verdict": "admit", "reason": "twice"}).status_code == 409
    assert "good" in boss.get(f"/people/{person.id}").text


def test_folds_fill_evenly_and_members_stay(site, owner):
    people = [add_person(site, f"p{number}", status="screening") for number in range(12)]
    add_person(site, "hal", cohort="heldout")
    with site.database.write() as db:
        db.get_one(Person, people[0].id).fold = 3
        for person in people:
            screening.record_decision(db, db.get_one(Person, person.id), owner, "admit", "fine")
    folds = [reload_person(site, person).fold for person in people]
    assert folds[0] == 3
    sizes = [folds.count(fold) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 1
    extra = add_person(site, "late")
    client_of(site, owner).post("/people/folds")
    assert reload_person(site, extra).fold is not None
    assert [reload_person(site, person).fold for person in people] == folds


@pytest.mark.parametrize(
    ("status", "fitting"),
    [
        ("screening", {"admit", "decline"}),
        ("active", {"pause"}),
        ("paused", {"resume"}),
        ("declined", {"admit"}),
        ("withdrawn", set()),
        ("erased", set()),
    ],
)
def test_verdicts_depend_on_the_status(site, owner, status, fitting):
    person = add_person(site, status=status)
    assert set(screening.allowed_verdicts(person)) == fitting
    for verdict in ("admit", "decline", "pause", "resume", "promote"):
        if verdict not in fitting:
            with site.database.write() as db, pytest.raises(SiteError, match="no_such_verdict"):
                screening.record_decision(db, db.get_one(Person, person.id), owner, verdict, "because")


def test_the_screening_page_links_to_each_part(site):
    screening_batch(site, "sensitive", 2)
    shown = client_of(site, add_person(site, status="screening")).get("/screening").text
    assert shown.count('name="screening" value="sensitive"') == 1
    assert 'href="/surveys/groups"' in shown
    assert "0 of 2" in shown


# --- surveys ---


def test_survey_replies_are_anonymous(site):
    for number in range(5):
        person = add_person(site, f"p{number}")
        client = client_of(site, person)
        answers = {"answer-gender": "female" if number else "other", "answer-ethnicity": ["white", "black"]}
        assert client.post("/surveys/demographics", data=answers).status_code == 303
        assert client.post("/surveys/demographics", data=answers).status_code == 409
    with site.database.read() as db:
        number, counts = surveys.count_survey_replies(db, "demographics")
        rows = db.scalars(select(SurveyReply)).all()
        assert not db.scalar(select(func.count()).where(AuditLogEntry.action.startswith("survey")))
    assert (number, counts["gender"]["female"], counts["gender"]["other"], counts["gender"]["male"]) == (
        5,
        None,
        None,
        0,
    )
    assert counts["ethnicity"]["black"] == 5
    assert all(person.id not in str(vars(row)) and len(row.month) == 7 for row in rows)
    assert [row.id for row in rows] == sorted(row.id for row in rows), "they come in the order of random ids"


@pytest.mark.parametrize(
    "answers", [{"answer-gender": "robot"}, {"answer-shoe": "1"}, {"answer-gender": ["male", "female"]}]
)
def test_unknown_survey_options_are_refused(site, answers):
    client = client_of(site, add_person(site))
    assert client.post("/surveys/demographics", data=answers).status_code == 422
    assert client.post("/surveys/demographics", data={}).status_code == 303, "and you may skip any question"
    assert client.get("/surveys/nothing").status_code == 404


def test_small_survey_counts_are_hidden(site, owner):
    for number in range(4):
        client_of(site, add_person(site, f"p{number}")).post("/surveys/satisfaction", data={"answer-glad": "agree"})
    with site.database.read() as db:
        assert surveys.count_survey_replies(db, "satisfaction") == (4, {})
    assert "Nothing is shown until" in client_of(site, owner).get("/surveys").text


# --- one's account ---


def test_preferences_and_password(site):
    person = with_password(site, "ada", status="active")
    client, other = client_of(site, person), client_of(site)
    assert other.post("/sign-in", data={"name": "ada", "password": GOOD}).status_code == 303
    client.post("/account/preferences", data={"language": "ko", "theme": "dark", "email": "a@example.org"})
    stored = reload_person(site, person)
    assert (stored.language, stored.theme, stored.email, stored.sees_sensitive) == (
        "ko",
        "dark",
        "a@example.org",
        False,
    )
    assert client.post("/account/preferences", data={"language": "xx", "theme": "dark"}).status_code == 422
    form = {"old": GOOD, "password": "another good one", "again": "another good one"}
    assert client.post("/account/password", data={**form, "old": "wrong"}).status_code == 422
    assert client.post("/account/password", data={**form, "again": "different"}).status_code == 422
    assert client.post("/account/password", data={**form, "password": "short", "again": "short"}).status_code == 422
    changed = client.post("/account/password", data=form)
    assert changed.status_code == 303
    token = changed.cookies["labeler_session"]
    client.cookies.clear()
    client.cookies.set("labeler_session", token)
    assert client.get("/account").status_code == 200
    assert other.get("/account").status_code == 401


def test_sessions_are_listed_and_revoked(site):
    person = with_password(site, "ada", status="active")
    client, phone, stranger = client_of(site, person), client_of(site), client_of(site, add_person(site, "eve"))
    phone.post("/sign-in", data={"name": "ada", "password": GOOD}, headers={"User-Agent": "Phone <b>1</b>"})
    assert "Phone &lt;b&gt;1&lt;/b&gt;" in client.get("/account").text
    with site.database.read() as db:
        login = db.scalars(select(UserSession).where(UserSession.agent.startswith("Phone"))).one()
    assert stranger.post(f"/account/sign-ins/{login.id}/end").status_code == 404
    assert phone.get("/account").status_code == 200
    assert client.post(f"/account/sign-ins/{login.id}/end").status_code == 303
    assert phone.get("/account").status_code == 401


# --- the owner's pages ---


def test_an_owner_invites_resets_and_changes_roles(site, owner):
    client, person = client_of(site, owner), add_person(site, "ada")
    page = client.post(
        "/people/invites", data={"role": "labeler", "cohort": "heldout", "note": "<script>", "max_uses": 3}
    )
    link = page.text.split('value="http://testserver/invite/')[1].split('"')[0]
    assert "<script>" not in page.text.replace('<script type="module"', "")
    assert client_of(site).get(f"/invite/{link}").status_code == 200
    assert "http://testserver/invite/" in client.post(f"/people/{person.id}/reset").text
    hers = client_of(site, person)
    assert client.post(f"/people/{person.id}/role", data={"role": "researcher"}).status_code == 303
    assert hers.get("/account").status_code == 401, "old sign-ins do not carry new rights"
    assert client.post(f"/people/{owner.id}/role", data={"role": "labeler"}).status_code == 409
    assert client.post(f"/people/{owner.id}/erase", data={"name": "olga"}).status_code == 409
    assert client.post(f"/people/{person.id}/erase", data={"name": "someone else"}).status_code == 422
    assert client.post("/people/nobody/reset").status_code == 404
    for bad in ({"role": "god"}, {"role": "labeler", "max_uses": 0}, {"role": "labeler", "days": 4000}, {}):
        assert client.post("/people/invites", data=bad).status_code == 422
