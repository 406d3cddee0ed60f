"""The command `label reset-link`: a link that sets a new password, for an owner who is locked out.

instructgpt label reset-link --site site/ --name olga
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.label.auth import accounts, second_factor
from instructgpt.label.configs import ResetLinkConfig
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Person
from instructgpt.label.db.models.people import normalize_name
from instructgpt.label.site_folder import open_site


def reset_link(config: ResetLinkConfig) -> None:
    """Print a link that sets a new password once; without any owner, a set-up link. Raises InputError."""
    site = open_site(config.site)
    base_url = config.public_url or "http://127.0.0.1:8000"
    try:
        with site.database.write() as db:
            if config.name is None and (token := accounts.create_owner_setup_token(db, keep_earlier=True)) is not None:
                print(f"set the site up once, within {accounts.SETUP_DAYS} days, at {base_url}/invite/{token}")
                return
            person = _find_person(db, config.name)
            token = accounts.issue_invite(db, person.role, person=person, days=accounts.RESET_DAYS)
            if config.end_second_factor and person.totp_secret is not None:
                second_factor.disable_second_factor(person)
                audit_log.append_entry(db, "cli", "person.second_factor", person.id, enabled=False)
            name, keeps_factor = person.name, person.totp_secret is not None
    finally:
        site.database.close()
    print(f"{name} sets a new password once, within {accounts.RESET_DAYS} days, at {base_url}/invite/{token}")
    if keeps_factor:
        print("sign-in still asks for the second factor; --end-second-factor removes it")


def _find_person(db: Session, name: str | None) -> Person:
    owners = db.scalars(select(Person).where(Person.role == "owner", Person.status == "active").order_by(Person.name))
    if name is None:
        people = owners.all()
        if len(people) == 1:
            return people[0]
        raise InputError(f"--name: which of the owners? {', '.join(person.name for person in people)}")
    person = db.scalars(select(Person).where(Person.name_key == normalize_name(name))).first()
    if person is None or person.status == "erased":
        names = ", ".join(owner.name for owner in owners)
        raise InputError(f"--name {name}: no such account; owners are: {names or '(none)'}")
    return person
