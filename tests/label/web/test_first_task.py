"""From the quiz to the task that one has started, what the screening test does not ask, what a review leaves open.

pytest tests/label/web/test_first_task.py
"""

from __future__ import annotations

import re

import pytest
from sqlalchemy import select
from support.site import add_person, client_of
from support.tasks import make, prompt_batch, rank_batch

from instructgpt.label.db.models import Assignment, PromptReview, Task
from instructgpt.label.tasks import instructions

DATABASES = ("sqlite",)
QUIZ = {"questions": [{"text": "Which?", "options": ["this", "that"], "right": 1, "why": "it is"}]}


@pytest.mark.parametrize(("kind", "expected"), [("demonstrate", "demonstrate"), (None, "rank")])
def test_the_quiz_leads_to_the_task_that_was_started(site, kind, expected):
    ada = add_person(site, "ada")
    make(site, rank_batch, tasks=1, name="ranked")
    make(site, prompt_batch, tasks=1, name="written")
    with site.database.write() as db:
        texts = {"en": instructions.LocalizedInstructions(body="Read this.", quiz=instructions.Quiz(**QUIZ))}
        instructions.add_instructions_version(db, "training", texts, "", None)
    client = client_of(site, ada)
    answer = client.post("/tasks/claim", data={"kind": kind} if kind else {})
    assert answer.status_code == 303
    page = client.get(answer.headers["location"]).text
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page))
    wrong = client.post("/instructions/training", data=fields | {"answer-0": "0"})
    assert wrong.status_code == 422
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', wrong.text))
    answer = client.post("/instructions/training", data=fields | {"answer-0": "1"})
    page = client.get(answer.headers["location"]).text
    form = re.search(r'<form method="post" action="/tasks/claim">(.*?)</form>', page, re.DOTALL)[1]
    answer = client.post("/tasks/claim", data=dict(re.findall(r'name="(\w+)" value="([^"]*)"', form)))
    with site.database.read() as db:
        assignment = db.scalars(select(Assignment)).one()
        assert answer.headers["location"] == f"/tasks/{assignment.id}"
        assert db.get_one(Task, assignment.task_id).kind == expected


def test_a_question_that_was_not_asked_has_no_answer(site):
    ada, olga = add_person(site, "ada", status="screening"), add_person(site, "olga", role="owner")
    make(site, prompt_batch, "review", tasks=1, screening="sensitive")
    client = client_of(site, ada)
    location = client.post("/tasks/claim", data={"kind": "review", "screening": "sensitive"}).headers["location"]
    page = client.get(location).text
    assert "Should it be used?" not in page
    key = re.search(r'name="key" value="([^"]+)"', page)[1]
    answer = client.post(f"{location}/submit", data={"key": key, "sensitive": "yes"})
    assert answer.status_code == 303
    with site.database.read() as db:
        task = db.scalars(select(Task.id)).one()
    for page in (client.get(answer.headers["location"]).text, client_of(site, olga).get(f"/batches/tasks/{task}").text):
        assert "Sensitive" in page or "sensitive" in page
        assert "Should it be used?" not in page


def chosen(page):
    """The value that the question for use has on a page, and whether a browser demands an answer."""
    select_tag, options = re.search(r'(<select id="rejected"[^>]*>)(.*?)</select>', page, re.DOTALL).groups()
    values = re.findall(r'value="(\w*)"( selected)?', options)
    return next((value for value, is_selected in values if is_selected), values[0][0]), "required" in select_tag


def test_a_review_decides_about_use_by_itself(site):
    """Nothing is preselected; a draft and a submission keep the answer, and a draft without one stays open."""
    client = client_of(site, add_person(site, "ada"))
    make(site, prompt_batch, "review", tasks=1)
    page = client.post("/tasks/claim", data={"kind": "review"}).headers["location"]
    api = page.replace("/tasks/", "/api/v1/assignments/")
    assert chosen(client.get(page).text) == ("", True)
    for revision, (sent, kept) in enumerate((("use", "use"), ("", ""), ("duplicate", "duplicate"), ("use", "use"))):
        fields = [["use_case", "chat"], ["rejected", sent]]
        answer = client.put(f"{api}/draft", json={"fields": fields}, headers={"If-Match": str(revision)})
        assert answer.status_code == 200, answer.text
        assert chosen(client.get(page).text)[0] == kept
    key = re.search(r'name="key" value="([^"]+)"', client.get(page).text)[1]
    assert client.post(f"{page}/submit", data={"key": key, "rejected": "use"}).status_code == 303
    with site.database.read() as db:
        assert db.scalars(select(PromptReview.rejected)).all() == [None]
    assert "Should it be used?" in client.get(f"{page}/done").text
    assert chosen(client.get(f"{page}?edit=1").text)[0] == "use"
