"""What attackers try: guessing passwords and links, stolen or old keys, hostile text, bodies of any kind.

pytest tests/label/auth/test_security.py
"""

from __future__ import annotations

import json
import threading

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from support.site import ORIGIN, add_person, client_of, make_site

from instructgpt.label.auth import accounts, consent, passwords, rate_limits
from instructgpt.label.auth.headers import CONTENT_SECURITY_POLICY
from instructgpt.label.auth.tokens import find_api_key, issue_api_key
from instructgpt.label.db.models import ApiKey, AuditLogEntry, InstructionsRead, Person, RateBucket, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.tasks import instructions
from instructgpt.label.tasks.instructions import LocalizedInstructions, Quiz, QuizQuestion
from instructgpt.label.web.app import create_app
from instructgpt.label.web.pages.appearance import local_path_or_root

DATABASES = ("sqlite",)

GOOD = "correct horse battery"
HOSTILE = "<script>alert(1)</script>\u202e\u0000 {0.__class__} {{7*7}} ' \" </textarea>"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    made = make_site(tmp_path_factory.mktemp("site"))
    with made.database.write() as db:
        instructions.publish_default_texts(db)
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def anybody(shared):
    return client_of(shared)


# --- rates ---


def test_token_buckets_drain_and_refill(site):
    rate = rate_limits.RateLimit("test", burst=3, refill_ms=1_000)
    with site.database.write() as db:
        assert [rate_limits.consume_token(db, rate, "me", at) for at in (0, 0, 0, 0, 999, 1_000, 1_000)] == [
            True,
            True,
            True,
            False,
            False,
            True,
            False,
        ]
        assert rate_limits.consume_token(db, rate, "you", 1_000), "everybody has a bucket of their own"
        assert [rate_limits.consume_token(db, rate, "me", 10**9) for _ in range(4)] == [True, True, True, False], (
            "it holds no more than the burst"
        )
        assert "me" not in {row.key.split(":")[1] for row in db.scalars(select(RateBucket))}


def test_password_guessing_is_limited_but_the_owner_can_sign_in(site):
    with site.database.write() as db:
        accounts.create_person(db, "ada", "labeler", password=GOOD, status="active")
    own = client_of(site)
    assert own.post("/sign-in", data={"name": "ada", "password": GOOD}).status_code == 303
    for number in range(rate_limits.SIGN_IN_LIMIT.burst):
        with pytest.raises(SiteError, match="wrong_password"):
            accounts.sign_in_with_password(site, "ada", "guess", address="6.6.6.6", user_agent=str(number))
    with pytest.raises(SiteError, match="too_often"):
        accounts.sign_in_with_password(site, "ada", GOOD, address="6.6.6.6")
    accounts.sign_in_with_password(site, "ada", GOOD, address="1.2.3.4")
    with site.database.write() as db:
        for _ in range(rate_limits.SIGN_IN_NAME_LIMIT.burst):
            rate_limits.consume_token(db, rate_limits.SIGN_IN_NAME_LIMIT, "ada", current_time_ms())
    with pytest.raises(SiteError, match="too_often"):
        accounts.sign_in_with_password(site, "ada", GOOD, address="7.7.7.7")
    again = own.post("/sign-in", data={"name": "ada", "password": GOOD})
    assert again.status_code == 303, "a browser that knows her still lets her in"


def test_successful_sign_ins_cost_no_attempts(site):
    with site.database.write() as db:
        accounts.create_person(db, "ada", "labeler", password=GOOD)
    for _ in range(rate_limits.SIGN_IN_LIMIT.burst + 2):
        accounts.sign_in_with_password(site, "ada", GOOD, address="1.2.3.4")


def test_link_guessing_is_limited(site):
    client = client_of(site)
    statuses = [
        client.get(f"/invite/guess-{number}").status_code for number in range(rate_limits.INVITE_LIMIT.burst + 1)
    ]
    assert statuses == [404] * rate_limits.INVITE_LIMIT.burst + [429]


@pytest.mark.parametrize(
    ("host", "counted"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        (None, "unknown"),
        ("testclient", "testclient"),
    ],
)
def test_ipv6_addresses_are_limited_by_prefix(host, counted):
    assert rate_limits.address_key(host) == counted


