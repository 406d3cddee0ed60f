"""E-mail through a real SMTP server (aiosmtpd): STARTTLS, TLS, passwords, invitations, links for new passwords.

pytest tests/label/integrations/test_mail.py
"""

from __future__ import annotations

import email
import email.policy
import re
import socket
import ssl
from contextlib import contextmanager
from dataclasses import replace

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult
from sqlalchemy import select, update
from support.certificates import make_certificate
from support.commands import run_in_process
from support.site import add_person, client_of
from support.tasks import everything

from instructgpt.label.auth import accounts
from instructgpt.label.context import Site
from instructgpt.label.db.models import Delivery, Invite, Person, current_time_ms
from instructgpt.label.integrations.outbox import deliver_due
from instructgpt.label.mail_server import SMTP_PASSWORD_VARIABLE, check_address, parse_mail_server
from instructgpt.label.people.privacy import erase_account

DATABASES = ("sqlite",)
URL = "https://labels.test/label"
PASSWORD = "correct horse battery"


class Mailbox:
    def __init__(self):
        self.messages, self.recipients, self.logins, self.replies, self.encrypted = [], [], [], [], []

    async def handle_DATA(self, _, session, envelope):  # noqa: N802
        reply = self.replies.pop(0) if self.replies else "250 OK"
        self.encrypted.append(session.ssl is not None)
        if reply.startswith("250"):
            self.recipients += envelope.rcpt_tos
            self.messages.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        return reply

    def authenticate(self, *arguments):
        data = arguments[-1]
        self.logins.append((data.login, data.password))
        return AuthResult(success=data.password == b"secret")


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def smtp_server(mailbox, tls=None, *, implicit=False, **options):
    class Server(Controller):
        def factory(self):
            more = {} if tls is None else {"tls_context": tls, "require_starttls": True}
            if implicit:  # aiosmtpd knows only STARTTLS as encryption
                more = {"auth_require_tls": False}
            return SMTP(self.handler, authenticator=mailbox.authenticate, enable_SMTPUTF8=True, **more, **options)

    server = Server(mailbox, hostname="127.0.0.1", port=_free_port(), ssl_context=tls if implicit else None)
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


@pytest.fixture
def mailbox():
    return Mailbox()


@pytest.fixture
def mail_site(site, mailbox):
    """A site with an SMTP server in clear on this machine."""
    with smtp_server(mailbox) as port:
        yield with_mail(site, f"smtp+insecure://127.0.0.1:{port}")


def with_mail(site, url):
    server = parse_mail_server(url, "Labels <labels@labels.test>")
    return Site(replace(site.settings, mail=server, public_url=URL), site.database)


def owner_of(site):
    return client_of(site, add_person(site, "owner", role="owner"))


def deliveries(site):
    with site.database.read() as db:
        return db.scalars(select(Delivery).order_by(Delivery.id)).all()


def link_in(message):
    return re.search(rf"{URL}/invite/(\S+)", message.get_content())[1]


def make_due(site):
    with site.database.write() as db:
        db.execute(update(Delivery).where(Delivery.next_attempt_at.is_not(None)).values(next_attempt_at=0))


def test_invitations_go_to_each_address_and_their_links_work(mail_site, mailbox):
    owner = owner_of(mail_site)
    answer = owner.post(
        "/people/invites", data={"role": "labeler", "emails": "ada@example.org, bob@example.org\nada@example.org"}
    )
    assert answer.status_code == 200
    assert "/invite/" not in answer.text.replace("/people/invites", "")
    while deliver_due(mail_site):
        pass
    assert sorted(mailbox.recipients) == ["ada@example.org", "bob@example.org"]
    first, second = sorted(mailbox.messages, key=lambda message: message["To"])
    assert first["From"] == "Labels <labels@labels.test>"
    assert first["Auto-Submitted"] == "auto-generated"
    for row, message in zip(deliveries(mail_site), mailbox.messages, strict=True):
        assert row.id in message["Message-ID"]
    token = link_in(first)
    assert token != link_in(second)
    with mail_site.database.write() as db:
        person = accounts.redeem_invite(db, token, "Ada", PASSWORD)
        assert (person.role, person.name) == ("labeler", "Ada")


def test_no_link_is_in_the_database(mail_site, mailbox):
    owner_of(mail_site).post("/people/invites", data={"role": "labeler", "emails": "ada@example.org"})
    deliver_due(mail_site)
    assert link_in(mailbox.messages[0]) not in str(everything(mail_site))


