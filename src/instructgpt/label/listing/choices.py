"""What the fields of a list's filter offer: batches, labelers, sources, use cases, languages, questions."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from instructgpt.label.db.models import Batch, Person, PromptRow
from instructgpt.label.tasks.forms import PROMPT_LABELS
from instructgpt.label.tasks.questions import TABLE_3, LabelQuestion, load_own_questions

_MAX_SOURCES = 100


@dataclass(frozen=True, slots=True)
class FilterChoices:
    batches: list[tuple[str, str]]
    """(id, name), newest first."""
    labelers: list[tuple[str, str]]
    sources: list[str]
    use_cases: list[str]
    languages: list[str]
    questions: dict[str, LabelQuestion | str]
    """Questions by name; the names of Table 3 and of Table 7 stand for themselves."""


def load_filter_choices(db: Session) -> FilterChoices:
    """Load the choices. Six statements, which read indexes instead of prompts."""
    batches = db.execute(select(Batch.id, Batch.name).order_by(Batch.created_at.desc(), Batch.id.desc()))
    labelers = db.execute(select(Person.id, Person.name).where(Person.role == "labeler").order_by(Person.name))
    questions: dict[str, LabelQuestion | str] = {name: name for name in (*TABLE_3, *PROMPT_LABELS)}
    return FilterChoices(
        batches=[(key, name) for key, name in batches],
        labelers=[(key, name) for key, name in labelers],
        sources=_list_values(db, PromptRow.source),
        use_cases=_list_values(db, PromptRow.use_case),
        languages=_list_values(db, PromptRow.language),
        questions={**questions, **load_own_questions(db)},
    )


def _list_values(db: Session, column: InstrumentedAttribute[str | None]) -> list[str]:
    statement = select(column).where(column.is_not(None)).distinct().order_by(column).limit(_MAX_SOURCES)
    return [value for value in db.scalars(statement) if value]