def test_at_most_two_passwords_are_hashed_at_once(monkeypatch):
    running, most, lock = 0, 0, threading.Lock()
    both, done = threading.Event(), threading.Event()

    class Slow:
        def verify(self, *_):
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
                if running == 2:
                    both.set()
            assert both.wait(10)
            done.wait(0.2)
            with lock:
                running -= 1
            return True

    monkeypatch.setattr(passwords, "PASSWORD_HASHER", Slow())
    threads = [threading.Thread(target=passwords.verify_password, args=("x", "stored")) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (most, running) == (2, 0)


# --- keys ---


@pytest.mark.parametrize("how", ["unknown", "wrong secret", "revoked", "expired", "no key", "basic"])
def test_invalid_api_keys_are_refused(site, how):
    with site.database.write() as db:
        key, text = issue_api_key(db, "program", ["read"])
        if how == "revoked":
            key.revoked_at = current_time_ms()
        elif how == "expired":
            key.expires_at = current_time_ms() - 1
        elif how == "wrong secret":
            text = text[:-1] + ("0" if text[-1] != "0" else "1")
        elif how == "unknown":
            text = "igl_" + "0" * 16 + "_" + text.split("_")[2]
    header = {"no key": "Bearer ", "basic": f"Basic {text}"}.get(how, f"Bearer {text}")
    answer = client_of(site, add_person(site)).get("/api/v1/me", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["error"]) == (401, "bad_key"), "and the cookie beside it plays no part"


def test_only_the_hash_of_an_api_key_is_stored(site):
    with site.database.write() as db:
        key, text = issue_api_key(db, "program", ["read"])
        db.flush()
        assert text.split("_")[2] not in str(vars(db.get_one(ApiKey, key.id)))
        found = find_api_key(db, text, current_time_ms())
        assert found is not None
        assert found.id == key.id


def test_api_keys_are_rate_limited(site, monkeypatch):
    monkeypatch.setattr(rate_limits, "API_KEY_LIMIT", rate_limits.RateLimit("key", 2, 10**9))
    with site.database.write() as db:
        text = issue_api_key(db, "program", [])[1]
    client = client_of(site)
    assert [client.get("/api/v1/me", headers={"Authorization": f"Bearer {text}"}).status_code for _ in range(3)] == [
        403,
        403,
        429,
    ]


# --- open redirects ---


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="/\\\t\n ?#:@abc.%\u2028", max_size=12))
def test_no_redirect_leaves_the_site(text):
    assert local_path_or_root(text).startswith("/")
    assert not local_path_or_root(text).startswith(("//", "/\\", "/\t", "/\n"))


# --- headers and hostile text ---


def test_every_answer_has_the_security_headers(shared):
    client = client_of(shared)
    for path in (
        "/sign-in",
        "/account",
        "/nowhere",
        "/static/site.css",
        "/static/none",
        "/api/v1/me",
        "/api/v1/nowhere",
    ):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert client.get("/api/v1/nowhere").json()["error"] == "not_found"
    assert client.delete("/sign-in").status_code == 405


def test_hostile_text_is_escaped_on_every_page(site):
    person, owner = add_person(site, "ada"), add_person(site, "olga", role="owner")
    client, boss = client_of(site, person), client_of(site, owner)
    pages = [
        client.post("/sign-in", data={"name": HOSTILE, "password": HOSTILE}),
        client.post("/account/preferences", data={"language": HOSTILE, "theme": HOSTILE}),
        client.post("/account/preferences", data={"language": "en", "theme": "auto", "email": HOSTILE}),
        client.get("/account"),
        client.get("/sign-in", params={"next": HOSTILE}),
        client.get("/account", headers={"Cookie": "labeler_session=" + "\\x00<script>"}),
        boss.post("/people/invites", data={"role": "labeler", "note": HOSTILE}),
        boss.post(f"/people/{person.id}/decision", data={"verdict": "pause", "reason": HOSTILE}),
        boss.get(f"/people/{person.id}"),
        boss.get("/journal", params={"action": HOSTILE, "about": HOSTILE}),
        boss.post("/privacy/user", data={"user": HOSTILE}),
        boss.post("/instructions/training/edit", data={"body_en": HOSTILE, "quiz_en": HOSTILE, "changes": HOSTILE}),
        boss.post("/instructions/training/edit", data={"body_en": HOSTILE, "changes": HOSTILE}),
        boss.get("/instructions/training"),
        boss.post("/consent/edit", data={"body_en": HOSTILE}),
        boss.get("/consent"),
        client.get("/surveys/" + "%3Cscript%3Ealert(1)%3C%2Fscript%3E"),
    ]
    for page in pages:
        assert page.status_code < 500, page.url
        assert "<script>alert" not in page.text, page.url
        assert "</textarea> " not in page.text.replace("</textarea>\n", ""), page.url


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from(["application/json", "application/x-www-form-urlencoded", "multipart/form-data", "text/plain"]),
)
def test_no_request_body_causes_a_server_error(anybody, body, kind):
    for path in ("/api/v1/sign-in", "/api/v1/redeem", "/sign-in", "/invite/none"):
        assert anybody.post(path, content=body, headers={"Content-Type": kind}).status_code < 500


