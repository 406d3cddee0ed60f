"""Answers labeled as refusals (XSTest): rankings in which refusing is right for harmful prompts, wrong for safe ones.

These are RewardBench's kind of safety pairs. A partial refusal is neither right nor wrong, and is left out.
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
    raise_column_error,
)
from instructgpt.data.refusal_labels import (
    FULL_REFUSAL,
    NO_CLASS,
    PARTIAL_REFUSAL,
    REFUSAL_CLASSES,
    answers_harmful_prompt,
    parse_refusal_class,
)
from instructgpt.records import Demonstration, PromptFields, Record

_SHOULD_REFUSE, _SHOULD_RESPOND = "should-refuse", "should-respond"
"""Subsets of the rankings, by which `evaluate reward_model` reports."""
_PARTIAL = "a partial refusal, neither right nor wrong"
_ALL_ALIKE = "an answer to a prompt without both a refusal and an answer"
_CONTRADICTION = "an answer labeled both refusal and compliance"


@dataclass(frozen=True)
class LabeledRefusal:
    """One row: an answer and whether it does what it should."""

    answer: Demonstration
    model: str | None
    is_harmful: bool
    refusal: str
    extra: DatasetRow

    @property
    def is_right(self) -> bool:
        return (self.refusal == FULL_REFUSAL) == self.is_harmful


def is_labeled_refusal(row: DatasetRow) -> bool:
    """Return whether a row has the columns, and a label that is a class of refusals."""
    has_answer = {"prompt", "completion", "model", "label"} <= row.keys()
    has_prompt_label = not row.keys().isdisjoint({"type", "prompt_label"})
    return has_answer and has_prompt_label and parse_refusal_class(row["label"]) != NO_CLASS


def from_labeled_refusal(row: DatasetRow, context: RowContext) -> list[LabeledRefusal]:
    """XSTest's `prompt`, `completion`, `model`, `type` (or `prompt_label`) and `label`."""
    check_not_null(row, "label")
    refusal, model = parse_refusal_class(row.get("label")), row.get("model")
    if refusal == NO_CLASS:
        raise_column_error("label", " or ".join(REFUSAL_CLASSES), row.get("label"))
    if model is not None and not isinstance(model, str):
        raise_column_error("model", "text", model)
    is_harmful = answers_harmful_prompt(row)
    (answer,) = make_demonstration(parse_prompt(row), parse_completion(row, "completion"), context)
    assert isinstance(answer, Demonstration)
    return [LabeledRefusal(answer, model, is_harmful, REFUSAL_CLASSES[refusal], context.extra)]


def assemble_refusals(rows: Sequence[LocatedItem[LabeledRefusal]], report: DropReport) -> list[LocatedItem[Record]]:
    """Return a ranking for each prompt that has both a right answer, rank 1, and a wrong one, rank 2."""
    items = report.filter(list(rows), [_PARTIAL if row.refusal == PARTIAL_REFUSAL else None for _, row in rows])
    groups: dict[tuple[PromptFields, bool], list[LocatedItem[LabeledRefusal]]] = {}
    for location, row in items:
        groups.setdefault((row.answer.bare_prompt, row.is_harmful), []).append((location, row))
    return [record for group in groups.values() for record in _assemble_prompt(group, report)]


def _assemble_prompt(group: list[LocatedItem[LabeledRefusal]], report: DropReport) -> list[LocatedItem[Record]]:
    verdicts: dict[str, set[bool]] = {}
    for _, row in group:
        verdicts.setdefault(row.answer.completion, set()).add(row.is_right)
    problems = [_CONTRADICTION if len(verdicts[row.answer.completion]) > 1 else None for _, row in group]
    group = report.filter(group, problems)
    if len({row.is_right for _, row in group}) < 2:
        report.filter(group, [_ALL_ALIKE] * len(group))
        return []
    location, first = group[0]
    subset = _SHOULD_REFUSE if first.is_harmful else _SHOULD_RESPOND
    additions: dict[str, object] = {"subset": subset, "source": subset}
    if all(row.model for _, row in group):
        additions["models"] = [row.model for _, row in group]
    (ranking,) = make_ranking(
        first.answer.messages or first.answer.prompt or "",
        [row.answer.completion for _, row in group],
        [1 if row.is_right else 2 for _, row in group],
        RowContext(common_columns([row.extra for _, row in group]), split_transcripts=False),
        **additions,
    )
    report.count_records(rows=len(group), records=1)
    return [(location, ranking)]
