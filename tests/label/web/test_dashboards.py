"""Pages show people what to do next, and escape the text of others.

pytest tests/label/web/test_dashboards.py
"""

from __future__ import annotations

import html
import re
from urllib.parse import quote

import pytest
from fastapi.routing import iter_route_contexts
from sqlalchemy import select, update
from support.owner import fill, people
from support.pages import ROOT
from support.site import add_person, client_of
from support.tasks import PLAIN, hand_in, prompt_batch, rank_batch, take

from instructgpt.label.analysis import adjudication, calibration
from instructgpt.label.auth import consent
from instructgpt.label.db.models import (
    Assignment,
    Batch,
    CompletionRow,
    Person,
    PromptReview,
    PromptRow,
    Submission,
    Task,
)
from instructgpt.label.safe_text import format_user_agent
from instructgpt.label.tasks import instructions, threads
from instructgpt.label.tasks.assignments import return_to_labeler, skip_assignment
from instructgpt.label.tasks.batches import mark_batch_open
from instructgpt.label.tasks.forms import DemonstrationForm, PromptForm, ReviewForm
from instructgpt.label.tasks.questions import TABLE_3
from instructgpt.label.tasks.submissions import submit_form
from instructgpt.label.web.app import create_app
from instructgpt.records import Completion

DATABASES = ("sqlite",)

HOSTILE = "<script>alert(1)</script>\u202egnp.exe\u202c zero\u200bwidth \x01 {{ 7 * 7 }} </textarea>"
LONG = "x" * 200_000


@pytest.fixture
def olga(site):
    return add_person(site, "olga", role="owner")


def write(site, act):
    with site.database.write() as db:
        return act(db)


def harmless(page, where):
    assert page.status_code == 200, where
    assert "<script>alert" not in page.text, where
    assert "</textarea> " not in page.text.replace("</textarea> <", ""), where
    # What one edits oneself, and what a form sends back, is as it was typed.
    read = re.sub('(<textarea[^>]*>).*?</textarea>| value="[^"]*"', "", page.text, flags=re.DOTALL)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\u200b]", read.replace("\r", "")), where


def write_hostile_work(site, olga, ada, ben):
    """Put hostile text into every free-text column. -> ada's submitted and skipped assignments, the task, its room."""
    filled = fill(site, tasks=2, name="ranked")
    for task in range(2):
        filled.rank(task, ada, [1, 2, 3])
        filled.rank(task, ben, [3, 2, 1])
    filled.save()
    disputed, completions = filled.tasks[0], filled.completions[0].values()
    write(site, lambda db: prompt_batch(db, "demonstrate", tasks=2, name="written"))
    submitted = take(site, ada)
    form = DemonstrationForm(text=HOSTILE + LONG[1000:], note=HOSTILE)
    write(site, lambda db: submit_form(db, site.settings, submitted, form, "key", 5))
    skipped = take(site, ada)
    write(site, lambda db: threads.post_question(db, skipped, HOSTILE, 6))
    write(site, lambda db: skip_assignment(db, site.settings, skipped, "other", HOSTILE, 7))
    fields = dict.fromkeys(("source", "use_case", "language"), HOSTILE)
    write(site, lambda db: db.execute(update(PromptRow).values(text=HOSTILE + LONG, **fields)))
    write(site, lambda db: db.execute(update(CompletionRow).values(text=HOSTILE + LONG)))
    write(site, lambda db: db.execute(update(Submission).values(note=HOSTILE)))
    ranks = dict.fromkeys(completions, 1)
    write(site, lambda db: adjudication.adjudicate(db, disputed, olga, ranks, [], HOSTILE, 8))
    room = write(site, lambda db: calibration.create_calibration_room(db, disputed, "tips " + HOSTILE, olga).id)
    write(site, lambda db: calibration.advance_room_stage(db, calibration.get_room(db, room), olga, "vote", 9))
    write(site, lambda db: calibration.add_remark(db, calibration.get_room(db, room), olga, HOSTILE, 10))
    return submitted, skipped, disputed, room


def get_routes(site):
    """Every page of the application: what is added to it is tried too."""
    contexts = iter_route_contexts(create_app(site).routes)
    routes = {context.path for context in contexts if "GET" in (getattr(context, "methods", None) or ())}
    return {route for route in routes if not route.startswith(("/api/", "/static", "/sign-in/openid"))}


def fill_path(route, values):
    """The addresses of a route with every value of its parameter; none for a parameter without values."""
    name = next(iter(re.findall(r"{(\w+)", route)), None)
    return [route] if name is None else [re.sub(r"{[\w:]+}", value, route) for value in values.get(name, ())]