def test_a_refused_message_is_repeated_with_a_new_link(mail_site, mailbox):
    owner_of(mail_site).post("/people/invites", data={"role": "labeler", "emails": "ada@example.org"})
    mailbox.replies = ["451 try later", "250 OK", "250 OK"]
    deliver_due(mail_site)
    (row,) = deliveries(mail_site)
    assert (row.delivered_at, row.error) == (None, "the mail server refused the message (451 try later)")
    make_due(mail_site)
    deliver_due(mail_site)
    (row,) = deliveries(mail_site)
    assert row.delivered_at
    assert owner_of_again(mail_site).post(f"/integrations/deliveries/{row.id}/again").status_code == 303
    deliver_due(mail_site)
    first, second = map(link_in, mailbox.messages)
    with mail_site.database.read() as db:
        assert accounts.find_valid_invite(db, first, current_time_ms()) is None
        assert accounts.find_valid_invite(db, second, current_time_ms()) is not None
    assert mailbox.messages[0]["Message-ID"] == mailbox.messages[1]["Message-ID"]


def owner_of_again(site):
    with site.database.read() as db:
        return client_of(site, db.scalars(select(Person).where(Person.role == "owner")).one())


def test_a_revoked_invitation_is_not_sent(mail_site, mailbox):
    owner_of(mail_site).post("/people/invites", data={"role": "labeler", "emails": "ada@example.org"})
    with mail_site.database.write() as db:
        db.scalars(select(Invite)).one().revoked_at = 1
    deliver_due(mail_site)
    (row,) = deliveries(mail_site)
    assert (row.next_attempt_at, row.delivered_at) == (None, None)
    assert not mailbox.messages


def test_a_forgotten_password_is_replaced_by_the_link_and_not_the_second_factor(mail_site, mailbox):
    person = add_person(mail_site, "Zoë", email="zoe@example.org", language="ko", totp_secret="A" * 32)
    visitor = client_of(mail_site)
    assert "/sign-in/forgotten" in visitor.get("/sign-in").text
    visitor.post("/sign-in/forgotten", data={"name": "ZOE\u0308"})
    deliver_due(mail_site)
    assert mailbox.recipients == ["zoe@example.org"]
    assert "안녕하세요" in mailbox.messages[0].get_content()
    token = link_in(mailbox.messages[0])
    assert token not in str(everything(mail_site))
    form = {"password": PASSWORD, "again": PASSWORD}
    assert visitor.post(f"/invite/{token}", data=form).headers["location"] == "/label/sign-in"
    assert visitor.post("/sign-in", data={"name": "zoë", "password": PASSWORD}).status_code == 200  # asks for the code
    assert visitor.post(f"/invite/{token}", data=form).status_code == 404
    with mail_site.database.read() as db:
        assert db.get_one(Person, person.id).totp_secret


@pytest.mark.parametrize("name", ["nobody", "without", "erased", "my secret pass phrase", "", "\u202e", "x" * 3_000])
def test_the_answer_does_not_tell_who_exists(mail_site, mailbox, name):
    add_person(mail_site, "with", email="with@example.org")
    add_person(mail_site, "without")
    add_person(mail_site, "erased", status="erased", email="gone@example.org")
    visitor = client_of(mail_site)
    known, other = (visitor.post("/sign-in/forgotten", data={"name": each}) for each in ("with", name))
    if 0 < len(name) <= 2_000:
        assert (known.status_code, known.text) == (other.status_code, other.text)
    while deliver_due(mail_site):
        pass
    assert mailbox.recipients == ["with@example.org"]
    assert len(deliveries(mail_site)) == 1  # what a visitor typed is not kept


def test_links_for_one_name_and_from_one_address_are_limited(mail_site, mailbox):
    add_person(mail_site, "ada", email="ada@example.org")
    visitor = client_of(mail_site)
    statuses = [visitor.post("/sign-in/forgotten", data={"name": "ada"}).status_code for _ in range(40)]
    assert statuses == [200] * 30 + [429] * 10
    while deliver_due(mail_site):
        pass
    assert len(mailbox.messages) == 3


def test_an_owner_sends_the_link_and_a_site_without_mail_offers_nothing(site, mail_site, mailbox):
    person = add_person(mail_site, "ada", email="ada@example.org")
    owner = owner_of(mail_site)
    assert "by_email" in owner.get(f"/people/{person.id}").text
    assert owner.post(f"/people/{person.id}/reset", data={"by_email": "true"}).status_code == 303
    deliver_due(mail_site)
    assert mailbox.recipients == ["ada@example.org"]
    plain = owner_of_again(site)
    assert "by_email" not in plain.get(f"/people/{person.id}").text
    assert "emails" not in plain.get("/people").text
    assert plain.get("/sign-in/forgotten").status_code == 404
    assert plain.post("/sign-in/forgotten", data={"name": "ada"}).status_code == 404
    assert plain.post("/people/invites", data={"role": "labeler", "emails": "a@b.c"}).status_code == 422


