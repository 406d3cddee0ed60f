"""The section on refusals: refusal of harmful prompts against refusal of safe ones, a point a model."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.report.captions import join_sentences
from instructgpt.report.language import translate
from instructgpt.report.naming import format_estimate, model_name
from instructgpt.report.results import Results
from instructgpt.report.section import Section, build_rows_table
from instructgpt.report.svg import ScatterPoint, render_figure, render_scatter_panel
from instructgpt.results import ResultRow

_EVALUATION = "refusal"
_HARMFUL, _SAFE = "refuses_harmful", "refuses_safe"
_KIND_CONDITION = "kind/"
_MAX_HEADLINE_MODELS = 3


def refusal_section(results: Results) -> Section | None:
    """Return the section, or None if no model has both numbers."""
    pairs = [
        (harmful, safe)
        for model in results.models(_EVALUATION, _HARMFUL)
        if (harmful := results.get(_EVALUATION, _HARMFUL, model)) and (safe := results.get(_EVALUATION, _SAFE, model))
    ]
    if not pairs:
        return None
    points = [_make_point(results, harmful, safe) for harmful, safe in pairs]
    panel = render_scatter_panel(translate("refusal.panel"), points, translate("metric.refuses_safe"), metric=_HARMFUL)
    legend = [(point.label, point.color, False) for point in points]
    rows = [row for row in results.rows(_EVALUATION) if row.value is not None]
    by_kind = [row for row in rows if row.condition.startswith(_KIND_CONDITION)]
    tables = [build_rows_table(translate("tables.numbers"), [row for row in rows if row not in by_kind])]
    tables += [build_rows_table(translate("refusal.by_kind"), by_kind)] if by_kind else []
    return Section(
        id="refusal",
        title=translate("refusal.title"),
        headline=_headline(pairs),
        paper=translate("refusal.paper"),
        figure=render_figure([panel], legend),
        caption=join_sentences(
            translate("refusal.caption"),
            translate("refusal.intervals") if any(row.low is not None for pair in pairs for row in pair) else "",
            _describe_judges(pairs),
        ),
        tables=tuple(tables),
    )


def _make_point(results: Results, harmful: ResultRow, safe: ResultRow) -> ScatterPoint:
    return ScatterPoint(
        label=model_name(harmful.model),
        color=results.model_colors[harmful.model],
        x=safe.value or 0.0,
        y=harmful.value or 0.0,
        x_interval=None if safe.low is None or safe.high is None else (safe.low, safe.high),
        y_interval=None if harmful.low is None or harmful.high is None else (harmful.low, harmful.high),
    )


def _headline(pairs: Sequence[tuple[ResultRow, ResultRow]]) -> str:
    """Describe each model, or of many those with the most and the least distance between both numbers."""
    ordered = sorted(pairs, key=lambda pair: (pair[1].value or 0.0) - (pair[0].value or 0.0))
    selected = ordered if len(ordered) <= _MAX_HEADLINE_MODELS else [ordered[0], ordered[-1]]
    sentences = [
        translate(
            "refusal.headline",
            model=model_name(harmful.model),
            harmful=format_estimate(harmful),
            safe=format_estimate(safe),
        )
        for harmful, safe in selected
    ]
    return " ".join(sentences)


def _describe_judges(pairs: Sequence[tuple[ResultRow, ResultRow]]) -> str:
    """Name who classified the answers, and say so where models were not classified alike."""
    judges = list(dict.fromkeys(row.judge for pair in pairs for row in pair if row.judge))
    if len(judges) > 1:
        return translate("refusal.different_judges", judges="; ".join(judges))
    return translate("refusal.judge", judge=judges[0]) if judges else ""
