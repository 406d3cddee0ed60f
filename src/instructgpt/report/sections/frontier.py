"""The section on the frontier: what a judge says of every method, and its proxy, over its KL divergence, costs, and
win rates. In the small world the judge knows the truth; on people's rankings it is a second reward model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from instructgpt.formatting import format_short_number, format_si
from instructgpt.report.charts import model_legend
from instructgpt.report.comparison import RunGroup
from instructgpt.report.frontier_means import mean_frontier
from instructgpt.report.language import translate
from instructgpt.report.naming import format_estimate, model_color, model_name, sort_models
from instructgpt.report.section import ReportTable, Section
from instructgpt.report.svg import Curve, render_figure, render_line_panel
from instructgpt.results import ResultRow

_START = "start"
_BEST_OF_N = "best_of_n"
_PROXY = "score"
_CHANCE = 0.5


@dataclass(frozen=True, slots=True)
class _Judge:
    """Who says what answers are worth: columns of the points, and texts of the catalog."""

    measures: tuple[str, ...]  # the first one is drawn over KL, proxy and costs
    win_rates: tuple[str, ...]
    validation: str  # the win rate that chooses each method's best point
    texts: str

    @property
    def measure(self) -> str:
        return self.measures[0]

    def text(self, key: str, **values: object) -> str:
        """Return a text of the catalog that depends on the judge."""
        return translate(f"{self.texts}.{key}", **values)


_WORLD = _Judge(
    ("utility", "heldout"),
    ("win_rate_test_training", "win_rate_test_heldout"),
    "win_rate_validation_training",
    "frontier.world",
)
_REWARD_MODEL = _Judge(("heldout",), ("win_rate_test_heldout",), "win_rate_validation_heldout", "frontier.reward_model")


def compared_frontier_sections(groups: Sequence[RunGroup]) -> list[Section]:
    """Return a section for each group of runs, with means over those of its runs that have a frontier."""
    sections = []
    for number, group in enumerate(groups, start=1):
        runs = [run for run in group.runs if run.frontier]
        points = mean_frontier([run.frontier for run in runs]) if runs else []
        section = frontier_section(points, [row for run in runs for row in run.rows], len(runs))
        if section:
            title = section.title if len(groups) == 1 else f"{section.title}: {group.name}"
            sections.append(replace(section, id=section.id if number == 1 else f"{section.id}-{number}", title=title))
    return sections


def frontier_section(
    points: Sequence[Mapping[str, Any]], rows: Sequence[ResultRow] = (), num_runs: int = 1
) -> Section | None:
    """Return the section, or None without points.

    Args:
        points: of one run, or means over runs.
        rows: results of the runs, for the accuracy of proxy and judge.
        num_runs: number of runs that the points are means over.
    """
    methods = [name for name in sort_models(str(point["method"]) for point in points) if name != _START]
    if not methods:
        return None
    judge = _WORLD if any(point.get(_WORLD.measure) is not None for point in points) else _REWARD_MODEL
    by_method = {name: [point for point in points if point["method"] == name] for name in methods}
    clusters = "frontier.over_prompts" if num_runs == 1 else "frontier.over_runs"
    caption = judge.text("caption", intervals=translate(clusters, count=num_runs))
    if judge is _REWARD_MODEL:
        accuracies = {f"{name}_accuracy": _describe_accuracy(rows, name) for name in ("judge", "reward")}
        caution = judge.text("unproven") + " " if _is_chance(rows) else ""
        caption = f"{judge.text('who', **accuracies)} {caution}{caption}"
    return Section(
        id="frontier",
        title=translate("frontier.title"),
        headline=" ".join(_describe_method(judge, name, by_method[name]) for name in methods),
        paper=translate("frontier.paper"),
        figure=render_figure(_gain_panels(judge, by_method), model_legend(methods)),
        caption=caption,
        extra_figure=render_figure(_cost_panels(judge, by_method), model_legend(methods)),
        tables=(_win_rate_table(judge, by_method), _points_table(judge, points)),
    )


def _find_accuracy(rows: Sequence[ResultRow], model: str) -> list[ResultRow]:
    return [row for row in rows if (row.evaluation, row.metric, row.model) == ("frontier", "pair_accuracy", model)]


def _is_chance(rows: Sequence[ResultRow]) -> bool:
    """Return whether the judge of a run may be no better than a coin."""
    return any(row.low is not None and row.low <= _CHANCE for row in _find_accuracy(rows, "judge"))


def _describe_accuracy(rows: Sequence[ResultRow], model: str) -> str:
    """Return the share of held-out pairs that a reward model orders as people do, of several runs the mean."""
    accuracy = _find_accuracy(rows, model)
    values = [row.value for row in accuracy if row.value is not None]
    if len(accuracy) == 1 or not values:
        return format_estimate(next(iter(accuracy), None))
    return format_estimate(replace(accuracy[0], value=fmean(values), low=None, high=None))


def _gain(point: Mapping[str, Any], measure: str, end: str = "gain") -> float:
    """Return a gain, or an end of its interval, in standard deviations of the start's answers."""
    deviation = float(point.get(f"{measure}_start_sd") or 0) or 1.0
    value = point.get(f"{measure}_{end}")
    return float(point[f"{measure}_gain"] if value is None else value) / deviation


