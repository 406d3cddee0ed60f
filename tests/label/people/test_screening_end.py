"""What the screening test leaves open after a decision."""

from __future__ import annotations

from support.site import add_person, client_of
from support.tasks import hand_in, prompt_batch, take

from instructgpt.label.db.models import Person
from instructgpt.label.i18n import load_translator

DATABASES = ("sqlite",)
HERE = "/api/v1/assignments"


def test_admitted_people_cannot_change_the_answers_that_admitted_them(site):
    ada = add_person(site, status="screening")
    with site.database.write() as db:
        prompt_batch(db, "review", tasks=1, screening="sensitive")
    mine = take(site, ada, kind="review", screening="sensitive")
    now = 10**15
    hand_in(site, mine, at=now)
    form = {"use_case": "brainstorming"}
    with client_of(site, ada) as client:
        edited = client.post(f"{HERE}/{mine.id}/edit", json=form, headers={"Idempotency-Key": "e"})
        assert edited.status_code == 200, edited.text
        with site.database.write() as db:
            db.get(Person, ada.id).status = "active"
        for path in ("edit", "undo"):
            answer = client.post(f"{HERE}/{mine.id}/{path}", json=form, headers={"Idempotency-Key": path})
            assert (answer.status_code, answer.json()["error"]) == (409, "too_late_to_edit")


def test_the_page_of_a_held_out_labeler_has_no_screening(site):
    owner = add_person(site, "olga", "owner")
    people = {cohort: add_person(site, cohort, cohort=cohort) for cohort in ("training", "heldout")}
    with client_of(site, owner) as client:
        pages = {cohort: client.get(f"/people/{person.id}").text for cohort, person in people.items()}
    assert "0 of 1" in pages["training"]
    assert "0 of 1" not in pages["heldout"]
    assert "take no screening test" in pages["heldout"]
    assert ("75 %" in pages["training"], "75 %" in pages["heldout"]) == (True, False)


def test_the_list_of_batches_marks_the_screening_test(site):
    """By its part instead of a purpose, and without a progress: it never ends."""
    endless = load_translator("en")("batches.everybody")
    with site.database.write() as db:
        prompt_batch(db, "review", tasks=1, screening="sensitive", name="test")
        prompt_batch(db, "review", tasks=1, name="work")
    with client_of(site, add_person(site, "olga", "owner")) as client:
        for path in ("/batches", "/overview"):
            rows = [row.split("</tr>")[0] for row in client.get(path).text.split("<tr>") if 'href="/batches/' in row]
            marked = {
                name: ("Screening: sensitive" in row, endless in row, "Training" in row, "<meter" in row)
                for row in rows
                for name in (">test<", ">work<")
                if name in row
            }
            assert marked == {">test<": (True, True, False, False), ">work<": (False, False, True, True)}, path
