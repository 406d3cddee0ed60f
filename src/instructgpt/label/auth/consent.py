"""Versions of the consent text, and the consent of labelers to them."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import String, bindparam, cast, exists, select
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Consent, ConsentText, Person
from instructgpt.label.errors import SiteError


def get_latest_consent_text(db: Session) -> ConsentText | None:
    """Return the newest consent text; None for a site without one, where no consent is needed."""
    return db.scalars(select(ConsentText).order_by(ConsentText.version.desc()).limit(1)).first()


def localized_consent_body(text: ConsentText, language: str) -> str:
    """Return the text in a language, else in English, else in its first language."""
    bodies: dict[str, str] = text.bodies
    return bodies.get(language) or bodies.get("en") or next(iter(bodies.values()))


def add_consent_version(db: Session, bodies: Mapping[str, str], caller_id: str | None) -> ConsentText:
    """Publish a version, to which labelers must consent again; raise SiteError for an empty text."""
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


def has_consented(db: Session, person: Person) -> bool:
    """Return whether a person consented to the newest version and has not withdrawn."""
    row = db.execute(_CONSENT_STATEMENT, {"person": person.id}).first()
    return row is None or bool(row[1])


def record_consent(db: Session, person: Person, version: int) -> None:
    """Record consent, which pauses a withdrawn labeler; raise SiteError if `version` is not the newest."""
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
