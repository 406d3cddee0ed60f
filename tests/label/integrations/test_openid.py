"""Sign-in at an OpenID provider that runs here and signs real tokens, and attacks on it.

pytest tests/label/integrations/test_openid.py
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import httpx
import pyotp
import pytest
from joserfc.jwk import OctKey, RSAKey
from sqlalchemy import select
from support.commands import run_in_process
from support.openid_provider import openid_provider
from support.receiver import receiving_server
from support.site import add_person, client_of
from support.tasks import everything

from instructgpt.label.auth import accounts
from instructgpt.label.auth.passwords import hash_password
from instructgpt.label.context import Site
from instructgpt.label.db.models import OpenIDFlow, Person, ProviderIdentity, UserSession
from instructgpt.label.openid import OPENID_SECRET_VARIABLE, OpenIDClient, OpenIDProvider
from instructgpt.label.outgoing import parse_network
from instructgpt.label.people.privacy import erase_account, export_personal_data

DATABASES = ("sqlite",)
URL = "https://labels.test"
LOOPBACK = (parse_network("127.0.0.0/8"),)
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def module_provider():
    with openid_provider() as provider:
        yield provider


@pytest.fixture
def provider(module_provider):
    module_provider.claims, module_provider.header, module_provider.metadata = {}, {}, {}
    module_provider.signing_key, module_provider.secret, module_provider.accepts_codes_twice = None, "", False
    module_provider.codes.clear()
    return module_provider


def with_provider(site, provider, *domains, **options):
    settings = OpenIDProvider(provider.issuer, "site", "Example", domains)
    client = OpenIDClient(settings, f"{URL}/sign-in/openid/callback", LOOPBACK)
    return Site(replace(site.settings, openid=client, public_url=URL, **options), site.database)


@pytest.fixture
def openid_site(site, provider):
    return with_provider(site, provider, "example.org")


def go(browser, provider, path="/sign-in/openid", **more):
    """Sign in as a browser does. -> the answer to the callback"""
    answer = browser.get(path)
    assert answer.status_code == 303, answer.text
    return browser.get(provider.authorize(answer.headers["location"], **more))


def who(browser):
    answer = browser.get("/api/v1/me")
    return answer.json()["name"] if answer.status_code == 200 else None


def people(site):
    with site.database.read() as db:
        return db.scalars(select(Person).order_by(Person.id)).all()


def known(site, name="Ada Lovelace", subject="subject-1", **more):
    person = add_person(site, name, **more)
    issuer = site.settings.openid.provider.issuer
    with site.database.write() as db:
        db.add(ProviderIdentity(issuer=issuer, subject=subject, person_id=person.id))
    return person


def test_a_connected_person_signs_in_and_lands_on_the_page(openid_site, provider):
    known(openid_site)
    browser = client_of(openid_site)
    assert "/sign-in/openid?next=" in browser.get("/sign-in?next=/account").text
    answer = go(browser, provider, "/sign-in/openid?next=/account")
    assert (answer.status_code, answer.headers["location"]) == (303, "/account")
    assert who(browser) == "Ada Lovelace"
    with openid_site.database.read() as db:
        assert not db.scalars(select(OpenIDFlow)).all()


def test_a_secret_authenticates_the_site_to_the_provider(openid_site, provider, monkeypatch):
    known(openid_site)
    provider.secret = "s3cret"
    assert go(client_of(openid_site), provider).status_code == 401
    monkeypatch.setenv(OPENID_SECRET_VARIABLE, "s3cret")
    assert go(client_of(openid_site), provider).status_code == 303


def test_a_verified_address_of_an_admitted_domain_becomes_a_labeler_in_screening(openid_site, provider):
    browser = client_of(openid_site)
    assert go(browser, provider).status_code == 303
    (person,) = people(openid_site)
    assert (person.name, person.role, person.status, person.cohort) == ("ada", "labeler", "screening", "training")
    assert (person.email, person.password_hash) == ("ada@example.org", None)
    assert go(client_of(openid_site), provider).status_code == 303
    assert len(people(openid_site)) == 1
    provider.claims = {"sub": "subject-2"}
    go(client_of(openid_site), provider)
    assert [each.name for each in people(openid_site)] == ["ada", "ada 2"]


@pytest.mark.parametrize(
    "claims",
    [
        {"email_verified": False},
        {"email_verified": "true"},
        {"email_verified": 1},
        {"email_verified": None},
        {"email": "ada@example.org.evil.test"},
        {"email": "ada@sub.example.org"},
        {"email": "example.org"},
        {"email": ["ada@example.org"]},
        {"email": None},
    ],
)
def test_others_are_not_admitted_and_never_matched_by_address_or_name(openid_site, provider, claims):
    add_person(openid_site, "ada", role="owner", email="ada@example.org")
    provider.claims = claims
    browser = client_of(openid_site)
    answer = go(browser, provider)
    assert answer.status_code == 403
    assert who(browser) is None
    assert len(people(openid_site)) == 1


def test_a_verified_address_does_not_open_the_account_with_the_same_address(openid_site, provider):
    owner = add_person(openid_site, "ada", role="owner", email="ada@example.org")
    browser = client_of(openid_site)
    go(browser, provider)
    assert who(browser) == "ada 2"
    assert {person.id for person in people(openid_site)} > {owner.id}


def _swap(provider, **changes):
    for name, value in changes.items():
        setattr(provider, name, value)


OTHER_KEY = RSAKey.generate_key(2048, {"kid": "one"})
NOW = int(time.time())
ATTACKS = {
    "nonce": {"claims": {"nonce": "another"}},
    "no nonce": {"claims": {"nonce": None}},
    "audience": {"claims": {"aud": "another"}},
    "audiences without azp": {"claims": {"aud": ["site", "another"]}},
    "azp": {"claims": {"aud": ["site", "another"], "azp": "another"}},
    "azp alone": {"claims": {"azp": "another"}},
    "no audience": {"claims": {"aud": None}},
    "issuer": {"claims": {"iss": "https://evil.test"}},
    "issuer with a slash": {"claims": {"iss": "SLASH"}},
    "expired": {"claims": {"exp": NOW - 120}},
    "never expires": {"claims": {"exp": None}},
    "expires in words": {"claims": {"exp": True}},
    "issued long ago": {"claims": {"iat": NOW - 7_200}},
    "issued in the future": {"claims": {"iat": NOW + 7_200}},
    "no subject": {"claims": {"sub": None}},
    "empty subject": {"claims": {"sub": ""}},
    "subject is a number": {"claims": {"sub": 1}},
    "subject is long": {"claims": {"sub": "x" * 256}},
    "another key": {"signing_key": OTHER_KEY},
    "unknown kid": {"header": {"kid": "two"}},
    "hmac with the public key": {"header": {"alg": "HS256"}, "signing_key": "PUBLIC"},
    "hmac with the client id": {"header": {"alg": "HS256"}, "signing_key": OctKey.import_key("site" * 8)},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_forged_tokens_sign_nobody_in(openid_site, provider, attack):
    known(openid_site)
    _swap(provider, **ATTACKS[attack])
    if attack == "issuer with a slash":
        provider.claims = {"iss": provider.issuer + "/"}
    if provider.signing_key == "PUBLIC":
        provider.signing_key = provider.key.as_pem(private=False)
    browser = client_of(openid_site)
    answer = go(browser, provider)
    assert answer.status_code == 401
    assert who(browser) is None
    with openid_site.database.read() as db:
        assert not db.scalars(select(UserSession)).all()


def test_an_unsigned_token_signs_nobody_in(openid_site, provider, monkeypatch):
    known(openid_site)

    def unsigned(nonce):
        _, payload, _ = type(provider).sign(provider, nonce).split(".")
        return f"eyJhbGciOiJub25lIn0.{payload}."

    monkeypatch.setattr(provider, "sign", unsigned)
    assert go(client_of(openid_site), provider).status_code == 401


def test_new_keys_of_the_provider_are_fetched(openid_site, provider, monkeypatch):
    known(openid_site)
    assert go(client_of(openid_site), provider).status_code == 303
    monkeypatch.setattr("instructgpt.label.openid._MIN_REFETCH_SECONDS", 0.0)
    monkeypatch.setattr(provider, "key", RSAKey.generate_key(2048, {"kid": "three", "use": "sig"}))
    provider.header = {"kid": "three"}
    assert go(client_of(openid_site), provider).status_code == 303


def test_a_callback_is_for_its_browser_and_works_once(openid_site, provider):
    known(openid_site)
    provider.accepts_codes_twice = True  # the site does not rely on the provider
    victim, attacker = client_of(openid_site), client_of(openid_site)
    callback = provider.authorize(attacker.get("/sign-in/openid").headers["location"])
    assert victim.get(callback).status_code == 401  # has begun nothing
    victim.get("/sign-in/openid")
    assert victim.get(callback).status_code == 401  # has begun another one
    assert who(victim) is None
    assert attacker.get(callback).status_code == 303
    assert attacker.get(callback).status_code == 401  # replayed
    assert victim.get(callback).status_code == 401


@pytest.mark.parametrize(
    "change",
    [{"state": "x"}, {"state": ""}, {"code": "x"}, {"code": ""}, {"iss": "https://evil.test"}, {"error": "no"}],
)
def test_changed_callbacks_sign_nobody_in(openid_site, provider, change):
    known(openid_site)
    browser = client_of(openid_site)
    assert go(browser, provider, **change).status_code == 401
    assert who(browser) is None


def test_a_code_of_another_flow_does_not_fit_the_verifier(openid_site, provider):
    known(openid_site)
    first, second = client_of(openid_site), client_of(openid_site)
    stolen = parse_qs(urlsplit(provider.authorize(first.get("/sign-in/openid").headers["location"])).query)["code"][0]
    assert go(second, provider, code=stolen).status_code == 401


def test_the_second_factor_is_asked_for(openid_site, provider):
    secret = pyotp.random_base32()
    known(openid_site, role="owner", totp_secret=secret)
    browser = client_of(openid_site)
    answer = go(browser, provider, "/sign-in/openid?next=/people")
    assert answer.status_code == 200
    assert who(browser) is None
    challenge = answer.text.split('name="challenge" value="')[1].split('"')[0]
    form = {"challenge": challenge, "code": pyotp.TOTP(secret).now(), "next": "/people"}
    assert browser.post("/sign-in/code", data=form).headers["location"] == "/people"
    assert who(browser) == "Ada Lovelace"


def test_a_demanded_second_factor_can_be_set_up_without_a_password(site, provider):
    openid_site = with_provider(site, provider, second_factor="owners")
    person = known(openid_site, role="owner")
    browser = client_of(openid_site)
    go(browser, provider)
    assert browser.get("/people").status_code == 403
    secret = pyotp.random_base32()
    form = {"secret": secret, "code": pyotp.TOTP(secret).now()}
    with openid_site.database.write() as db:
        db.scalars(select(UserSession)).one().created_at -= 11 * 60_000
    assert browser.post("/account/second-factor", data=form).status_code == 422  # signed in too long ago
    with openid_site.database.write() as db:
        db.scalars(select(UserSession)).one().created_at += 11 * 60_000
    assert browser.post("/account/second-factor", data=form).status_code == 200
    assert browser.get("/people").status_code == 200
    assert person.password_hash is None


def test_an_invitation_is_used_with_the_provider(site, provider):
    openid_site = with_provider(site, provider)
    with openid_site.database.write() as db:
        token = accounts.issue_invite(db, "researcher")
    browser = client_of(openid_site)
    assert f"/sign-in/openid?invite={token}" in browser.get(f"/invite/{token}").text
    assert go(browser, provider, f"/sign-in/openid?invite={token}").status_code == 303
    (person,) = people(openid_site)
    assert (person.role, person.name, person.password_hash) == ("researcher", "ada", None)
    assert token not in str(everything(openid_site))
    assert client_of(openid_site).get(f"/sign-in/openid?invite={token}").status_code == 404  # used up
    assert client_of(openid_site).get("/sign-in/openid?invite=guess").status_code == 404


def test_an_invitation_that_was_revoked_meanwhile_admits_nobody(site, provider):
    openid_site = with_provider(site, provider)
    with openid_site.database.write() as db:
        token = accounts.issue_invite(db, "researcher")
    browser = client_of(openid_site)
    location = browser.get(f"/sign-in/openid?invite={token}").headers["location"]
    with openid_site.database.write() as db:
        accounts.lock_invite(db, token, 0).revoked_at = 1
    assert browser.get(provider.authorize(location)).status_code == 404
    assert not people(openid_site)


def test_an_account_is_connected_by_its_own_person_only(openid_site, provider):
    provider.claims = {"email_verified": False}
    bob = add_person(openid_site, "bob", password_hash=hash_password(PASSWORD))
    browser = client_of(openid_site, bob)
    assert browser.post("/account/openid", data={"password": "wrong"}).status_code == 422
    page = browser.post("/account/openid", data={"password": PASSWORD})
    assert page.status_code == 200
    url = page.text.split('primary" href="')[1].split('"')[0].replace("&amp;", "&")
    callback = provider.authorize(url)
    eve = client_of(openid_site, add_person(openid_site, "eve"))
    assert eve.get(callback).status_code == 401
    assert browser.get(callback).headers["location"] == "/account"
    other = client_of(openid_site)
    assert go(other, provider).status_code == 303
    assert who(other) == "bob"
    taken = client_of(openid_site, add_person(openid_site, "mia", password_hash=hash_password(PASSWORD)))
    page = taken.post("/account/openid", data={"password": PASSWORD})
    url = page.text.split('primary" href="')[1].split('"')[0].replace("&amp;", "&")
    assert taken.get(provider.authorize(url)).status_code == 409
    assert browser.post("/account/openid/end", data={"password": PASSWORD}).status_code == 303
    assert go(client_of(openid_site), provider).status_code == 403


def test_erased_people_leave_no_identity(openid_site):
    person = known(openid_site)
    with openid_site.database.write() as db:
        person = db.get_one(Person, person.id)
        assert export_personal_data(db, person)["identities"][0]["subject"] == "subject-1"
        erase_account(db, person, labels=False, now_ms=1, initiated_by=person.id)
    assert "subject-1" not in str(everything(openid_site))


@pytest.mark.parametrize("target", ["//evil.test", "https://evil.test/", "/\\evil.test", "javascript:alert(1)"])
def test_the_way_back_stays_on_the_site(openid_site, provider, target):
    known(openid_site)
    answer = go(client_of(openid_site), provider, str(httpx.URL("/sign-in/openid", params={"next": target})))
    assert answer.headers["location"] == "/"


@pytest.mark.parametrize("name", ["\u202eevil", "", " ", "<script>", "x" * 500, "\u3164", "a\x00b"])
def test_hostile_names_of_the_provider_become_visible_ones(openid_site, provider, name):
    provider.claims = {"preferred_username": name, "name": name}
    assert go(client_of(openid_site), provider).status_code == 303
    (person,) = people(openid_site)
    assert person.name.strip()
    assert all(accounts.is_visible(character) for character in person.name)


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://evil.test"},
        {"token_endpoint": "http://169.254.169.254/latest"},
        {"jwks_uri": "http://10.0.0.1/keys"},
        {"token_endpoint": None},
        {"authorization_endpoint": "javascript:alert(1)"},
    ],
)
def test_metadata_leads_neither_inside_nor_to_another_issuer(site, provider, metadata):
    openid_site = with_provider(site, provider)
    known(openid_site)
    provider.metadata = metadata
    browser = client_of(openid_site)
    answer = browser.get("/sign-in/openid")
    if answer.status_code == 303:
        answer = browser.get(provider.authorize(answer.headers["location"]))
    assert answer.status_code in (401, 503)
    assert who(browser) is None


def test_a_provider_that_is_private_is_not_asked(site, provider):
    settings = OpenIDProvider(provider.issuer, "site", "Example")
    client = OpenIDClient(settings, f"{URL}/sign-in/openid/callback")
    answer = client_of(Site(replace(site.settings, openid=client, public_url=URL), site.database)).get(
        "/sign-in/openid"
    )
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "15")


@pytest.mark.parametrize("body", [b"", b"[]", b"nonsense", b"[" * 100_000])
def test_a_broken_provider_gives_a_clear_page(site, body):
    with receiving_server(reply=lambda _: (200, {}, body)) as receiver:
        client = OpenIDClient(OpenIDProvider(receiver.url, "site", "E"), f"{URL}/sign-in/openid/callback", LOOPBACK)
        broken = Site(replace(site.settings, openid=client, public_url=URL), site.database)
        assert client_of(broken).get("/sign-in/openid").status_code == 401


@pytest.mark.parametrize(
    "keys", [[{"kty": "RSA"}], "x", [1], [], [{"kty": "EC", "crv": 7}], [{"kty": "RSA", "n": 1}], None]
)
def test_broken_keys_sign_nobody_in(openid_site, provider, monkeypatch, keys):
    known(openid_site)
    monkeypatch.setattr(
        provider.receiver,
        "reply",
        lambda request: (
            (200, {}, json.dumps({"keys": keys}).encode()) if request.path == "/keys" else provider.reply(request)
        ),
    )
    assert go(client_of(openid_site), provider).status_code == 401


def test_a_site_without_a_provider_has_no_such_pages(site):
    browser = client_of(site, add_person(site))
    assert browser.get("/sign-in/openid").status_code == 404
    assert browser.get("/sign-in/openid/callback?code=x&state=y").status_code == 404
    assert browser.post("/account/openid").status_code == 404
    assert "openid" not in client_of(site).get("/sign-in").text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--openid-issuer", "https://login.test", "--public-url", "https://a.test"], "both --openid-issuer and"),
        (["--openid-issuer", "https://login.test", "--openid-client", "site"], "needs --public-url"),
        (["--openid-domains", "example.org"], "no effect without --openid-issuer"),
        (["--openid-issuer", "login.test", "--openid-client", "s", "--public-url", "https://a.test"], "https://"),
        (
            [
                "--openid-issuer",
                "https://l.test",
                "--openid-client",
                "s",
                "--public-url",
                "https://a.b",
                "--openid-domains",
                "@c.d",
            ],
            "is no domain",
        ),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, capsys, options, message):
    outcome = run_in_process(capsys)("label", "serve", "--site", str(tmp_path / "site"), *options)
    assert outcome.code == 2
    assert message in outcome.err
