"""What `evaluate preference` and `evaluate reward_model` add to the report: length control, strengths, judges, reliability."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.evaluate.aggregate import Row
from instructgpt.report.findings import Finding
from instructgpt.report.naming import colour, condition_name, in_order, measured, metric_name, model_name
from instructgpt.report.results import Results
from instructgpt.report.section import Section, table_of
from instructgpt.report.svg import Bar, Line, bars, figure, lines

CONTROLLED = "length_controlled_win_rate_vs_"
JUDGES = ("position_consistency", "first_shown_wins", "unparsable", "unanswered", "win_probability", "verdict_mass", "judge_agreement")
BUCKETS = ("length/", "agreement/")
GRAY = colour("base")


def at_equal_length(results: Results, findings: Sequence[Finding]) -> Section | None:  # noqa: ARG001
    """Win rates if completions were equally long, beside the plain ones, and the Bradley-Terry scale; a panel for each judge."""
    rows = [row for row in results.rows("preference") if row.metric.startswith(CONTROLLED)]
    if not rows:
        return None
    panels = []
    for metric, condition in dict.fromkeys((row.metric, row.condition) for row in rows):
        plain = metric.removeprefix("length_controlled_")
        entries = []
        for model in in_order(row.model for row in rows if (row.metric, row.condition) == (metric, condition)):
            for name, shade, row in (
                (model_name(model), colour(model), results.get("preference", metric, model, condition)),
                ("as they are", GRAY, results.get("preference", plain, model, condition)),
            ):
                if row is not None:
                    entries.append(Bar(name, shade, row.value, row.low, row.high))
        title = f"Against {model_name(plain.removeprefix('win_rate_vs_'))}" + (f", {condition_name(condition)}" if condition else "")
        panels.append(bars(title, entries, metric=plain, limits=(0, 1), mark=0.5))
    best = max((row for row in rows if row.value is not None), key=lambda row: row.value or 0.0, default=None)
    scale = [row for row in results.rows("preference", "bradley_terry") if row.value is not None]
    more = [row for row in results.rows("preference") if row.metric in ("tie_rate", "length_difference", *JUDGES)]
    return Section(
        id="equal-length",
        title="Preference at equal length",
        headline=f"If completions were equally long, {model_name(best.model)} would be preferred {measured(best)} of the time."
        if best
        else "Nearly all comparisons went one way: no rate at equal length.",
        figure=figure(panels),
        caption="Coloured: the win rate that a logistic regression gives at equal length; gray: as it is. Labelers and judges favour "
        "length, and a better completion may be longer because it is better.",
        tables=tuple(
            table_of(title, some)
            for title, some in (("Strengths: 400 points are odds of ten to one", scale), ("Ties, length, and the judge itself", more))
            if some
        ),
    )


def reliability(results: Results, findings: Sequence[Finding]) -> Section | None:  # noqa: ARG001
    """The reliability figure of every reward model, its accuracy by length and by how many labelers agree, and RewardBench's scores."""
    bins = [row for row in results.rows("reward_model", "right") if row.condition.startswith("bin/")]
    if not bins:
        return None
    panels = [_curve(results, model, [row for row in bins if row.model == model]) for model in in_order(row.model for row in bins)]
    heat = [row for row in results.rows("reward_model", "temperature") if row.value is not None]
    told = [f"{model_name(row.model)} {measured(row)}" + (f" ({condition_name(row.condition)})" if row.condition else "") for row in heat]
    buckets = [row for row in results.rows("reward_model") if row.condition.startswith(BUCKETS)]
    return Section(
        id="reliability",
        title="Reliability of reward models",
        headline=f"The temperature that would make confidence true: {', '.join(told)}; above 1 is over-confident."
        if told
        else "Confidence and truth.",
        figure=figure(panels, [("the model", colour("reward"), False), ("were it right", GRAY, True)]),
        caption="Pairs in bins of equally many, by how sure the model is, the sigmoid of the difference of scores; with 95 % intervals.",
        tables=tuple(
            table_of(title, some)
            for title, some in (
                ("By how much longer one completion is, and by how many labelers agree", buckets),
                ("RewardBench", results.rows("reward_bench")),
                ("RewardBench 2", results.rows("reward_bench_2")),
            )
            if some
        ),
    )


def _curve(results: Results, model: str, right: Sequence[Row]) -> str:
    points: list[tuple[float, float, float, float]] = []
    for row in right:
        sure = results.get("reward_model", "confidence", model, row.condition)
        if sure is not None and sure.value is not None and row.value is not None:
            low, high = (row.value if end is None else end for end in (row.low, row.high))
            points.append((sure.value, row.value, low, high))
    x, y, lows, highs = ([point[part] for point in sorted(points)] for part in range(4))
    ends = [0.5, max([0.5, *x])]
    shown = [Line(metric_name("right"), colour("reward"), x, y, lows, highs, points=True), Line("", GRAY, ends, ends, dashed=True)]
    return lines(model_name(model), shown, "confidence")
