"""Forged requests: which headers let a state-changing request through.

The threat model is docs/explanation/site-security.md.

pytest tests/label/auth/test_csrf.py
"""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select
from support.site import add_person, client_of, make_site

from instructgpt.label.auth.dependencies import SECURE_SESSION_COOKIE, SESSION_COOKIE
from instructgpt.label.auth.passwords import hash_password
from instructgpt.label.auth.tokens import issue_api_key
from instructgpt.label.db.models import AuditLogEntry, Person, PromptRow, UserSession
from instructgpt.label.web.app import create_app

DATABASES = ("sqlite",)

HERE = "http://testserver"
PASSWORD = "correct horse battery"
PREFERENCES = {"language": "ko", "theme": "dark"}
CASES = {
    "same origin": ({"Sec-Fetch-Site": "same-origin"}, None),
    "same origin with its Origin": ({"Sec-Fetch-Site": "same-origin", "Origin": HERE}, None),
    "typed address": ({"Sec-Fetch-Site": "none"}, None),
    "cross-site": ({"Sec-Fetch-Site": "cross-site"}, "forged_fetch"),
    "cross-site with a right Origin": ({"Sec-Fetch-Site": "cross-site", "Origin": HERE}, "forged_fetch"),
    "sibling subdomain": ({"Sec-Fetch-Site": "same-site", "Origin": "http://evil.testserver"}, "forged_fetch"),
    "unknown value": ({"Sec-Fetch-Site": "Same-Origin"}, "forged_fetch"),
    "empty value": ({"Sec-Fetch-Site": ""}, "forged_fetch"),
    "old browser": ({"Origin": HERE}, None),
    "old browser, upper case": ({"Origin": "HTTP://TestServer"}, None),
    "old browser, other scheme": ({"Origin": "https://testserver"}, "forged_origin"),
    "old browser, other port": ({"Origin": "http://testserver:8000"}, "forged_origin"),
    "old browser, other site": ({"Origin": "https://evil.example"}, "forged_origin"),
    "old browser, longer host": ({"Origin": "http://testserver.evil.example"}, "forged_origin"),
    "sandboxed frame": ({"Origin": "null"}, "forged_origin"),
    "no headers": ({}, "forged_origin"),
    "only a Referer": ({"Referer": f"{HERE}/account"}, "forged_origin"),
    "a token as older versions sent it": ({"X-CSRF-Token": "csrf-of-ada"}, "forged_origin"),
}


@pytest.fixture
def ada(site):
    """A signed-in browser that sends no header by itself."""
    person = add_person(site, language="en")
    client = client_of(site, person)
    del client.headers["Sec-Fetch-Site"]
    return client


def stored(site, column):
    with site.database.read() as db:
        return db.scalars(select(column)).all()


@pytest.mark.parametrize("case", CASES)
def test_the_headers_decide(site, ada, case):
    headers, error = CASES[case]
    answer = ada.post("/account/preferences", data=PREFERENCES, headers=headers)
    assert answer.status_code == (303 if error is None else 403)
    assert stored(site, Person.theme) == ["dark" if error is None else "auto"]
    assert len(stored(site, AuditLogEntry.seq)) == (1 if error is None else 0)
    answer = ada.post("/api/v1/tasks/claim", headers=headers)
    assert (answer.status_code, answer.json()["error"] if error else None) == (403 if error else 204, error)


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("https://labels.example.org", True),
        ("https://labels.example.org.evil.example", False),
        ("http://labels.example.org", False),
        (HERE, False),
    ],
)
def test_behind_a_proxy_the_public_url_is_the_origin(tmp_path, origin, allowed):
    site = make_site(tmp_path, public_url="https://labels.example.org")
    client = TestClient(create_app(site), base_url="https://labels.example.org")
    answer = client.post("/api/v1/sign-in", json={"name": "a", "password": "b"}, headers={"Origin": origin})
    assert answer.json()["error"] == ("wrong_password" if allowed else "forged_origin")
    if not allowed:
        assert "--public-url" in answer.json()["message"]
        assert origin in answer.json()["message"]
    site.database.close()


@pytest.mark.parametrize("path", ["/sign-in", "/invite/none", "/api/v1/sign-in", "/api/v1/redeem", "/look"])
def test_visitors_who_are_not_signed_in_are_checked_too(site, path):
    client = client_of(site)
    client.headers["Sec-Fetch-Site"] = "cross-site"
    assert client.post(path, data={"name": "ada", "password": PASSWORD}).status_code == 403
    assert not stored(site, UserSession.id)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_safe_methods_come_from_anywhere_and_change_nothing(site, ada, method):
    before = (stored(site, Person.theme), stored(site, UserSession.revoked_at))
    for path in ("/account", "/home", "/history", "/instructions", "/consent", "/sign-out", "/account/preferences"):
        answer = ada.request(method, path, headers={"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"})
        assert answer.status_code not in (403, 500)
        assert not [name for name in answer.headers if name.startswith("access-control-")], "no CORS"
    assert (stored(site, Person.theme), stored(site, UserSession.revoked_at)) == before


@pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}])
def test_an_api_key_needs_no_origin(site, headers):
    with site.database.write() as db:
        key = issue_api_key(db, "program", ["write"])[1]
    client = TestClient(create_app(site), headers={"Authorization": f"Bearer {key}"})
    assert client.post("/api/v1/prompts", json={"prompt": "Why?"}, headers=headers).status_code == 200
    assert stored(site, PromptRow.text) == ["Why?"]


@pytest.mark.parametrize("authorization", ["Bearer igl_0_0", "Bearer ", "Basic YTpi", ""])
def test_an_authorization_header_does_not_unlock_the_cookie(site, ada, authorization):
    """A forged request that adds the header is not authenticated by the cookie beside it."""
    headers = {"Authorization": authorization, "Sec-Fetch-Site": "cross-site"}
    assert ada.post("/account/preferences", data=PREFERENCES, headers=headers).status_code == 401
    assert stored(site, Person.theme) == ["auto"]


def test_an_old_client_may_go_on_sending_its_token(site):
    add_person(site, password_hash=hash_password(PASSWORD))
    client = client_of(site)
    me = client.post("/api/v1/sign-in", json={"name": "ada", "password": PASSWORD}).json()
    assert me["csrf"]
    for token in (me["csrf"], "of another sign-in", ""):
        headers = {"X-CSRF-Token": token}
        assert client.post("/account/preferences", data={**PREFERENCES, "csrf": token}).status_code == 303
        assert client.post("/api/v1/tasks/claim", headers=headers).status_code == 204


@pytest.mark.parametrize(("public_url", "name"), [(None, SESSION_COOKIE), ("https://x.org", SECURE_SESSION_COOKIE)])
def test_the_session_cookie_is_lax_and_out_of_reach_of_scripts(tmp_path, public_url, name):
    site = make_site(tmp_path, public_url=public_url)
    add_person(site, password_hash=hash_password(PASSWORD))
    answer = client_of(site).post("/sign-in", data={"name": "ada", "password": PASSWORD})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{name}=")
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"samesite=lax", "httponly", "path=/"} <= parts
    assert ("secure" in parts) == (public_url is not None)
    assert not [part for part in parts if part.startswith("domain")], "other subdomains never get it"
    site.database.close()
