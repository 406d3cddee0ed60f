"""What comes into the site from files: prompts, completions to rank, and work that people did elsewhere.

A file is read and checked whole before the first row is written, and then goes in by one transaction. People from elsewhere get
accounts that cannot sign in, so that cohorts, folds and exports treat them as everybody else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.io import SkippedLines, iter_rows, skip_or_raise
from instructgpt.label.db.models import CompletionRow, PromptRow, new_id
from instructgpt.label.exchange import third_party
from instructgpt.label.exchange.third_party import RatedCompletion, ThirdPartyReader
from instructgpt.label.tasks.ingest import build_prompt_row, prompt_hash, replace_unstorable, reveals_model, text_hash
from instructgpt.records import Completion as CompletionRecord
from instructgpt.records import Demonstration, Ranking, Record, validate_record
from instructgpt.records import Prompt as PromptRecord

LabelImportFormat = Literal["auto", "instructgpt", "label-studio", "argilla"]
LocatedRecord = tuple[str, Record]
_KIND_NAMES: dict[type[Record], str] = {
    PromptRecord: "prompts",
    CompletionRecord: "completions",
    Demonstration: "demonstrations",
    Ranking: "rankings",
    RatedCompletion: "ratings",
}


@dataclass
class ImportReport:
    """What came in, in numbers."""

    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def format_summary(self) -> str:
        """One line."""
        summary = ", ".join(f"{count} {what}" for what, count in self.counts.items()) or "nothing"
        return summary + (
            "; left out: " + ", ".join(f"{count} {why}" for why, count in self.left_out.items())
            if self.left_out
            else ""
        )


# ---------------------------------------------------------------- reading


def read_import_file(
    path: Path, format: LabelImportFormat, reader: ThirdPartyReader, skipped: SkippedLines | None = None
) -> list[LocatedRecord]:
    """The records of one file with their places: ours, or another tool's.

    Args:
        path: what `records.read_rows` reads.
        skipped: where given, bad lines are noted there and left out; otherwise the first one is an error.

    Raises:
        BadInput: the file cannot be read, a line is wrong (`file:line: what is wrong`), or there is nothing in it.
    """
    located_records: list[LocatedRecord] = []
    for location, row in iter_rows(path, skipped):
        try:
            for record in _parse_records(row, format, reader):
                if not isinstance(
                    record, CompletionRecord
                ):  # a model's output may hold anything; it is mended where batches are made
                    _reject_nul(record)
                located_records.append((location, record))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            cause = (
                error
                if isinstance(error, ValueError)
                else ValueError(f"not as the format has it ({type(error).__name__}: {error})")
            )
            skip_or_raise(location, _first_error(cause), skipped)
    if not located_records and skipped is None:
        reasons = ", ".join(f"{count} {why}" for why, count in reader.left_out.items())
        raise InputError(f"{path}: nothing in it that can be taken in" + (f" ({reasons})" if reasons else ""))
    return located_records


def _first_error(error: ValueError) -> ValueError:
    """The first complaint of a validation; other errors as they are."""
    from pydantic import ValidationError

    from instructgpt.records import format_validation_error

    return ValueError(format_validation_error(error)) if isinstance(error, ValidationError) else error


def _parse_records(row: dict[str, Any], format: LabelImportFormat, reader: ThirdPartyReader) -> Iterator[Record]:
    """The records in one row. Raises ValueError where it is none that is known."""
    if format == "label-studio" or (format == "auto" and third_party.is_label_studio(row)):
        if not third_party.is_label_studio(row):
            raise ValueError(
                "no task of Label Studio's JSON export ('data' and 'annotations'); JSON-MIN and CSV leave too much out"
            )
        yield from third_party.parse_label_studio(row, reader)
    elif format == "argilla" or (format == "auto" and third_party.is_argilla(row)):
        if not third_party.is_argilla(row):
            raise ValueError("no record of Argilla's ('fields' and 'responses', or columns 'QUESTION.responses')")
        yield from third_party.parse_argilla(row, reader)
    else:
        yield validate_record(_record_type(row), row)


def _record_type(row: dict[str, Any]) -> type[Record]:
    """What kind of our records a row is. Raises ValueError if it is none."""
    if "ranks" in row:
        return Ranking
    if "prompt" in row or "messages" in row:
        if "completion" in row:
            return CompletionRecord if "model" in row else Demonstration
        if "completions" not in row and "chosen" not in row:
            return PromptRecord
    raise ValueError(
        f"no prompt, completion, demonstration or ranking (columns found: {', '.join(row)}); 'data import' reads other formats"
    )


def _reject_nul(record: Record) -> None:
    """No database text can hold a NUL. Raises ValueError."""
    if "\\u0000" in record.model_dump_json():
        raise ValueError("a text holds a NUL character (U+0000), which databases cannot store; remove it")


# ---------------------------------------------------------------- prompts


def upsert_prompt(db: Session, record: PromptRecord) -> tuple[PromptRow, str]:
    """A prompt by its id: (row, `created`, `updated` or `unchanged`). The text of a prompt that is there is never changed.

    Raises:
        BadInput: the id belongs to another text, or the prompt was withdrawn.
    """
    row = db.scalar(select(PromptRow).where(PromptRow.external_id == record.id)) if record.id is not None else None
    digest = prompt_hash(record)
    if row is None:
        statement = select(PromptRow).where(
            PromptRow.text_hash == digest,
            PromptRow.user.is_(None) if record.user is None else PromptRow.user == record.user,
        )
        row = db.scalars(statement.order_by(PromptRow.id)).first()
    if row is None:
        row = build_prompt_row(record, digest)
        db.add(row)
        db.flush()
        return row, "created"
    if row.text_hash != digest:
        raise InputError(
            f"prompt id '{record.id}' already belongs to another text; give ids that are unique on the site, or none"
        )
    if row.withdrawn_at is not None:
        raise InputError(f"prompt '{record.id or record.text[:40]}' was withdrawn; it does not come back by an import")
    changes = {
        name: value for name in ("source", "user", "use_case", "split") if (value := getattr(record, name)) is not None
    }
    changes |= {"external_id": record.id} if record.id is not None and row.external_id is None else {}
    changes |= (
        {"sensitive": bool(sensitive)} if (sensitive := (record.model_extra or {}).get("sensitive")) is not None else {}
    )
    changed = {name: value for name, value in changes.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    db.flush()
    return row, "updated" if changed else "unchanged"


def import_prompt_records(db: Session, located_records: Iterable[LocatedRecord], report: ImportReport) -> None:
    """Put prompts into the database. Raises BadInput with the place of the first that does not fit."""
    for location, record in located_records:
        assert isinstance(record, PromptRecord)
        with error_location(location):
            report.counts[f"prompts {upsert_prompt(db, record)[1]}"] += 1


def upsert_completion(db: Session, record: CompletionRecord) -> tuple[CompletionRow, str]:
    """A completion that batches can be made of: (row, `created` or `unchanged`). Raises BadInput where its prompt was withdrawn."""
    prompt, _ = upsert_prompt(db, PromptRecord(prompt=replace_unstorable(record.prompt)))
    text = replace_unstorable(record.completion)
    statement = select(CompletionRow).where(
        CompletionRow.prompt_id == prompt.id,
        CompletionRow.model == record.model,
        CompletionRow.text_hash == text_hash(text),
    )
    if (existing := db.scalars(statement).first()) is not None:
        return existing, "unchanged"
    completion = CompletionRow(
        id=new_id(),
        prompt_id=prompt.id,
        text=text,
        text_hash=text_hash(text),
        model=record.model,
        finish=record.finish,
        sampling=record.sampling,
        score=record.score,
        names_itself=reveals_model(text, [record.model]),
    )
    db.add(completion)
    db.flush()
    return completion, "created"


def import_completion_records(db: Session, located_records: Iterable[LocatedRecord], report: ImportReport) -> None:
    """Put completions into the database, for batches to be made of. Raises BadInput with the place of the first that does not fit."""
    for location, record in located_records:
        assert isinstance(record, CompletionRecord)
        with error_location(location):
            report.counts[f"completions {upsert_completion(db, record)[1]}"] += 1


@contextmanager
def error_location(location: str) -> Iterator[None]:
    """Puts the place in front of what is wrong with it. Raises BadInput."""
    try:
        yield
    except (InputError, ValueError) as error:
        raise InputError(f"{location}: {error}") from error


WORK_RECORD_TYPES: tuple[type[Record], ...] = (Demonstration, Ranking, RatedCompletion)
"""What people did, as against what there is to do."""


def _group_by_kind(located_records: Sequence[LocatedRecord]) -> dict[str, list[LocatedRecord]]:
    """Records by their kind, in the order of the files."""
    kinds: dict[str, list[LocatedRecord]] = {}
    for location, record in located_records:
        kinds.setdefault(_KIND_NAMES[type(record)], []).append((location, record))
    return kinds
