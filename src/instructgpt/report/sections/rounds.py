"""The section on rounds: what each round gained, over what it cost, beside one round with as many rankings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt.formatting import format_short_number
from instructgpt.report.charts import size_offsets
from instructgpt.report.language import join_list, translate
from instructgpt.report.naming import (
    condition_name,
    format_estimate,
    format_interval,
    format_metric_value,
    humanize,
    model_name,
)
from instructgpt.report.results import Results
from instructgpt.report.section import ReportTable, Section
from instructgpt.report.svg import Bar, Curve, render_bar_panel, render_figure, render_line_panel
from instructgpt.results import ResultRow

_EVALUATION = "rounds"
_SFT_COLOR, _CONTROL_COLOR = "#3f88c5", "#b58a2c"
_ROUND_COLORS = ("#2a9d6f", "#7b6fc4", "#d9652e", "#b9508a", "#5f9ea0", "#6b8e23", "#a0522d", "#c06c84")
_COHORTS = ("training", "heldout")
_BEST_POLICY = "ppo_ptx"

_UTILITY_ROWS = ("utility", "utility_gain", "utility_minus_sft", "utility_minus_one_round", "words")
_WIN_RATE_ROWS = ("win_rate_vs_sft", "win_rate_vs_previous", "win_rate_vs_one_round")
_COST_ROWS = ("rankings", "total_rankings", "flops", "total_flops")
_GAIN_ROWS = (
    "win_rate_gain_per_1000_rankings",
    "total_win_rate_gain_per_1000_rankings",
    "utility_gain_per_1000_rankings",
    "total_utility_gain_per_1000_rankings",
)


def rounds_section(results: Results, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section | None:
    """Return the section, or None for a run of one round. `curves` are the points of score and truth by round."""
    policies = [model for model in results.models(_EVALUATION) if model.startswith("policy@")]
    if not policies:
        return None
    return Section(
        id="rounds",
        title=translate("rounds.title"),
        headline=_headline(results, policies),
        paper=translate("rounds.paper"),
        figure=render_figure(_result_panels(results, policies), _legend(["sft", *policies])),
        caption=translate("rounds.caption")
        + (
            translate("rounds.caption_control")
            if any(map(_is_control, policies))
            else translate("rounds.caption_no_control")
        ),
        extra_figure=render_figure(_training_panels(results, policies, curves), _legend(policies)),
        tables=(
            *_matrix_tables(results),
            _model_table(results, translate("rounds.win_rates"), policies, _WIN_RATE_ROWS, _COHORTS),
            _model_table(results, translate("rounds.truth_and_length"), ["sft", *policies], _UTILITY_ROWS, ("",)),
            _model_table(results, translate("rounds.cost"), policies, _COST_ROWS, ("",)),
            _gain_table(results, policies),
            _share_table(results, policies),
            _use_case_table(results, policies),
        ),
    )


def round_label(model: str) -> str:
    """Return "round 2" for `policy@round-2` and `reward@round-2`, "one round" for the control's."""
    name = model.partition("@")[2] or model
    if name.startswith("one-round-of-"):
        return translate("rounds.one_round")
    if name == "sft":
        return model_name(name)
    return (
        translate("rounds.round", number=_round_number(name)) if name.startswith("round-") else name.replace("-", " ")
    )


def _is_control(model: str) -> bool:
    return "@one-round-of-" in model


def _round_number(name: str) -> int:
    """Return 2 of `round-2` and `policy@round-2`."""
    return int(name.rpartition("-")[2])


def _color(model: str) -> str:
    if model == "sft":
        return _SFT_COLOR
    return _CONTROL_COLOR if _is_control(model) else _ROUND_COLORS[(_round_number(model) - 1) % len(_ROUND_COLORS)]


def _legend(models: Sequence[str]) -> list[tuple[str, str, bool]]:
    return [(round_label(model), _color(model), _is_control(model)) for model in models]


def _headline(results: Results, policies: Sequence[str]) -> str:
    rounds = [model for model in policies if not _is_control(model)]
    last = rounds[-1]
    parts = [translate("rounds.preferred_to_sft", round=round_label(last), share=_win_rate(results, "sft", last))]
    if len(rounds) > 1:
        parts.append(
            translate(
                "rounds.preferred_to_previous",
                round=round_label(rounds[-2]),
                share=_win_rate(results, "previous", last),
            )
        )
    if versus := results.get(_EVALUATION, "win_rate_vs_one_round", last, "training"):
        parts.append(translate("rounds.preferred_to_control", share=format_estimate(versus)))
    sentence = join_list(parts) + "."
    for metric, compared in (
        ("utility_gain", translate("rounds.before")),
        ("utility_minus_one_round", translate("rounds.one_round")),
    ):
        row = results.get(_EVALUATION, metric, last)
        if row is not None and row.low is not None and row.high is not None:
            verdict = (
                translate("rounds.more")
                if row.low > 0
                else translate("rounds.less")
                if row.high < 0
                else translate("rounds.unsure")
            )
            sentence += translate("rounds.utility", compared=compared, gain=_number(row), verdict=verdict)
    return sentence


