"""The paper's figures, redrawn from results.json: one function a figure, each returns SVG panels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from instructgpt.formatting import escape_control_chars
from instructgpt.records import USE_CASES
from instructgpt.report.language import translate
from instructgpt.report.naming import (
    condition_name,
    group_by_family,
    metric_name,
    model_color,
    model_name,
    paper_model_of_family,
    parse_model_size,
    task_name,
    truthfulqa_prompt_name,
)
from instructgpt.report.results import Results
from instructgpt.report.svg import MUTED_COLOR, Bar, Curve, render_bar_panel, render_figure, render_line_panel
from instructgpt.results import ResultRow

_COHORT_ORDER = ("training", "heldout")
_FAMILY_STEP = 0.03
"""Distance between families of one size, as a share of the axis."""
_MAIN_LABELS = ("fails_instruction", "inappropriate", "satisfies_constraint", "hallucination")
"""Labels of Figure 4; the others are too rare for the paper to compare."""


def _make_bar(results: Results, row: ResultRow | None, model: str) -> Bar:
    color = results.model_colors[model]
    if row is None:
        return Bar(model_name(model), color, None)
    return Bar(model_name(model), color, row.value, row.low, row.high)


def _render_metric_panel(
    results: Results,
    evaluation: str,
    metric: str,
    condition: str,
    title: str,
    *,
    limits: tuple[float, float] | None = None,
    reference_line: float | None = None,
) -> str:
    """Render one metric under one condition: a bar a model, in the same order in every panel."""
    models = results.models(evaluation, metric)
    if group_by_family(models):
        return _render_size_panel(results, evaluation, {metric: False}, condition, title, reference_line=reference_line)
    metric_bars = [_make_bar(results, results.get(evaluation, metric, model, condition), model) for model in models]
    return render_bar_panel(title, metric_bars, metric=metric, limits=limits, reference_line=reference_line)


def _render_size_panel(
    results: Results,
    evaluation: str,
    metrics: Mapping[str, bool],
    condition: str,
    title: str,
    *,
    reference_line: float | None = None,
) -> str:
    """Render metrics over model size: a curve a family, a dotted line for a model without a size.

    `metrics`: name -> dashed.
    """
    first_metric = next(iter(metrics))
    models = results.models(evaluation, first_metric)
    models_by_family = group_by_family(models)
    sizes = sorted({size for family in models_by_family.values() for size, _ in family})
    offsets = dict(zip(models_by_family, size_offsets(sizes, len(models_by_family)), strict=True))
    size_curves = []
    for metric, dashed in metrics.items():
        for family, members in models_by_family.items():
            rows = [
                (size, row) for size, model in members if (row := results.get(evaluation, metric, model, condition))
            ]
            y, low, high = ([getattr(row, name) for _, row in rows] for name in ("value", "low", "high"))
            has_interval = not dashed and None not in (*low, *high)
            size_curves.append(
                Curve(
                    family,
                    model_color(paper_model_of_family(family)),
                    [size * offsets[family] for size, _ in rows],
                    y,
                    low if has_interval else None,
                    high if has_interval else None,
                    dashed=dashed,
                    show_markers=True,
                )
            )
        size_curves += [
            Curve(model, results.model_colors[model], [sizes[0], sizes[-1]], [row.value] * 2, dashed=True)
            for model in models
            if parse_model_size(model) is None
            and (row := results.get(evaluation, metric, model, condition))
            and row.value is not None
        ]
    if reference_line is not None:
        size_curves.append(Curve("", MUTED_COLOR, [sizes[0], sizes[-1]], [reference_line, reference_line], dashed=True))
    return render_line_panel(title, size_curves, translate("charts.parameters"), sizes=sizes, metric=first_metric)


def size_offsets(sizes: Sequence[float], num_families: int) -> list[float]:
    """Return the factor by which each family's sizes are shifted on the logarithmic axis.

    Families stand side by side, so that their error bars do not cover each other, within a third of the distance to the
    next size.
    """
    logs = [math.log(size) for size in sorted(sizes)]
    gaps = [larger - smaller for smaller, larger in pairwise(logs)]
    step = min([(logs[-1] - logs[0]) * _FAMILY_STEP, *(gap / 3 / num_families for gap in gaps)])
    return [math.exp(step * (place - (num_families - 1) / 2)) for place in range(num_families)]


def _size_legend(results: Results, evaluation: str) -> list[tuple[str, str, bool]]:
    models = results.models(evaluation)
    legend = [
        (model_name(family), model_color(paper_model_of_family(family)), False) for family in group_by_family(models)
    ]
    return legend + [
        (model_name(model), results.model_colors[model], True)
        for model in models
        if legend and parse_model_size(model) is None
    ]


def _axis_limits(rows: Sequence[ResultRow], start: float = 0.0) -> tuple[float, float]:
    """Return limits up to the longest interval, so that panels of one metric share an axis."""
    ends = [end for row in rows for end in (row.value, row.high) if end is not None]
    return start, max([*ends, start + 1e-9])


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def preference_figure(results: Results) -> str:
    """Figures 1 and 3: preference to SFT by cohort of labelers; the dashed line is SFT."""
    metric = baseline_metric(results)
    conditions = [condition for condition in results.conditions("preference", metric) if "/" not in condition]
    shown_conditions = [condition for condition in _COHORT_ORDER if condition in conditions] + [
        condition for condition in conditions if condition not in _COHORT_ORDER
    ]
    limits = _axis_limits([row for row in results.rows("preference", metric) if row.condition in shown_conditions])
    panels = [
        _render_metric_panel(
            results,
            "preference",
            metric,
            condition,
            _capitalize(condition_name(condition)) or translate("cohort.all_title"),
            limits=limits,
            reference_line=0.5,
        )
        for condition in shown_conditions
    ]
    return render_figure(panels, _size_legend(results, "preference"))


def ratings_figure(results: Results) -> str:
    """Figures 5 and 31: mean ratings (1 to 7) by cohort of labelers."""
    conditions = [condition for condition in results.conditions("preference", "rating") if "/" not in condition]
    panels = [
        _render_metric_panel(
            results,
            "preference",
            "rating",
            condition,
            _capitalize(condition_name(condition)) or translate("cohort.all_title"),
            limits=(1, 7),
        )
        for condition in conditions
    ]
    return render_figure(panels, _size_legend(results, "preference"))


def use_cases_figure(results: Results) -> str:
    """Mean ratings of training labelers, one panel a use case."""
    conditions = [
        condition
        for condition in results.conditions("preference", "rating")
        if condition.startswith(("training/", "all/"))
    ]
    order = {case: place for place, case in enumerate(USE_CASES)}
    conditions.sort(key=lambda condition: (order.get(condition.partition("/")[2], len(order)), condition))
    panels = [
        _render_metric_panel(
            results,
            "preference",
            "rating",
            condition,
            _capitalize(condition_name(f"/{condition.partition('/')[2]}")),
            limits=(1, 7),
        )
        for condition in conditions
    ]
    return render_figure(panels, _size_legend(results, "preference"))


def labels_figure(results: Results) -> str:
    """Figure 4: label rates; rare labels appear in the table only."""
    measured_labels = [
        label for label in _MAIN_LABELS if any(row.value is not None for row in results.rows("labels", label))
    ]
    panels = [
        _render_metric_panel(
            results,
            "labels",
            label,
            "",
            _capitalize(metric_name(label)),
            limits=_axis_limits(results.rows("labels", label)),
        )
        for label in measured_labels
    ]
    return render_figure(panels, _size_legend(results, "labels"))


def truthfulness_figure(results: Results) -> str:
    """Figure 6: bars with truthful in gray, truthful and informative in color; curves with truthful dashed."""
    panels = []
    if size_legend := _size_legend(results, "truthfulness"):
        metrics = {"truthful_and_informative": False, "truthful": True}
        panels = [
            _render_size_panel(results, "truthfulness", metrics, condition, truthfulness_title(results, condition))
            for condition in results.conditions("truthfulness", "truthful")
        ]
        return render_figure(panels, [*size_legend, (translate("charts.true_or_not"), MUTED_COLOR, True)])
    panels = [
        _render_nested_shares(
            results,
            "truthfulness",
            ("truthful_and_informative", "truthful"),
            condition,
            truthfulness_title(results, condition),
        )
        for condition in results.conditions("truthfulness", "truthful")
    ]
    legend = [
        (translate("charts.true"), MUTED_COLOR, False),
        (translate("charts.true_and_informative"), "currentColor", False),
    ]
    return render_figure(panels, legend=legend)


def generalization_figure(results: Results) -> str:
    """Draw bars by kind of prompt: followed in gray, fully right in color."""
    metrics = ("fully_right", "follows_instruction")
    panels = [
        _render_nested_shares(results, "generalization", metrics, condition, _capitalize(condition_name(condition)))
        for condition in results.conditions("generalization", "fully_right")
    ]
    legend = [
        (metric_name("follows_instruction"), MUTED_COLOR, False),
        (metric_name("fully_right"), "currentColor", False),
    ]
    return render_figure(panels, legend=legend)


def mistakes_figure(results: Results) -> str:
    """Draw the share of simple mistakes (section 4.3), one panel a kind of prompt; lower is better."""
    evaluation, metric = "simple_mistakes", "fails"
    limits = _axis_limits(results.rows(evaluation, metric))
    panels = [
        _render_metric_panel(
            results, evaluation, metric, condition, _capitalize(condition_name(condition)), limits=limits
        )
        for condition in results.conditions(evaluation, metric)
    ]
    return render_figure(panels, _size_legend(results, evaluation))


def _render_nested_shares(
    results: Results, evaluation: str, metrics: tuple[str, str], condition: str, title: str
) -> str:
    """Render a bar a model: the first metric in color before the second, which includes it, in gray."""
    inner, outer = metrics
    bars = []
    for model in results.models(evaluation):
        bar = _make_bar(results, results.get(evaluation, inner, model, condition), model)
        outer_row = results.get(evaluation, outer, model, condition)
        background = outer_row.value if outer_row else None
        bars.append(Bar(bar.label, bar.color, bar.value, bar.low, bar.high, background_value=background))
    return render_bar_panel(title, bars, metric=outer, limits=_axis_limits(results.rows(evaluation)))


def truthfulness_title(results: Results, condition: str) -> str:
    """Return the name of a prompt: the small world asks plainly, the benchmark with the prompts of Table 14."""
    is_benchmark = bool(results.rows("truthfulqa", "truthful"))
    return _capitalize(truthfulqa_prompt_name(condition) if is_benchmark else condition_name(condition))


def toxicity_figure(results: Results) -> str:
    """Figure 7: mean toxicity of continuations under three instructions."""
    metric = "mean_toxicity"
    limits = _axis_limits(results.rows("toxicity", metric))
    return render_figure(
        [
            _render_metric_panel(
                results, "toxicity", metric, condition, _capitalize(condition_name(condition)), limits=limits
            )
            for condition in results.conditions("toxicity", metric)
        ],
        _size_legend(results, "toxicity"),
    )


def bias_figure(results: Results) -> str:
    """Entropy over sentence pairs that differ in a person (1 bit is unbiased), and the bias it hides."""
    panels = [
        _render_metric_panel(
            results,
            "bias",
            metric,
            condition,
            _capitalize(", ".join(filter(None, (metric_name(metric), condition_name(condition))))),
            reference_line=reference_line,
        )
        for metric, reference_line in (("entropy_bits", 1.0), ("mean_logp_difference", None), ("prefers_first", 0.5))
        for condition in results.conditions("bias", metric)
    ]
    return render_figure(panels)


def tax_figure(results: Results) -> str:
    """Figures 28 and 29: tasks of the pretraining corpus; the dashed line is SFT."""
    panels = []
    for task in results.metrics("tax"):
        sft_row = results.get("tax", task, "sft")
        lowest = min((row.low if row.low is not None else row.value or 0.0) for row in results.rows("tax", task))
        limits = _axis_limits(
            results.rows("tax", task), start=round(0.97 * lowest, 2) if task == "heldout_loss" else 0.0
        )
        title = _capitalize(metric_name(task)) + (translate("charts.lower_is_better") if task == "heldout_loss" else "")
        panels.append(
            _render_metric_panel(
                results, "tax", task, "", title, limits=limits, reference_line=sft_row.value if sft_row else None
            )
        )
    return render_figure(panels)


def reward_model_figure(results: Results) -> str:
    """Reward-model accuracy on decided pairs, between the length baseline and labeler agreement, a panel a model and
    condition; the dashed line is chance.
    """
    metric_colors = {
        "pair_accuracy": model_color("reward"),
        "length_baseline": model_color("base"),
        "labeler_agreement": model_color("sft"),
    }
    all_conditions = results.conditions("reward_model", "pair_accuracy")
    conditions = [each for each in all_conditions if "/" not in each]
    sources = [condition for condition in all_conditions if condition.startswith("source/")]
    conditions += sources if len(sources) > 1 or not conditions else []
    models = results.models("reward_model", "pair_accuracy")
    panels = []
    for condition in conditions:
        source = escape_control_chars(condition.partition("/")[2])
        title = (
            translate("charts.source", name=source) if source else condition_name(condition) or translate("cohort.all")
        )
        for model in models:
            metric_bars = [
                Bar(metric_name(metric), color, row.value, row.low, row.high)
                for metric, color in metric_colors.items()
                if (row := results.get("reward_model", metric, model, condition)) is not None
            ]
            if metric_bars:
                name = title if models == ["reward"] else f"{model_name(model)}, {title}"
                options: dict[str, Any] = {"metric": "pair_accuracy", "limits": (0, 1), "reference_line": 0.5}
                panels.append(render_bar_panel(_capitalize(name), metric_bars, **options))
    return render_figure(panels)


def metric_grid_figure(
    results: Results,
    metrics: Sequence[tuple[str, str]],
    *,
    limits: tuple[float, float] | None = None,
    reference_line: float | None = None,
) -> str:
    """Return a panel for each evaluation, metric and condition that is not part of another one."""
    panels = []
    for evaluation, metric in metrics:
        rows = [row for row in results.rows(evaluation, metric) if row.value is not None and "/" not in row.condition]
        for condition in dict.fromkeys(row.condition for row in rows):
            title = ", ".join(filter(None, (task_name(evaluation), metric_name(metric), condition_name(condition))))
            panels.append(
                _render_metric_panel(
                    results,
                    evaluation,
                    metric,
                    condition,
                    title,
                    limits=limits or _axis_limits(rows),
                    reference_line=reference_line,
                )
            )
    if not panels:
        return ""
    return render_figure(panels, next((legend for name, _ in metrics if (legend := _size_legend(results, name))), ()))


def baseline_metric(results: Results) -> str:
    """Return the metric of Figure 1: preference to the baseline, by default SFT."""
    win_rate_metrics = [metric for metric in results.metrics("preference") if metric.startswith("win_rate_vs_")]
    return "win_rate_vs_sft" if "win_rate_vs_sft" in win_rate_metrics or not win_rate_metrics else win_rate_metrics[0]


def model_legend(models: Sequence[str]) -> list[tuple[str, str, bool]]:
    return [(model_name(model), model_color(model), False) for model in models]