def _gain_curve(method: str, points: Sequence[Mapping[str, Any]], measure: str, x_values: Sequence[float]) -> Curve:
    """Return the curve of a method, from the start, which every method leaves."""
    gains, low, high = ([0.0, *(_gain(p, measure, end) for p in points)] for end in ("gain", "low", "high"))
    x, is_proxy = [0.0, *x_values], measure == _PROXY
    bands: dict[str, Any] = {} if is_proxy else {"low": low, "high": high}
    return Curve(model_name(method), model_color(method), x, gains, dashed=is_proxy, show_markers=True, **bands)


def _gain_panels(judge: _Judge, by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    panels = [
        (judge.text("and_proxy"), (judge.measure, _PROXY), by_method),
        (judge.text("nearby"), (judge.measure,), _up_to_policies(by_method)),
    ]
    panels += [(judge.text("heldout"), (measure,), by_method) for measure in judge.measures[1:]]
    return [
        render_line_panel(
            translate("frontier.over_kl", title=title),
            [
                _gain_curve(name, points, measure, [float(point["sqrt_kl"]) for point in points])
                for measure in measures
                for name, points in points_by_method.items()
            ],
            translate("frontier.kl_axis"),
        )
        for title, measures, points_by_method in panels
    ]


def _up_to_policies(by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Mapping[str, Any]]]:
    """Leave out points of best of n beyond the KL of all trained policies, beside which these crowd together."""
    trained = (point["kl"] for name, points in by_method.items() if name != _BEST_OF_N for point in points)
    limit = max(map(float, trained), default=math.inf)
    return {
        name: [point for point in points if name != _BEST_OF_N or float(point["kl"]) <= limit]
        for name, points in by_method.items()
    }


