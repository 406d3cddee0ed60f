"""Formats of prompts and demonstrations: one function a format, from a row to records.

Each takes the row and the columns to carry over. It raises `SkipRowError` for a valid row with nothing to learn from,
and ValueError for a row that violates the format. The table of formats is in `registry`.
"""

from __future__ import annotations

from instructgpt.data.importing.fields import (
    DatasetRow,
    SkipRowError,
    get_text_column,
    make_demonstration,
    parse_turns,
    prompt_columns,
    raise_column_error,
)
from instructgpt.records import Demonstration, Message, Prompt, Record


def from_prompts(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """Ours: `prompt`, or `messages` that end with the user's turn."""
    if row.get("messages") is not None:
        return [Prompt(**extra, **prompt_columns(parse_turns(row["messages"], "messages")))]
    if isinstance(row.get("prompt"), list):
        return [Prompt(**extra, **prompt_columns(parse_turns(row["prompt"], "prompt")))]
    if not get_text_column(row, "prompt").strip():
        raise SkipRowError("empty prompt")
    return [Prompt(**extra, prompt=row["prompt"])]


def from_demonstrations(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """Ours and TRL's `prompt`, `completion`, each text or turns."""
    completion = row.get("completion")
    if isinstance(completion, list):
        turns = parse_turns(completion, "completion")
        if len(turns) != 1 or turns[0].role != "assistant":
            raise SkipRowError("the completion is not one assistant turn")
        completion = turns[0].content
    elif not isinstance(completion, str):
        raise_column_error("completion", "text", completion)
    if isinstance(row.get("prompt"), list):
        return [Demonstration(**extra, **prompt_columns(parse_turns(row["prompt"], "prompt")), completion=completion)]
    if row.get("messages") is not None:
        return [
            Demonstration(**extra, **prompt_columns(parse_turns(row["messages"], "messages")), completion=completion)
        ]
    return make_demonstration(get_text_column(row, "prompt"), completion, extra)


def _from_conversation(turns: tuple[Message, ...], extra: DatasetRow) -> list[Record]:
    """Take the last assistant turn as completion and all earlier turns as prompt; later user turns are dropped."""
    assistant_positions = [position for position, turn in enumerate(turns) if turn.role == "assistant"]
    if not assistant_positions:
        raise SkipRowError("no assistant turn")
    return [
        Demonstration(
            **extra,
            **prompt_columns(turns[: assistant_positions[-1]]),
            completion=turns[assistant_positions[-1]].content,
        )
    ]


def from_messages(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """TRL's `messages` (role, content)."""
    return _from_conversation(parse_turns(row.get("messages"), "messages"), extra)


def from_sharegpt(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """ShareGPT's `conversations` (from, value), with an optional `system`."""
    turns = parse_turns(row.get("conversations"), "conversations")
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        turns = (Message(role="system", content=system), *turns)
    return _from_conversation(turns, extra)


def from_alpaca(row: DatasetRow, extra: DatasetRow) -> list[Record]:
    """Alpaca's `instruction`, `input`, `output`; Dolly's `instruction`, `context`, `response`;
    the input follows an empty line.
    """
    instruction = get_text_column(row, "instruction")
    input_text = row.get("input") or row.get("context") or ""
    if not isinstance(input_text, str):
        raise_column_error("input", "text", input_text)
    prompt = f"{instruction}\n\n{input_text}" if input_text.strip() else instruction
    return make_demonstration(prompt, get_text_column(row, "output", "response"), extra)
