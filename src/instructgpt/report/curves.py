"""Training figures: learning curves, PPO metrics, over-optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt.report.charts import model_legend
from instructgpt.report.inputs import Stage
from instructgpt.report.language import translate
from instructgpt.report.naming import model_color, model_name, sort_models
from instructgpt.report.svg import Curve, render_figure, render_line_panel

MAX_CURVE_POINTS = 160  # a curve is never drawn finer than this

_LOSS_METRICS = (("loss/train", False), ("loss/validation", True), ("validation/loss", True))
_ACCURACY_CURVES = (
    ("accuracy/train", "#8b919c", True),
    ("validation/accuracy", "#b9508a", False),
    ("validation/accuracy_heldout", "#3f88c5", False),
    ("validation/length_baseline", "#8b919c", False),
)

PPO_MAIN_METRICS = (
    "objective/kl",
    "objective/scores",
    "objective/entropy",
    "completion/length",
    "val/ratio",
    "policy/clipfrac_avg",
)
PPO_EXTRA_METRICS = (
    "objective/rlhf_reward",
    "objective/non_score_reward",
    "policy/approxkl_avg",
    "policy/entropy_avg",
    "loss/policy_avg",
    "loss/value_avg",
    "loss/ptx_avg",
    "val/explained_variance",
    "val/num_eos_tokens",
    "lr",
)


_SHARE_METRICS = ("policy/clipfrac_avg",)
"""Metrics from 0 to 1, drawn in percent."""


def is_ppo_stage(stage: Stage) -> bool:
    return "objective/kl" in stage.metric_names()


def downsample(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average neighboring points, so that at most `_MAX_POINTS` remain."""
    if len(x) <= MAX_CURVE_POINTS:
        return list(x), list(y)
    index_chunks = np.array_split(np.arange(len(x)), MAX_CURVE_POINTS)
    return [float(np.mean(np.asarray(x)[chunk])) for chunk in index_chunks], [
        float(np.mean(np.asarray(y)[chunk])) for chunk in index_chunks
    ]


def _metric_curve(stage: Stage, metric: str, x_metric: str = "step", **style: Any) -> Curve | None:
    x, y = downsample(*stage.series(metric, x_metric))
    if not x:
        return None
    return Curve(
        style.pop("label", metric), style.pop("color", model_color(stage.name)), x, y, show_markers=len(x) < 12, **style
    )


def learning_curves_figure(stages: Sequence[Stage]) -> str:
    """Losses of all stages but PPO (training solid, validation dashed), and reward-model accuracy."""
    panels = []
    for stage in stages:
        curves = [curve for metric, dashed in _LOSS_METRICS if (curve := _metric_curve(stage, metric, dashed=dashed))]
        if curves and not is_ppo_stage(stage):
            panels.append(
                render_line_panel(
                    translate("curves.loss", model=model_name(stage.name)), curves, translate("curves.step")
                )
            )
    return render_figure(
        panels,
        legend=[
            (translate("curves.training"), "currentColor", False),
            (translate("curves.validation"), "currentColor", True),
        ],
    )


def reward_accuracy_figure(stages: Sequence[Stage]) -> str:
    """Pair accuracy of reward models during training; empty without one."""
    panels, plotted_metrics = [], set()
    for stage in stages:
        curves = {
            metric: curve
            for metric, color, dashed in _ACCURACY_CURVES
            if (curve := _metric_curve(stage, metric, color=color, dashed=dashed)) is not None
        }
        if set(curves) - {"accuracy/train"}:
            panels.append(
                render_line_panel(
                    translate("curves.right_order", model=model_name(stage.name)),
                    list(curves.values()),
                    translate("curves.step"),
                    metric="pair_accuracy",
                )
            )
            plotted_metrics |= set(curves)
    return (
        render_figure(
            panels,
            legend=[
                (translate(f"curves.accuracy.{metric}"), color, dashed)
                for metric, color, dashed in _ACCURACY_CURVES
                if metric in plotted_metrics
            ],
        )
        if panels
        else ""
    )


def ppo_figure(stages: Sequence[Stage], metrics: Sequence[str]) -> str:
    """PPO metrics, all runs in one panel a metric."""
    runs = [stage for stage in stages if is_ppo_stage(stage)]
    panels = []
    for metric in metrics:
        x_metric = "episode" if all("episode" in run.metric_names() for run in runs) else "step"
        curves = [curve for run in runs if (curve := _metric_curve(run, metric, x_metric, label=run.name))]
        if curves:
            xlabel = translate("curves.episodes") if x_metric == "episode" else translate("curves.step")
            panels.append(
                render_line_panel(
                    translate(f"curves.metric.{metric}"),
                    curves,
                    xlabel,
                    metric=metric if metric in _SHARE_METRICS else "",
                )
            )
    return render_figure(panels, legend=model_legend([run.name for run in runs])) if panels else ""


def over_optimization_figure(points: Sequence[Mapping[str, Any]]) -> str:
    """Score and true utility over KL and episodes: over-optimization begins where they part."""
    models = sort_models(str(point["model"]) for point in points)
    panels = []
    for x_metric in ("kl", "episodes"):
        xlabel = translate("curves.kl_axis" if x_metric == "kl" else "curves.episodes")
        x_name = translate("columns.kl") if x_metric == "kl" else xlabel
        for metric, title in (("score", translate("curves.score")), ("utility", translate("rounds.panel.utility"))):
            curves = [curve for model in models if (curve := _over_optimization_curve(points, model, metric, x_metric))]
            if curves:
                panels.append(render_line_panel(translate("curves.over", title=title, x=x_name), curves, xlabel))
    return render_figure(panels, legend=model_legend(models))


def _over_optimization_curve(
    points: Sequence[Mapping[str, Any]], model: str, metric: str, x_metric: str
) -> Curve | None:
    model_points = [
        point
        for point in points
        if point["model"] == model and point.get(x_metric) is not None and point.get(metric) is not None
    ]
    model_points.sort(key=lambda point: point.get("step") or 0)
    if not model_points:
        return None
    x, y = ([float(point[name]) for point in model_points] for name in (x_metric, metric))
    has_interval = metric == "utility" and all(
        point.get("low") is not None and point.get("high") is not None for point in model_points
    )
    low, high = ([float(point[name]) for point in model_points] if has_interval else None for name in ("low", "high"))
    return Curve(model_name(model), model_color(model), x, y, low, high, show_markers=len(x) < 30)
