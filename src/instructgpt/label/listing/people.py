"""The list of accounts with how much each person has handed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, Subquery, func, or_, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Person, Submission
from instructgpt.label.listing.filters import PersonFilter
from instructgpt.label.listing.tasks import iter_items, list_page_ids, sort_columns
from instructgpt.label.listing.text_search import contains_terms, split_terms


@dataclass(frozen=True, slots=True)
class PersonListItem:
    person: Person
    submissions: int
    active_ms: int
    latest_ms: int | None
    """Time of the latest submission."""


def select_person_ids(db: Session, person_filter: PersonFilter) -> Select[str]:
    """Select the ids of the people who match, unordered."""
    return select(Person.id).where(*_conditions(db, person_filter))


def _conditions(db: Session, person_filter: PersonFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = [
        getattr(Person, name) == value
        for name in ("role", "status", "cohort")
        if (value := getattr(person_filter, name)) is not None
    ]
    if person_filter.text:
        terms, dialect = split_terms(person_filter.text), db.get_bind().dialect.name
        conditions.append(or_(*(contains_terms(column, terms, dialect) for column in (Person.name, Person.pseudonym))))
    return conditions


def _work() -> Subquery:
    columns = (
        Assignment.person_id,
        func.count().label("submissions"),
        func.sum(Submission.active_ms).label("active_ms"),
        func.max(Submission.created_at).label("latest"),
    )
    statement = select(*columns).join(Submission, Submission.assignment_id == Assignment.id)
    return statement.where(Submission.replaced_at.is_(None)).group_by(Assignment.person_id).subquery()


def _ordered_ids(db: Session, person_filter: PersonFilter) -> Select[str, int]:
    work = _work()
    columns: dict[str, tuple[Any, ...]] = {
        "name": (func.lower(Person.name), Person.id),
        "since": (Person.created_at, Person.id),
        "submissions": (func.coalesce(work.c.submissions, 0), Person.id),
        "latest": (func.coalesce(work.c.latest, 0), Person.id),
    }
    statement = select(Person.id, func.count().over()).outerjoin(work, work.c.person_id == Person.id)
    return statement.where(*_conditions(db, person_filter)).order_by(*sort_columns(person_filter.sort, columns))


def list_people_page(db: Session, person_filter: PersonFilter) -> tuple[list[PersonListItem], int, int]:
    """Return the people of a page, how many match, and the page. Two statements."""
    person_ids, total, page = list_page_ids(db, _ordered_ids(db, person_filter), person_filter.page)
    return _load_items(db, person_ids), total, page


def iter_person_items(db: Session, person_filter: PersonFilter) -> Iterator[PersonListItem]:
    """Return all people who match, in order."""
    return iter_items(db, _ordered_ids(db, person_filter), _load_items)


def _load_items(db: Session, person_ids: Sequence[str]) -> list[PersonListItem]:
    work = _work()
    statement = select(Person, work.c.submissions, work.c.active_ms, work.c.latest)
    statement = statement.outerjoin(work, work.c.person_id == Person.id).where(Person.id.in_(person_ids))
    items = {
        person.id: PersonListItem(person, count or 0, int(active_ms or 0), latest)
        for person, count, active_ms, latest in db.execute(statement)
    }
    return [items[person_id] for person_id in person_ids if person_id in items]
