"""Time-based one-time passwords (TOTP, RFC 6238) as a second factor of owners and researchers, with recovery codes."""

from __future__ import annotations

import secrets
import time

import pyotp
import segno

from instructgpt.label.auth.tokens import hash_token, secrets_equal
from instructgpt.label.db.models import Person
from instructgpt.label.errors import SiteError

_ISSUER = "instructgpt labelers' site"
_PERIOD_S = 30
_ALLOWED_STEPS = (0, -1, 1)  # the clock of a phone may be half a minute off
_RECOVERY_CODES = 10


def generate_secret() -> str:
    return pyotp.random_base32()


def provisioning_uri(person: Person, secret: str) -> str:
    """Return the `otpauth:` address that an authenticator application reads."""
    return pyotp.TOTP(secret).provisioning_uri(name=person.name, issuer_name=_ISSUER)


def qr_code_image(uri: str) -> str:
    """Return a QR code as a `data:` address of an SVG image."""
    return segno.make(uri, error="m").svg_data_uri(scale=4, border=2, light="#fff")


def enable_second_factor(person: Person, secret: str, code: str) -> list[str]:
    """Store a secret that the code proves, and return new recovery codes, which are not stored; raise SiteError."""
    if not secret.isascii() or len(secret) != 32 or _find_step(secret, code, None) is None:
        raise SiteError(422, "wrong_code")
    codes = ["-".join(secrets.token_hex(3) for _ in range(3)) for _ in range(_RECOVERY_CODES)]
    person.totp_secret, person.totp_step = secret, None
    person.recovery_hashes = [hash_token(code) for code in codes]
    return codes


def disable_second_factor(person: Person) -> None:
    person.totp_secret, person.totp_step, person.recovery_hashes = None, None, []


def use_code(person: Person, code: str) -> bool:
    """Return whether a code is valid now, or a recovery code; either is valid once, also in another browser."""
    if person.totp_secret is None:
        return True
    code = code.strip().lower()
    if (step := _find_step(person.totp_secret, code, person.totp_step)) is not None:
        person.totp_step = step
        return True
    digest = hash_token(code)
    if not any(secrets_equal(digest, known) for known in person.recovery_hashes):
        return False
    person.recovery_hashes = [known for known in person.recovery_hashes if known != digest]
    return True


def _find_step(secret: str, code: str, last_step: int | None) -> int | None:
    """Return the 30-second step of a code, later than the last one that was used; None for a wrong code."""
    totp, now_step = pyotp.TOTP(secret), int(time.time()) // _PERIOD_S
    digits = code.strip().replace(" ", "")
    if not (digits.isascii() and digits.isdigit()):
        return None
    steps = [now_step + offset for offset in _ALLOWED_STEPS if last_step is None or now_step + offset > last_step]
    return next((step for step in steps if secrets_equal(totp.at(step * _PERIOD_S), digits)), None)
