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

from instructgpt.errors import BadInput
from instructgpt.io import Skipped, bad_line, read_rows
from instructgpt.label.db.models import Completion, Prompt, new_id
from instructgpt.label.exchange import third_party
from instructgpt.label.exchange.third_party import RatedCompletion, Reading
from instructgpt.label.tasks.ingest import mend, new_prompt, prompt_hash, text_hash
from instructgpt.label.tasks.leaks import names_itself
from instructgpt.records import Completion as CompletionRecord
from instructgpt.records import Demonstration, Ranking, Record, as_record
from instructgpt.records import Prompt as PromptRecord

FileFormat = Literal["auto", "instructgpt", "label-studio", "argilla"]
Placed = tuple[str, Record]
KINDS: dict[type[Record], str] = {
    PromptRecord: "prompts", CompletionRecord: "completions", Demonstration: "demonstrations", Ranking: "rankings",
    RatedCompletion: "ratings",
}  # fmt: skip


@dataclass
class Come:
    """What came in, in numbers."""

    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def in_words(self) -> str:
        """One line."""
        came = ", ".join(f"{count} {what}" for what, count in self.counts.items()) or "nothing"
        return came + ("; left out: " + ", ".join(f"{count} {why}" for why, count in self.left_out.items()) if self.left_out else "")


# ---------------------------------------------------------------- reading


def read_file(path: Path, format: FileFormat, reading: Reading, skipped: Skipped | None = None) -> list[Placed]:
    """The records of one file with their places: ours, or another tool's.

    Args:
        path: what `records.read_rows` reads.
        skipped: where given, bad lines are noted there and left out; otherwise the first one is an error.

    Raises:
        BadInput: the file cannot be read, a line is wrong (`file:line: what is wrong`), or there is nothing in it.
    """
    found: list[Placed] = []
    for place, row in read_rows(path, skipped):
        try:
            for record in _records(row, format, reading):
                if not isinstance(record, CompletionRecord):  # a model's output may hold anything; it is mended where batches are made
                    _refuse_nul(record)
                found.append((place, record))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            wrong = error if isinstance(error, ValueError) else ValueError(f"not as the format has it ({type(error).__name__}: {error})")
            bad_line(place, _one_line(wrong), skipped)
    if not found and skipped is None:
        said = ", ".join(f"{count} {why}" for why, count in reading.left_out.items())
        raise BadInput(f"{path}: nothing in it that can be taken in" + (f" ({said})" if said else ""))
    return found


def _one_line(error: ValueError) -> ValueError:
    """The first complaint of a validation; other errors as they are."""
    from pydantic import ValidationError

    from instructgpt.records import explain

    return ValueError(explain(error)) if isinstance(error, ValidationError) else error


def _records(row: dict[str, Any], format: FileFormat, reading: Reading) -> Iterator[Record]:
    """The records in one row. Raises ValueError where it is none that is known."""
    if format == "label-studio" or (format == "auto" and third_party.is_label_studio(row)):
        if not third_party.is_label_studio(row):
            raise ValueError("no task of Label Studio's JSON export ('data' and 'annotations'); JSON-MIN and CSV leave too much out")
        yield from third_party.from_label_studio(row, reading)
    elif format == "argilla" or (format == "auto" and third_party.is_argilla(row)):
        if not third_party.is_argilla(row):
            raise ValueError("no record of Argilla's ('fields' and 'responses', or columns 'QUESTION.responses')")
        yield from third_party.from_argilla(row, reading)
    else:
        yield as_record(_kind(row), row)


def _kind(row: dict[str, Any]) -> type[Record]:
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


def _refuse_nul(record: Record) -> None:
    """No database text can hold a NUL. Raises ValueError."""
    if "\\u0000" in record.model_dump_json():
        raise ValueError("a text holds a NUL character (U+0000), which databases cannot store; remove it")


# ---------------------------------------------------------------- prompts


