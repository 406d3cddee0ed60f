"""Reading one row of a data set column by column, and making one of our records of what was read.

The functions of the formats (`demonstrations`, `rankings`, `few_shot`) are made of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from instructgpt.records import Demonstration, Message, Ranking, Record

Row = dict[str, Any]

ROLES = {
    "system": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "bot": "assistant",
    "model": "assistant",
}  # fmt: skip
"""Who speaks, in the words of the formats, and in ours."""

ANSWER = "\n\nAssistant:"
"""What ends a prompt that is a transcript (Anthropic's form, also ours for rankings of conversations)."""


class Dropped(Exception):
    """A row that holds nothing to learn from; the message is the reason, the same for all such rows."""


# ---------------------------------------------------------------- reading a row


def text_of(row: Row, *columns: str) -> str:
    """The text in the first of the columns that is there. Raises ValueError if none is, or if it is not text."""
    for column in columns:
        if (value := row.get(column)) is not None:
            return value if isinstance(value, str) else complain(column, "text", value)
    raise ValueError(f"column '{columns[0]}' is missing (columns found: {', '.join(row)})")


def list_of(row: Row, column: str) -> list[Any]:
    """The list in a column. Raises ValueError if there is none."""
    value = row.get(column)
    return list(value) if isinstance(value, list | tuple) else complain(column, "a list", value)


def number_of(row: Row, column: str) -> float:
    """The number in a column. Raises ValueError if there is none."""
    value = row.get(column)
    return value if isinstance(value, int | float) else complain(column, "a number", value)


def object_of(value: object, column: str) -> Row:
    """An object within a column. Raises ValueError if it is none."""
    return value if isinstance(value, dict) else complain(column, "an object", value)


def complain(column: str, expected: str, value: object) -> NoReturn:
    raise ValueError(f"column '{column}': expected {expected}, found {'nothing' if value is None else type(value).__name__}")


def turns_of(value: object, column: str) -> tuple[Message, ...]:
    """A conversation: role and content (TRL, OpenAI), or from and value (ShareGPT). Raises ValueError, Dropped."""
    if not isinstance(value, list | tuple):
        complain(column, "a list of turns", value)
    turns = []
    for turn in value:
        turn = object_of(turn, column)
        speaker = text_of(turn, "role", "from")
        role = ROLES.get(speaker.lower())
        if role is None:
            raise Dropped(f"a turn of role '{speaker}', which is none of system, user, assistant")
        turns.append(Message.model_validate({"role": role, "content": _content(turn)}))
    return tuple(turns)


def _content(turn: Row) -> str:
    """The text of a turn. A list of parts must be all text; a turn that only called a tool has none."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        if len(parts) < len(content) or not all(isinstance(part, str) for part in parts):
            raise Dropped("a turn with something other than text")
        return "".join(str(part) for part in parts)
    if content is None:
        return ""
    return content if isinstance(content, str) else complain("content", "text", content)


# ---------------------------------------------------------------- making records


def dialogue(messages: Sequence[Message]) -> str:
    """A conversation as the text of one prompt: a single question as it is, more turns as a transcript that ends in "Assistant:"."""
    if len(messages) == 1:
        return messages[0].content
    names = {"system": "", "user": "Human: ", "assistant": "Assistant: "}
    return "\n\n".join(names[message.role] + message.content for message in messages) + ANSWER


def asked(messages: Sequence[Message]) -> Row:
    """The columns of a prompt: a single question as `prompt`, anything longer as `messages`. Raises Dropped."""
    if not messages or messages[-1].role != "user":
        raise Dropped("no user turn to answer")
    if not messages[-1].content.strip():
        raise Dropped("empty prompt")
    return {"prompt": messages[0].content} if len(messages) == 1 else {"messages": tuple(messages)}


def make_demonstration(prompt: str, completion: str, extra: Row) -> list[Record]:
    """A demonstration of a plain prompt. Raises Dropped."""
    if not prompt.strip():
        raise Dropped("empty prompt")
    return [Demonstration(**extra, prompt=prompt, completion=completion)]


def make_ranking(prompt: str | Sequence[Message], completions: Sequence[str], ranks: Iterable[int], extra: Row) -> list[Record]:
    """A ranking; a conversation becomes a transcript and stays beside it as `messages`. Equal texts tie at the better of their ranks.

    Raises Dropped, and ValueError when completions and ranks do not fit.
    """
    if not isinstance(prompt, str):
        asked(prompt)
        extra = extra | ({"messages": [turn.model_dump() for turn in prompt]} if len(prompt) > 1 else {})
        prompt = dialogue(prompt)
    if not prompt.strip():
        raise Dropped("empty prompt")
    ranks = list(ranks)
    best: dict[str, int] = {}
    for completion, rank in zip(completions, ranks, strict=False):
        best[completion] = min(rank, best.get(completion, rank))
    if len(ranks) == len(completions):
        ranks = [best[completion] for completion in completions]
    return [Ranking.model_validate(extra | {"prompt": prompt, "completions": tuple(completions), "ranks": tuple(ranks)})]


def dense_ranks(scores: Sequence[float], best: str = "high") -> list[int]:
    """Ranks without gaps, 1 for the best, equal scores equal: [3, 9, 3] -> [2, 1, 2]; with best="low" [0, 2, 1] -> [1, 3, 2]."""
    order = sorted(set(scores), reverse=best == "high")
    return [order.index(score) + 1 for score in scores]
