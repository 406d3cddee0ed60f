"""The records that people and models write, and their JSON lines.

Imports no torch, so that the labelers' site and the small world start without it.
Columns have TRL's names. Unknown columns are kept and written out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    "Messages",
    "Pair",
    "Prompt",
    "PromptFields",
    "Ranking",
    "RankingCohort",
    "Record",
    "SkippedLines",
    "format_conversation",
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
RankingCohort = Literal["training", "heldout", "user"]
"""Whose rankings: of labelers, or of a model's users, who select themselves and have no screening or instructions."""
MessageRole = Literal["system", "user", "assistant"]
MESSAGE_ROLES = ("system", "user", "assistant")


def _number_to_text(value: object) -> object:
    """Read the ids 17 and 17.0 (as data frames write integers) as "17"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(int(value)) if value == value // 1 else value


def _reject_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"expected a whole number, found {str(value).lower()}")
    return value


Identifier = Annotated[str, BeforeValidator(_number_to_text)]
_StrictInteger = Annotated[int, BeforeValidator(_reject_bool)]

_METADATA_COLUMNS = ("id", "user", "labeler", "cohort", "group", "source", "use_case", "split")
"""Columns about a record's origin. An empty string there means missing, as in an empty table cell."""


class Record(BaseModel):
    """One line of a file. Frozen; unknown columns are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_cells(cls, row: Any) -> Any:
        empty = [name for name in _METADATA_COLUMNS if row.get(name) == ""] if isinstance(row, dict) else []
        return {name: value for name, value in row.items() if name not in empty} if empty else row

    def to_dict(self) -> dict[str, Any]:
        """Return the record as a JSON object without empty columns."""
        return self.model_dump(exclude_none=True)


def _join_text_parts(content: object) -> object:
    """Read a list of text parts, as chat APIs send them, as one text."""
    if not isinstance(content, list | tuple):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type", "no type") if isinstance(part, dict) else type(part).__name__
            raise ValueError(f"only parts of type 'text' can be read, found {kind}")
    return "".join(part["text"] for part in content)


def _check_role(role: object) -> object:
    if role not in MESSAGE_ROLES:
        raise ValueError(f"role {role!r} is not supported; expected system, user or assistant")
    return role


class Message(BaseModel):
    """One turn of a conversation. `content` is text or a list of text parts, which are joined."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Annotated[MessageRole, BeforeValidator(_check_role)]
    content: Annotated[str, BeforeValidator(_join_text_parts)]

    @model_validator(mode="before")
    @classmethod
    def _drop_null_keys(cls, row: Any) -> Any:
        # Chat APIs and data sets write keys such as "tool_calls": null in every message.
        return {key: value for key, value in row.items() if value is not None} if isinstance(row, dict) else row


Messages = tuple[Message, ...]


def format_conversation(messages: Sequence[Message]) -> str:
    """Format a conversation as text for display and comparison: turns with their roles, a lone user turn as it is."""
    if len(messages) == 1 and messages[0].role == "user":
        return messages[0].content
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)


