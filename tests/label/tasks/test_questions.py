"""Required, optional, conditional and own questions, through forms, pages and API.

Run: python -m pytest tests/label/tasks/test_questions.py
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import yaml
from sqlalchemy import select
from support.browser import browser, server, sign_in, watched  # noqa: F401
from support.site import add_person, client_of, make_site

from instructgpt import records
from instructgpt.errors import InputError
from instructgpt.label.db.models import RankingRow, Rating
from instructgpt.label.tasks.batches import OverlapPolicy, create_batch_with_tasks, mark_batch_open
from instructgpt.label.tasks.forms import RankingForm
from instructgpt.label.tasks.questions import complete_form, list_unanswered, load_questions_yaml, parse_questions
from instructgpt.records import LABELS

EXACT = OverlapPolicy(gold_share=0, repeat_share=0, cohort_share=0)
OWN = """
rating: {answer: required, points: 5, low: {en: useless, ko: 쓸모없음}, high: {en: perfect}}
table_3: off
labels:
  satisfies_constraint: required
  cites_source:
    text: {en: Names a source, ko: 출처를 밝힌다}
    short: {en: source}
    answer: required
  source_exists:
    text: {en: The source exists}
    answer: required
    when: {cites_source: yes}
  in_english: {text: {en: The prompt is English}, scope: task}