def _win_rate(results: Results, baseline: str, model: str) -> str:
    return format_estimate(results.get(_EVALUATION, f"win_rate_vs_{baseline}", model, "training"))


# --- figures -----------------------------------------------------------------------------------------------------


def _result_panels(results: Results, policies: Sequence[str]) -> list[str]:
    panels = []
    for metric, title in (
        ("win_rate_vs_sft", translate("rounds.panel.win_rate_vs_sft")),
        ("win_rate_vs_previous", translate("rounds.panel.win_rate_vs_previous")),
    ):
        for cohort in _COHORTS:
            bars = _bars(results, metric, policies, cohort)
            if bars:
                panels.append(
                    render_bar_panel(
                        f"{title}, {condition_name(cohort)}", bars, metric=metric, limits=(0, 1), reference_line=0.5
                    )
                )
    for metric, title in (("utility", translate("rounds.panel.utility")), ("words", translate("rounds.panel.words"))):
        if bars := _bars(results, metric, ["sft", *policies], ""):
            ends = [end for bar in bars for end in (bar.low, bar.high, bar.value) if end is not None]
            start = 0.0 if metric == "words" else min(ends) - 0.1
            panels.append(render_bar_panel(title, bars, metric="rating", limits=(start, max([*ends, start + 1e-9]))))
    return panels


def _bars(results: Results, metric: str, models: Sequence[str], condition: str) -> list[Bar]:
    rows = [(model, results.get(_EVALUATION, metric, model, condition)) for model in models]
    return [
        Bar(round_label(model), _color(model), row.value, row.low, row.high) for model, row in rows if row is not None
    ]


