"""What people agree to before they work: a versioned text, and who agreed to which version of it."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import String, bindparam, cast, exists, select
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Consent, ConsentText, Person
from instructgpt.label.errors import SiteError


def get_latest_consent_text(db: Session) -> ConsentText | None:
    """The present text; None where the site has none, and then nobody has to agree."""
    return db.scalars(select(ConsentText).order_by(ConsentText.version.desc()).limit(1)).first()


def localized_consent_body(text: ConsentText, language: str) -> str:
    """The text in a language, or in the first one it has."""
    bodies: dict[str, str] = text.bodies
    return bodies.get(language) or bodies.get("en") or next(iter(bodies.values()))


def add_consent_version(db: Session, bodies: Mapping[str, str], caller_id: str | None) -> ConsentText:
    """A new version. Labelers are asked for their consent again before they go on.

    Raises:
        Problem: there is no text in it.
    """
    nonempty = {language: text.strip() for language, text in bodies.items() if text.strip()}
    if not nonempty:
        raise SiteError(422, "empty_text")
    previous = get_latest_consent_text(db)
    text = ConsentText(version=previous.version + 1 if previous else 1, bodies=nonempty, created_by=caller_id)
    db.add(text)
    db.flush()
    audit_log.append_entry(db, caller_id or "cli", "consent.publish", str(text.version))
    return text


_CONSENT_STATEMENT = (
    select(
        ConsentText.version,
        exists().where(
            Consent.person_id == bindparam("person"),
            Consent.version == cast(ConsentText.version, String),
            Consent.withdrawn_at.is_(None),
        ),
    )
    .order_by(ConsentText.version.desc())
    .limit(1)
)
"""The present version, and whether a person agreed to it."""


def has_consented(db: Session, person: Person) -> bool:
    """Whether somebody agreed to the present version and did not take it back."""
    row = db.execute(_CONSENT_STATEMENT, {"person": person.id}).first()
    return row is None or bool(row[1])


def record_consent(db: Session, person: Person, version: int) -> None:
    """Note that somebody agreed. Who had withdrawn before is paused from now on, until an owner takes them back.

    Raises:
        Problem: the version is not the present one: the text changed while they read it.
    """
    text = get_latest_consent_text(db)
    if text is None or text.version != version:
        raise SiteError(409, "consent_changed")
    if not has_consented(db, person):
        db.add(Consent(person_id=person.id, version=str(version)))
        account = db.get(Person, person.id)
        if account is not None and account.status == "withdrawn":
            account.status = "paused"
        db.flush()
        audit_log.append_entry(db, person.id, "consent.agree", str(version))
