"""Names in any script, passwords that everybody tries, the second factor, and links for owners who are locked out."""

from __future__ import annotations

import re
import unicodedata

import pyotp
import pytest
from sqlalchemy import select
from support.commands import run_in_process
from support.site import ORIGIN, add_person, client_of, make_site

from instructgpt.label.auth import accounts
from instructgpt.label.auth.passwords import hash_password
from instructgpt.label.db.models import Invite, Person
from instructgpt.label.site_folder import open_site

DATABASES = ("sqlite",)
GOOD = "correct horse battery"


def invite_link(site, **options):
    with site.database.write() as db:
        return accounts.issue_invite(db, options.pop("role", "labeler"), **options)


def join(site, name, password=GOOD, **options):
    form = {"name": name, "password": password, "again": password}
    return client_of(site).post(f"/invite/{invite_link(site, **options)}", data=form)


def sign_in(site, name, password=GOOD, client=None):
    return (client or client_of(site)).post("/sign-in", data={"name": name, "password": password})


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("Zoë", ["zoë", "ZOË", "Zoe\u0308"]),
        ("Ünal", ["ünal", "U\u0308NAL"]),
        ("민수", [unicodedata.normalize("NFD", "민수")]),
        ("Straße", ["STRASSE", "strasse"]),
        ("Ｊｏ　Ｄｏｅ", ["jo doe", " JO  DOE "]),
        ("Ὀδυσσεύς", ["ὈΔΥΣΣΕΎΣ", unicodedata.normalize("NFD", "Ὀδυσσεύς")]),
        ("Привет", ["ПРИВЕТ"]),
        ("İrem", ["i̇rem"]),
    ],
)
def test_names_in_any_script_sign_in_and_are_taken_in_every_form(site, name, forms):
    assert join(site, name).status_code == 303
    for form in (name, *forms):
        assert sign_in(site, form).status_code == 303, form
    for form in forms:
        assert join(site, form, max_uses=1).status_code == 409, form


@pytest.mark.parametrize("name", ["\u3164", "a\u2800", "\u200b", "x\u202ey", ""])
def test_invisible_names_are_refused(site, name):
    assert join(site, name).status_code == 422


@pytest.mark.parametrize(
    "password",
    [
        "aaaaaaaaaaaa",
        "password1234",
        "123456789012",
        "qwertyuiop12",
        "Password123!",
        "adalovelace12",
        "iloveyouiloveyou",
    ],
)
def test_passwords_that_everybody_tries_first_are_refused_everywhere(site, password):
    answer = join(site, "Ada Lovelace", password)
    assert answer.status_code == 422
    assert "too easy to guess" in answer.text
    person = add_person(site, "bob", password_hash=hash_password(GOOD))
    form = {"old": GOOD, "password": password, "again": password}
    with client_of(site, person) as client:
        assert client.post("/account/password", data=form).status_code == (303 if "ada" in password else 422)
    token = invite_link(site, person=person)
    answer = client_of(site).post(f"/invite/{token}", data={"password": password, "again": password})
    assert answer.status_code == (303 if "ada" in password else 422)
    body = {"name": "Ada Lovelace", "password": password, "token": invite_link(site)}
    assert client_of(site).post("/api/v1/redeem", json=body).json()["error"] == "password_common"


@pytest.fixture
def owner(site):
    """(site, a signed-in owner's browser, her secret, her recovery codes): with a second factor."""
    olga = add_person(site, "olga", "owner", password_hash=hash_password(GOOD))
    with client_of(site, olga) as client:
        page = client.get("/account/second-factor").text
        secret = re.search(r'name="secret" value="(\w+)"', page)[1]
        assert page.count(secret) >= 2
        assert "data:image/svg+xml" in page
        form = {"secret": secret, "password": GOOD}
        assert client.post("/account/second-factor", data={**form, "code": "000000"}).status_code == 422
        code = pyotp.TOTP(secret).now()
        assert client.post("/account/second-factor", data={**form, "code": code, "password": "no"}).status_code == 422
        page = client.post("/account/second-factor", data={**form, "code": code})
        recovery = re.findall(r"<code>([0-9a-f-]+)</code>", page.text)
        assert len(set(recovery)) == 10
        assert recovery[0] not in client.get("/account/second-factor").text
        yield site, client, secret, recovery


def answer_code(client, page, code):
    challenge = re.search(r'name="challenge" value="([^"]+)"', page.text)[1]
    return client.post("/sign-in/code", data={"challenge": challenge, "code": code, "next": "/people"})


def test_sign_in_asks_for_the_code_and_takes_each_once(owner):
    site, _, secret, recovery = owner
    browser, code = client_of(site), pyotp.TOTP(secret).now()
    page = sign_in(site, "olga", client=browser)
    assert (page.status_code, "set-cookie" in page.headers) == (200, False)
    assert browser.get("/people").status_code == 401
    assert answer_code(browser, page, "123456").status_code == 401
    assert answer_code(browser, page, code).headers["location"] == "/people"
    assert browser.get("/people").status_code == 200
    again = client_of(site)
    assert answer_code(again, sign_in(site, "olga", client=again), code).status_code == 401, "a code is valid once"
    for expected in (303, 401):
        last = client_of(site)
        assert answer_code(last, sign_in(site, "olga", client=last), recovery[3]).status_code == expected


