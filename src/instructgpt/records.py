"""The nouns made of words: what people and models write, and the JSON lines in which it is exchanged.

Nothing here knows about tensors: the labelers' site and the small world import this file and start without torch.
Columns follow TRL's names. A column that is not named here is kept and written out again.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from instructgpt.errors import BadInput, RunFailed

USE_CASES = (
    "generation", "open_qa", "brainstorming", "chat", "rewrite", "summarization", "classification", "other", "closed_qa", "extract",
)  # fmt: skip
"""The ten use cases of API prompts, most frequent first (paper, Table 1)."""

LABELS = (
    "fails_instruction", "inappropriate", "hallucination", "satisfies_constraint", "sexual_content", "violent_content",
    "encourages_violence", "denigrates", "harmful_advice", "opinion", "moral_judgment",
)  # fmt: skip
"""The yes / no / not-applicable questions asked about each completion (paper, Table 3)."""

Cohort = Literal["training", "heldout"]
Role = Literal["system", "user", "assistant"]


class Record(BaseModel):
    """One line of a file. Frozen; columns it does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    def row(self) -> dict[str, Any]:
        """The record as a JSON object, without the columns that were never filled."""
        return self.model_dump(exclude_none=True)


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Role
    content: str


class Asked(Record):
    """Whatever carries a prompt: plain text, or the messages of a conversation. Exactly one of the two."""

    prompt: str | None = None
    messages: tuple[Message, ...] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
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


class Prompt(Asked):
    """What a user asked."""

    id: str | None = None
    user: str | None = None
    source: str | None = None
    use_case: str | None = None
    split: str | None = None


class Demonstration(Asked):
    """A prompt and the completion a labeler wrote for it. The paper's shortest demonstration is empty, so empty is allowed."""

    completion: str
    labeler: str | None = None
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
    ranks: tuple[int, ...]
    labeler: str | None = None
    cohort: Cohort | None = None
    source: str | None = None
    models: tuple[str, ...] | None = None
    ratings: tuple[int, ...] | None = None
    labels: tuple[dict[str, bool | None], ...] | None = None

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        k = len(self.completions)
        if k < 2:
            raise ValueError(f"a ranking needs at least two completions, this one has {k}")
        if len(self.ranks) != k:
            raise ValueError(f"{k} completions but {len(self.ranks)} ranks")
        if min(self.ranks) < 1:
            raise ValueError(f"ranks start at 1 (best), found {min(self.ranks)}")
        for name in ("models", "ratings", "labels"):
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


R = TypeVar("R", bound=Record)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, plain or gzipped, numbered from 1; lines of white space are left out.

    Raises:
        BadInput: the file is missing, is not UTF-8 text, or is a damaged gzip file.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    number = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8", newline="\n")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8", newline="\n") as file
        ):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}:{number + 1}: not UTF-8 text ({error.reason}); convert the file to UTF-8") from error
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise BadInput(f"{path}:{number + 1}: cannot be read ({error})") from error


def explain(error: ValidationError) -> str:
    """The first thing a validation complains of, in one line, with the column it is about."""
    first = error.errors(include_url=False)[0]
    column = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        found = ", ".join(map(str, first["input"])) if isinstance(first["input"], dict) else "none"
        return f"column '{column}' is missing (columns found: {found})"
    return f"column '{column}': {message}" if column else message


def parse_record(kind: type[R], line: str) -> R:
    """One JSON line as a record.

    Raises:
        ValueError: in one line, what is wrong and what was expected.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno}); expected one JSON object a line") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        raise ValueError(explain(error)) from error


class Skipped:
    """Lines left out under --skip-bad, so that the count can be shown at the end."""

    def __init__(self) -> None:
        self.reasons: list[str] = []


def read_records(kind: type[R], path: Path | str, skipped: Skipped | None = None) -> list[R]:
    """All records of one file.

    Args:
        kind: the record class of the file (design: files people exchange).
        path: .jsonl or .json lines (optionally .gz), .txt (documents only), .parquet, or the name or directory of a Hugging Face data set.
        skipped: where given, bad lines are noted there and left out; otherwise the first one is an error.

    Raises:
        BadInput: the file cannot be read, a line is wrong (`file:line: what is wrong, what was expected`), or nothing is left.
    """
    records: list[R] = []
    for where, line in _raw_lines(kind, Path(path)):
        try:
            records.append(parse_record(kind, line))
        except ValueError as error:
            if skipped is None:
                raise BadInput(f"{where}: {error} (--skip-bad goes on without such lines)") from error
            skipped.reasons.append(f"{where}: {error}")
    if not records:
        raise BadInput(f"{path}: no {kind.__name__.lower()} in it")
    return records


def read_all(kind: type[R], paths: Iterable[Path | str], skipped: Skipped | None = None) -> list[R]:
    """The records of several files, one file after the other. Raises BadInput as `read_records` does."""
    return [record for path in paths for record in read_records(kind, path, skipped)]


def _raw_lines(kind: type[Record], path: Path) -> Iterator[tuple[str, str]]:
    """(place, JSON text) of every record, whatever the file format."""
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".json")):
        for number, line in read_lines(path):
            yield f"{path}:{number}", line
    elif name.endswith(".txt"):
        if kind is not Document:
            raise BadInput(f"{path}: plain text can only be a corpus; {kind.__name__.lower()} records need JSON lines or Parquet")
        text = "\n".join(line.rstrip("\n") for _, line in read_lines(path))
        yield str(path), json.dumps({"text": text})
    else:
        for number, row in enumerate(_dataset_rows(path), 1):
            yield f"{path}: row {number}", json.dumps(row, default=str)


def _dataset_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, or of a Hugging Face data set on disk or on the hub."""
    import datasets

    try:
        if path.suffix == ".parquet":
            loaded = datasets.load_dataset("parquet", data_files=str(path), split="train")
        elif path.is_dir() and (path / "dataset_info.json").exists():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path), split="train")
    except Exception as error:  # the library raises a dozen unrelated kinds
        raise BadInput(
            f"{path}: neither a JSON-lines, text or Parquet file nor a data set that loads ({type(error).__name__}: {error})".split("\n")[0]
        ) from error
    for row in loaded:
        yield {key: value for key, value in row.items() if value is not None}


def write_records(path: Path | str, records: Iterable[Record]) -> int:
    """Write one record a line, all or nothing (a name ending in .gz is compressed). Returns how many were written."""
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for record in records:
            count += 1
            yield json.dumps(record.row(), ensure_ascii=False) + "\n"

    write_text(Path(path), lines())
    return count


def write_text(path: Path, chunks: str | Iterable[str]) -> None:
    """Write a text file so that it is either whole or not there: beside its place first, then renamed.

    Raises:
        BadInput: the place cannot be written to (no permission, a file where a folder should be).
        RunFailed: no space is left on the disk.
    """
    half = path.with_name(f".{path.name}.{os.getpid()}.part")
    pieces = [chunks] if isinstance(chunks, str) else chunks
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(half, "wt", encoding="utf-8") if path.suffix == ".gz" else half.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise RunFailed(f"{path}: no space left on the disk; make room and give the same command again") from error
        raise BadInput(f"{path}: cannot be written ({error.strerror or error}); nothing was changed") from error
    finally:
        half.unlink(missing_ok=True)
