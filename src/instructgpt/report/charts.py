"""The paper's figures, redrawn from the rows of results.json: one function a figure, each gives the SVG of its panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from instructgpt.evaluate.aggregate import Row
from instructgpt.records import USE_CASES
from instructgpt.report.naming import colour, condition_name, families, family_model, metric_name, model_name, printable, sized, task_name
from instructgpt.report.results import Results
from instructgpt.report.svg import MUTED, Bar, Line, bars, figure, lines

COHORTS = ("training", "heldout")
MAIN_LABELS = ("fails_instruction", "inappropriate", "satisfies_constraint", "hallucination")
"""The labels of Figure 4; the others are too rare for the paper to compare."""


def _bar(results: Results, row: Row | None, model: str) -> Bar:
    shade = results.colours[model]
    if row is None:
        return Bar(model_name(model), shade, None)
    return Bar(model_name(model), shade, row.value, row.low, row.high)


def _panel(
    results: Results,
    evaluation: str,
    metric: str,
    condition: str,
    title: str,
    *,
    limits: tuple[float, float] | None = None,
    mark: float | None = None,
) -> str:
    """One metric under one condition: a bar a model, in the same order in every panel."""
    models = results.models(evaluation, metric)
    if families(models):
        return _over_size(results, evaluation, {metric: False}, condition, title, mark=mark)
    entries = [_bar(results, results.get(evaluation, metric, model, condition), model) for model in models]
    return bars(title, entries, metric=metric, limits=limits, mark=mark)


def _over_size(
    results: Results, evaluation: str, metrics: Mapping[str, bool], condition: str, title: str, *, mark: float | None = None
) -> str:
    """Metrics (dashed or not) under one condition over the models' sizes: a curve a family, a dotted line for a model without a size."""
    models = results.models(evaluation, next(iter(metrics)))
    grouped = families(models)
    sizes = sorted({size for family in grouped.values() for size, _ in family})
    entries = []
    for metric, dashed in metrics.items():
        for family, members in grouped.items():
            rows = [(size, row) for size, model in members if (row := results.get(evaluation, metric, model, condition))]
            y, low, high = ([getattr(row, name) for _, row in rows] for name in ("value", "low", "high"))
            whole = not dashed and None not in (*low, *high)
            entries.append(
                Line(
                    family,
                    colour(family_model(family)),
                    [size for size, _ in rows],
                    y,
                    low if whole else None,
                    high if whole else None,
                    dashed=dashed,
                    points=True,
                )
            )
        entries += [
            Line(model, results.colours[model], [sizes[0], sizes[-1]], [row.value] * 2, dashed=True)
            for model in models
            if sized(model) is None and (row := results.get(evaluation, metric, model, condition)) and row.value is not None
        ]
    if mark is not None:
        entries.append(Line("", MUTED, [sizes[0], sizes[-1]], [mark, mark], dashed=True))
    return lines(title, entries, "parameters", sizes=sizes)


def _legend(results: Results, evaluation: str) -> list[tuple[str, str, bool]]:
    """Whose curve is whose, where models of several sizes are drawn; otherwise bars have their names beside them."""
    models = results.models(evaluation)
    found = [(model_name(family), colour(family_model(family)), False) for family in families(models)]
    return found + [(model_name(model), results.colours[model], True) for model in models if found and sized(model) is None]


def _limits(rows: Sequence[Row], start: float = 0.0) -> tuple[float, float]:
    """From `start` to the end of the longest interval, so that panels of one metric can be compared by eye."""
    ends = [end for row in rows for end in (row.value, row.high) if end is not None]
    return start, max([*ends, start + 1e-9])


def _sentence(name: str) -> str:
    return name[:1].upper() + name[1:]


def preference(results: Results) -> str:
    """Figures 1 and 3: how often each model is preferred to SFT, by cohort of labelers. The dashed line is SFT itself."""
    metric = baseline_metric(results)
    conditions = [each for each in results.conditions("preference", metric) if "/" not in each]
    shown = [each for each in COHORTS if each in conditions] + [each for each in conditions if each not in COHORTS]
    limits = _limits([row for row in results.rows("preference", metric) if row.condition in shown])
    panels = [
        _panel(results, "preference", metric, each, _sentence(condition_name(each)) or "All labelers", limits=limits, mark=0.5)
        for each in shown
    ]
    return figure(panels, _legend(results, "preference"))


def ratings(results: Results) -> str:
    """Figures 5 and 31: mean ratings from 1 to 7, by cohort of labelers."""
    conditions = [each for each in results.conditions("preference", "rating") if "/" not in each]
    panels = [
        _panel(results, "preference", "rating", each, _sentence(condition_name(each)) or "All labelers", limits=(1, 7))
        for each in conditions
    ]
    return figure(panels, _legend(results, "preference"))


def use_cases(results: Results) -> str:
    """Mean ratings of the training labelers, one panel a use case."""
    found = [each for each in results.conditions("preference", "rating") if each.startswith(("training/", "all/"))]
    order = {case: place for place, case in enumerate(USE_CASES)}
    found.sort(key=lambda each: (order.get(each.partition("/")[2], len(order)), each))
    panels = [
        _panel(results, "preference", "rating", each, _sentence(condition_name(f"/{each.partition('/')[2]}")), limits=(1, 7))
        for each in found
    ]
    return figure(panels, _legend(results, "preference"))


