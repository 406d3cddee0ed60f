"""Corrected outputs of Langfuse: traces with their scores and observations, as its API returns them.

A correction is a score of type CORRECTION with the text that should have been written. Like an edit in the playground
it gives a ranking, the correction above the output, and a demonstration. Other scores and names are left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from instructgpt.data.importing.fields import (
    DatasetRow,
    RowContext,
    SkipRowError,
    get_object_list,
    make_demonstration,
    make_pseudonym,
    make_ranking,
    parse_turns,
)
from instructgpt.records import Message, Record

_CORRECTION = "CORRECTION"
_TEXT_FIELDS = ("stringValue", "longStringValue", "value")
"""Fields with the corrected text, by version of the API."""


def is_langfuse_trace(row: DatasetRow) -> bool:
    """Return whether a row is a trace with scores."""
    scores = row.get("scores")
    if not isinstance(scores, list) or not scores or not all(isinstance(score, dict) for score in scores):
        return False
    return any("dataType" in score for score in scores) and ("input" in row or "observations" in row)


def from_langfuse(row: DatasetRow, context: RowContext) -> list[Record]:
    """Read the corrections of a trace and of its observations."""
    corrections = [score for score in get_object_list(row, "scores") if score.get("dataType") == _CORRECTION]
    if not corrections:
        raise SkipRowError("no corrected output")
    observations = get_object_list(row, "observations") if row.get("observations") else []
    converted: list[Record] = []
    for score in corrections:
        corrected = row
        if score.get("observationId") is not None:
            matching = [item for item in observations if item.get("id") == score["observationId"]]
            if not matching:
                raise SkipRowError("a correction of an observation that is not in the trace")
            corrected = matching[0]
        converted += _records_of(corrected, score, context)
    return converted


def _records_of(corrected: DatasetRow, score: DatasetRow, context: RowContext) -> Iterator[Record]:
    prompt, output = _parse_input(corrected.get("input")), _parse_output(corrected.get("output"))
    text = next(
        (score[name] for name in _TEXT_FIELDS if isinstance(score.get(name), str) and score[name].strip()), None
    )
    if text is None:
        raise SkipRowError("a correction without text")
    if not isinstance(corrected.get("output"), str):
        text = _parse_output(_parse_json(text))  # corrected in the form that the output has
    if text.strip() == output.strip():
        raise SkipRowError("a correction that changes nothing")
    model = corrected.get("model")
    models = ("correction", model) if isinstance(model, str) and model else None
    labeler = make_pseudonym("langfuse", score.get("authorUserId"))
    additions: dict[str, Any] = {"source": "langfuse", "labeler": labeler, "cohort": "user"}
    additions |= {"models": models} if models else {}
    yield from make_ranking(prompt, [text, output], [1, 2], context, **additions)
    for demonstration in make_demonstration(prompt, text, context):
        yield demonstration.model_copy(update={"source": "langfuse", "labeler": labeler})


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _parse_input(value: object) -> str | tuple[Message, ...]:
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        value = value["messages"]
    if isinstance(value, list):
        return parse_turns(value, "input")
    if not isinstance(value, str):
        raise SkipRowError("an input that is neither text nor messages")
    return value


def _parse_output(value: object) -> str:
    """Return the text of an output: text, a message, a list of one, or a whole answer of OpenAI's API."""
    if isinstance(value, dict) and isinstance(value.get("choices"), list) and value["choices"]:
        choice = value["choices"][0]
        value = choice.get("message") if isinstance(choice, dict) else None
    if isinstance(value, dict):
        value = [{"role": "assistant", **value}]
    if isinstance(value, list):
        turns = parse_turns(value, "output")
        value = turns[0].content if len(turns) == 1 and turns[0].role == "assistant" else None
    if not isinstance(value, str) or not value.strip():
        raise SkipRowError("an output that is not one answer in text")
    return value