class PromptFields(Record):
    """Base of records with a prompt: text, or the messages of a conversation that ends before the answer.

    `prompt` is always set. For a conversation it is the text of `format_conversation`, and `messages` is what counts:
    pass the record itself to `PromptTokenizer.encode_prompt`. Only one of the two is written to files.
    """

    prompt: str = ""
    messages: Messages | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_prompt_of_messages(cls, row: Any) -> Any:
        if not isinstance(row, dict):
            return row
        if row.get("messages") is not None:
            return {name: value for name, value in row.items() if name != "prompt"}
        return {name: value for name, value in row.items() if name != "prompt" or value is not None}

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if self.messages is None:
            if "prompt" not in self.model_fields_set:
                columns = ", ".join(sorted(self.model_fields_set | (self.model_extra or {}).keys())) or "none"
                expected = "expected 'prompt' (text) or 'messages' (a list of role and content)"
                raise ValueError(f"{expected} (columns found: {columns}); 'data import' reads other formats")
            if not self.prompt.strip():
                raise ValueError("'prompt' is empty")
            return self
        if not self.messages:
            raise ValueError("'messages' is an empty list, expected the turns of a conversation")
        if self.messages[-1].role == "assistant":
            raise ValueError("'messages' must end with the turn to answer, not with the assistant's")
        if not any(message.content.strip() for message in self.messages):
            raise ValueError("'messages' have no text: the content of every turn is empty")
        object.__setattr__(self, "prompt", format_conversation(self.messages))
        return self

    @property
    def conversation(self) -> Messages:
        """The messages; a text prompt is one user turn."""
        return self.messages or (Message(role="user", content=self.prompt),)

    @property
    def bare_prompt(self) -> PromptFields:
        """The prompt without the record's other columns, hashable; one user turn equals the same text."""
        if self.conversation[:-1] or self.conversation[-1].role != "user":
            return PromptFields(messages=self.messages)
        return PromptFields(prompt=self.prompt)

    def prompt_columns(self) -> dict[str, Any]:
        """Return the column of a file that holds the prompt: `messages` for a conversation, `prompt` for text."""
        if self.messages is None:
            return {"prompt": self.prompt}
        return {"messages": [message.model_dump() for message in self.messages]}

    def to_dict(self) -> dict[str, Any]:
        columns = super().to_dict()
        if self.messages is not None:
            del columns["prompt"]
        return columns


class Prompt(PromptFields):
    id: Identifier | None = None
    user: Identifier | None = None
    source: str | None = None
    use_case: str | None = None
    split: str | None = None


class Demonstration(PromptFields):
    """A prompt with a labeler's completion, which may be empty as the paper's shortest one is.

    Messages that end with the assistant's turn are read without a completion column (TRL's form).
    """

    completion: str
    labeler: Identifier | None = None
    source: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _reject_rejected(cls, row: Any) -> Any:
        if isinstance(row, dict) and row.get("label") is False:
            raise ValueError("'label' is false, a rejected answer is no demonstration; 'data import' reads such files")
        return row

    @model_validator(mode="before")
    @classmethod
    def _split_last_turn(cls, row: Any) -> Any:
        messages = row.get("messages") if isinstance(row, dict) and row.get("completion") is None else None
        if isinstance(messages, list | tuple) and messages:
            last = Message.model_validate(messages[-1])
            if last.role == "assistant":
                return row | {"messages": messages[:-1], "completion": last.content}
        return row


class Completion(PromptFields):
    """A model's completion. `finish` is "stop" after a stop token, "length" if the completion was truncated."""

    completion: str
    model: str
    finish: Literal["stop", "length"] = "stop"
    sampling: dict[str, Any] = Field(default_factory=dict)
    score: float | None = None


RATING_POINTS = 7
"""Of the paper's scale of overall quality."""


def rescale_rating(rating: float, points: int) -> float:
    """Map a rating from 1 to `points` onto the paper's scale, the ends onto the ends."""
    return 1 + (RATING_POINTS - 1) * (rating - 1) / (points - 1)


class Ranking(PromptFields):
    """K completions of one prompt, ranked by a labeler: rank 1 is best, equal ranks tie."""

    completions: tuple[str, ...]
    ranks: tuple[_StrictInteger, ...]
    labeler: Identifier | None = None
    cohort: RankingCohort | None = None
    group: Identifier | None = None
    """The labeler's own group, where the labeler declared one; see `statistics.group_preferences`."""
    source: str | None = None
    models: tuple[str, ...] | None = None
    finish: tuple[Literal["stop", "length"], ...] | None = None
    ratings: tuple[_StrictInteger, ...] | None = None
    rating_points: int | None = Field(None, ge=2, le=100)  # of the scale of `ratings`; None: the paper's 7
    labels: tuple[dict[str, bool | None], ...] | None = None

    @property
    def scaled_ratings(self) -> tuple[float, ...] | None:
        """The ratings on the paper's scale from 1 to 7."""
        if self.ratings is None or self.rating_points in (None, RATING_POINTS):
            return self.ratings
        return tuple(rescale_rating(rating, self.rating_points) for rating in self.ratings)

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
        points = self.rating_points or RATING_POINTS
        if self.ratings is not None and not all(1 <= rating <= points for rating in self.ratings):
            hint = "" if self.rating_points else " ('rating_points' sets another scale)"
            raise ValueError(f"ratings go from 1 to {points}{hint}, found {list(self.ratings)}")
        return self

    def pairs(self) -> list[tuple[int, int]]:
        """Return indices (better, worse) of every pair that is not a tie (paper, section 3.5)."""
        k = len(self.ranks)
        return [(i, j) for i in range(k) for j in range(k) if self.ranks[i] < self.ranks[j]]


