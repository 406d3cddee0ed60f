"""Imports from files: prompts, completions to rank, and submissions made with other tools.

A file is read and validated completely before the first row is written, and imported in one transaction. External
labelers get accounts that cannot sign in, so that cohorts, folds and exports treat them like other labelers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.io import SkippedLines, iter_rows, skip_or_raise
from instructgpt.label.db.models import CompletionRow, PromptRow
from instructgpt.label.exchange import third_party
from instructgpt.label.exchange.third_party import RatedCompletion, ThirdPartyReader
from instructgpt.label.tasks.ingest import (
    build_prompt_row,
    prompt_hash,
    replace_unstorable,
    reveals_model,
    text_hash,
    to_storable,
)
from instructgpt.label.vocabulary import LabelImportFormat
from instructgpt.records import Completion as CompletionRecord
from instructgpt.records import Demonstration, Ranking, Record, format_validation_error, validate_record
from instructgpt.records import Prompt as PromptRecord

LocatedRecord = tuple[str, Record]
"""(`file:line`, record)."""
WORK_RECORD_TYPES: tuple[type[Record], ...] = (Demonstration, Ranking, RatedCompletion)
"""Records of finished work, imported as submissions."""


@dataclass
class ImportReport:
    """Counts of one import, by what was imported or why it was left out."""

    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def format_summary(self) -> str:
        summary = ", ".join(f"{count} {what}" for what, count in self.counts.items()) or "nothing imported"
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        return f"{summary}; left out: {left_out}" if left_out else summary


# ---------------------------------------------------------------- reading


def read_import_file(
    path: Path, format: LabelImportFormat, reader: ThirdPartyReader, skipped: SkippedLines | None = None
) -> list[LocatedRecord]:
    """Read the records of one file with their locations.

    Args:
        path: any file that `io.iter_rows` reads.
        skipped: collects bad lines; without it the first bad line is an error.

    Raises:
        InputError: the file cannot be read, a line is wrong, or the file has no record to import.
    """
    located_records: list[LocatedRecord] = []
    for location, row in iter_rows(path, skipped):
        try:
            for record in _parse_records(row, format, reader):
                # Model output may contain NUL; batch creation replaces it. In people's text it is an error.
                if not isinstance(record, CompletionRecord):
                    _reject_nul(record)
                located_records.append((location, record))
        except ValidationError as error:
            skip_or_raise(location, ValueError(format_validation_error(error)), skipped)
        except ValueError as error:
            skip_or_raise(location, error, skipped)
        except (TypeError, AttributeError, KeyError) as error:
            cause = ValueError(f"does not match the format ({type(error).__name__}: {error})")
            skip_or_raise(location, cause, skipped)
    if not located_records and skipped is None:
        reasons = ", ".join(f"{count} {reason}" for reason, count in reader.left_out.items())
        raise InputError(f"{path}: no record to import" + (f" ({reasons})" if reasons else ""))
    return located_records


def _parse_records(row: dict[str, Any], format: LabelImportFormat, reader: ThirdPartyReader) -> Iterator[Record]:
    if format == "label-studio" or (format == "auto" and third_party.is_label_studio(row)):
        if not third_party.is_label_studio(row):
            raise ValueError("not a task of Label Studio's JSON export ('data' and 'annotations')")
        yield from third_party.parse_label_studio(row, reader)
    elif format == "argilla" or (format == "auto" and third_party.is_argilla(row)):
        if not third_party.is_argilla(row):
            raise ValueError("not an Argilla record ('fields' and 'responses', or columns 'QUESTION.responses')")
        yield from third_party.parse_argilla(row, reader)
    else:
        yield validate_record(_record_type(row), row)


def _record_type(row: dict[str, Any]) -> type[Record]:
    if "ranks" in row:
        return Ranking
    if "prompt" in row or "messages" in row:
        if "completion" in row:
            return CompletionRecord if "model" in row else Demonstration
        if "completions" not in row and "chosen" not in row:
            return PromptRecord
    raise ValueError(
        f"not a prompt, completion, demonstration or ranking (columns: {', '.join(row)}); "
        "'data import' converts other formats"
    )


def _reject_nul(record: Record) -> None:
    if "\\u0000" in record.model_dump_json():
        raise ValueError("a text contains a NUL character (U+0000), which databases cannot store; remove it")


# ---------------------------------------------------------------- prompts


def upsert_prompt(db: Session, record: PromptRecord) -> tuple[PromptRow, str]:
    """Create a prompt, or update the metadata of the one with the same id or text; a prompt's text never changes.

    Returns (row, `created`, `updated` or `unchanged`). Raises InputError if the id belongs to another text, or the
    prompt was withdrawn.
    """
    row = db.scalar(select(PromptRow).where(PromptRow.external_id == record.id)) if record.id is not None else None
    digest = prompt_hash(record)
    if row is None:
        same_user = PromptRow.user.is_(None) if record.user is None else PromptRow.user == record.user
        statement = select(PromptRow).where(PromptRow.text_hash == digest, same_user).order_by(PromptRow.id)
        row = db.scalars(statement).first()
    if row is None:
        row = build_prompt_row(record, digest)
        db.add(row)
        db.flush()
        return row, "created"
    if row.text_hash != digest:
        raise InputError(f"prompt id '{record.id}' already belongs to another text; ids must be unique on the site")
    if row.withdrawn_at is not None:
        raise InputError(f"prompt '{record.id or record.prompt[:40]}' was withdrawn; an import does not restore it")
    columns = {name: getattr(record, name) for name in ("source", "user", "use_case", "split")}
    columns["external_id"] = record.id if row.external_id is None else None
    sensitive = (record.model_extra or {}).get("sensitive")
    columns["sensitive"] = None if sensitive is None else bool(sensitive)
    changed = {name: value for name, value in columns.items() if value is not None and getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    db.flush()
    return row, "updated" if changed else "unchanged"


def import_prompt_records(db: Session, located_records: Iterable[LocatedRecord], report: ImportReport) -> None:
    """Create or update prompts. Raises InputError with the location of the first invalid record."""
    for location, record in located_records:
        assert isinstance(record, PromptRecord)
        with error_location(location):
            report.counts[f"prompts {upsert_prompt(db, record)[1]}"] += 1


def upsert_completion(db: Session, record: CompletionRecord) -> tuple[CompletionRow, str]:
    """Store a completion; return (row, `created` or `unchanged`). Raises InputError if its prompt was withdrawn."""
    prompt, _ = upsert_prompt(db, PromptRecord.model_validate(to_storable(record).prompt_columns()))
    text = replace_unstorable(record.completion)
    statement = select(CompletionRow).where(
        CompletionRow.prompt_id == prompt.id,
        CompletionRow.model == record.model,
        CompletionRow.text_hash == text_hash(text),
    )
    if (existing := db.scalars(statement).first()) is not None:
        return existing, "unchanged"
    completion = CompletionRow(
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
    for location, record in located_records:
        assert isinstance(record, CompletionRecord)
        with error_location(location):
            report.counts[f"completions {upsert_completion(db, record)[1]}"] += 1


@contextmanager
def error_location(location: str) -> Iterator[None]:
    """Prefix an error with the location of its record. Raises InputError."""
    try:
        yield
    except (InputError, ValueError) as error:
        raise InputError(f"{location}: {error}") from error
