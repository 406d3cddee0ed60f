"""Parsing of data set rows column by column, shared by the format functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from instructgpt.data.importing.transcripts import TranscriptError, parse_transcript, transcript_notes
from instructgpt.records import Demonstration, Message, Ranking, Record

DatasetRow = dict[str, Any]

_ROLE_ALIASES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
"""Role names of the formats -> ours."""


class SkipRowError(Exception):
    """A row with nothing to learn from; the message is a fixed reason."""


@dataclass
class RowContext:
    """What a format function takes beside the row, and what it reports about it."""

    extra: DatasetRow = field(default_factory=dict)  # columns to carry over
    split_transcripts: bool = True
    notes: list[str] = field(default_factory=list)  # guesses and changes, counted in the report


def common_columns(rows: Sequence[DatasetRow]) -> DatasetRow:
    """Return the columns with the same value in every row, in the order of the first."""
    return {name: value for name, value in rows[0].items() if all(row.get(name) == value for row in rows[1:])}


# ---------------------------------------------------------------- reading a row


def get_text_column(row: DatasetRow, *columns: str) -> str:
    """Return the text of the first column that is not null.

    Raises SkipRowError if the columns are null, ValueError if there are none, or if one is not text.
    """
    for column in columns:
        if (value := row.get(column)) is not None:
            return value if isinstance(value, str) else raise_column_error(column, "text", value)
    check_not_null(row, *columns)
    raise ValueError(f"column '{columns[0]}' is missing (columns found: {', '.join(row)})")


def check_not_null(row: DatasetRow, *columns: str) -> None:
    """Raise SkipRowError if one of the columns is there and null."""
    for column in columns:
        if column in row and row[column] is None:
            raise SkipRowError(f"column '{column}' is null")


def get_list_column(row: DatasetRow, column: str) -> list[Any]:
    """Return a list column. Raises ValueError."""
    value = row.get(column)
    return list(value) if isinstance(value, list | tuple) else raise_column_error(column, "a list", value)


def get_text_list(row: DatasetRow, column: str) -> list[str]:
    """Return a list of texts. Raises ValueError."""
    values = get_list_column(row, column)
    for position, value in enumerate(values):
        if not isinstance(value, str):
            raise_column_error(f"{column}.{position}", "text", value)
    return values


def get_object_list(row: DatasetRow, column: str) -> list[DatasetRow]:
    """Return a list of objects. Raises ValueError."""
    return [check_object(value, f"{column}.{i}") for i, value in enumerate(get_list_column(row, column))]


def get_number_column(row: DatasetRow, column: str) -> float:
    """Return a number column. Raises ValueError; SkipRowError if it is null."""
    check_not_null(row, column)
    value = row.get(column)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number else raise_column_error(column, "a number", value)  # type: ignore[return-value]


def get_ranks(row: DatasetRow, column: str) -> list[int]:
    """Return a list of whole numbers. Raises ValueError."""
    ranks = []
    for position, value in enumerate(get_list_column(row, column)):
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not is_whole:
            raise_column_error(f"{column}.{position}", "a whole number", value)
        ranks.append(int(value))
    return ranks


def parse_truth_value(value: object) -> bool | None:
    """Return a truth value as JSON, tables and integer columns write it, or None."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, int | float) and value in (0, 1) else None


def check_object(value: object, column: str) -> DatasetRow:
    """Check that a value is an object. Raises ValueError."""
    return value if isinstance(value, dict) else raise_column_error(column, "an object", value)


def raise_column_error(column: str, expected: str, value: object) -> NoReturn:
    kind = "nothing" if value is None else f"{value!r:.20}" if isinstance(value, float) else type(value).__name__
    raise ValueError(f"column '{column}': expected {expected}, found {kind}")


def parse_turns(value: object, column: str) -> tuple[Message, ...]:
    """Parse a conversation: role and content (TRL, OpenAI), or from and value (ShareGPT).

    Raises ValueError, SkipRowError.
    """
    if not isinstance(value, list | tuple):
        raise_column_error(column, "a list of turns", value)
    turns = []
    for position, item in enumerate(value):
        turn = check_object(item, f"{column}.{position}")
        speaker = turn.get("role") or turn.get("from")
        if not isinstance(speaker, str):
            raise_column_error(f"{column}.{position}.role", "text", speaker)
        role = _ROLE_ALIASES.get(speaker.lower())
        if role is None:
            raise SkipRowError(f"a turn of role '{speaker:.20}', which is none of system, user, assistant")
        content = _parse_content(turn, f"{column}.{position}.content")
        turns.append(Message.model_validate({"role": role, "content": content}))
    return tuple(turns)