def labels(results: Results) -> str:
    """Figure 4: how often labelers say yes. Labels that the paper found too rare are in the table only."""
    shown = [label for label in MAIN_LABELS if any(row.value is not None for row in results.rows("labels", label))]
    panels = [
        _panel(results, "labels", label, "", _sentence(metric_name(label)), limits=_limits(results.rows("labels", label)))
        for label in shown
    ]
    return figure(panels, _legend(results, "labels"))


def truthfulness(results: Results) -> str:
    """Figure 6: true in gray, true and informative in colour."""
    panels = []
    if by_size := _legend(results, "truthfulness"):
        metrics = {"truthful_and_informative": False, "truthful": True}
        panels = [
            _over_size(results, "truthfulness", metrics, condition, _sentence(condition_name(condition)))
            for condition in results.conditions("truthfulness", "truthful")
        ]
        return figure(panels, [*by_size, ("true, informative or not", MUTED, True)])
    for condition in results.conditions("truthfulness", "truthful"):
        entries = []
        for model in results.models("truthfulness"):
            both = results.get("truthfulness", "truthful_and_informative", model, condition)
            true = results.get("truthfulness", "truthful", model, condition)
            bar = _bar(results, both, model)
            entries.append(Bar(bar.label, bar.colour, bar.value, bar.low, bar.high, behind=true.value if true else None))
        panels.append(bars(_sentence(condition_name(condition)), entries, metric="truthful", limits=_limits(results.rows("truthfulness"))))
    return figure(panels, legend=[("true", MUTED, False), ("true and informative", "currentColor", False)])


def toxicity(results: Results) -> str:
    """Figure 7: mean toxicity of continuations under three instructions."""
    metric = "mean_toxicity"
    limits = _limits(results.rows("toxicity", metric))
    return figure(
        [
            _panel(results, "toxicity", metric, each, _sentence(condition_name(each)), limits=limits)
            for each in results.conditions("toxicity", metric)
        ],
        _legend(results, "toxicity"),
    )


def bias(results: Results) -> str:
    """Entropy over pairs of sentences that differ in a person: 1 bit is even. Beside it what entropy hides."""
    panels = [
        _panel(
            results,
            "bias",
            metric,
            condition,
            _sentence(", ".join(filter(None, (metric_name(metric), condition_name(condition))))),
            mark=mark,
        )
        for metric, mark in (("entropy_bits", 1.0), ("mean_logp_difference", None), ("prefers_first", 0.5))
        for condition in results.conditions("bias", metric)
    ]
    return figure(panels)


def tax(results: Results) -> str:
    """Figures 28 and 29: tasks of the pretraining corpus. The dashed line is what SFT had."""
    panels = []
    for task in results.metrics("tax"):
        sft = results.get("tax", task, "sft")
        lowest = min((row.low if row.low is not None else row.value or 0.0) for row in results.rows("tax", task))
        limits = _limits(results.rows("tax", task), start=round(0.97 * lowest, 2) if task == "heldout_loss" else 0.0)
        title = _sentence(metric_name(task)) + (" (lower is better)" if task == "heldout_loss" else "")
        panels.append(_panel(results, "tax", task, "", title, limits=limits, mark=sft.value if sft else None))
    return figure(panels)


def reward_model(results: Results) -> str:
    """The reward model on decided pairs, between the longer completion and the labelers' own agreement. The dashed line is chance."""
    colours = {"pair_accuracy": colour("reward"), "length_baseline": colour("base"), "labeler_agreement": colour("sft")}
    conditions = [each for each in results.conditions("reward_model", "pair_accuracy") if "/" not in each]
    sources = [each for each in results.conditions("reward_model", "pair_accuracy") if each.startswith("source/")]
    panels = []
    for condition in [*conditions, *sources]:
        entries = []
        for metric, shade in colours.items():
            row = results.get("reward_model", metric, "reward", condition)
            if row is not None:
                entries.append(Bar(metric_name(metric), shade, row.value, row.low, row.high))
        title = condition_name(condition) if condition in conditions else f"source: {printable(condition.partition('/')[2])}"
        panels.append(bars(_sentence(title) or "All labelers", entries, metric="pair_accuracy", limits=(0, 1), mark=0.5))
    return figure(panels)


def grid(
    results: Results, names: Sequence[tuple[str, str]], *, limits: tuple[float, float] | None = None, mark: float | None = None
) -> str:
    """A panel for each evaluation and metric and each of its conditions that is no part of another one."""
    panels = []
    for evaluation, metric in names:
        rows = [row for row in results.rows(evaluation, metric) if row.value is not None and "/" not in row.condition]
        for condition in dict.fromkeys(row.condition for row in rows):
            title = ", ".join(filter(None, (task_name(evaluation), metric_name(metric), condition_name(condition))))
            panels.append(_panel(results, evaluation, metric, condition, title, limits=limits or _limits(rows), mark=mark))
    return figure(panels, next((found for name, _ in names if (found := _legend(results, name))), ()))


def baseline_metric(results: Results) -> str:
    """The metric of Figure 1: how often completions are preferred to the baseline's, which is SFT where nothing else was chosen."""
    found = [metric for metric in results.metrics("preference") if metric.startswith("win_rate_vs_")]
    return "win_rate_vs_sft" if "win_rate_vs_sft" in found or not found else found[0]


def legend_of(models: Sequence[str]) -> list[tuple[str, str, bool]]:
    """A legend entry for each model."""
    return [(model_name(model), colour(model), False) for model in models]
