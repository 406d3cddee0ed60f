"""Conversations on the pages: ranked, written, reviewed, adjudicated and graded turn by turn.

Run: python -m pytest tests/label/web/test_conversations.py
"""

from __future__ import annotations

import json
import re

import pytest
from sqlalchemy import select
from support.browser import browser, server, sign_in, watched  # noqa: F401
from support.site import add_person, client_of, make_site

from instructgpt import records
from instructgpt.label.db.models import Assignment, Batch, PromptRow, RankingItem, Submission, Task
from instructgpt.label.exchange.export_files import write_export
from instructgpt.label.exchange.selection import ExportFilter
from instructgpt.label.tasks.batches import OverlapPolicy, create_batch_with_tasks, mark_batch_open

TURNS = [
    {"role": "system", "content": "You are a **terse** guide."},
    {"role": "user", "content": "Where is the library?"},
    {"role": "assistant", "content": "Behind the town hall."},
    {"role": "user", "content": "And when does it close on Fridays?"},
]
ANSWERS = ["At six.", "At 18:00, see `hours`.", "I do not know."]
EXACT = OverlapPolicy(gold_share=0, repeat_share=0, cohort_share=0)


def completion_lines(*, with_prompt: bool) -> str:
    """A file as `sample` writes it; the column `prompt` may be missing."""
    text = "\n\n".join(turn["content"] for turn in TURNS)
    rows = [
        {"messages": TURNS, **({"prompt": text} if with_prompt else {}), "completion": answer, "model": f"hidden-{at}"}
        for at, answer in enumerate(ANSWERS)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def seen_turns(html: str) -> list[tuple[str, str]]:
    """(role, text) of the turns of a page, read without the site's code."""
    pattern = r'<li class="turn (\w+)">.*?<div class="plain" dir="auto">(.*?)</div>'
    return re.findall(pattern, html, flags=re.S)


def can_be_rendered(html: str) -> bool:
    """Whether a page holds its text as Markdown too, with the button that shows it."""
    return "<strong>terse</strong>" in html and 'id="view"' in html


EXPECTED = [(turn["role"], turn["content"]) for turn in TURNS]


@pytest.fixture
def site(tmp_path):
    made = make_site(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def owner(site):
    return client_of(site, add_person(site, "olga", role="owner"))


def claim(labeler, **body) -> str:
    return labeler.post("/tasks/claim", data=body).headers["location"]


@pytest.mark.parametrize("with_prompt", [True, False])
def test_batch_page_takes_completions_of_conversations(with_prompt, site, owner):
    file = {"completions": ("talk.jsonl", completion_lines(with_prompt=with_prompt), "application/jsonl")}
    settings = {"name": "talks", "kind": "rank", "purpose": "training", "cohort_share": "0", "overlap": "1"}
    preview = owner.post("/batches/preview", data=settings, files=file)
    assert preview.status_code == 200, preview.text[:2000]
    assert "K = 3: 1" in preview.text
    made = owner.post("/batches", data=settings, files=file)
    assert made.status_code == 303
    batch_page = owner.get(made.headers["location"]).text
    assert "And when does it close on Fridays?" in batch_page, "the list of tasks names the newest turn"
    owner.post(f"{made.headers['location']}/state", data={"state": "open"})
    labeler = client_of(site, add_person(site))
    page = labeler.get(claim(labeler, kind="rank")).text
    assert seen_turns(page) == EXPECTED


def test_conversation_is_shown_by_turns_on_every_page_and_exported(site, owner, tmp_path):
    prompt = records.Prompt.model_validate({"messages": TURNS, "id": "c"})
    completions = [
        records.Completion.model_validate({"messages": TURNS, "completion": answer, "model": f"hidden-{at}"})
        for at, answer in enumerate(ANSWERS)
    ]
    policy = OverlapPolicy(overlap=2, cohort_overlap=2, gold_share=0, repeat_share=0, cohort_share=0)
    with site.database.write() as db:
        mark_batch_open(db, create_batch_with_tasks(db, "r", "rank", "training", [prompt], completions, policy))
        for kind in ("demonstrate", "review"):
            mark_batch_open(db, create_batch_with_tasks(db, kind, kind, "training", [prompt], [], EXACT))
        screening = create_batch_with_tasks(
            db, "s", "demonstrate", "training", [prompt], [], EXACT, screening="demonstration"
        )
        mark_batch_open(db, screening)
    labelers = [client_of(site, add_person(site, name)) for name in ("ada", "bea")]
    for number, labeler in enumerate(labelers):
        path = claim(labeler, kind="rank")
        assert seen_turns(labeler.get(path).text) == EXPECTED
        view = labeler.get(path.replace("/tasks/", "/api/v1/assignments/")).json()
        assert view["messages"] == TURNS
        ids = [completion["id"] for completion in view["completions"]]
        by_text = {completion["text"]: completion["id"] for completion in view["completions"]}
        order = ANSWERS if number == 0 else ANSWERS[::-1]
        fields = {f"tier:{by_text[answer]}": str(tier) for tier, answer in enumerate(order, 1)}
        assert len(ids) == 3
        assert labeler.post(f"{path}/submit", data={**fields, "key": "k"}).status_code == 303
        done = labeler.get(f"{path}/done").text
        assert seen_turns(done) == EXPECTED
        assert can_be_rendered(done)
        assert "And when does it close on Fridays?" in labeler.get("/history").text
    for kind in ("demonstrate", "review"):
        path = claim(labelers[0], kind=kind)
        assert seen_turns(labelers[0].get(path).text) == EXPECTED
        assert labelers[0].post(f"{path}/submit", data={"text": "At six.", "key": "k"}).status_code == 303
    applicant = client_of(site, add_person(site, "cid", status="screening"))
    path = claim(applicant, kind="demonstrate", screening="demonstration")
    assert applicant.post(f"{path}/submit", data={"text": "At six.", "key": "k"}).status_code == 303
    with site.database.read() as db:
        task = db.scalar(select(Task.id).join(Batch, Batch.id == Task.batch_id).where(Batch.name == "r"))
    for path in (f"/batches/tasks/{task}", f"/adjudication/{task}", "/screening/grade"):
        page = owner.get(path).text
        assert seen_turns(page) == EXPECTED, path
        assert can_be_rendered(page), path
    assert "And when does it close on Fridays?" in owner.get("/adjudication").text
    room = owner.post("/calibration", data={"task": task, "title": "room"}).headers["location"]
    for person in (labelers[0], owner):
        assert seen_turns(person.get(room).text) == EXPECTED
        assert can_be_rendered(person.get(room).text)
    write_export(site.database, tmp_path / "out", ExportFilter())
    ranking = records.Ranking.model_validate_json((tmp_path / "out" / "rankings.jsonl").read_text().splitlines()[0])
    assert [message.model_dump() for message in ranking.messages] == TURNS


def place_by_keys(page, letters) -> None:
    for tier, letter in enumerate(letters, 1):
        page.keyboard.press(letter.lower())
        page.keyboard.press(str(tier))


def place_by_tap(page, letters) -> None:
    for tier, letter in enumerate(letters, 1):
        page.locator(f'.card:has(.letter:text-is("{letter}")) .take').tap()
        page.locator(f'.tier[data-tier="{tier - 1}"] .slot').tap()


def place_by_drag(page, letters) -> None:
    for tier, letter in enumerate(letters, 1):
        grip = page.locator(f'.card:has(.letter:text-is("{letter}")) .grip').bounding_box()
        target = page.locator(f'.tier[data-tier="{tier - 1}"]').bounding_box()
        page.mouse.move(grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2)
        page.mouse.down()
        page.mouse.move(target["x"] + 60, target["y"] + target["height"] / 2, steps=8)
        page.mouse.up()


@pytest.mark.slow
@pytest.mark.parametrize("place", [place_by_keys, place_by_tap, place_by_drag])
def test_conversation_is_ranked_in_a_browser(place, browser, server, watched):  # noqa: F811
    prompt = records.Prompt.model_validate({"messages": TURNS, "id": "c"})
    completions = [
        records.Completion.model_validate({"messages": TURNS, "completion": answer, "model": f"hidden-{at}"})
        for at, answer in enumerate(ANSWERS)
    ]
    with server.site.database.write() as db:
        mark_batch_open(db, create_batch_with_tasks(db, "r", "rank", "training", [prompt], completions, EXACT))
    person = add_person(server.site)
    phone = {"width": 390, "height": 844} if place is place_by_tap else {"width": 1280, "height": 900}
    with browser.new_context(viewport=phone, has_touch=place is place_by_tap) as context:
        watched.watch(context, server.url)
        sign_in(context, server, person)
        page = context.new_page()
        page.goto(f"{server.url}/home")
        page.locator("form:has(input[name=kind][value=rank]) button").click()
        page.wait_for_selector("form[data-ready]")
        assert page.locator(".turn .plain:visible").all_inner_texts() == [turn["content"] for turn in TURNS]
        page.locator("#view").click()
        assert page.locator(".turn strong:visible").inner_text() == "terse"
        page.locator(".stage[data-stage=rank]").click()
        place(page, "CAB")
        page.locator("#submit").click()
        page.wait_for_url("**/done")
    with server.site.database.read() as db:
        submission = db.scalars(select(Submission)).one()
        shown = db.get_one(Assignment, submission.assignment_id).shown
        ranks = {row.completion_id: row.rank for row in db.scalars(select(RankingItem))}
        assert [ranks[shown["ABC".index(letter)]] for letter in "CAB"] == [1, 2, 3]
        assert db.scalars(select(PromptRow)).one().messages == TURNS