def _parse_content(turn: DatasetRow, column: str) -> str:
    """Return the text of a turn. A list of parts must be all text."""
    if turn.get("tool_calls"):
        raise SkipRowError("a turn that calls a tool")
    content = turn["value"] if turn.get("content") is None and "value" in turn else turn.get("content")
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        if len(parts) < len(content) or not all(isinstance(part, str) for part in parts):
            raise SkipRowError("a turn with something other than text")
        return "".join(str(part) for part in parts)
    if content is None:
        raise SkipRowError("a turn without text")
    return content if isinstance(content, str) else raise_column_error(column, "text", content)


def parse_prompt(row: DatasetRow, *columns: str) -> str | tuple[Message, ...]:
    """Return the prompt of a row: `messages` where they are there, else a column of text or turns."""
    if row.get("messages") is not None:
        return parse_turns(row["messages"], "messages")
    for column in columns or ("prompt",):
        if isinstance(row.get(column), list | tuple):
            return parse_turns(row[column], column)
    return get_text_column(row, *(columns or ("prompt",)))


def parse_completion(row: DatasetRow, column: str) -> str:
    """Return a completion: text, or a list of one assistant turn."""
    value = row.get(column)
    if not isinstance(value, list):
        check_not_null(row, column)
        return value if isinstance(value, str) else raise_column_error(column, "text", value)
    turns = parse_turns(value, column)
    if len(turns) != 1 or turns[0].role != "assistant":
        raise SkipRowError("the completion is not one assistant turn")
    return turns[0].content


# ---------------------------------------------------------------- making records


def prompt_columns(messages: Sequence[Message]) -> DatasetRow:
    """Return a single question as `prompt`, a conversation as `messages`. Raises SkipRowError."""
    if not messages or messages[-1].role != "user":
        raise SkipRowError("no user turn to answer")
    if not messages[-1].content.strip():
        raise SkipRowError("empty prompt")
    return {"prompt": messages[0].content} if len(messages) == 1 else {"messages": tuple(messages)}


def make_prompt_columns(prompt: str | Sequence[Message], context: RowContext) -> tuple[DatasetRow, bool]:
    """Return the columns of a prompt, and whether it was a transcript: one that ends with the assistant's mark.

    Raises SkipRowError.
    """
    if not isinstance(prompt, str):
        return prompt_columns(prompt), False
    if not prompt.strip():
        raise SkipRowError("empty prompt")
    if context.split_transcripts and prompt.rstrip().endswith(":"):
        try:
            turns = parse_transcript(prompt)
        except TranscriptError as error:
            context.notes.append(str(error))
            return {"prompt": prompt}, False
        if turns and turns[-1] == Message(role="assistant", content=""):
            context.notes += transcript_notes(turns)
            return prompt_columns(turns[:-1]), True
    return {"prompt": prompt}, False


def make_demonstration(prompt: str | Sequence[Message], completion: str, context: RowContext) -> list[Record]:
    """Make a demonstration; the completion of a transcript loses its outer white space. Raises SkipRowError."""
    columns, is_transcript = make_prompt_columns(prompt, context)
    completion = completion.strip() if is_transcript else completion
    return [Demonstration.model_validate(context.extra | columns | {"completion": completion})]


def make_pseudonym(source: str, user: object) -> str | None:
    """Return a pseudonym for a user id of the source; None without one."""
    if user is None or not str(user):
        return None
    return f"{source}-{hashlib.sha256(f'{source}:{user}'.encode()).hexdigest()[:10]}"


def make_ranking(
    prompt: str | Sequence[Message],
    completions: Sequence[str],
    ranks: Iterable[int],
    context: RowContext,
    **additions: object,
) -> list[Record]:
    """Make a ranking. Equal texts tie at their better rank.

    Args:
        prompt: text or turns; a transcript becomes messages.
        completions: K texts.
        ranks: K ranks.
        context: columns to carry over; collects notes.
        additions: further columns.

    Raises SkipRowError, and ValueError when completions and ranks do not fit.
    """
    columns, is_transcript = make_prompt_columns(prompt, context)
    completions = [completion.strip() for completion in completions] if is_transcript else completions
    ranks = list(ranks)
    best_rank: dict[str, int] = {}
    for completion, rank in zip(completions, ranks, strict=False):
        best_rank[completion] = min(rank, best_rank.get(completion, rank))
    if len(ranks) == len(completions):
        ranks = [best_rank[completion] for completion in completions]
    answers = {"completions": tuple(completions), "ranks": tuple(ranks)}
    return [Ranking.model_validate(context.extra | additions | columns | answers)]


def rank_by_value(values: Sequence[float], best: str = "high") -> list[int]:
    """Return dense ranks, 1 for the best: [3, 9, 3] -> [2, 1, 2]; with best="low" [0, 2, 1] -> [1, 3, 2]."""
    distinct_values = sorted(set(values), reverse=best == "high")
    return [distinct_values.index(score) + 1 for score in values]