def test_hostile_text_is_escaped_on_every_page(site, olga):
    """Prompts, completions, demonstrations, notes, messages, reasons, remarks, names of rooms."""
    ada, ben = people(site, "ada", "ben")
    submitted, skipped, disputed, room = write_hostile_work(site, olga, ada, ben)
    ids = {"batch_id": Batch.id, "task_id": Task.id, "person_id": Person.id, "labeler": Person.id}
    with site.database.read() as db:
        values = {name: list(db.scalars(select(column))) for name, column in ids.items()}
    values |= {"purpose": ["training"], "kind": ["demographics"], "room_id": [room]}
    pages = {path for route in get_routes(site) for path in fill_path(route, values)}
    pages |= {"/search/tasks?text=zero", "/search/tasks?text=%3Cscript%3E", "/search/submissions?text=zero"}
    pages |= {f"/search/tasks?source={quote(HOSTILE)}", f"/search/submissions?batch={quote(HOSTILE)}"}
    team = client_of(site, olga)
    answers = {path: team.get(path) for path in pages}
    html_pages = {path for path, page in answers.items() if "text/html" in page.headers.get("content-type", "")}
    for path in html_pages:
        if answers[path].status_code == 200:
            harmless(answers[path], path)
        else:
            assert answers[path].status_code in (303, 403, 404, 409, 422), path
    expected = f"/search/submissions /people/{ada.id}/work /quality/labelers/{ada.id} /adjudication/{disputed} /journal"
    assert all(answers[path].status_code == 200 for path in expected.split(" "))
    assert len([path for path in html_pages if answers[path].status_code == 200]) > 40
    labeler = client_of(site, ada)
    done = [f"/tasks/{submitted.id}/done", f"/tasks/{skipped.id}/done"]
    for path in ("/home", "/history", *done, f"/calibration/{room}", "/calibration"):
        harmless(labeler.get(path), path)
    page = team.get(f"/batches/tasks/{submitted.task_id}").text
    plain, signs = re.subn(r'<span class="odd" title="[^"<>]*">‹\w+›</span>', "", page)
    assert signs
    assert "‹" not in plain  # signs are elements on pages


def test_returned_task_shows_its_reason_until_resubmitted(site, olga):
    (ada,) = people(site, "ada")
    write(site, lambda db: prompt_batch(db, "demonstrate", tasks=1))
    mine = take(site, ada)
    hand_in(site, mine)
    team, labeler = client_of(site, olga), client_of(site, ada)
    write(site, lambda db: threads.post_answer(db, mine.task_id, ada, olga, "An earlier word.", 3))
    sent = {"assignment_id": mine.id, "reason": "Please name\nthe <year>."}
    assert team.post(f"/batches/tasks/{mine.task_id}/return", data=sent).status_code == 303
    assert (
        team.post(
            f"/batches/tasks/{mine.task_id}/answer", data={"about": ada.id, "body": "Take your time."}
        ).status_code
        == 303
    )
    for path in ("/home", f"/tasks/{mine.id}"):
        page = labeler.get(path).text
        assert "Please name\nthe &lt;year&gt;." in page, path
        assert "Your question was answered" not in page
    assert "An earlier word." not in labeler.get("/home").text
    assert 'data-lease=""' in labeler.get(f"/tasks/{mine.id}").text  # it has all the time it needs
    with site.database.read() as db:
        again = db.get(Assignment, mine.id)
    hand_in(site, again, key="again")
    assert "Please name" not in labeler.get("/home").text


def test_returned_task_without_reason_shows_none(site):
    (ada,) = people(site, "ada")
    write(site, lambda db: prompt_batch(db, "demonstrate", tasks=1))
    mine = take(site, ada)
    hand_in(site, mine)
    write(site, lambda db: return_to_labeler(db, db.get(Assignment, mine.id), 9))
    page = client_of(site, ada).get("/home").text
    assert "Returned to you" in page
    assert 'class="said' not in page


def test_sensitive_is_a_single_review_question(site, olga):
    assert ReviewForm(sensitive=True).labels == {"sensitive": True}
    assert ReviewForm(labels={"sensitive": False, "ambiguous": True}).sensitive is False
    assert ReviewForm(labels={"ambiguous": True}).labels == {"ambiguous": True}
    assert ReviewForm().sensitive is None
    (ada,) = people(site, "ada")
    write(site, lambda db: prompt_batch(db, "review", tasks=1))
    mine = take(site, ada)
    labeler = client_of(site, ada)
    page = labeler.get(f"/tasks/{mine.id}").text
    assert page.count('name="sensitive"') == 2  # yes and no
    assert 'name="label:sensitive"' not in page
    sent = {"key": "one", "sensitive": "yes", "label:ambiguous": "no", "use_case": "chat", "note": "a note"}
    assert labeler.post(f"/tasks/{mine.id}/submit", data=sent).status_code == 303
    with site.database.read() as db:
        stored = db.scalars(select(PromptReview)).one()
    assert (stored.sensitive, stored.labels) == (True, {"sensitive": True, "ambiguous": False})
    team = client_of(site, olga).get(f"/batches/tasks/{mine.task_id}").text
    for said in ("Chat", "Ambiguous: No", "Sensitive content: Yes", "a note"):
        assert said in team


