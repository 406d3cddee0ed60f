"""Formats of prompts and demonstrations: one small function each, from one row to our records.

Each takes the row and the columns that are carried over as they are, and returns the records in it (nearly always one).
It raises `Dropped` when the row is well formed but there is nothing in it to learn from, and ValueError when it is not what the
format promises. The table of all formats is in `importers`.
"""

from __future__ import annotations

from instructgpt.data.importing.fields import Dropped, Row, asked, complain, make_demonstration, text_of, turns_of
from instructgpt.records import Demonstration, Message, Prompt, Record


def from_prompts(row: Row, extra: Row) -> list[Record]:
    """Ours: `prompt`, or `messages` that end with the user's turn."""
    if row.get("messages") is not None:
        return [Prompt(**extra, **asked(turns_of(row["messages"], "messages")))]
    if isinstance(row.get("prompt"), list):
        return [Prompt(**extra, **asked(turns_of(row["prompt"], "prompt")))]
    if not text_of(row, "prompt").strip():
        raise Dropped("empty prompt")
    return [Prompt(**extra, prompt=row["prompt"])]


def from_demonstrations(row: Row, extra: Row) -> list[Record]:
    """Ours and TRL's `prompt`, `completion`, each text or turns."""
    completion = row.get("completion")
    if isinstance(completion, list):
        answer = turns_of(completion, "completion")
        if len(answer) != 1 or answer[0].role != "assistant":
            raise Dropped("the completion is not one assistant turn")
        completion = answer[0].content
    elif not isinstance(completion, str):
        complain("completion", "text", completion)
    if isinstance(row.get("prompt"), list):
        return [Demonstration(**extra, **asked(turns_of(row["prompt"], "prompt")), completion=completion)]
    if row.get("messages") is not None:
        return [Demonstration(**extra, **asked(turns_of(row["messages"], "messages")), completion=completion)]
    return make_demonstration(text_of(row, "prompt"), completion, extra)


def from_conversation(turns: tuple[Message, ...], extra: Row) -> list[Record]:
    """The last assistant turn is the completion, all before it the prompt; what a user said after it is not part of either."""
    answers = [position for position, turn in enumerate(turns) if turn.role == "assistant"]
    if not answers:
        raise Dropped("no assistant turn")
    return [Demonstration(**extra, **asked(turns[: answers[-1]]), completion=turns[answers[-1]].content)]


def from_messages(row: Row, extra: Row) -> list[Record]:
    """TRL's `messages` (role, content)."""
    return from_conversation(turns_of(row.get("messages"), "messages"), extra)


def from_sharegpt(row: Row, extra: Row) -> list[Record]:
    """ShareGPT's `conversations` (from, value), with an optional `system`."""
    turns = turns_of(row.get("conversations"), "conversations")
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        turns = (Message(role="system", content=system), *turns)
    return from_conversation(turns, extra)


def from_alpaca(row: Row, extra: Row) -> list[Record]:
    """Alpaca's `instruction`, `input`, `output`, Dolly's `instruction`, `context`, `response`; the input follows after an empty line."""
    instruction = text_of(row, "instruction")
    given = row.get("input") or row.get("context") or ""
    if not isinstance(given, str):
        complain("input", "text", given)
    prompt = f"{instruction}\n\n{given}" if given.strip() else instruction
    return make_demonstration(prompt, text_of(row, "output", "response"), extra)
