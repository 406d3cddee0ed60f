"""The section on refusals: refusal of harmful prompts against refusal of safe ones, a point a model.

Where refusing is a setting, a second panel shows the models with the list of forbidden uses before the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from instructgpt.report.captions import join_sentences
from instructgpt.report.language import translate
from instructgpt.report.naming import format_estimate, model_name, sort_models
from instructgpt.report.results import Results
from instructgpt.report.section import Section, build_rows_table
from instructgpt.report.svg import ScatterPoint, render_figure, render_scatter_panel
from instructgpt.results import ResultRow

_EVALUATION = "refusal"
_HARMFUL, _SAFE = "refuses_harmful", "refuses_safe"
_KIND_CONDITION = "kind/"
_WITH_LIST = "with_list"
_MAX_HEADLINE_MODELS = 3


@dataclass(frozen=True, slots=True)
class _Pair:
    """Both shares of one model under one condition."""

    harmful: ResultRow
    safe: ResultRow

    @property
    def distance(self) -> float:
        return (self.harmful.value or 0.0) - (self.safe.value or 0.0)

    @property
    def has_intervals(self) -> bool:
        return self.harmful.low is not None or self.safe.low is not None


def refusal_section(results: Results) -> Section | None:
    """Return the section, or None if no model has both numbers."""
    plain, listed = _read_pairs(results, ""), _read_pairs(results, _WITH_LIST)
    pairs = [*plain, *listed]
    if not pairs:
        return None
    panels = [
        render_scatter_panel(
            _panel_title(condition, has_list=bool(listed)),
            [_make_point(results, pair) for pair in of_condition],
            translate("metric.refuses_safe"),
            metric=_HARMFUL,
        )
        for condition, of_condition in (("", plain), (_WITH_LIST, listed))
        if of_condition
    ]
    legend = [
        (model_name(model), results.model_colors[model], False)
        for model in sort_models(pair.harmful.model for pair in pairs)
    ]
    rows = [row for row in results.rows(_EVALUATION) if row.value is not None]
    by_kind = [row for row in rows if row.condition.startswith(_KIND_CONDITION)]
    tables = [build_rows_table(translate("tables.numbers"), [row for row in rows if row not in by_kind])]
    tables += [build_rows_table(translate("refusal.by_kind"), by_kind)] if by_kind else []
    return Section(
        id="refusal",
        title=translate("refusal.title"),
        headline=_describe_setting(plain, listed) or _headline(plain or listed),
        paper=translate("refusal.paper"),
        figure=render_figure(panels, legend),
        caption=join_sentences(
            translate("refusal.caption"),
            translate("refusal.list_caption") if listed else "",
            translate("refusal.intervals") if any(pair.has_intervals for pair in pairs) else "",
            _describe_judges(pairs),
        ),
        tables=tuple(tables),
    )


def _read_pairs(results: Results, condition: str) -> list[_Pair]:
    return [
        _Pair(harmful, safe)
        for model in results.models(_EVALUATION, _HARMFUL)
        if (harmful := results.get(_EVALUATION, _HARMFUL, model, condition))
        and (safe := results.get(_EVALUATION, _SAFE, model, condition))
    ]


def _panel_title(condition: str, *, has_list: bool) -> str:
    if not has_list:
        return translate("refusal.panel")
    return translate("refusal.panel_with_list" if condition else "refusal.panel_without_list")


def _make_point(results: Results, pair: _Pair) -> ScatterPoint:
    harmful, safe = pair.harmful, pair.safe
    return ScatterPoint(
        label=model_name(harmful.model),
        color=results.model_colors[harmful.model],
        x=safe.value or 0.0,
        y=harmful.value or 0.0,
        x_interval=None if safe.low is None or safe.high is None else (safe.low, safe.high),
        y_interval=None if harmful.low is None or harmful.high is None else (harmful.low, harmful.high),
    )


def _describe_setting(plain: Sequence[_Pair], listed: Sequence[_Pair]) -> str:
    """Describe what the list changes for the model that it changes most; empty where no model has both."""
    plain_pairs = {pair.harmful.model: pair for pair in plain}
    models = [(plain_pairs[pair.harmful.model], pair) for pair in listed if pair.harmful.model in plain_pairs]
    if not models:
        return ""
    unlisted, with_list = max(models, key=lambda pairs: pairs[1].distance - pairs[0].distance)
    return translate(
        "refusal.setting_headline",
        model=model_name(with_list.harmful.model),
        harmful=format_estimate(with_list.harmful),
        safe=format_estimate(with_list.safe),
        plain_harmful=format_estimate(unlisted.harmful),
        plain_safe=format_estimate(unlisted.safe),
    )


def _headline(pairs: Sequence[_Pair]) -> str:
    """Describe each model, or of many those with the most and the least distance between both numbers."""
    ordered = sorted(pairs, key=lambda pair: -pair.distance)
    selected = ordered if len(ordered) <= _MAX_HEADLINE_MODELS else [ordered[0], ordered[-1]]
    sentences = [
        translate(
            "refusal.headline",
            model=model_name(pair.harmful.model),
            harmful=format_estimate(pair.harmful),
            safe=format_estimate(pair.safe),
        )
        for pair in selected
    ]
    return " ".join(sentences)


def _describe_judges(pairs: Sequence[_Pair]) -> str:
    """Name who classified the answers, and say so where models were not classified alike."""
    judges = list(dict.fromkeys(row.judge for pair in pairs for row in (pair.harmful, pair.safe) if row.judge))
    if len(judges) > 1:
        return translate("refusal.different_judges", judges="; ".join(judges))
    return translate("refusal.judge", judge=judges[0]) if judges else ""
