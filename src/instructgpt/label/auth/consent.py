"""What people agree to before they work: a versioned text, and who agreed to which version of it."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import String, bindparam, cast, exists, select
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Consent, ConsentText, Person
from instructgpt.label.errors import Problem


def latest(db: Session) -> ConsentText | None:
    """The present text; None where the site has none, and then nobody has to agree."""
    return db.scalars(select(ConsentText).order_by(ConsentText.version.desc()).limit(1)).first()


def body(text: ConsentText, language: str) -> str:
    """The text in a language, or in the first one it has."""
    bodies: dict[str, str] = text.bodies
    return bodies.get(language) or bodies.get("en") or next(iter(bodies.values()))


def publish(db: Session, bodies: Mapping[str, str], by: str | None) -> ConsentText:
    """A new version. Labelers are asked for their consent again before they go on.

    Raises:
        Problem: there is no text in it.
    """
    kept = {language: text.strip() for language, text in bodies.items() if text.strip()}
    if not kept:
        raise Problem(422, "empty_text")
    before = latest(db)
    text = ConsentText(version=before.version + 1 if before else 1, bodies=kept, created_by=by)
    db.add(text)
    db.flush()
    audit_log.note(db, by or "cli", "consent.publish", str(text.version))
    return text


AGREED = (
    select(
        ConsentText.version,
        exists().where(
            Consent.person_id == bindparam("person"), Consent.version == cast(ConsentText.version, String), Consent.withdrawn_at.is_(None)
        ),
    )
    .order_by(ConsentText.version.desc())
    .limit(1)
)
"""The present version, and whether a person agreed to it."""


def has_agreed(db: Session, person: Person) -> bool:
    """Whether somebody agreed to the present version and did not take it back."""
    found = db.execute(AGREED, {"person": person.id}).first()
    return found is None or bool(found[1])


def agree(db: Session, person: Person, version: int) -> None:
    """Note that somebody agreed. Who had withdrawn before is paused from now on, until an owner takes them back.

    Raises:
        Problem: the version is not the present one: the text changed while they read it.
    """
    text = latest(db)
    if text is None or text.version != version:
        raise Problem(409, "consent_changed")
    if not has_agreed(db, person):
        db.add(Consent(person_id=person.id, version=str(version)))
        back = db.get(Person, person.id)
        if back is not None and back.status == "withdrawn":
            back.status = "paused"
        db.flush()
        audit_log.note(db, person.id, "consent.agree", str(version))