def upsert_prompt(db: Session, record: PromptRecord) -> tuple[Prompt, str]:
    """A prompt by its id: (row, `created`, `updated` or `unchanged`). The text of a prompt that is there is never changed.

    Raises:
        BadInput: the id belongs to another text, or the prompt was withdrawn.
    """
    row = db.scalar(select(Prompt).where(Prompt.external_id == record.id)) if record.id is not None else None
    hashed = prompt_hash(record)
    if row is None:
        same = select(Prompt).where(
            Prompt.text_hash == hashed, Prompt.user.is_(None) if record.user is None else Prompt.user == record.user
        )
        row = db.scalars(same.order_by(Prompt.id)).first()
    if row is None:
        row = new_prompt(record, hashed)
        db.add(row)
        db.flush()
        return row, "created"
    if row.text_hash != hashed:
        raise BadInput(f"prompt id '{record.id}' already belongs to another text; give ids that are unique on the site, or none")
    if row.withdrawn_at is not None:
        raise BadInput(f"prompt '{record.id or record.text[:40]}' was withdrawn; it does not come back by an import")
    changes = {name: value for name in ("source", "user", "use_case", "split") if (value := getattr(record, name)) is not None}
    changes |= {"external_id": record.id} if record.id is not None and row.external_id is None else {}
    changes |= {"sensitive": bool(sensitive)} if (sensitive := (record.model_extra or {}).get("sensitive")) is not None else {}
    changed = {name: value for name, value in changes.items() if getattr(row, name) != value}
    for name, value in changed.items():
        setattr(row, name, value)
    db.flush()
    return row, "updated" if changed else "unchanged"


def take_prompts(db: Session, found: Iterable[Placed], come: Come) -> None:
    """Put prompts into the database. Raises BadInput with the place of the first that does not fit."""
    for place, record in found:
        assert isinstance(record, PromptRecord)
        with at(place):
            come.counts[f"prompts {upsert_prompt(db, record)[1]}"] += 1


def put_completion(db: Session, record: CompletionRecord) -> tuple[Completion, str]:
    """A completion that batches can be made of: (row, `created` or `unchanged`). Raises BadInput where its prompt was withdrawn."""
    prompt, _ = upsert_prompt(db, PromptRecord(prompt=mend(record.prompt)))
    text = mend(record.completion)
    same = select(Completion).where(
        Completion.prompt_id == prompt.id, Completion.model == record.model, Completion.text_hash == text_hash(text)
    )  # fmt: skip
    if (there := db.scalars(same).first()) is not None:
        return there, "unchanged"
    made = Completion(
        id=new_id(), prompt_id=prompt.id, text=text, text_hash=text_hash(text), model=record.model, finish=record.finish,
        sampling=record.sampling, score=record.score, names_itself=names_itself(text, [record.model]),
    )  # fmt: skip
    db.add(made)
    db.flush()
    return made, "created"


def take_completions(db: Session, found: Iterable[Placed], come: Come) -> None:
    """Put completions into the database, for batches to be made of. Raises BadInput with the place of the first that does not fit."""
    for place, record in found:
        assert isinstance(record, CompletionRecord)
        with at(place):
            come.counts[f"completions {put_completion(db, record)[1]}"] += 1


@contextmanager
def at(place: str) -> Iterator[None]:
    """Puts the place in front of what is wrong with it. Raises BadInput."""
    try:
        yield
    except (BadInput, ValueError) as error:
        raise BadInput(f"{place}: {error}") from error


WORK: tuple[type[Record], ...] = (Demonstration, Ranking, RatedCompletion)
"""What people did, as against what there is to do."""


def by_kind(found: Sequence[Placed]) -> dict[str, list[Placed]]:
    """Records by their kind, in the order of the files."""
    kinds: dict[str, list[Placed]] = {}
    for place, record in found:
        kinds.setdefault(KINDS[type(record)], []).append((place, record))
    return kinds