def test_researchers_see_submissions_of_every_kind(site, olga):
    (ada,) = people(site, "ada")
    write(site, lambda db: prompt_batch(db, "write", tasks=1, name="prompts"))
    mine = take(site, ada)
    form = PromptForm(text="Sort these.", form="few_shot", examples=(("b a", "a b"),))
    write(site, lambda db: submit_form(db, site.settings, mine, form, "key", 5))
    assert "Sort these.\n\nInput: b a\nOutput: a b" in client_of(site, olga).get(f"/batches/tasks/{mine.task_id}").text
    assert "Sort these." in client_of(site, ada).get("/history").text
    filled = fill(site, tasks=1)
    labels = [{"opinion": True, "satisfies_constraint": True}, {"satisfies_constraint": False}, {}]
    filled.rank(0, ada, [1, 2, 3], ratings=[7, 4, 1], labels=labels)
    filled.save()
    text = client_of(site, olga).get(f"/batches/tasks/{filled.tasks[0]}").text
    assert [text.count(f"rated {number}") for number in (7, 4, 1)] == [1, 1, 1]
    assert text.count("constraint") == 1  # only where it was not kept


def test_an_open_question_differs_from_no_on_the_task_page(site, olga):
    filled = fill(site, tasks=1)
    every_no = dict.fromkeys(TABLE_3, False)
    del every_no["has_constraint"]
    filled.rank(0, add_person(site, "ada"), [1, 2, 3], ratings=[4, 4, None], labels=[every_no, {"opinion": False}, {}])
    filled.save()
    page = client_of(site, olga).get(f"/batches/tasks/{filled.tasks[0]}").text
    rows = [re.sub(r"<[^>]+>|\s+", " ", row) for row in re.findall(r'<li class="row">(.*?)</li>', page, re.DOTALL)]
    answers = [re.findall(r"No to \d+|\d+ not answered|not rated", row) for row in rows]
    assert sorted(answers) == [["No to 1", "9 not answered"], ["No to 10"], ["not rated", "10 not answered"]]


def test_next_screening_task_is_of_the_same_part(site):
    ada = add_person(site, "ada", status="screening")
    with site.database.write() as db:
        for part, kind in (("sensitive", "review"), ("demonstration", "demonstrate")):
            mark_batch_open(db, prompt_batch(db, kind, tasks=2, name=part, screening=part, policy=PLAIN))
    labeler = client_of(site, ada)
    begun = labeler.post("/tasks/claim", data={"kind": "review", "screening": "sensitive"}).headers["location"]
    asked = labeler.get(begun).text
    assert "required" in asked
    assert 'name="personal_data"' not in asked
    assert labeler.post(f"{begun}/submit", data={"key": "k", "sensitive": "no"}).status_code == 303
    done = labeler.get(f"{begun}/done").text
    form = re.search(r'action="/tasks/claim">(.*?)</form>', done, re.DOTALL)[1]
    fields = dict(re.findall(r'name="(kind|screening)" value="(\w+)"', form))
    assert fields == {"kind": "review", "screening": "sensitive"}
    following = labeler.post("/tasks/claim", data=fields).headers["location"]
    assert following not in (begun, "/screening")
    labeler.post(f"{following}/submit", data={"key": "k", "sensitive": "yes"})
    assert labeler.post("/tasks/claim", data=fields).headers["location"] == "/screening"


def test_pages_link_only_to_allowed_pages(site, olga):
    rita, (ada,) = add_person(site, "rita", role="researcher"), people(site, "ada")
    for person, may in ((olga, True), (rita, False)):
        page = client_of(site, person).get("/overview").text
        assert [f'href="/{name}"' in page for name in ("journal", "data", "calibration")] == [may, may, True]
    batch = write(site, lambda db: rank_batch(db, tasks=2).id)
    with site.database.read() as db:
        task = db.scalars(select(Task.id).where(Task.batch_id == batch)).first()
    room = write(site, lambda db: calibration.create_calibration_room(db, task, "What is helpful?", olga).id)
    home = client_of(site, ada).get("/home").text
    assert f'href="/calibration/{room}"' in home
    assert "What is helpful?" in home
    for stage in ("vote", "talk", "again"):
        write(
            site,
            lambda db, stage=stage: calibration.advance_room_stage(db, calibration.get_room(db, room), olga, stage, 5),
        )
    assert "What is helpful?" not in client_of(site, ada).get("/home").text


