"""The section *Whose preferences*: how far groups of labelers agree, and whom the reward model predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt.records import Ranking
from instructgpt.report.inputs import Stage
from instructgpt.report.language import find_message, translate
from instructgpt.report.naming import format_estimate, model_name
from instructgpt.report.results import Results
from instructgpt.report.samples import truncate_text
from instructgpt.report.section import ReportTable, Section
from instructgpt.results import ResultRow
from instructgpt.statistics.group_preferences import (
    MIN_GROUP_SIZE,
    Verdict,
    differing_prompts,
    find_groups,
    judge_difference,
)
from instructgpt.statistics.intervals import Estimate

_GROUP_CONDITION = "group/"
_EVALUATION = "reward_model"
_DIFFERENCE_METRIC = "agreement_within_minus_between_groups"
_PROMPT_CHARACTERS = 200
_WIDEST_INTERVAL = 0.3
"""A share whose interval is wider says nothing about a group."""


def whose_preferences_section(
    results: Results, rankings: Sequence[Ranking], stages: Mapping[str, Stage] | None = None
) -> Section | None:
    """Return the section, or None without numbers of a group.

    Args:
        results: of the run.
        rankings: the run's evaluation rankings.
        stages: of the run; reward models with heads of groups say what these gain.
    """
    rows = [row for row in results.rows(_EVALUATION) if row.condition.startswith(_GROUP_CONDITION)]
    prompts = _prompts_table(rankings)
    heads = [table for stage in (stages or {}).values() if (table := _heads_table(stage))]
    if not rows and prompts is None and not heads:
        return None
    models = list(dict.fromkeys(row.model for row in rows))
    tables = [table for model in models for table in (_model_table(results, rows, model),) if table.rows]
    agreement = _agreement_table(rows, models[0]) if models else None
    return Section(
        id="whose-preferences",
        title=translate("whose.title"),
        headline=_headline(results),
        paper=translate("whose.paper"),
        caption=translate("whose.caption", count=MIN_GROUP_SIZE),
        tables=(*tables, *heads, *([agreement] if agreement else []), *([prompts] if prompts else [])),
    )


def _headline(results: Results) -> str:
    row = next(iter(results.rows(_EVALUATION, _DIFFERENCE_METRIC)), None)
    if row is None or row.value is None:
        return translate("whose.too_few")
    verdict = judge_difference(_to_estimate(row)).replace(" ", "_")
    return translate(f"whose.headline.{verdict}", estimate=format_estimate(row))


def _to_estimate(row: ResultRow) -> Estimate:
    return Estimate(row.value, row.low, row.high, row.n)


def _verdict_name(verdict: Verdict) -> str:
    return translate(f"whose.verdict.{verdict.replace(' ', '_')}")


def _format_share(row: ResultRow | None) -> str:
    if row is None or row.value is None or row.low is None or row.high is None:
        return translate("whose.unsure")
    text = f"{format_estimate(row)}\nn\u00a0{row.n:,}"
    return f"{text}\n{translate('whose.unsure')}" if row.high - row.low > _WIDEST_INTERVAL else text


def _format_difference(row: ResultRow | None) -> str:
    if row is None or row.value is None:
        return "–"
    return f"{format_estimate(row)}\n{_verdict_name(judge_difference(_to_estimate(row)))}"


def _model_table(results: Results, rows: Sequence[ResultRow], model: str) -> ReportTable:
    conditions = [row.condition for row in rows if (row.metric, row.model) == ("pair_accuracy", model)]

    def row_of(metric: str, condition: str) -> ResultRow | None:
        return results.get(_EVALUATION, metric, model, condition)

    return ReportTable(
        translate("whose.predicts_reward_model", model=model_name(model))
        if model == "reward"
        else translate("whose.predicts", model=model_name(model)),
        (
            translate("whose.group"),
            translate("whose.ordered"),
            translate("whose.less_others"),
            translate("whose.opposed"),
        ),
        tuple(
            (
                condition.removeprefix(_GROUP_CONDITION),
                _format_share(row_of("pair_accuracy", condition)),
                _format_difference(row_of("pair_accuracy_minus_other_groups", condition)),
                _format_share(row_of("majority_opposes_model", condition)),
            )
            for condition in conditions
        ),
        (translate("whose.model_note"),),
    )


def _heads_table(stage: Stage) -> ReportTable | None:
    """Return what the groups' heads of a reward model gain on held-out labelers of the group."""
    groups = stage.info.get("groups")
    if not isinstance(groups, Mapping):
        return None
    rows = [
        _head_cells(str(name), entry)
        for name, entry in groups.items()
        if isinstance(entry, Mapping)
        and isinstance(labelers := entry.get("labelers"), int)
        and labelers >= MIN_GROUP_SIZE
    ]
    if not rows:
        return None
    return ReportTable(
        translate("whose.heads", model=model_name(stage.name)),
        (
            translate("whose.group"),
            translate("whose.people"),
            translate("whose.shared_head"),
            translate("whose.group_head"),
            translate("whose.gain"),
            "",
        ),
        tuple(rows),
        (translate("whose.heads_note"),),
    )


def _head_cells(name: str, entry: Mapping[str, Any]) -> tuple[str, ...]:
    shared, conditioned, gain = (_read_estimate(entry.get(key)) for key in ("shared", "conditioned", "gain"))
    verdict = str(entry.get("verdict", ""))
    return (
        name,
        f"{entry['labelers']:,}",
        _format_share(shared),
        _format_share(conditioned),
        "–" if gain.value is None else format_estimate(gain),
        find_message(f"whose.head_verdict.{verdict.replace(' ', '_')}") or verdict,
    )


def _read_estimate(value: Any) -> ResultRow:
    """Read an estimate of `run.json`; one without a number where it is damaged."""
    fields = value if isinstance(value, Mapping) else {}

    def number(name: str) -> float | None:
        return float(fields[name]) if isinstance(fields.get(name), int | float) else None

    count = fields.get("n")
    numbers = (number("value"), number("low"), number("high"), count if isinstance(count, int) else 0)
    return ResultRow(_EVALUATION, "pair_accuracy", "", "", *numbers)


def _agreement_table(rows: Sequence[ResultRow], model: str) -> ReportTable | None:
    selected = [row for row in rows if (row.metric, row.model) == ("labeler_agreement", model)]
    if not selected:
        return None
    cells = tuple((row.condition.removeprefix(_GROUP_CONDITION), _format_share(row)) for row in selected)
    return ReportTable(
        translate("whose.agreement"), (translate("whose.groups"), translate("whose.agreement_share")), cells
    )


def _prompts_table(rankings: Sequence[Ranking]) -> ReportTable | None:
    differences, compared = differing_prompts(rankings, find_groups(rankings))
    if not differences:
        return None
    return ReportTable(
        translate("whose.prompts", count=compared),
        (
            translate("whose.prompt"),
            translate("whose.groups"),
            translate("whose.people"),
            translate("whose.difference"),
            translate("whose.p_value"),
            "",
        ),
        tuple(
            (
                truncate_text(str(item.prompt), _PROMPT_CHARACTERS),
                f"{item.first} ~ {item.second}",
                f"{item.people[0]} ~ {item.people[1]}",
                f"{item.difference:.2f}",
                f"{item.p_value:.3f}",
                _verdict_name(item.verdict),
            )
            for item in differences
        ),
        (translate("whose.prompts_note"),),
    )
