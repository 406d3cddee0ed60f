"""The section *Whose preferences*: how far groups of labelers agree, and whom the reward model predicts."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.records import Ranking
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
_HEADLINES: dict[Verdict, str] = {
    "differ": "Groups differ: people of one group agree {estimate} more with each other than with other groups.",
    "alike": "Groups are alike: people agree with each other as often within groups as between them ({estimate}).",
    "cannot tell": "Cannot tell whether groups differ: agreement within groups less between them is {estimate}.",
}
_CANNOT_TELL = "Cannot tell whether groups differ: too few people of different groups judged the same prompts."


def whose_preferences_section(results: Results, rankings: Sequence[Ranking]) -> Section | None:
    """Return the section, or None without numbers of a group. `rankings` are the run's evaluation rankings."""
    rows = [row for row in results.rows(_EVALUATION) if row.condition.startswith(_GROUP_CONDITION)]
    prompts = _prompts_table(rankings)
    if not rows and prompts is None:
        return None
    models = list(dict.fromkeys(row.model for row in rows))
    tables = [table for model in models for table in (_model_table(results, rows, model),) if table.rows]
    agreement = _agreement_table(rows, models[0]) if models else None
    return Section(
        id="whose-preferences",
        title="Whose preferences",
        headline=_headline(results),
        paper="the model is aligned to a few dozen labelers, not to everybody it affects; it may be better to have "
        "models that can be conditioned on the preferences of certain groups (section 5.2). It reports no groups.",
        caption=f"Groups are what labelers declared. At least {MIN_GROUP_SIZE} people stand behind every number; smaller "
        "groups are left out. “Cannot tell” marks an interval that is too wide to say anything.",
        tables=(*tables, *([agreement] if agreement else []), *([prompts] if prompts else [])),
    )


def _headline(results: Results) -> str:
    row = next(iter(results.rows(_EVALUATION, _DIFFERENCE_METRIC)), None)
    if row is None or row.value is None:
        return _CANNOT_TELL
    return _HEADLINES[judge_difference(_to_estimate(row))].format(estimate=format_estimate(row))


def _to_estimate(row: ResultRow) -> Estimate:
    return Estimate(row.value, row.low, row.high, row.n)


def _format_share(row: ResultRow | None) -> str:
    if row is None or row.value is None or row.low is None or row.high is None:
        return "cannot tell"
    text = f"{format_estimate(row)}\nn\u00a0{row.n:,}"
    return f"{text}\ncannot tell" if row.high - row.low > _WIDEST_INTERVAL else text


def _format_difference(row: ResultRow | None) -> str:
    if row is None or row.value is None:
        return "–"
    return f"{format_estimate(row)}\n{judge_difference(_to_estimate(row))}"


def _model_table(results: Results, rows: Sequence[ResultRow], model: str) -> ReportTable:
    conditions = [row.condition for row in rows if (row.metric, row.model) == ("pair_accuracy", model)]

    def row_of(metric: str, condition: str) -> ResultRow | None:
        return results.get(_EVALUATION, metric, model, condition)

    return ReportTable(
        f"Whom the {model_name(model)} predicts" if model == "reward" else f"Whom {model_name(model)} predicts",
        ("group", "pairs it orders as the labeler does", "less the other groups", "pairs whose majority opposes it"),
        tuple(
            (
                condition.removeprefix(_GROUP_CONDITION),
                _format_share(row_of("pair_accuracy", condition)),
                _format_difference(row_of("pair_accuracy_minus_other_groups", condition)),
                _format_share(row_of("majority_opposes_model", condition)),
            )
            for condition in conditions
        ),
        ("Held-out labelers where there are any. A majority needs three people of the group who decided the pair.",),
    )


def _agreement_table(rows: Sequence[ResultRow], model: str) -> ReportTable | None:
    selected = [row for row in rows if (row.metric, row.model) == ("labeler_agreement", model)]
    if not selected:
        return None
    cells = tuple((row.condition.removeprefix(_GROUP_CONDITION), _format_share(row)) for row in selected)
    return ReportTable("Two people agree on a pair", ("groups", "share of pairs that both decided"), cells)


def _prompts_table(rankings: Sequence[Ranking]) -> ReportTable | None:
    differences, compared = differing_prompts(rankings, find_groups(rankings))
    if not differences:
        return None
    return ReportTable(
        f"Prompts on which groups differ most, of {compared} compared",
        ("prompt", "groups", "people", "difference", "p, corrected", ""),
        tuple(
            (
                truncate_text(str(item.prompt), _PROMPT_CHARACTERS),
                f"{item.first} ~ {item.second}",
                f"{item.people[0]} ~ {item.people[1]}",
                f"{item.difference:.2f}",
                f"{item.p_value:.3f}",
                item.verdict,
            )
            for item in differences
        ),
        ("Difference: disagreement of two people of different groups less that of two people of the same group.",),
    )
