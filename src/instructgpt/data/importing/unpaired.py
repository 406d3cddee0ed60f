"""TRL's unpaired preferences: one answer a row, with a label that says whether it is good.

A good answer is a demonstration. The good and the bad answers of one prompt are a ranking of two ranks. A bad answer is
never a demonstration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instructgpt.data.drop_report import DropReport, LocatedItem
from instructgpt.data.importing.fields import (
    DatasetRow,
    RowContext,
    check_not_null,
    common_columns,
    make_demonstration,
    make_ranking,
    parse_completion,
    parse_prompt,
    parse_truth_value,
    raise_column_error,
)
from instructgpt.records import Demonstration, PromptFields, Record

_REJECTED_NOTE = "a rejected answer (label false), never a demonstration"
_NO_GOOD_ANSWER = "a rejected answer of a prompt without a good one"
_CONTRADICTION = "an answer labeled both good and bad"


@dataclass(frozen=True)
class LabeledAnswer:
    """One row: a demonstration if it is good."""

    answer: Demonstration
    is_good: bool
    extra: DatasetRow

    @property
    def prompt(self) -> PromptFields:
        return self.answer.bare_prompt


def is_unpaired(row: DatasetRow) -> bool:
    """Return whether a row has the columns, and a label that is a truth value."""
    has_columns = "completion" in row and "label" in row and ("prompt" in row or "messages" in row)
    return has_columns and parse_truth_value(row["label"]) is not None


def from_unpaired(row: DatasetRow, context: RowContext) -> list[LabeledAnswer]:
    """TRL's `prompt`, `completion`, each text or turns, and `label`."""
    check_not_null(row, "label")
    is_good = parse_truth_value(row.get("label"))
    if is_good is None:
        raise_column_error("label", "true or false", row.get("label"))
    (answer,) = make_demonstration(parse_prompt(row), parse_completion(row, "completion"), context)
    assert isinstance(answer, Demonstration)
    if not is_good:
        context.notes.append(_REJECTED_NOTE)
    return [LabeledAnswer(answer, is_good, context.extra)]


def assemble_unpaired(rows: Sequence[LocatedItem[LabeledAnswer]], report: DropReport) -> list[LocatedItem[Record]]:
    """Return the good answers as demonstrations, and a ranking for each prompt with good and bad answers."""
    groups: dict[PromptFields, list[LocatedItem[LabeledAnswer]]] = {}
    for location, row in rows:
        groups.setdefault(row.prompt, []).append((location, row))
    records: list[LocatedItem[Record]] = []
    for group in groups.values():
        records += _assemble_prompt(group, report)
    return records


def _assemble_prompt(group: list[LocatedItem[LabeledAnswer]], report: DropReport) -> list[LocatedItem[Record]]:
    labels: dict[str, set[bool]] = {}
    for _, row in group:
        labels.setdefault(row.answer.completion, set()).add(row.is_good)
    contradictions = [label_set == {True, False} for label_set in (labels[row.answer.completion] for _, row in group)]
    group = report.filter(group, [_CONTRADICTION if is_both else None for is_both in contradictions])
    good = [(location, row) for location, row in group if row.is_good]
    bad = [(location, row) for location, row in group if not row.is_good]
    records: list[LocatedItem[Record]] = [(location, row.answer) for location, row in good]
    if not good or not bad:
        report.filter(bad, [_NO_GOOD_ANSWER] * len(bad))
        return records
    texts = {row.answer.completion: 1 if row.is_good else 2 for _, row in [*good, *bad]}
    prompt = group[0][1].answer
    context = RowContext(common_columns([row.extra for _, row in group]), split_transcripts=False)
    (ranking,) = make_ranking(prompt.messages or prompt.prompt, tuple(texts), texts.values(), context)
    report.count_records(rows=len(bad), records=1)
    return [*records, (good[0][0], ranking)]
