"""Formats of prompts and demonstrations: one function a format, from a row to records.

Each takes the row and its context. It raises `SkipRowError` for a valid row with nothing to learn from, and ValueError
for a row that violates the format. The table of formats is in `registry`.
"""

from __future__ import annotations

from instructgpt.data.importing.fields import (
    DatasetRow,
    RowContext,
    SkipRowError,
    get_text_column,
    make_demonstration,
    make_prompt_columns,
    parse_completion,
    parse_prompt,
    parse_turns,
    raise_column_error,
)
from instructgpt.records import Message, Prompt, Record

ANSWER_COLUMNS = ("completion", "completions", "chosen", "rejected")


def from_prompts(row: DatasetRow, context: RowContext) -> list[Record]:
    """Ours: `prompt`, or `messages` that end with the user's turn."""
    for column in ANSWER_COLUMNS:
        if row.get(column) is not None:
            raise ValueError(f"column '{column}': an answer has no place among prompts; '--to prompts' leaves answers")
    columns, _ = make_prompt_columns(parse_prompt(row), context)
    return [Prompt.model_validate(context.extra | columns)]


def from_demonstrations(row: DatasetRow, context: RowContext) -> list[Record]:
    """Ours and TRL's `prompt`, `completion`, each text or turns."""
    if row.get("label") is False or str(row.get("label")).strip().lower() == "false":
        raise SkipRowError("a rejected answer (label false) is no demonstration")
    return make_demonstration(parse_prompt(row), parse_completion(row, "completion"), context)


def _from_conversation(turns: tuple[Message, ...], context: RowContext) -> list[Record]:
    """Take the last assistant turn as completion and all earlier turns, the assistant's included, as prompt."""
    assistant_positions = [position for position, turn in enumerate(turns) if turn.role == "assistant"]
    if not assistant_positions:
        raise SkipRowError("no assistant turn")
    last = assistant_positions[-1]
    if last < len(turns) - 1:
        context.notes.append("turns after the last answer, which nobody answered, left out")
    return make_demonstration(turns[:last], turns[last].content, context)


def from_messages(row: DatasetRow, context: RowContext) -> list[Record]:
    """TRL's `messages` (role, content)."""
    return _from_conversation(parse_turns(row.get("messages"), "messages"), context)


def from_sharegpt(row: DatasetRow, context: RowContext) -> list[Record]:
    """ShareGPT's `conversations` (from, value), with an optional `system`."""
    turns = parse_turns(row.get("conversations"), "conversations")
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise_column_error("system", "text", system)
    if system is not None and system.strip():
        turns = (Message(role="system", content=system), *turns)
    return _from_conversation(turns, context)


def from_alpaca(row: DatasetRow, context: RowContext) -> list[Record]:
    """Alpaca's `instruction`, `input`, `output`; Dolly's `instruction`, `context`, `response`;
    the input follows an empty line.
    """
    instruction = get_text_column(row, "instruction")
    column = "input" if row.get("input") else "context"
    input_text = row.get(column) or ""
    if not isinstance(input_text, str):
        raise_column_error(column, "text", input_text)
    prompt = f"{instruction}\n\n{input_text}" if input_text.strip() else instruction
    return make_demonstration(prompt, get_text_column(row, "output", "response"), context)
