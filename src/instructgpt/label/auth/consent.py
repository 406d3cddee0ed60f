"""Versions of the consent texts of labelers and of the playground's users, and the consent of labelers to theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from sqlalchemy import String, bindparam, exists, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Consent, ConsentText, Person, PlaygroundConsentText
from instructgpt.label.errors import SiteError

AnyConsentText = ConsentText | PlaygroundConsentText


def get_latest_consent_text(db: Session, table: type[AnyConsentText] = ConsentText) -> AnyConsentText | None:
    """Return the newest consent text; None without one: labelers need none then, and the playground stores nothing.

    Version 0 is no text of a page: under it requests of an endpoint were imported.
    """
    statement = select(table).where(table.version > 0).order_by(table.version.desc()).limit(1)
    return cast(AnyConsentText | None, db.scalars(statement).first())


def localized_consent_body(text: AnyConsentText, language: str) -> str:
    """Return the text in a language, else in English, else in its first language."""
    bodies: dict[str, str] = text.bodies
    return bodies.get(language) or bodies.get("en") or next(iter(bodies.values()))


def add_consent_version(
    db: Session, bodies: Mapping[str, str], caller_id: str | None, table: type[AnyConsentText] = ConsentText
) -> AnyConsentText:
    """Publish a version, to which labelers or users must consent again; raise SiteError for an empty text."""
    nonempty = {language: text.strip() for language, text in bodies.items() if text.strip()}
    if not nonempty:
        raise SiteError(422, "empty_text")
    previous = get_latest_consent_text(db, table)
    text = table(version=previous.version + 1 if previous else 1, bodies=nonempty, created_by=caller_id)
    db.add(text)
    db.flush()
    action = "consent.publish" if table is ConsentText else "playground.publish_consent"
    audit_log.append_entry(db, caller_id or "cli", action, str(text.version))
    return text


_CONSENT_STATEMENT = (
    select(
        ConsentText.version,
        exists().where(
            Consent.person_id == bindparam("person"),
            Consent.version == sql_cast(ConsentText.version, String),
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
