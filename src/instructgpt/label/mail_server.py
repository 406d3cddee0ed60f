"""The SMTP server that a site sends e-mail through, and one message through it."""

from __future__ import annotations

import os
import re
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import parseaddr
from typing import Literal
from urllib.parse import unquote, urlsplit

from instructgpt.label.outgoing import OutgoingError
from instructgpt.label.vocabulary import SMTP_PASSWORD_VARIABLE

_Security = Literal["tls", "starttls", "none"]
_SCHEMES: dict[str, tuple[_Security, int]] = {
    "smtps": ("tls", 465),
    "smtp": ("starttls", 587),
    "smtp+insecure": ("none", 25),
}
_TIMEOUT_S = 10.0
_MAX_ADDRESS_LENGTH = 254  # RFC 5321
_ADDRESS_PATTERN = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


@dataclass(frozen=True, slots=True)
class MailServer:
    """`starttls` refuses a server that does not offer it: there is no fallback to a connection in clear."""

    host: str
    port: int
    security: _Security
    user: str | None
    sender: str  # the header `From`


def parse_mail_server(url: str, sender: str) -> MailServer:
    """Return the server of `smtps://USER@HOST:PORT`, `smtp://…` (STARTTLS) or `smtp+insecure://…`; raise ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("expected smtps://USER@HOST, smtp://USER@HOST (STARTTLS) or smtp+insecure://HOST")
    if parts.password is not None:
        raise ValueError(f"leave the password out; set the environment variable {SMTP_PASSWORD_VARIABLE}")
    security, default_port = _SCHEMES[parts.scheme]
    user = unquote(parts.username) if parts.username else None
    if security == "none" and user is not None:
        raise ValueError("a user name and its password need smtp:// or smtps://, which encrypt them")
    check_address(parseaddr(sender)[1])
    if any(not character.isprintable() for character in sender):
        raise ValueError("the sender must be one line")
    return MailServer(parts.hostname, parts.port or default_port, security, user, sender)


def check_address(address: str) -> str:
    """Return an e-mail address without surrounding spaces. Raises ValueError unless it is an ordinary ASCII address."""
    address = address.strip()
    if len(address) > _MAX_ADDRESS_LENGTH or not _ADDRESS_PATTERN.fullmatch(address):
        raise ValueError(f"'{address[:80]}' is no e-mail address; expected NAME@HOST")
    Address(addr_spec=address)  # raises ValueError for the rest, such as two dots in a row
    return address


def send_by_smtp(server: MailServer, message: EmailMessage) -> None:
    """Send a message to its one recipient. Raises OutgoingError."""
    password = os.environ.get(SMTP_PASSWORD_VARIABLE, "")
    if server.user is not None and not password:
        raise OutgoingError(f"the environment variable {SMTP_PASSWORD_VARIABLE} is not set")
    try:
        with _connect(server) as connection:
            if server.user is not None:
                connection.login(server.user, password)
            connection.send_message(message)
    except smtplib.SMTPRecipientsRefused as error:
        reasons = "; ".join(f"{code} {reason.decode('utf-8', 'replace')}" for code, reason in error.recipients.values())
        raise OutgoingError(f"the mail server refused the recipient ({reasons})") from error
    except smtplib.SMTPResponseException as error:
        reason = (
            error.smtp_error.decode("utf-8", "replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        )
        raise OutgoingError(f"the mail server refused the message ({error.smtp_code} {reason})") from error
    except (smtplib.SMTPException, OSError) as error:
        raise OutgoingError(f"the mail server cannot be used ({error or type(error).__name__})") from error


@contextmanager
def _connect(server: MailServer) -> Iterator[smtplib.SMTP]:
    context = ssl.create_default_context()
    if server.security == "tls":
        with smtplib.SMTP_SSL(server.host, server.port, timeout=_TIMEOUT_S, context=context) as connection:
            yield connection
        return
    with smtplib.SMTP(server.host, server.port, timeout=_TIMEOUT_S) as connection:
        if server.security == "starttls":
            connection.starttls(context=context)
        yield connection
