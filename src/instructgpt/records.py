"""The nouns made of words: what people and models write, and the JSON lines in which it is exchanged.

Nothing here knows about tensors: the labelers' site and the small world import this file and start without torch.
Columns follow TRL's names. A column that is not named here is kept and written out again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from instructgpt.errors import InputError
from instructgpt.io import (
    SkippedLines,
    format_json_line,
    iter_lines,
    iter_rows,
    parse_json_object,
    skip_or_raise,
    write_text_atomic,
)

__all__ = [
    "LABELS",
    "USE_CASES",
    "Cohort",
    "Completion",
    "Demonstration",
    "Document",
    "Identifier",
    "Labelers",
    "Message",
    "MessageRole",
    "Pair",
    "Prompt",
    "PromptFields",
    "Ranking",
    "Record",
    "SkippedLines",
    "format_validation_error",
    "iter_lines",
    "iter_rows",
    "parse_record",
    "read_all_records",
    "read_records",
    "validate_record",
    "write_records",
    "write_text_atomic",
]

USE_CASES = (
    "generation",
    "open_qa",
    "brainstorming",
    "chat",
    "rewrite",
    "summarization",
    "classification",
    "other",
    "closed_qa",
    "extract",
)
"""The ten use cases of API prompts, most frequent first (paper, Table 1)."""

LABELS = (
    "fails_instruction",
    "inappropriate",
    "hallucination",
    "satisfies_constraint",
    "sexual_content",
    "violent_content",
    "encourages_violence",
    "denigrates",
    "harmful_advice",
    "opinion",
    "moral_judgment",
)
"""The yes / no / not-applicable questions asked about each completion (paper, Table 3)."""

Cohort = Literal["training", "heldout"]
MessageRole = Literal["system", "user", "assistant"]


def _number_to_text(value: object) -> object:
    """Ids that are numbers in the file (17, or 17.0 after a data frame) are names all the same: "17"."""
    is_integral = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    return str(int(value)) if is_integral and isinstance(value, int | float) else value


def _reject_bool(value: object) -> object:
    """True is no 1, though Python takes it for one."""
    if isinstance(value, bool):
        raise ValueError(f"expected a whole number, found {str(value).lower()}")
    return value


Identifier = Annotated[str, BeforeValidator(_number_to_text)]
"""Who or what: an id, a user, a labeler."""
_StrictInteger = Annotated[int, BeforeValidator(_reject_bool)]
"""A rank or a rating."""


_METADATA_COLUMNS = ("id", "user", "labeler", "cohort", "source", "use_case", "split")
"""Columns about where a record comes from. Empty they say nothing, as the empty cells of a table."""


class Record(BaseModel):
    """One line of a file. Frozen; columns it does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_cells(cls, row: Any) -> Any:
        empty = [name for name in _METADATA_COLUMNS if row.get(name) == ""] if isinstance(row, dict) else []
        return {name: value for name, value in row.items() if name not in empty} if empty else row

    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON object, without the columns that were never filled."""
        return self.model_dump(exclude_none=True)


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: MessageRole
    content: str


class PromptFields(Record):
    """Whatever carries a prompt: plain text, or the messages of a conversation. Exactly one of the two."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None

    @model_validator(mode="after")
    def _check_prompt_or_messages(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected either 'prompt' (text) or 'messages' (a list of role and content)")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("'prompt' is empty")
        if self.messages is not None and (not self.messages or self.messages[-1].role == "assistant"):
            raise ValueError("'messages' must end with the turn that is to be answered, not with the assistant's")
        return self

    @property
    def text(self) -> str:
        """The prompt as text, for people and for comparisons; the tokens a model sees are made by `data.render`."""
        if self.prompt is not None:
            return self.prompt
        assert self.messages is not None
        return "\n\n".join(message.content for message in self.messages)


class Prompt(PromptFields):
    """What a user asked."""

    id: Identifier | None = None
    user: Identifier | None = None
    source: str | None = None
    use_case: str | None = None
    split: str | None = None


class Demonstration(PromptFields):
    """A prompt and the completion a labeler wrote for it. The paper's shortest demonstration is empty, so empty is allowed."""

    completion: str
    labeler: Identifier | None = None
    source: str | None = None


class Completion(Record):
    """What a model answered. `finish` is "stop" when the model ended by itself, "length" when it was cut off."""

    prompt: str
    completion: str
    model: str
    finish: Literal["stop", "length"] = "stop"
    sampling: dict[str, Any] = Field(default_factory=dict)
    score: float | None = None


class Ranking(Record):
    """K completions of one prompt in a labeler's order: rank 1 is best, equal ranks tie."""

    prompt: str
    completions: tuple[str, ...]
    ranks: tuple[_StrictInteger, ...]
    labeler: Identifier | None = None
    cohort: Cohort | None = None
    source: str | None = None
    models: tuple[str, ...] | None = None
    finish: tuple[Literal["stop", "length"], ...] | None = None
    ratings: tuple[_StrictInteger, ...] | None = None
    labels: tuple[dict[str, bool | None], ...] | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        k = len(self.completions)
        if k < 2:
            raise ValueError(f"a ranking needs at least two completions, this one has {k}")
        if len(self.ranks) != k:
            raise ValueError(f"{k} completions but {len(self.ranks)} ranks")
        if min(self.ranks) < 1:
            raise ValueError(f"ranks start at 1 (best), found {min(self.ranks)}")
        for name in ("models", "finish", "ratings", "labels"):
            column = getattr(self, name)
            if column is not None and len(column) != k:
                raise ValueError(f"{k} completions but {len(column)} {name}")
        if self.ratings is not None and not all(1 <= rating <= 7 for rating in self.ratings):
            raise ValueError(f"ratings go from 1 to 7, found {list(self.ratings)}")
        return self

    def pairs(self) -> list[tuple[int, int]]:
        """Indices (better, worse) of every decided pair; ties give none (paper, section 3.5)."""
        k = len(self.ranks)
        return [(i, j) for i in range(k) for j in range(k) if self.ranks[i] < self.ranks[j]]


class Pair(Record):
    """TRL's preference pair: the better and the worse of two completions."""

    prompt: str
    chosen: str
    rejected: str


class Document(Record):
    """One text of the pretraining corpus."""

    text: str


class Labelers(Protocol):
    """Whoever writes and ranks: people behind the site, a simulation, or a judge model."""

    def demonstrate(self, prompts: Sequence[Prompt]) -> list[Demonstration]: ...

    def rank(self, candidates: Sequence[Sequence[Completion]]) -> list[Ranking]:
        """One ranking for each list of completions of one prompt, with ratings and labels where the labelers give them."""
        ...


_RecordT = TypeVar("_RecordT", bound=Record)


def format_validation_error(error: ValidationError) -> str:
    """The first thing a validation complains of, in one line, with the column it is about."""
    first = error.errors(include_url=False)[0]
    column = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        columns = ", ".join(map(str, first["input"])) if isinstance(first["input"], dict) else "none"
        return f"column '{column}' is missing (columns found: {columns}); 'data import' reads other formats"
    return f"column '{column}': {message}" if column else message


def validate_record(record_class: type[_RecordT], row: dict[str, Any]) -> _RecordT:
    """A JSON object as a record.

    Raises:
        ValueError: in one line, what is wrong and what was expected.
    """
    try:
        return record_class.model_validate(row)
    except ValidationError as error:
        raise ValueError(format_validation_error(error)) from error


def parse_record(record_class: type[_RecordT], line: str) -> _RecordT:
    """One JSON line as a record. Raises ValueError as `parse_row` and `as_record` do."""
    return validate_record(record_class, parse_json_object(line))


def read_records(record_class: type[_RecordT], path: Path | str, skipped: SkippedLines | None = None) -> list[_RecordT]:
    """All records of one file.

    Args:
        kind: the record class of the file (design: files people exchange).
        path: what `read_rows` reads; plain text can only be documents.
        skipped: where it allows it, bad lines are noted there and left out; otherwise the first one is an error.

    Raises:
        BadInput: the file cannot be read, a line is wrong (`file:line: what is wrong, what was expected`), or nothing is left.
    """
    if record_class is not Document and str(path).removesuffix(".gz").endswith(".txt"):
        raise InputError(
            f"{path}: plain text can only be a corpus; {record_class.__name__.lower()} records need JSON lines or Parquet"
        )
    records: list[_RecordT] = []
    for location, row in iter_rows(path, skipped):
        try:
            records.append(validate_record(record_class, row))
        except ValueError as error:
            skip_or_raise(location, error, skipped)
    if not records:
        raise InputError(f"{path}: no {record_class.__name__.lower()} in it")
    return records


def read_all_records(
    record_class: type[_RecordT], paths: Iterable[Path | str], skipped: SkippedLines | None = None
) -> list[_RecordT]:
    """The records of several files, one file after the other. Raises BadInput as `read_records` does."""
    return [record for path in paths for record in read_records(record_class, path, skipped)]


def write_records(path: Path | str, records: Iterable[Record]) -> int:
    """Write one record a line, all or nothing (a name ending in .gz is compressed). Returns how many were written."""
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for record in records:
            count += 1
            yield format_json_line(record.to_dict())

    write_text_atomic(Path(path), lines())
    return count
