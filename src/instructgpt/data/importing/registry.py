"""The formats: which columns each has, and which function reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from instructgpt.data.drop_report import DropReport, LocatedItem
from instructgpt.data.importing import demonstrations, feedback, rankings
from instructgpt.data.importing.few_shot import from_few_shot
from instructgpt.data.importing.fields import DatasetRow, RowContext
from instructgpt.data.importing.langfuse import from_langfuse, is_langfuse_trace
from instructgpt.data.importing.refusals import assemble_refusals, from_labeled_refusal, is_labeled_refusal
from instructgpt.data.importing.transcripts import parse_transcript
from instructgpt.data.importing.trees import assemble_trees, from_flat_oasst, from_oasst
from instructgpt.data.importing.unpaired import assemble_unpaired, from_unpaired, is_unpaired
from instructgpt.records import Demonstration, Prompt, Ranking, Record

DatasetFormat = Literal[
    "auto",
    "rankings",
    "nemo",
    "ultrafeedback",
    "oasst",
    "flat_oasst",
    "hh",
    "pairs",
    "helpsteer3",
    "shp",
    "webgpt",
    "tldr",
    "open_webui",
    "arena",
    "langfuse",
    "few_shot",
    "alpaca",
    "sharegpt",
    "unpaired",
    "refusals",
    "demonstrations",
    "messages",
    "prompts",
]


@dataclass(frozen=True)
class Importer:
    """Detection and conversion of one format."""

    record_type: type[Record]  # what its rows become
    columns: frozenset[str]  # the columns it reads; others are carried over where they can be
    matches: Callable[[DatasetRow], bool]
    convert: Callable[[DatasetRow, RowContext], Sequence[Any]]
    assemble: Callable[[list[LocatedItem[Any]], DropReport], list[LocatedItem[Record]]] | None = None
    """Makes records of what `convert` returned for all rows of all files, where a record needs several rows."""

    second_type: type[Record] | None = None
    """A second type of records that the same rows give."""

    @property
    def is_native(self) -> bool:
        return self.convert in _NATIVE_CONVERTERS

    def carried_columns(self, row: DatasetRow) -> DatasetRow:
        """Return the columns to carry over: all of our formats, texts, numbers and booleans of others."""
        extra = {name: value for name, value in row.items() if name not in self.columns and value is not None}
        if self.is_native:
            return extra
        return {
            name: value
            for name, value in extra.items()
            if name not in _RESERVED_COLUMNS and isinstance(value, str | int | float | bool)
        }


_NATIVE_CONVERTERS = (rankings.from_rankings, demonstrations.from_demonstrations, demonstrations.from_prompts)
_RESERVED_COLUMNS = frozenset(
    [
        "prompt",
        "messages",
        "completion",
        "completions",
        "ranks",
        "models",
        "ratings",
        "labels",
        "context",
        "chosen",
        "rejected",
    ]
)
"""Columns with another meaning in our records."""


def _has_columns(row: DatasetRow, *columns: str) -> bool:
    return all(column in row for column in columns)


def _has_prompt(row: DatasetRow) -> bool:
    return "prompt" in row or "messages" in row


def _has_entries(row: DatasetRow, column: str, name: str) -> bool:
    entries = row.get(column)
    return isinstance(entries, list) and bool(entries) and isinstance(entries[0], dict) and name in entries[0]


def _is_hh(row: DatasetRow) -> bool:
    if row.get("prompt") is not None or row.get("messages") is not None:
        return False
    return all(isinstance(side := row.get(column), str) and _is_transcript(side) for column in ("chosen", "rejected"))


def _is_transcript(text: str) -> bool:
    try:
        return parse_transcript(text) is not None
    except ValueError:
        return True


def _ends_with_assistant(row: DatasetRow) -> bool:
    turns = row.get("messages")
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and turn.get("role") == "assistant" for turn in turns[-1:]
    )


def _make_importer(
    record_type: type[Record],
    columns: str,
    matches: Callable[[DatasetRow], bool],
    convert: Callable[[DatasetRow, RowContext], Sequence[Any]],
) -> Importer:
    return Importer(record_type, frozenset(columns.split()), matches, convert)


_TREE_COLUMNS = (
    "message_id parent_id user_id created_date role text rank deleted review_count review_result tree_state "
    "model_name synthetic"
)

IMPORTERS: dict[str, Importer] = {
    "rankings": _make_importer(
        Ranking,
        "prompt messages completions ranks models ratings labels",
        lambda r: _has_columns(r, "completions", "ranks") and _has_prompt(r),
        rankings.from_rankings,
    ),
    "nemo": _make_importer(
        Ranking,
        "context completions",
        lambda r: _has_columns(r, "context") and _has_entries(r, "completions", "rank"),
        rankings.from_nemo,
    ),
    "ultrafeedback": _make_importer(
        Ranking,
        "instruction completions models",
        lambda r: _has_columns(r, "instruction") and _has_entries(r, "completions", "response"),
        rankings.from_ultrafeedback,
    ),
    "oasst": Importer(
        Ranking,
        frozenset(["prompt"]),
        lambda r: "message_tree_id" in r and isinstance(r.get("prompt"), dict),
        from_oasst,
        second_type=Demonstration,
    ),
    "flat_oasst": Importer(
        Ranking,
        frozenset(_TREE_COLUMNS.split()),
        lambda r: _has_columns(r, "message_id", "parent_id", "role", "text"),
        from_flat_oasst,
        assemble_trees,
        Demonstration,
    ),
    "hh": _make_importer(Ranking, "prompt chosen rejected messages", _is_hh, rankings.from_pairs),
    "pairs": _make_importer(
        Ranking, "prompt chosen rejected messages", lambda r: _has_columns(r, "chosen", "rejected"), rankings.from_pairs
    ),
    "helpsteer3": _make_importer(
        Ranking,
        "context response1 response2",
        lambda r: _has_columns(r, "context", "response1", "response2", "overall_preference"),
        rankings.from_helpsteer3,
    ),
    "shp": _make_importer(
        Ranking,
        "history human_ref_A human_ref_B labels",
        lambda r: _has_columns(r, "history", "human_ref_A", "human_ref_B"),
        rankings.from_shp,
    ),
    "webgpt": _make_importer(
        Ranking,
        "question answer_0 answer_1 score_0 score_1",
        lambda r: _has_columns(r, "question", "answer_0", "answer_1"),
        rankings.from_webgpt,
    ),
    "tldr": _make_importer(
        Ranking,
        "info summaries choice worker",
        lambda r: _has_columns(r, "info", "summaries", "choice"),
        rankings.from_tldr,
    ),
    "open_webui": _make_importer(
        Ranking,
        "id user_id version type data meta snapshot created_at updated_at user",
        feedback.is_open_webui,
        feedback.from_open_webui,
    ),
    "arena": _make_importer(
        Ranking,
        "type models states ip tstamp winner judge conversation_a conversation_b model_a model_b turn anony"
        " openai_moderation toxic_chat_tag",
        feedback.is_arena_vote,
        feedback.from_arena_vote,
    ),
    "langfuse": Importer(
        Ranking,
        frozenset(
            ["id", "timestamp", "name", "input", "output", "userId", "sessionId", "metadata", "scores", "observations"]
        ),
        is_langfuse_trace,
        from_langfuse,
        second_type=Demonstration,
    ),
    "few_shot": _make_importer(
        Demonstration,
        "instruction examples names",
        lambda r: _has_columns(r, "instruction") and isinstance(r.get("examples"), list),
        from_few_shot,
    ),
    "alpaca": _make_importer(
        Demonstration,
        "instruction input output context response",
        lambda r: _has_columns(r, "instruction") and (_has_columns(r, "output") or _has_columns(r, "response")),
        demonstrations.from_alpaca,
    ),
    "sharegpt": _make_importer(
        Demonstration, "conversations system", lambda r: _has_columns(r, "conversations"), demonstrations.from_sharegpt
    ),
    "unpaired": Importer(
        Demonstration,
        frozenset(["prompt", "messages", "completion", "label"]),
        is_unpaired,
        from_unpaired,
        assemble_unpaired,
        Ranking,
    ),
    "refusals": Importer(
        Ranking,
        frozenset(["prompt", "messages", "completion", "model", "label", "type", "prompt_label"]),
        is_labeled_refusal,
        from_labeled_refusal,
        assemble_refusals,
    ),
    "demonstrations": _make_importer(
        Demonstration,
        "prompt messages completion",
        lambda r: "completion" in r and _has_prompt(r),
        demonstrations.from_demonstrations,
    ),
    "messages": _make_importer(Demonstration, "messages", _ends_with_assistant, demonstrations.from_messages),
    "prompts": _make_importer(
        Prompt,
        "prompt messages",
        lambda r: _has_prompt(r) and not any(column in r for column in demonstrations.ANSWER_COLUMNS),
        demonstrations.from_prompts,
    ),
}
"""Every format; the first match wins. Ours are `rankings`, `demonstrations`, `prompts` and `few_shot`."""


_SAME_FUNCTION = {"hh": "pairs"}
"""Formats that differ in name only: the function that reads both looks at each row."""


def match_format(row: DatasetRow) -> str | None:
    """Return the format of a row's columns, null or not, or None."""
    return next((name for name, importer in IMPORTERS.items() if importer.matches(row)), None)


def detect_import_format(rows: Sequence[LocatedItem[DatasetRow]], report: DropReport) -> str | None:
    """Return the format that most rows have, or None if no row has a known one. Rows of another are noticed.

    Equal counts are decided by the order of IMPORTERS, so that a column that is often missing still counts.
    """
    names = [match_format(row) for _, row in rows]
    counts: Mapping[str, int] = Counter(name for name in names if name is not None)
    if not counts:
        return None
    order = list(IMPORTERS)
    winner = max(counts, key=lambda name: (counts[name], -order.index(name)))
    for (location, _), name in zip(rows, names, strict=True):
        if name is not None and _SAME_FUNCTION.get(name, name) != _SAME_FUNCTION.get(winner, winner):
            report.notice(f"columns of '{name}' in a file read as '{winner}'", location)
    return winner