def test_setup_steps_disappear_when_done(site, olga):
    owner = client_of(site, olga)
    page = owner.get("/overview").text
    assert "First steps" in page
    assert page.count('<li class="done">') == 0
    assert "First steps" not in client_of(site, add_person(site, "rita", role="researcher")).get("/overview").text
    (ada,) = people(site, "ada")
    assert owner.get("/overview").text.count('<li class="done">') == 3  # invited and admitted; so no test is needed
    write(site, lambda db: prompt_batch(db, "demonstrate", tasks=1))
    hand_in(site, take(site, ada))
    assert "First steps" not in owner.get("/overview").text


def test_changed_instructions_are_announced_to_earlier_readers(site):
    ada, ben = people(site, "ada", "ben")
    with site.database.write() as db:
        rank_batch(db)
        instructions.add_instructions_version(
            db, "training", {"en": instructions.LocalizedInstructions(body="Be kind.")}, "", None
        )
        first = instructions.get_latest_instructions(db, "training")
        assert instructions.submit_quiz(db, db.get(Person, ada.id), first, []) == []
        instructions.add_instructions_version(
            db, "training", {"en": instructions.LocalizedInstructions(body="Be kind and true.")}, "", None
        )
    assert "The instructions have changed" in client_of(site, ada).get("/home").text
    page = client_of(site, ben).get("/home").text
    assert "Read the instructions first" in page
    assert "have changed" not in page


def test_consent_is_requested_for_new_version_and_after_withdrawal(site):
    (ada,) = people(site, "ada")

    def agreed():
        with site.database.read() as db:
            return consent.has_consented(db, ada)

    assert agreed()  # there is nothing to agree to
    write(site, lambda db: consent.add_consent_version(db, {"en": "one"}, None))
    assert not agreed()
    write(site, lambda db: consent.record_consent(db, ada, 1))
    assert agreed()
    for number in range(2, 12):  # versions are numbers, and 10 comes after 9
        write(site, lambda db, number=number: consent.add_consent_version(db, {"en": str(number)}, None))
        assert not agreed()
        write(site, lambda db, number=number: consent.record_consent(db, ada, number))
        assert agreed()


def test_upload_errors_do_not_mention_command_line_options(site, olga):
    sent = {"name": "one", "kind": "demonstrate", "cohort_share": "0"}
    page = client_of(site, olga).post(
        "/batches", data=sent, files={"prompts": ("p.jsonl", b'{"prompt": "ok"}\n{"x": 1}\n')}
    )
    assert page.status_code == 422
    assert "p.jsonl:2" in page.text
    assert "--" not in re.search(r'role="alert">(.*?)</p>', page.text, re.DOTALL)[1]


def test_pages_show_a_line_of_a_file_and_the_scopes_of_the_api(site, olga):
    owner = client_of(site, olga)
    (example,) = re.findall(r"<code>({.*?})</code>", html.unescape(owner.get("/batches/new").text))
    assert Completion.model_validate_json(example).model
    scopes = re.findall(r'name="scopes" value="(\w+)"[^>]*>\s*(\w+)', owner.get("/data").text)
    documented = (ROOT / "docs" / "reference" / "label-api.md").read_text(encoding="utf-8")
    assert {value for value, _ in scopes} == {"read", "write", "export", "admin"}
    assert all(value == name and f"`{value}`" in documented for value, name in scopes)


@pytest.mark.parametrize(
    ("agent", "known"),
    [
        (
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36",
            "Chrome · Linux",
        ),
        (
            "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/130.0 Safari/537.36 Edg/130.0",
            "Edge · Windows",
        ),
        (
            "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_6) AppleWebKit/605.1.15 Version/17.6 Safari/605.1.15",
            "Safari · macOS",
        ),
        (
            "Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) Version/17.6 Mobile/15E148 Safari/604.1",
            "Safari · iPhone",
        ),
        ("Mozilla/5.0 (Android 14; Mobile; rv:131.0) Gecko/131.0 Firefox/131.0", "Firefox · Android"),
        ("python-httpx/0.28", "python-httpx/0.28"),
        ("\u202eevil", "‹RLO›evil"),
        ("", ""),
    ],
)
def test_user_agents_are_shown_as_browser_names(agent, known):
    assert format_user_agent(agent) == known
