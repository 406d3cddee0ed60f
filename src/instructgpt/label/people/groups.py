"""Groups that labelers declare, from the owner's own list: optional, never guessed, and never about fewer than five.

No page or log names a person's group; the person sees and changes it on the account page. Exported rankings carry it
beside the pseudonym, only where at least five of its people have rankings in that export; the account page says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from instructgpt.label.db import audit_log
from instructgpt.label.db.models import GroupDeclaration, LabelerGroup, Person, current_time_ms
from instructgpt.label.errors import SiteError

MIN_GROUP_PEOPLE = 5  # as MIN_GROUP_SIZE of the statistics, whose import of scipy would slow the site's start
MAX_GROUPS, MAX_GROUP_NAME_LENGTH = 20, 60


def list_groups(db: Session) -> list[LabelerGroup]:
    """Return the groups that labelers may declare, in the owner's order."""
    statement = select(LabelerGroup).where(LabelerGroup.retired_at.is_(None))
    return list(db.scalars(statement.order_by(LabelerGroup.position)))


def set_groups(db: Session, names: Iterable[str], changed_by: str) -> list[LabelerGroup]:
    """Replace the list. Groups that are left out are retired: no longer offered or counted, but not forgotten.

    Raises:
        SiteError: too many groups, or a name is too long.
    """
    new_names = list(dict.fromkeys(name for line in names if (name := " ".join(line.split()))))
    if len(new_names) > MAX_GROUPS or any(len(name) > MAX_GROUP_NAME_LENGTH for name in new_names):
        limit = f"more than {MAX_GROUPS} groups, or a name of more than {MAX_GROUP_NAME_LENGTH} characters"
        raise SiteError(422, "bad_field", field="groups", wrong=limit)
    groups = {group.name: group for group in db.scalars(select(LabelerGroup))}
    for group in groups.values():
        if group.name not in new_names and group.retired_at is None:
            group.retired_at = current_time_ms()
    for position, name in enumerate(new_names):
        group = groups.get(name) or LabelerGroup(name=name, position=position)
        group.position, group.retired_at = position, None
        db.add(group)
    db.flush()
    audit_log.append_entry(db, changed_by, "groups.set", "", groups=new_names)
    return list_groups(db)


def get_declared_group(db: Session, person: Person) -> LabelerGroup | None:
    """Return what a labeler declared, for that labeler's own page."""
    statement = select(LabelerGroup).join(GroupDeclaration, GroupDeclaration.group_id == LabelerGroup.id)
    return db.scalar(statement.where(GroupDeclaration.person_id == person.id, LabelerGroup.retired_at.is_(None)))


def declare_group(db: Session, person: Person, group_id: str) -> None:
    """Store a labeler's own group, or forget it for an empty id. The audit log says nothing about it.

    Raises:
        SiteError: the person is no labeler, or the group is not on the list.
    """
    if person.role != "labeler":
        raise SiteError(409, "only_labelers")
    if group_id and group_id not in {group.id for group in list_groups(db)}:
        raise SiteError(422, "bad_field", field="group", wrong="not one of the choices")
    # Two windows of one person insert one after the other: a deleted row cannot be locked.
    db.get_one(Person, person.id, with_for_update={"key_share": True})
    db.execute(delete(GroupDeclaration).where(GroupDeclaration.person_id == person.id))
    if group_id:
        db.add(GroupDeclaration(person_id=person.id, group_id=group_id))
    db.flush()


def find_visible_groups(db: Session, people: Sequence[str]) -> dict[str, str]:
    """Return the group of every person of a group that at least five of these people (ids) declared."""
    statement = select(GroupDeclaration.person_id, LabelerGroup.name).join(
        LabelerGroup, GroupDeclaration.group_id == LabelerGroup.id
    )
    present = set(people)
    declared = {
        person: name
        for person, name in db.execute(statement.where(LabelerGroup.retired_at.is_(None)))
        if person in present
    }
    counts = Counter(declared.values())
    return {person: name for person, name in declared.items() if counts[name] >= MIN_GROUP_PEOPLE}
