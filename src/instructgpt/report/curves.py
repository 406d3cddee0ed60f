"""Training figures: learning curves, PPO metrics, over-optimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt.report.charts import model_legend
from instructgpt.report.inputs import Stage
from instructgpt.report.naming import model_color, model_name, sort_models
from instructgpt.report.svg import Curve, render_figure, render_line_panel

MAX_CURVE_POINTS = 160  # a curve is never drawn finer than this

_LOSS_METRICS = (("loss/train", False), ("loss/validation", True), ("validation/loss", True))
_ACCURACY_CURVES = (
    ("accuracy/train", "training pairs", "#8b919c", True),
    ("validation/accuracy", "training labelers", "#b9508a", False),
    ("validation/accuracy_heldout", "held-out labelers", "#3f88c5", False),
    ("validation/length_baseline", "the longer one wins", "#8b919c", False),
)

PPO_MAIN_METRICS = {
    "objective/kl": "KL to the reference, nats a completion",
    "objective/scores": "Reward model's score",
    "objective/entropy": "Entropy of a completion, nats",
    "completion/length": "Length, tokens",
    "val/ratio": "Mean ratio new : old",
    "policy/clipfrac_avg": "Share of ratios clipped",
}
PPO_EXTRA_METRICS = {
    "objective/rlhf_reward": "Score minus KL penalty",
    "objective/non_score_reward": "KL penalty",
    "policy/approxkl_avg": "KL of one update, approximate",
    "policy/entropy_avg": "Entropy of the policy, nats a token",
    "loss/policy_avg": "Policy loss",
    "loss/value_avg": "Value loss",
    "loss/ptx_avg": "Pretraining loss",
    "val/explained_variance": "Explained variance of returns",
    "val/num_eos_tokens": "Completions that ended by themselves",
    "lr": "Learning rate",
}


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
            panels.append(render_line_panel(f"{model_name(stage.name)}: loss", curves, "step"))
    return render_figure(panels, legend=[("training", "currentColor", False), ("validation", "currentColor", True)])


def reward_accuracy_figure(stages: Sequence[Stage]) -> str:
    """Pair accuracy of reward models during training; empty without one."""
    panels, plotted_metrics = [], set()
    for stage in stages:
        curves = {
            metric: curve
            for metric, _, color, dashed in _ACCURACY_CURVES
            if (curve := _metric_curve(stage, metric, color=color, dashed=dashed)) is not None
        }
        if set(curves) - {"accuracy/train"}:
            panels.append(
                render_line_panel(
                    f"{model_name(stage.name)}: share of pairs in the right order",
                    list(curves.values()),
                    "step",
                    metric="pair_accuracy",
                )
            )
            plotted_metrics |= set(curves)
    return (
        render_figure(
            panels,
            legend=[
                (label, color, dashed) for metric, label, color, dashed in _ACCURACY_CURVES if metric in plotted_metrics
            ],
        )
        if panels
        else ""
    )


def ppo_figure(stages: Sequence[Stage], metrics: Mapping[str, str]) -> str:
    """PPO metrics, all runs in one panel a metric."""
    runs = [stage for stage in stages if is_ppo_stage(stage)]
    panels = []
    for metric, title in metrics.items():
        x_metric = "episode" if all("episode" in run.metric_names() for run in runs) else "step"
        curves = [curve for run in runs if (curve := _metric_curve(run, metric, x_metric, label=run.name))]
        if curves:
            xlabel = "episodes" if x_metric == "episode" else "step"
            panels.append(render_line_panel(title, curves, xlabel, metric=metric if metric in _SHARE_METRICS else ""))
    return render_figure(panels, legend=model_legend([run.name for run in runs])) if panels else ""


def over_optimization_figure(points: Sequence[Mapping[str, Any]]) -> str:
    """Score and true utility over KL and episodes: over-optimization begins where they part."""
    models = sort_models(str(point["model"]) for point in points)
    panels = []
    for x_metric, xlabel in (("kl", "KL to the reference, nats"), ("episodes", "episodes")):
        for metric, title in (("score", "Reward model's score"), ("utility", "True utility")):
            curves = [curve for model in models if (curve := _over_optimization_curve(points, model, metric, x_metric))]
            if curves:
                panels.append(
                    render_line_panel(f"{title} over {'KL' if x_metric == 'kl' else x_metric}", curves, xlabel)
                )
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