def test_an_erased_person_leaves_no_address_in_the_outbox(mail_site, mailbox):
    owner = owner_of(mail_site)
    owner.post("/people/invites", data={"role": "labeler", "emails": "ada@example.org"})
    deliver_due(mail_site)
    with mail_site.database.write() as db:
        person = accounts.redeem_invite(db, link_in(mailbox.messages[0]), "Ada", PASSWORD, email="ada@example.org")
        db.flush()
        erase_account(db, person, labels=False, now_ms=1, initiated_by=person.id)
    assert "ada@example.org" not in str(everything(mail_site))


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "tls"])
def test_passwords_travel_encrypted_to_the_right_server_only(site, mailbox, tmp_path, monkeypatch, implicit):
    server, certificate = make_certificate(tmp_path, "localhost")
    monkeypatch.setenv(SMTP_PASSWORD_VARIABLE, "secret")
    with smtp_server(mailbox, server, implicit=implicit) as port:
        scheme = "smtps" if implicit else "smtp"
        mail_site = with_mail(site, f"{scheme}://ada%40example.org@localhost:{port}")
        owner_of(mail_site).post("/people/invites", data={"role": "labeler", "emails": "bob@example.org"})
        deliver_due(mail_site)  # the certificate is signed by nobody that this machine knows
        assert "CERTIFICATE_VERIFY_FAILED" in deliveries(mail_site)[0].error
        assert not mailbox.logins
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert ssl.create_default_context().cert_store_stats()["x509"] == 1
        make_due(mail_site)
        deliver_due(mail_site)
    assert mailbox.logins == [(b"ada@example.org", b"secret")]
    assert (mailbox.recipients, mailbox.encrypted) == (["bob@example.org"], [not implicit])


def test_a_server_without_starttls_gets_neither_password_nor_message(site, mailbox, monkeypatch):
    monkeypatch.setenv(SMTP_PASSWORD_VARIABLE, "secret")
    with smtp_server(mailbox, auth_require_tls=False) as port:
        mail_site = with_mail(site, f"smtp://ada@127.0.0.1:{port}")
        owner_of(mail_site).post("/people/invites", data={"role": "labeler", "emails": "bob@example.org"})
        deliver_due(mail_site)
    assert "STARTTLS" in deliveries(mail_site)[0].error
    assert (mailbox.logins, mailbox.messages) == ([], [])


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ada",
        "ada@",
        "@example.org",
        "a b@example.org",
        "ada@example.org\nBcc: all@example.org",
        "ada@example.org\r\nRCPT TO:<x@y.z>",
        "ada@example.org,bob@example.org",
        "<ada@example.org>",
        "ada@ex..org",
        ".ada@example.org",
        "\u00e4da@example.org",
        "a" * 65 + "@example.org",
        "ada@" + "a" * 260,
        '"a b"@example.org',
    ],
)
def test_text_that_is_no_address(address):
    with pytest.raises(ValueError, match=r"address|dot|header|expected"):
        check_address(address)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--smtp", "smtp://mail.test", "--public-url", "https://a.test"], "both --smtp and --mail-from"),
        (["--smtp", "smtp://mail.test", "--mail-from", "a@b.test"], "--public-url"),
        (
            ["--smtp", "http://mail.test", "--mail-from", "a@b.test", "--public-url", "https://a.test"],
            "expected smtps://",
        ),
        (
            ["--smtp", "smtp://u:p@m.test", "--mail-from", "a@b.c", "--public-url", "https://a.test"],
            "leave the password",
        ),
        (
            ["--smtp", "smtp+insecure://u@m.t", "--mail-from", "a@b.c", "--public-url", "https://a.test"],
            "which encrypt",
        ),
        (["--smtp", "smtp://m.test", "--mail-from", "nobody", "--public-url", "https://a.test"], "no e-mail address"),
        (["--allow-networks", "0.0.0.0/0"], "too wide"),
        (["--allow-networks", "ten"], "is no network"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, capsys, options, message):
    outcome = run_in_process(capsys)("label", "serve", "--site", str(tmp_path / "site"), *options)
    assert outcome.code == 2
    assert message in outcome.err
    assert not (tmp_path / "site").exists()