"""

_NESTED = [f"&{name} [{9 * f'*{before}, '}]" for before, name in pairwise("abcdefghij")]
BOMB = f"table_3: [&a [x], {', '.join(_NESTED)}]"
"""An eightfold nesting of lists of nine: forty million texts."""


@pytest.fixture
def site(tmp_path):
    made = make_site(tmp_path)
    yield made
    made.database.close()


def add_batch(site, document: str | None, texts=("one", "two")) -> None:
    completions = [records.Completion(prompt="Say it.", completion=text, model=f"m-{text}") for text in texts]
    with site.database.write() as db:
        questions = load_questions_yaml(document) if document else None
        prompt = [records.Prompt(prompt="Say it.")]
        batch = create_batch_with_tasks(db, "b", "rank", "training", prompt, completions, EXACT, questions=questions)
        mark_batch_open(db, batch)


def claim(client) -> tuple[str, list[str]]:
    view = client.post("/api/v1/tasks/claim", json={}).json()
    return view["assignment"], [completion["id"] for completion in view["completions"]]


def form(completions, **changes) -> dict:
    return {"kind": "rank", "tiers": [[each] for each in completions], "ratings": [], **changes}


def rated(completions, value=5, **labels) -> list[dict]:
    return [{"completion": each, "rating": value, "labels": labels} for each in completions]


def submit(client, assignment, body):
    return client.post(f"/api/v1/assignments/{assignment}/submit", json=body, headers={"Idempotency-Key": "k"})


def test_default_questions_are_table_3_and_optional():
    questions = parse_questions(None)
    assert tuple(questions.active("completion")) == LABELS
    assert list(questions.active("task")) == ["has_constraint"]
    empty = RankingForm.model_validate(form(["a", "b"]))
    unanswered = list_unanswered(questions, empty, ["a", "b"])
    assert not any(each.required for each in unanswered)
    # By hand: one question of the task; for each completion the rating and ten labels, all but the conditional one.
    assert len(unanswered) == 1 + 2 * (1 + 10)


def test_constraint_is_asked_once_and_decides_for_all_completions():
    questions = parse_questions({"labels": {"satisfies_constraint": "required"}})
    without = RankingForm.model_validate(form(["a", "b"], answers={"has_constraint": False}))
    stored = complete_form(questions, without, ["a", "b"])
    assert [rating.labels for rating in stored.ratings] == [{"satisfies_constraint": None}] * 2
    assert not [each for each in list_unanswered(questions, stored, ["a", "b"]) if each.required]
    having = RankingForm.model_validate(form(["a", "b"], answers={"has_constraint": True}))
    required = [each for each in list_unanswered(questions, having, ["a", "b"]) if each.required]
    assert [(each.completion, each.name) for each in required] == [(part, "satisfies_constraint") for part in "ab"]
    contradicting = without.model_copy(
        update={
            "ratings": RankingForm.model_validate(form(["a"], ratings=rated("a", satisfies_constraint=True))).ratings
        }
    )
    with pytest.raises(ValueError, match="rules it out"):
        complete_form(questions, contradicting, ["a", "b"])


def test_labels_of_a_program_that_knows_only_table_3_answer_the_constraint():
    questions = parse_questions(None)
    answered = RankingForm.model_validate(form(["a", "b"], ratings=rated("a", satisfies_constraint=False)))
    assert complete_form(questions, answered, ["a", "b"]).answers == {"has_constraint": True}
    inapplicable = RankingForm.model_validate(form(["a", "b"], ratings=rated("ab", satisfies_constraint=None)))
    assert complete_form(questions, inapplicable, ["a", "b"]).answers == {"has_constraint": False}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[1]", "entries rating, table_3 and labels"),
        ("a: b: c", "line 1"),
        ("table_3: sometimes", "none of required, optional, off"),
        ("labels: {cites: required}", "labels.cites needs a text"),
        ("labels: {cites: {text: {en: x}, when: {later: yes}}}", "there is no question 'later' before it"),
        ("labels: {cites: {text: {en: x}, when: {opinion: yes}}, opinion: off}", "the question 'opinion' is off"),
        ("labels: {Bad-Name: {text: {en: x}}}", "Bad-Name"),
        ("rating: {points: 21}", "points"),
        ("labels: {cites: {text: {en: x}, colour: red}}", "colour"),
        ("labels: {cites: 3}", "labels.cites"),
        ("labels: {cites: {text: {en: !!binary aGk=}}}", "labels.cites.text.en"),
        ('labels: {cites: {text: {en: "a\\0b"}}}', "cannot be stored"),
        ('labels: {cites: {text: {en: "a\\ud800b"}}}', "labels.cites.text.en"),
        ('labels: {cites: {text: {"e\\0": "a"}}}', "labels.cites.text"),
        ("labels: {cites: {text: {2001-01-01: x}}}", "labels.cites.text"),
        ("table_3: 2001-13-01", "none of its type"),
        ("[" * 20_000, "nested too deeply"),
        ("{a: " * 5_000, "nested too deeply"),
        (BOMB, "line 1: aliases"),
    ],
)
def test_wrong_documents_are_refused_with_their_place(document, message):
    with pytest.raises(InputError, match=message):
        load_questions_yaml(document)


def test_required_questions_are_enforced_through_the_api(site):
    add_batch(site, OWN)
    labeler = client_of(site, add_person(site))
    assignment, ids = claim(labeler)
    view = labeler.get(f"/api/v1/assignments/{assignment}").json()
    assert [label["name"] for label in view["labels"]] == [
        "has_constraint",
        "in_english",
        "satisfies_constraint",
        "cites_source",
        "source_exists",
    ]
    assert view["rating"]["points"] == 5
    refused = submit(labeler, assignment, form(ids))
    assert (refused.status_code, refused.json()["error"]) == (422, "unanswered")
    assert refused.json()["detail"] == {"count": 5, "names": "has_constraint, rating, cites_source"}
    full = form(ids, answers={"has_constraint": False}, ratings=rated(ids, 5, cites_source=True))
    assert submit(labeler, assignment, full).json()["detail"]["names"] == "source_exists"
    for wrong, reason in (
        (rated(ids, 6, cites_source=False), "up to 5"),
        (rated(ids, 5, cites_source=False, opinion=True), "no question 'opinion'"),
        (rated(ids, 5, cites_source=None), "is yes or no"),
        (rated(ids, 5, cites_source=False, source_exists=True), "rules it out"),
    ):
        answer = submit(labeler, assignment, {**full, "ratings": wrong})
        assert (answer.status_code, answer.json()["error"]) == (422, "bad_form")
        assert reason in answer.json()["message"]
    assert submit(labeler, assignment, {**full, "ratings": rated(ids, 5, cites_source=False)}).status_code == 200
    with site.database.read() as db:
        expected = {"satisfies_constraint": None, "cites_source": False, "source_exists": None}
        assert [row.labels for row in db.scalars(select(Rating))] == [expected] * 2
        assert db.scalars(select(RankingRow)).one().answers == {"has_constraint": False}
    stored = labeler.get(f"/api/v1/assignments/{assignment}").json()["submission"]
    assert stored["answers"] == {"has_constraint": False}


def test_page_shows_own_questions_in_the_language_and_keeps_what_was_filled_in(site):
    add_batch(site, OWN)
    labeler = client_of(site, add_person(site, language="ko"))
    assignment, ids = claim(labeler)
    page = labeler.get(f"/tasks/{assignment}").text
    assert "출처를 밝힌다" in page
    assert "The source exists" in page, "English where there is no translation"
    assert "1 · 쓸모없음" in page
    assert "5 · perfect" in page
    assert f'name="label:{ids[0]}:opinion"' not in page
    fields = {f"tier:{each}": "1" for each in ids} | {f"label:{ids[0]}:cites_source": "yes", "key": "k"}
    refused = labeler.post(f"/tasks/{assignment}/submit", data=fields)
    assert refused.status_code == 422
    assert f'name="label:{ids[0]}:cites_source" value="yes" checked' in refused.text


def test_batch_page_sets_each_question(site):
    owner = client_of(site, add_person(site, "olga", role="owner"))
    file = '{"prompt": "p", "completion": "a", "model": "x"}\n{"prompt": "p", "completion": "b", "model": "y"}\n'
    fields = {"name": "n", "kind": "rank", "purpose": "training", "answer_rating": "required", "answer_opinion": "off"}
    fields |= {"questions": "labels: {cites: {text: {en: Names a source}}}", "answer_table_3": "optional"}
    made = owner.post("/batches", data=fields, files={"completions": ("c.jsonl", file)})
    assert made.status_code == 303, made.text
    assert "Names a source" in owner.get(made.headers["location"]).text
    owner.post(f"{made.headers['location']}/state", data={"state": "open"})
    view = client_of(site, add_person(site)).post("/api/v1/tasks/claim", json={}).json()
    names = [label["name"] for label in view["labels"]]
    assert view["rating"]["answer"] == "required"
    assert "cites" in names
    assert "opinion" not in names
    wrong = owner.post(
        "/batches", data={**fields, "name": "m", "questions": "labels: [1]"}, files={"completions": ("c.jsonl", file)}
    )
    assert wrong.status_code == 422
    assert "labels" in wrong.text


def test_example_on_the_batch_page_is_valid():
    from instructgpt.label.web.pages.owner.batches import _QUESTIONS_EXAMPLE

    assert parse_questions(yaml.safe_load(_QUESTIONS_EXAMPLE)).rating.points == 5


def answer_by_mouse(page) -> None:
    for index in range(2):
        section = page.locator("section.rate").nth(index)
        section.locator('.scale input[value="4"]').check(force=True)
        section.locator('.ask[data-name="cites_source"] input[value="no"]').check(force=True)
        section.locator(".next").click()


def answer_by_tap(page) -> None:
    for index in range(2):
        section = page.locator("section.rate").nth(index)
        section.locator(".scale .choice").nth(3).tap()
        section.locator('.ask[data-name="cites_source"] .choice').nth(1).tap()
        section.locator(".next").tap()


def answer_by_keys(page) -> None:
    for _ in range(2):
        page.keyboard.press("4")
        page.keyboard.press("r")  # the fourth question: yes, and again: no
        page.keyboard.press("r")
        page.keyboard.press("Control+Enter")


@pytest.mark.slow
@pytest.mark.parametrize("answer", [answer_by_mouse, answer_by_tap, answer_by_keys])
def test_open_questions_are_listed_and_counted_in_a_browser(answer, browser, server, watched):  # noqa: F811
    add_batch(server.site, OWN)
    person = add_person(server.site)
    with browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True) as context:
        watched.watch(context, server.url)
        sign_in(context, server, person)
        page = context.new_page()
        page.goto(f"{server.url}/home")
        page.locator("form:has(input[name=kind][value=rank]) button").click()
        page.wait_for_selector("form[data-ready]")
        assert page.locator("#rated").inner_text() == "0/2"
        assert not page.locator('.ask[data-name="source_exists"]').first.is_visible()
        answer(page)
        assert page.locator("#rated").inner_text() == "2/2", "the counter moves whatever is used"
        for key in "a1b2":
            page.keyboard.press(key)
        open_list = page.locator("#unanswered")
        assert "a constraint in the prompt" in open_list.inner_text()
        page.locator("#submit").click(force=True)  # aria-disabled
        constraint = page.locator('.ask[data-name="has_constraint"]')
        assert constraint.is_visible(), "handing in leads to the first open question"
        constraint.locator('input[value="yes"]').check(force=True)
        kept = page.locator('.ask[data-name="satisfies_constraint"]')
        assert kept.locator("visible=true").count() > 0, "the answer leads to the next question"
        page.locator(".stage[data-stage=rank]").click()
        assert "keeps the constraint: A, B" in open_list.inner_text()
        page.locator("#go-open").click()
        for index in range(2):
            kept.nth(index).locator('input[value="yes"]').check(force=True)
            page.locator("section.rate .next").nth(index).click()
        assert "Required" not in open_list.inner_text()
        page.locator("#submit").click()
        page.wait_for_url("**/done")
    with server.site.database.read() as db:
        assert db.scalars(select(RankingRow)).one().answers == {"has_constraint": True}
        labels = [row.labels for row in db.scalars(select(Rating))]
        assert labels == [{"satisfies_constraint": True, "cites_source": False, "source_exists": None}] * 2