class Pair(PromptFields):
    """TRL's preference pair."""

    chosen: str
    rejected: str


class Document(Record):
    text: str


class Labelers(Protocol):
    """People behind the site, a simulation, or a judge model."""

    def demonstrate(self, prompts: Sequence[Prompt]) -> list[Demonstration]: ...

    def rank(self, candidates: Sequence[Sequence[Completion]]) -> list[Ranking]:
        """Rank each list of completions of one prompt, with ratings and labels if the labelers give them."""
        ...


_RecordT = TypeVar("_RecordT", bound=Record)


def format_validation_error(error: ValidationError) -> str:
    """Format the first error of pydantic with its column."""
    first = error.errors(include_url=False)[0]
    column = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        found_columns = list(first["input"]) if isinstance(first["input"], dict) else []
        hint = "'data import' reads other formats"
        if column == "completion" and {"completions", "ranks"} <= set(found_columns):
            hint = "these are rankings, which 'label import' takes in as finished work; 'sample' writes completions"
        columns = ", ".join(map(str, found_columns)) or "none"
        return f"column '{column}' is missing (columns found: {columns}); {hint}"
    return f"column '{column}': {message}" if column else message


def validate_record(record_class: type[_RecordT], row: dict[str, Any]) -> _RecordT:
    """Validate a JSON object as a record. Raise ValueError with a one-line message."""
    try:
        return record_class.model_validate(row)
    except ValidationError as error:
        raise ValueError(format_validation_error(error)) from error


def parse_record(record_class: type[_RecordT], line: str) -> _RecordT:
    """Parse one JSON line. Raise ValueError with a one-line message."""
    return validate_record(record_class, parse_json_object(line))


def read_records(
    record_class: type[_RecordT],
    path: Path | str,
    skipped: SkippedLines | None = None,
    check: Callable[[_RecordT], None] | None = None,
) -> list[_RecordT]:
    """Return all records of one file.

    Args:
        path: any format of `io.iter_rows`; plain text is only read as a Document.
        skipped: collects bad lines if it allows skipping; otherwise the first bad line is an error.
        check: raises InputError for a record that cannot be used, as `PromptTokenizer.check_prompt`: a bad line.

    Raises:
        InputError: the file cannot be read, a line is bad (`file:line: problem, expectation`), or no record is left.
    """
    name = record_class.__name__.lower()
    if record_class is not Document and str(path).removesuffix(".gz").endswith(".txt"):
        raise InputError(f"{path}: plain text can only be a corpus; {name} records need JSON lines or Parquet")
    records: list[_RecordT] = []
    num_skipped = 0 if skipped is None else len(skipped.reasons)
    for location, row in iter_rows(path, skipped):
        try:
            record = validate_record(record_class, row)
            if check is not None:
                check(record)
        except (ValueError, InputError) as error:
            skip_or_raise(location, error, skipped)
        else:
            records.append(record)
    if not records:
        bad = [] if skipped is None else skipped.reasons[num_skipped:]
        reason = f"; all of its {len(bad)} lines are bad, first {bad[0]}" if bad else ""
        raise InputError(f"{path}: contains no {name}{reason}")
    return records


def read_all_records(
    record_class: type[_RecordT],
    paths: Iterable[Path | str],
    skipped: SkippedLines | None = None,
    check: Callable[[_RecordT], None] | None = None,
) -> list[_RecordT]:
    """Return all records of several files, as `read_records`."""
    return [record for path in paths for record in read_records(record_class, path, skipped, check)]


def write_records(path: Path | str, records: Iterable[Record]) -> int:
    """Write one record per line atomically, compressed for .gz. Return the number of records."""
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for record in records:
            count += 1
            yield format_json_line(record.to_dict())

    write_text_atomic(Path(path), lines())
    return count