def _cost_panels(judge: _Judge, by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Draw the judge's measure over the proxy's gain and, as powers of ten, over training FLOPs and FLOPs an answer."""
    panels = [
        render_line_panel(
            judge.text("over_proxy"),
            [
                _gain_curve(name, points, judge.measure, [_gain(point, _PROXY) for point in points])
                for name, points in by_method.items()
            ],
            translate("frontier.gain_axis"),
        )
    ]
    for cost, label in (
        ("training_flops", translate("frontier.training_flops")),
        ("answer_flops", translate("frontier.answer_flops")),
    ):
        curves = [
            Curve(
                model_name(name),
                model_color(name),
                [math.log10(float(point[cost])) for point in points if point[cost] > 0],
                [_gain(point, judge.measure) for point in points if point[cost] > 0],
                show_markers=True,
            )
            for name, points in by_method.items()
        ]
        panels.append(
            render_line_panel(judge.text("over", cost=label), curves, translate("frontier.power_axis", cost=label))
        )
    return panels


def _describe_method(judge: _Judge, method: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Describe whether the judge's measure fell while the method went on."""
    best, last = max(points, key=lambda point: _gain(point, judge.measure)), points[-1]
    name = model_name(method)[:1].upper() + model_name(method)[1:]
    value = format_short_number(_gain(last, judge.measure))
    if best is last:
        return judge.text("still_best", name=name, gain=value)
    is_worse = _gain(last, judge.measure, "high") < _gain(best, judge.measure, "low")
    verdict = translate("over_optimization.worse") if is_worse else translate("over_optimization.within")
    best_value = format_short_number(_gain(best, judge.measure))
    kl = format_short_number(float(best["kl"]))
    return judge.text("peak", name=name, kl=kl, best=best_value, last=value, verdict=verdict)


# --- tables --------------------------------------------------------------------------------------------------------


def _win_rate_table(judge: _Judge, by_method: Mapping[str, Sequence[Mapping[str, Any]]]) -> ReportTable:
    """Compare each method's own best point, chosen on validation prompts, and its point nearest to a common KL."""
    policies = [points[-1] for name, points in by_method.items() if name != _BEST_OF_N]
    common_kl = min((float(point["kl"]) for point in policies), default=0.0)
    rows = []
    for method, points in by_method.items():
        chosen = max(points, key=lambda point: point.get(judge.validation) or 0.0)
        nearest = min(points, key=lambda point: abs(float(point["kl"]) - common_kl))
        for title, point in ((translate("frontier.own_best"), chosen), (translate("frontier.equal_kl"), nearest)):
            cells = (_format_estimate(point, rate) for rate in judge.win_rates)
            rows.append(
                (model_name(method), title, _point_name(point), format_short_number(float(point["kl"])), *cells)
            )
    return ReportTable(
        translate("frontier.win_rates"),
        (*_head("method", "point", "which", "kl"), *(judge.text(f"column.{name}") for name in judge.win_rates)),
        tuple(rows),
        (
            judge.text("own_best_note"),
            translate("frontier.equal_kl_note", kl=format_short_number(common_kl)),
        ),
    )


def _head(*columns: str) -> tuple[str, ...]:
    return tuple(translate(f"frontier.column.{column}") for column in columns)


def _format_estimate(point: Mapping[str, Any], rate: str) -> str:
    numbers = (point.get(rate), point.get(f"{rate}_low"), point.get(f"{rate}_high"))
    return format_estimate(ResultRow("frontier", "win_rate_vs_start", str(point["label"]), "", *numbers, 0))


def _point_name(point: Mapping[str, Any]) -> str:
    label = str(point["label"])
    place = label.partition("@")[2]
    if point.get("n") is not None:
        return label
    return (
        translate("frontier.end")
        if not place
        else translate("frontier.step", step=place)
        if place.isdigit()
        else place.replace("-", " ")
    )


def _points_table(judge: _Judge, points: Sequence[Mapping[str, Any]]) -> ReportTable:
    head = (
        *_head("method", "point", "kl"),
        *(judge.text(f"column.{name}") for name in judge.measures),
        *_head(_PROXY),
        translate("frontier.training_flops"),
        translate("frontier.answer_flops"),
    )
    rows = tuple(
        (
            model_name(str(point["method"])),
            _point_name(point),
            ("≤ " if point.get("kl_is_bound") else "") + format_short_number(float(point["kl"])),
            *(format_short_number(float(point[measure])) for measure in (*judge.measures, _PROXY)),
            *(format_si(float(point[cost])) for cost in ("training_flops", "answer_flops")),
        )
        for point in points
    )
    note = translate("frontier.points_note")
    return ReportTable(translate("frontier.points"), head, rows, (note,))
