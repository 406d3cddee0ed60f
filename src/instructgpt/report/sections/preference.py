"""Sections of `evaluate preference` and `evaluate reward_model`: length control, strengths, judges, reliability."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.report.captions import describe_intervals, join_sentences
from instructgpt.report.findings import Finding
from instructgpt.report.language import join_list, translate
from instructgpt.report.naming import condition_name, format_estimate, metric_name, model_color, model_name, sort_models
from instructgpt.report.results import Results
from instructgpt.report.section import Section, build_rows_table
from instructgpt.report.svg import Bar, Curve, render_bar_panel, render_figure, render_line_panel
from instructgpt.results import ResultRow

_LENGTH_CONTROLLED_PREFIX = "length_controlled_win_rate_vs_"
_JUDGE_METRICS = (
    "position_consistency",
    "first_shown_wins",
    "unparsable",
    "unanswered",
    "win_probability",
    "verdict_mass",
    "judge_agreement",
)
BUCKET_PREFIXES = ("length/", "agreement/")
_GRAY = model_color("base")


def length_controlled_section(results: Results, findings: Sequence[Finding]) -> Section | None:  # noqa: ARG001
    """Win rates at equal completion length beside the plain ones, and the Bradley-Terry scale;
    a panel for each judge.
    """
    rows = [row for row in results.rows("preference") if row.metric.startswith(_LENGTH_CONTROLLED_PREFIX)]
    if not rows:
        return None
    panels = []
    for metric, condition in dict.fromkeys((row.metric, row.condition) for row in rows):
        plain_metric = metric.removeprefix("length_controlled_")
        metric_bars = []
        for model in sort_models(row.model for row in rows if (row.metric, row.condition) == (metric, condition)):
            for name, color, row in (
                (model_name(model), model_color(model), results.get("preference", metric, model, condition)),
                (
                    translate("equal_length.as_they_are"),
                    _GRAY,
                    results.get("preference", plain_metric, model, condition),
                ),
            ):
                if row is not None:
                    metric_bars.append(Bar(name, color, row.value, row.low, row.high))
        title = translate("equal_length.against", name=model_name(plain_metric.removeprefix("win_rate_vs_"))) + (
            f", {condition_name(condition)}" if condition else ""
        )
        panels.append(render_bar_panel(title, metric_bars, metric=plain_metric, limits=(0, 1), reference_line=0.5))
    best_row = max((row for row in rows if row.value is not None), key=lambda row: row.value or 0.0, default=None)
    strength_rows = [row for row in results.rows("preference", "bradley_terry") if row.value is not None]
    judge_rows = [
        row for row in results.rows("preference") if row.metric in ("tie_rate", "length_difference", *_JUDGE_METRICS)
    ]
    return Section(
        id="equal-length",
        title=translate("equal_length.title"),
        headline=translate("equal_length.headline", model=model_name(best_row.model), share=format_estimate(best_row))
        if best_row
        else translate("equal_length.fallback"),
        figure=render_figure(panels),
        caption=join_sentences(
            translate("equal_length.caption"),
            describe_intervals(rows, "prompts"),
        ),
        tables=tuple(
            build_rows_table(title, table_rows)
            for title, table_rows in (
                (translate("equal_length.strengths"), strength_rows),
                (translate("equal_length.judge"), judge_rows),
            )
            if table_rows
        ),
    )


def reliability_section(results: Results, findings: Sequence[Finding]) -> Section | None:  # noqa: ARG001
    """Reliability of every reward model, its accuracy by length and labeler agreement, and RewardBench's scores."""
    bins = [row for row in results.rows("reward_model", "right") if row.condition.startswith("bin/")]
    if not bins:
        return None
    panels = [
        _reliability_panel(results, model, [row for row in bins if row.model == model])
        for model in sort_models(row.model for row in bins)
    ]
    temperature_rows = [row for row in results.rows("reward_model", "temperature") if row.value is not None]
    temperatures = [
        f"{model_name(row.model)} {format_estimate(row)}"
        + (f" ({condition_name(row.condition)})" if row.condition else "")
        for row in temperature_rows
    ]
    bucket_rows = [row for row in results.rows("reward_model") if row.condition.startswith(BUCKET_PREFIXES)]
    return Section(
        id="reliability",
        title=translate("reliability.title"),
        headline=translate("reliability.headline", temperatures=join_list(temperatures))
        if temperatures
        else translate("reliability.fallback"),
        figure=render_figure(
            panels,
            [
                (translate("reliability.the_model"), model_color("reward"), False),
                (translate("reliability.were_it_right"), _GRAY, True),
            ],
        ),
        caption=translate("reliability.caption"),
        tables=tuple(
            build_rows_table(title, table_rows)
            for title, table_rows in (
                (translate("reliability.buckets"), bucket_rows),
                ("RewardBench", results.rows("reward_bench")),
                ("RewardBench 2", results.rows("reward_bench_2")),
            )
            if table_rows
        ),
    )


def _reliability_panel(results: Results, model: str, accuracy_rows: Sequence[ResultRow]) -> str:
    points: list[tuple[float, float, float, float]] = []
    for row in accuracy_rows:
        confidence_row = results.get("reward_model", "confidence", model, row.condition)
        if confidence_row is not None and confidence_row.value is not None and row.value is not None:
            low, high = (row.value if end is None else end for end in (row.low, row.high))
            points.append((confidence_row.value, row.value, low, high))
    x, y, lows, highs = ([point[part] for point in sorted(points)] for part in range(4))
    diagonal = [0.5, max([0.5, *x])]
    reliability_curves = [
        Curve(metric_name("right"), model_color("reward"), x, y, lows, highs, show_markers=True),
        Curve("", _GRAY, diagonal, diagonal, dashed=True),
    ]
    return render_line_panel(
        model_name(model),
        reliability_curves,
        translate("reliability.confidence"),
        metric="right",
        x_metric="confidence",
    )
