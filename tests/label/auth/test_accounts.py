"""Accounts: invites, sign-in, sessions, consent."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import func, select
from support.site import ORIGIN, add_person, client_of, make_site

from instructgpt.label.auth import accounts, consent, passwords
from instructgpt.label.auth.dependencies import SECURE_SESSION_COOKIE, SESSION_COOKIE
from instructgpt.label.db.models import Consent, Invite, Person, UserSession, current_time_ms
from instructgpt.label.errors import SiteError
from instructgpt.label.web.app import create_app

DATABASES = ("sqlite",)

GOOD = "correct horse battery"


def create_account(site, name="ada", role="labeler", password=GOOD, **more):
    with site.database.write() as db:
        return accounts.create_person(db, name, role, password=password, **more)


def link(site, role="labeler", **more):
    with site.database.write() as db:
        return accounts.issue_invite(db, role, **more)


def submit_sign_in(client, name="ada", password=GOOD, **more):
    return client.post("/sign-in", data={"name": name, "password": password, **more})


def test_a_person_signs_in_and_out(site):
    create_account(site, "Ada Lovelace", status="active")
    client = client_of(site)
    assert client.get("/consent").status_code == 401
    answer = submit_sign_in(client, "  ada  LOVELACE ", next="/consent")
    assert (answer.status_code, answer.headers["location"]) == (303, "/consent")
    token = client.cookies[SESSION_COOKIE]
    with site.database.read() as db:
        login = db.scalars(select(UserSession)).one()
    assert token not in (login.token_hash, login.csrf)
    assert len(token) >= 43, "256 bits"
    assert client.get("/consent").status_code == 200
    assert client.post("/sign-out", data={"csrf": login.csrf}).status_code == 303
    client.cookies.set(SESSION_COOKIE, token)
    assert client.get("/consent").status_code == 401, "the cookie is worth nothing once the sign-in ended"


@pytest.mark.parametrize(
    ("name", "password"), [("ada", "wrong password"), ("eve", GOOD), ("ada\x00", GOOD), ("ada", GOOD + " ")]
)
def test_wrong_names_and_wrong_passwords_get_the_same_answer(site, name, password):
    create_account(site)
    answer = submit_sign_in(client_of(site), name, password)
    assert answer.status_code == 401
    assert "The name or the password is wrong." in answer.text
    assert "set-cookie" not in answer.headers


def test_unknown_names_also_cost_a_verification(site, monkeypatch):
    verified = []
    monkeypatch.setattr(
        passwords,
        "PASSWORD_HASHER",
        type("Counting", (), {"verify": lambda _, stored, __: verified.append(stored) or True})(),
    )
    with pytest.raises(SiteError, match="wrong_password"):
        accounts.sign_in_with_password(site, "nobody", GOOD, address="1.2.3.4")
    assert verified == [passwords.DUMMY_HASH]


def test_passwords_are_argon2id_of_at_least_twelve_characters(site):
    person = create_account(site)
    assert (person.password_hash or "").startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    for bad in ("elevenchars", "x" * 1001):
        with pytest.raises(SiteError, match="password_length"):
            create_account(site, "bob", password=bad)


def test_weaker_hashes_are_renewed_at_sign_in(site):
    from argon2 import PasswordHasher

    person = create_account(site)
    with site.database.write() as db:
        db.get_one(Person, person.id).password_hash = PasswordHasher(time_cost=1, memory_cost=8192).hash(GOOD)
    assert submit_sign_in(client_of(site)).status_code == 303
    with site.database.read() as db:
        assert "m=65536,t=3" in (db.get_one(Person, person.id).password_hash or "")


def test_signing_in_again_replaces_the_cookie(site):
    create_account(site)
    client = client_of(site)
    submit_sign_in(client)
    first = client.cookies[SESSION_COOKIE]
    with site.database.read() as db:
        csrf = db.scalars(select(UserSession.csrf)).one()
    submit_sign_in(client, csrf=csrf)
    assert client.cookies[SESSION_COOKIE] != first
    other = client_of(site)
    other.cookies.set(SESSION_COOKIE, first)
    assert other.get("/consent").status_code == 401


def test_https_uses_a_host_prefixed_cookie(tmp_path):
    site = make_site(tmp_path, public_url="https://labels.example.org")
    create_account(site)
    client = TestClient(create_app(site), base_url="https://labels.example.org", headers=ORIGIN, follow_redirects=False)
    cookie = submit_sign_in(client).headers["set-cookie"]
    assert cookie.startswith(SECURE_SESSION_COOKIE + "=")
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"secure", "httponly", "samesite=lax", "path=/"} <= parts
    assert not any(part.startswith("domain") for part in parts)
    site.database.close()


@pytest.mark.parametrize(
    ("column", "back"), [("seen_at", 12 * 3_600_000 + 1_000), ("created_at", 14 * 86_400_000 + 1_000)]
)
def test_sessions_expire_when_idle_or_old(site, column, back):
    person = add_person(site)
    client = client_of(site, person)
    assert client.get("/consent").status_code == 200
    with site.database.write() as db:
        setattr(db.scalars(select(UserSession)).one(), column, current_time_ms() - back)
    assert client.get("/consent").status_code == 401


def test_last_seen_is_updated(site):
    client = client_of(site, add_person(site))
    with site.database.write() as db:
        db.scalars(select(UserSession)).one().seen_at = current_time_ms() - 11 * 3_600_000
    client.get("/consent")
    with site.database.read() as db:
        assert current_time_ms() - db.scalars(select(UserSession.seen_at)).one() < 60_000


def test_an_invite_creates_one_account_with_consent(site):
    with site.database.write() as db:
        consent.add_consent_version(db, {"en": "We *keep* what you write."}, None)
    token, client = link(site, note="for Ada"), client_of(site)
    shown = client.get(f"/invite/{token}")
    assert "<em>keep</em>" in shown.text
    assert "for Ada" not in shown.text
    form = {"name": "ada", "password": GOOD, "again": GOOD}
    refused = client.post(f"/invite/{token}", data=form)
    assert refused.status_code == 422
    assert 'value="ada"' in refused.text, "what was typed stays"
    with site.database.read() as db:
        assert db.scalar(select(func.count()).select_from(Person)) == 0
    answer = client.post(f"/invite/{token}", data={**form, "version": "1"})
    assert answer.status_code == 303
    assert client.get("/").headers["location"] == "/screening"
    with site.database.read() as db:
        person, agreed = db.scalars(select(Person)).one(), db.scalars(select(Consent)).one()
        assert (person.role, person.status, person.cohort, agreed.version) == ("labeler", "screening", "training", "1")
        assert token not in str([row.__dict__ for row in db.scalars(select(Invite))])
    assert client_of(site).post(f"/invite/{token}", data={**form, "name": "bob", "version": "1"}).status_code == 404


def test_heldout_labelers_skip_screening(site):
    token, client = link(site, cohort="heldout"), client_of(site)
    client.post(f"/invite/{token}", data={"name": "hal", "password": GOOD, "again": GOOD})
    assert client.get("/").headers["location"] == "/home"


@pytest.mark.parametrize("how", ["unknown", "revoked", "expired", "used up"])
def test_invalid_links_are_refused(site, how):
    token = link(site)
    with site.database.write() as db:
        row = db.scalars(select(Invite)).one()
        if how == "revoked":
            row.revoked_at = current_time_ms()
        elif how == "expired":
            row.expires_at = current_time_ms() - 1
        elif how == "used up":
            row.uses = 1
    answer = client_of(site).get(f"/invite/{'nonsense' if how == 'unknown' else token}")
    assert answer.status_code == 404
    assert "is no longer valid" in answer.text


def test_names_are_unique(site):
    create_account(site, "Ada")
    token, client = link(site), client_of(site)
    for name, status in (("  aDA ", 409), (" ", 422), ("a\x00b", 422), ("x" * 101, 422), ("<b>Bo</b>", 303)):
        answer = client.post(f"/invite/{token}", data={"name": name, "password": GOOD, "again": GOOD})
        assert answer.status_code == status, name


def test_setup_works_once_and_only_without_an_owner(site):
    with site.database.write() as db:
        old, token = accounts.create_owner_setup_token(db), accounts.create_owner_setup_token(db)
    client = client_of(site)
    assert client.get(f"/invite/{old}").status_code == 404
    assert "Set up the site" in client.get(f"/invite/{token}").text
    client.post(f"/invite/{token}", data={"name": "olga", "password": GOOD, "again": GOOD})
    assert client.get("/").headers["location"] == "/overview"
    with site.database.write() as db:
        assert accounts.create_owner_setup_token(db) is None


def test_reset_links_change_the_password_and_revoke_sessions(site):
    person = create_account(site)
    client = client_of(site, person)
    token = link(site, person=person)
    assert (
        client_of(site)
        .post(f"/invite/{token}", data={"password": "another good one", "again": "another good one"})
        .status_code
        == 303
    )
    assert client.get("/consent").status_code == 401
    assert submit_sign_in(client_of(site)).status_code == 401
    assert submit_sign_in(client_of(site), password="another good one").status_code == 303


def test_a_new_consent_text_must_be_accepted_before_the_next_task(site):
    person = add_person(site)
    client = client_of(site, person)
    with site.database.write() as db:
        consent.add_consent_version(db, {"en": "One"}, None)
        consent.record_consent(db, person, 1)
        consent.add_consent_version(db, {"en": "Two", "ko": "둘"}, None)
    refused = client.get("/instructions/training")
    assert refused.status_code == 403
    assert 'href="/consent"' in refused.text
    assert client.post("/consent", data={"version": 1}).status_code == 409
    assert client.post("/consent", data={"version": 2}).status_code == 303
    assert client.get("/instructions/training").status_code != 403


def test_signing_in_over_the_api_for_an_open_page(site):
    create_account(site)
    client = client_of(site)
    assert client.get("/api/v1/me").json()["error"] == "sign_in"
    assert client.post("/api/v1/sign-in", json={"name": "ada", "password": "no"}).json()["error"] == "wrong_password"
    me = client.post("/api/v1/sign-in", json={"name": "ada", "password": GOOD}).json()
    assert (me["name"], me["role"]) == ("ada", "labeler")
    assert client.get("/api/v1/me").json() == me
    assert client.post("/sign-out", headers={"X-CSRF-Token": me["csrf"]}).status_code == 303


@pytest.mark.parametrize(
    "to",
    [
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/a\nb",
        "\\\\evil",
        "/\t/evil",
    ],
)
def test_sign_in_never_redirects_to_other_sites(site, to):
    create_account(site)
    assert submit_sign_in(client_of(site), next=to).headers["location"] == "/"