def test_a_challenge_ends_after_five_wrong_codes(owner):
    site, _, secret, _ = owner
    browser = client_of(site)
    page = sign_in(site, "olga", client=browser)
    for _ in range(5):
        assert answer_code(browser, page, "000000").status_code == 401
    answer = answer_code(browser, page, pyotp.TOTP(secret).now())
    assert answer.status_code == 401
    assert "start again" in answer.text


def test_programs_send_the_code_with_the_password(owner):
    site, _, secret, _ = owner
    body = {"name": "olga", "password": GOOD}
    with client_of(site) as client:
        assert client.post("/api/v1/sign-in", json=body).json()["error"] == "code_needed"
        assert client.post("/api/v1/sign-in", json={**body, "code": "1"}).json()["error"] == "wrong_code"
        wrong = client.post("/api/v1/sign-in", json={**body, "password": "no", "code": pyotp.TOTP(secret).now()})
        assert wrong.json()["error"] == "wrong_password"
        assert client.post("/api/v1/sign-in", json={**body, "code": pyotp.TOTP(secret).now()}).json()["name"] == "olga"


def test_a_reset_link_keeps_the_second_factor(owner):
    site, client, _, _ = owner
    with site.database.read() as db:
        olga = db.scalars(select(Person)).one()
    browser = client_of(site)
    form = {"password": "another good phrase", "again": "another good phrase"}
    answer = browser.post(f"/invite/{invite_link(site, person=olga)}", data=form)
    assert answer.headers["location"] == "/sign-in"
    assert "set-cookie" not in answer.headers
    assert client.get("/people").status_code == 401, "the reset ended all sessions"
    assert "challenge" in sign_in(site, "olga", "another good phrase", browser).text


def test_the_second_factor_can_be_turned_off(owner):
    site, client, _, _ = owner
    assert client.post("/account/second-factor/end", data={"password": "wrong"}).status_code == 422
    assert client.post("/account/second-factor/end", data={"password": GOOD}).status_code == 303
    assert sign_in(site, "olga").status_code == 303


@pytest.mark.parametrize(
    ("policy", "role", "allowed"),
    [
        ("optional", "owner", True),
        ("owners", "owner", False),
        ("owners", "researcher", True),
        ("team", "researcher", False),
        ("team", "labeler", True),
    ],
)
def test_a_setting_demands_a_second_factor(tmp_path, policy, role, allowed):
    site = make_site(tmp_path, second_factor=policy)
    person = add_person(site, "rita", role, password_hash=hash_password(GOOD))
    with client_of(site, person) as client:
        page = client.get("/calibration")
        assert page.status_code == (200 if allowed else 403)
        if not allowed:
            assert 'href="/account/second-factor"' in page.text
            assert client.get("/account").status_code == 200
            secret = re.search(r'name="secret" value="(\w+)"', client.get("/account/second-factor").text)[1]
            form = {"secret": secret, "password": GOOD, "code": pyotp.TOTP(secret).now()}
            assert client.post("/account/second-factor", data=form).status_code == 200
            assert client.get("/calibration").status_code == 200
    site.database.close()


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return run_in_process(capsys)


def test_a_locked_out_owner_gets_a_link_from_the_command_line(command, tmp_path):
    command("label", "init", "--site", "site")
    site = open_site(tmp_path / "site")
    olga = add_person(site, "Ólga", "owner", password_hash=hash_password(GOOD), totp_secret=pyotp.random_base32())
    outcome = command("label", "reset-link", "--site", "site", "--public-url", "https://labels.example.org")
    assert outcome.code == 0, outcome.err
    assert "--end-second-factor" in outcome.out
    token = re.search(r"https://labels\.example\.org/invite/(\S+)", outcome.out)[1]
    form = {"password": "a brand new phrase", "again": "a brand new phrase"}
    assert client_of(site).post(f"/invite/{token}", data=form).headers["location"] == "/sign-in"
    outcome = command("label", "reset-link", "--site", "site", "--name", "O\u0301LGA", "--end-second-factor")
    token = re.search(r"/invite/(\S+)", outcome.out)[1]
    answer = client_of(site).post(f"/invite/{token}", data=form)
    assert "set-cookie" in answer.headers
    with site.database.read() as db:
        assert db.get(Person, olga.id).totp_secret is None
        assert {invite.created_by for invite in db.scalars(select(Invite))} == {None}
    add_person(site, "oskar", "owner")
    outcome = command("label", "reset-link", "--site", "site")
    assert (outcome.code, "which of the owners? oskar, Ólga" in outcome.err) == (2, True)
    outcome = command("label", "reset-link", "--site", "site", "--name", "nobody")
    assert (outcome.code, "no such account" in outcome.err) == (2, True)
    site.database.close()


def test_links_of_init_serve_and_reset_all_work_until_one_is_used(command, tmp_path):
    outcomes = [command("label", "init", "--site", "site")]
    outcomes += [command("label", "reset-link", "--site", "site") for _ in range(2)]
    tokens = [re.search(r"/invite/(\S+)", outcome.out)[1] for outcome in outcomes]
    site = open_site(tmp_path / "site")
    browser = client_of(site)
    assert [browser.get(f"/invite/{token}").status_code for token in tokens] == [200, 200, 200]
    form = {"name": "olga", "password": GOOD, "again": GOOD}
    assert browser.post(f"/invite/{tokens[0]}", data=form, headers=ORIGIN).status_code == 303
    assert [client_of(site).get(f"/invite/{token}").status_code for token in tokens] == [404, 404, 404]
    site.database.close()