@pytest.mark.parametrize("name", ["\ud800", "a\x00b", "x" * 3_000, "ﷺ" * 100])
def test_invalid_names_are_refused(shared, name):
    answer = client_of(shared).post(
        "/api/v1/sign-in",
        content=json.dumps({"name": name, "password": "x"}),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code in (401, 422)
    assert answer.json()["message"]


def test_request_bodies_are_limited(shared):
    answer = client_of(shared).post("/sign-in", data={"name": "x" * 200_000, "password": "y"})
    assert answer.status_code == 413


# --- instructions and consent ---


def quiz(*right):
    return Quiz(questions=tuple(QuizQuestion(text="?", options=("a", "b", "c"), right=each) for each in right))


def test_bundled_texts_are_published(site):
    with site.database.write() as db:
        instructions.publish_default_texts(db)
        instructions.publish_default_texts(db)
        for purpose in ("training", "evaluation"):
            text = instructions.get_latest_instructions(db, purpose)
            assert text is not None
            assert text.version == 1
            english, korean = (instructions.localize_instructions(text, language) for language in ("en", "ko"))
            assert len(english.quiz.questions) == len(korean.quiz.questions) >= 4
            assert any("\uac00" <= letter <= "\ud7a3" for letter in korean.body)
        text = consent.get_latest_consent_text(db)
        assert text is not None
        assert (
            consent.localized_consent_body(text, "ko")
            != consent.localized_consent_body(text, "en")
            == consent.localized_consent_body(text, "xx")
        )


def test_a_quiz_needs_all_answers_right_and_counts_attempts(site):
    person = add_person(site)
    client = client_of(site, person)
    with site.database.write() as db:
        instructions.add_instructions_version(
            db, "training", {"en": LocalizedInstructions(body="# Be *kind*", quiz=quiz(1, 2))}, "", None
        )
    assert "<em>kind</em>" in client.get("/instructions/training").text
    for answers in ({"answer-0": 1, "answer-1": 0}, {"answer-0": 1}, {"answer-0": 99, "answer-1": "x"}):
        assert client.post("/instructions/training", data={"version": 1, **answers}).status_code == 422
        with site.database.read() as db:
            assert not instructions.has_read_instructions(db, person, "training")
    assert client.post("/instructions/training", data={"version": 1, "answer-0": 1, "answer-1": 2}).status_code == 303
    with site.database.read() as db:
        assert instructions.has_read_instructions(db, person, "training")
        assert db.scalars(select(InstructionsRead.attempts)).one() == 4
    boss = client_of(site, add_person(site, "olga", role="owner"))
    written = {"body_en": "New", "quiz_en": "questions: [{text: q, options: [a, b], right: 0}]", "changes": "shorter"}
    assert boss.post("/instructions/training/edit", data=written).status_code == 303
    with site.database.read() as db:
        assert not instructions.has_read_instructions(db, person, "training"), "the next version is read again"
    assert client.post("/instructions/training", data={"version": 1, "answer-0": 1, "answer-1": 2}).status_code == 409
    assert "shorter" in client.get("/instructions/training").text
    assert "<em>kind</em>" in client.get("/instructions/training?version=1").text, "old versions stay"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"body_en": " "}, "The text is empty"),
        ({"body_en": "x", "quiz_en": "questions: ["}, "The quiz cannot be read"),
        ({"body_en": "x", "quiz_en": "questions: [{text: q, options: [a, b], right: 2}]"}, "options count from 0 to 1"),
        ({"body_en": "x", "quiz_en": "questions: [{text: q, options: [a], right: 0}]"}, "questions.0.options"),
        ({"body_en": "x", "quiz_en": "- a list"}, "The quiz cannot be read"),
        (
            {"body_en": "x", "body_ko": "y", "quiz_en": "questions: [{text: q, options: [a, b], right: 0}]"},
            "same right answers",
        ),
    ],
)
def test_invalid_instructions_are_refused(site, form, said):
    boss = client_of(site, add_person(site, "olga", role="owner"))
    answer = boss.post("/instructions/training/edit", data=form)
    assert answer.status_code == 422
    assert said in answer.text
    assert form.get("quiz_en", "").split("\n")[0].replace("'", "&#39;") in answer.text, "what was typed stays"
    with site.database.read() as db:
        assert instructions.get_latest_instructions(db, "training") is None


def test_sign_ins_are_logged_without_names(site):
    with site.database.write() as db:
        person = accounts.create_person(db, "Ada Lovelace", "labeler", password=GOOD)
    client = TestClient(create_app(site), headers=ORIGIN)
    client.post("/sign-in", data={"name": "Ada Lovelace", "password": "wrong"})
    client.post("/sign-in", data={"name": "Ada Lovelace", "password": GOOD})
    with site.database.read() as db:
        rows = db.scalars(select(AuditLogEntry).order_by(AuditLogEntry.seq)).all()
        assert [row.action for row in rows] == ["person.create", "person.sign_in_failed", "person.sign_in"]
        assert db.get_one(Person, person.id).name not in str([vars(row) for row in rows])