def _training_panels(
    results: Results, policies: Sequence[str], curves: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    panels = []
    for cohort in _COHORTS:
        matrix = _matrix(results, cohort)
        numbers = sorted({_round_number(name) for by_round in matrix.values() for name in by_round})
        offsets = dict(zip(matrix, size_offsets(numbers, len(matrix)) if len(numbers) > 1 else [1.0], strict=False))
        accuracy_curves = []
        for model, by_round in matrix.items():
            x = [offsets.get(model, 1.0) * _round_number(name) for name in by_round]
            rows = list(by_round.values())
            y, low, high = ([getattr(row, end) for row in rows] for end in ("value", "low", "high"))
            has_interval = None not in (*low, *high)
            accuracy_curves.append(
                Curve(
                    round_label(model),
                    _color(model),
                    x,
                    y,
                    low if has_interval else None,
                    high if has_interval else None,
                    dashed=_is_control(model),
                    show_markers=True,
                )
            )
        if accuracy_curves:
            title = translate("rounds.panel.by_rankings", cohort=condition_name(cohort))
            panels.append(
                render_line_panel(
                    title, accuracy_curves, translate("rounds.panel.round_axis"), sizes=numbers, metric="pair_accuracy"
                )
            )
    for metric, title in (("score", translate("rounds.panel.score")), ("utility", translate("rounds.panel.utility"))):
        kl_curves = [curve for model in policies if (curve := _kl_curve(model, metric, curves))]
        if kl_curves:
            panels.append(
                render_line_panel(
                    translate("rounds.panel.over_kl", title=title), kl_curves, translate("rounds.panel.kl_axis")
                )
            )
    return panels


def _kl_curve(model: str, metric: str, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Curve | None:
    points = [
        point
        for point in curves.get(model.partition("@")[2], ())
        if point.get("model") == _BEST_POLICY and point.get("kl") is not None and point.get(metric) is not None
    ]
    points.sort(key=lambda point: point.get("step") or 0)
    if not points:
        return None
    x, y = ([float(point[name]) for point in points] for name in ("kl", metric))
    return Curve(round_label(model), _color(model), x, y, dashed=_is_control(model), show_markers=len(x) < 30)


# --- tables ------------------------------------------------------------------------------------------------------


def _matrix(results: Results, cohort: str) -> dict[str, dict[str, ResultRow]]:
    """Return the accuracy of each reward model on the validation rankings of each round."""
    matrix: dict[str, dict[str, ResultRow]] = {}
    for row in results.rows(_EVALUATION, "pair_accuracy"):
        row_cohort, _, name = row.condition.partition("/")
        if row_cohort == cohort and row.value is not None:
            matrix.setdefault(row.model, {})[name] = row
    return matrix


def _matrix_tables(results: Results) -> list[ReportTable]:
    tables = []
    for cohort in _COHORTS:
        matrix = _matrix(results, cohort)
        names = list(dict.fromkeys(name for by_round in matrix.values() for name in by_round))
        rows = tuple(
            (
                translate("rounds.reward_model_of", round=round_label(model)),
                *(format_estimate(by_round.get(name)) for name in names),
            )
            for model, by_round in matrix.items()
        )
        tables.append(
            ReportTable(
                translate("rounds.matrix", cohort=condition_name(cohort)),
                ("", *(translate("rounds.rankings_of", round=round_label(name)) for name in names)),
                rows,
                (translate("rounds.matrix_note"),),
            )
        )
    return tables


def _number(row: ResultRow | None) -> str:
    """Format a number that is no share."""
    if row is None or row.value is None:
        return "–"
    bounds = [format_short_number(end) if end is not None else "" for end in (row.low, row.high)]
    return format_short_number(row.value) + (f" [{bounds[0]},\u00a0{bounds[1]}]" if any(bounds) else "")


def _cell(row: ResultRow | None) -> str:
    if row is None or row.value is None:
        return "–"
    if row.metric.endswith("rankings") and row.low is None:
        return f"{row.value:,.0f}"
    if row.metric.startswith("win_rate_vs_"):
        return f"{format_metric_value(row.value, row.metric)} {format_interval(row)}".strip()
    return _number(row)


def _model_table(
    results: Results, title: str, models: Sequence[str], metrics: Sequence[str], conditions: Sequence[str]
) -> ReportTable:
    rows = tuple(
        (
            join_list(part for part in (translate(f"rounds.row.{metric}"), condition_name(condition)) if part),
            *(_cell(results.get(_EVALUATION, metric, model, condition)) for model in models),
        )
        for metric in metrics
        for condition in conditions
        if results.rows(_EVALUATION, metric, condition)
    )
    return ReportTable(title, ("", *map(round_label, models)), rows)


def _gain_table(results: Results, policies: Sequence[str]) -> ReportTable:
    table_rows = []
    for metric in _GAIN_ROWS:
        for unit, unit_name in (
            ("1000_rankings", translate("rounds.rankings_unit")),
            ("teraflop", translate("rounds.flops_unit")),
        ):
            unit_metric = metric.replace("1000_rankings", unit)
            cells = []
            for model in policies:
                rows = [row for row in results.rows(_EVALUATION, unit_metric) if row.model == model]
                cells.append(_number(rows[0]) if rows else "–")
            if any(cell != "–" for cell in cells):
                table_rows.append(
                    (translate("rounds.gain_per", name=translate(f"rounds.row.{metric}"), unit=unit_name), *cells)
                )
    notes = (translate("rounds.gain_note"),)
    return ReportTable(translate("rounds.gain"), ("", *map(round_label, policies)), tuple(table_rows), notes)


def _share_table(results: Results, policies: Sequence[str]) -> ReportTable:
    sources = results.conditions(_EVALUATION, "completions_share")
    rows = tuple(
        (
            _source_label(source),
            *(
                format_estimate(row) if (row := results.get(_EVALUATION, "completions_share", model, source)) else "–"
                for model in policies
            ),
        )
        for source in sources
    )
    note = translate("rounds.share_note")
    return ReportTable(translate("rounds.share"), ("", *map(round_label, policies)), rows, (note,))


def _source_label(source: str) -> str:
    if source.startswith("policy@"):
        return translate("rounds.policy_of", round=round_label(source))
    return model_name(source)


def _use_case_table(results: Results, policies: Sequence[str]) -> ReportTable:
    """Return true utility by use case, or without it win rates: a fall from one round to the next is forgetting."""
    models = ["sft", *policies]
    conditions = [condition for condition in results.conditions(_EVALUATION, "utility") if condition]
    metric, prefix = "utility", ""
    if not conditions:
        metric, prefix = "win_rate_vs_sft", "training/"
        conditions = [name for name in results.conditions(_EVALUATION, metric) if name.startswith(prefix)]
    last = [model for model in policies if not _is_control(model)][-1]
    rows = []
    for condition in conditions:
        gain = results.get(_EVALUATION, "utility_gain", last, condition) or results.get(
            _EVALUATION, "win_rate_vs_previous", last, condition
        )
        cells = [_cell(results.get(_EVALUATION, metric, model, condition)) for model in models]
        rows.append((humanize(condition.removeprefix(prefix)), *cells, _cell(gain)))
    last_column = translate("rounds.against_before", round=round_label(last))
    title = translate("rounds.utility_by_use_case") if metric == "utility" else translate("rounds.win_rate_by_use_case")
    return ReportTable(title, ("", *map(round_label, models), last_column), tuple(rows), dense=True)
