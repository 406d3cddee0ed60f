"""Parsing of data set rows column by column, shared by the format functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

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

ASSISTANT_MARKER = "\n\nAssistant:"
"""End of a transcript prompt (Anthropic's form, also used for rankings of conversations)."""


class SkipRowError(Exception):
    """A row with nothing to learn from; the message is a fixed reason."""


# ---------------------------------------------------------------- reading a row


def get_text_column(row: DatasetRow, *columns: str) -> str:
    """Return the text of the first present column. Raises ValueError if none is present, or if it is not text."""
    for column in columns:
        if (value := row.get(column)) is not None:
            return value if isinstance(value, str) else raise_column_error(column, "text", value)
    raise ValueError(f"column '{columns[0]}' is missing (columns found: {', '.join(row)})")


def get_list_column(row: DatasetRow, column: str) -> list[Any]:
    """Return a list column. Raises ValueError."""
    value = row.get(column)
    return list(value) if isinstance(value, list | tuple) else raise_column_error(column, "a list", value)


def get_number_column(row: DatasetRow, column: str) -> float:
    """Return a number column. Raises ValueError."""
    value = row.get(column)
    return value if isinstance(value, int | float) else raise_column_error(column, "a number", value)


def check_object(value: object, column: str) -> DatasetRow:
    """Check that a value is an object. Raises ValueError."""
    return value if isinstance(value, dict) else raise_column_error(column, "an object", value)


def raise_column_error(column: str, expected: str, value: object) -> NoReturn:
    raise ValueError(
        f"column '{column}': expected {expected}, found {'nothing' if value is None else type(value).__name__}"
    )


def parse_turns(value: object, column: str) -> tuple[Message, ...]:
    """Parse a conversation: role and content (TRL, OpenAI), or from and value (ShareGPT).

    Raises ValueError, SkipRowError.
    """
    if not isinstance(value, list | tuple):
        raise_column_error(column, "a list of turns", value)
    turns = []
    for turn in value:
        turn = check_object(turn, column)
        speaker = get_text_column(turn, "role", "from")
        role = _ROLE_ALIASES.get(speaker.lower())
        if role is None:
            raise SkipRowError(f"a turn of role '{speaker}', which is none of system, user, assistant")
        turns.append(Message.model_validate({"role": role, "content": _parse_content(turn)}))
    return tuple(turns)


def _parse_content(turn: DatasetRow) -> str:
    """Return the text of a turn. A list of parts must be all text; a tool call has none."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        if len(parts) < len(content) or not all(isinstance(part, str) for part in parts):
            raise SkipRowError("a turn with something other than text")
        return "".join(str(part) for part in parts)
    if content is None:
        return ""
    return content if isinstance(content, str) else raise_column_error("content", "text", content)


# ---------------------------------------------------------------- making records


def prompt_columns(messages: Sequence[Message]) -> DatasetRow:
    """Return a single question as `prompt`, a conversation as `messages`. Raises SkipRowError."""
    if not messages or messages[-1].role != "user":
        raise SkipRowError("no user turn to answer")
    if not messages[-1].content.strip():
        raise SkipRowError("empty prompt")
    return {"prompt": messages[0].content} if len(messages) == 1 else {"messages": tuple(messages)}


def make_demonstration(prompt: str, completion: str, extra: DatasetRow) -> list[Record]:
    """Make a demonstration of a plain prompt. Raises SkipRowError."""
    if not prompt.strip():
        raise SkipRowError("empty prompt")
    return [Demonstration(**extra, prompt=prompt, completion=completion)]


def make_ranking(
    prompt: str | Sequence[Message], completions: Sequence[str], ranks: Iterable[int], extra: DatasetRow
) -> list[Record]:
    """Make a ranking. Equal texts tie at their better rank.

    Raises SkipRowError, and ValueError when completions and ranks do not fit.
    """
    columns = {"prompt": prompt} if isinstance(prompt, str) else prompt_columns(prompt)
    if isinstance(prompt, str) and not prompt.strip():
        raise SkipRowError("empty prompt")
    ranks = list(ranks)
    best_rank: dict[str, int] = {}
    for completion, rank in zip(completions, ranks, strict=False):
        best_rank[completion] = min(rank, best_rank.get(completion, rank))
    if len(ranks) == len(completions):
        ranks = [best_rank[completion] for completion in completions]
    return [Ranking.model_validate(extra | columns | {"completions": tuple(completions), "ranks": tuple(ranks)})]


def rank_by_value(values: Sequence[float], best: str = "high") -> list[int]:
    """Return dense ranks, 1 for the best: [3, 9, 3] -> [2, 1, 2]; with best="low" [0, 2, 1] -> [1, 3, 2]."""
    distinct_values = sorted(set(values), reverse=best == "high")
    return [distinct_values.index(score) + 1 for score in values]
