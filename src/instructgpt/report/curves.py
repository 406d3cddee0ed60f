"""Figures of training: what every stage logged, the course of PPO, and where a better score stopped meaning a better completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from instructgpt.report.charts import legend_of
from instructgpt.report.inputs import Stage
from instructgpt.report.naming import colour, in_order, model_name
from instructgpt.report.svg import Line, figure, lines

POINTS = 160  # a curve is never drawn finer than this

LOSSES = (("loss/train", False), ("loss/validation", True), ("validation/loss", True))
ACCURACIES = (
    ("accuracy/train", "training pairs", "#8b919c", True),
    ("validation/accuracy", "training labelers", "#b9508a", False),
    ("validation/accuracy_heldout", "held-out labelers", "#3f88c5", False),
    ("validation/length_baseline", "the longer one wins", "#8b919c", False),
)

PPO_MAIN = {
    "objective/kl": "KL to the reference, nats a completion",
    "objective/scores": "Reward model's score",
    "objective/entropy": "Entropy of a completion, nats",
    "completion/length": "Length, tokens",
    "val/ratio": "Mean ratio new : old",
    "policy/clipfrac_avg": "Share of ratios clipped",
}
PPO_MORE = {
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


def is_ppo(stage: Stage) -> bool:
    """Whether a stage logged a course of PPO."""
    return "objective/kl" in stage.logged()


def thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of neighbouring points, so that at most POINTS are left; no point is lost from the mean."""
    if len(x) <= POINTS:
        return list(x), list(y)
    parts = np.array_split(np.arange(len(x)), POINTS)
    return [float(np.mean(np.asarray(x)[part])) for part in parts], [float(np.mean(np.asarray(y)[part])) for part in parts]


def _line(stage: Stage, metric: str, along: str = "step", **style: Any) -> Line | None:
    x, y = thinned(*stage.series(metric, along))
    if not x:
        return None
    return Line(style.pop("label", metric), style.pop("colour", colour(stage.name)), x, y, points=len(x) < 12, **style)


def learning(stages: Sequence[Stage]) -> str:
    """Losses of every stage but PPO: training solid, validation dashed; and the accuracy of reward models."""
    panels = []
    for stage in stages:
        found = [line for metric, dashed in LOSSES if (line := _line(stage, metric, dashed=dashed))]
        if found and not is_ppo(stage):
            panels.append(lines(f"{model_name(stage.name)}: loss", found, "step"))
    return figure(panels, legend=[("training", "currentColor", False), ("validation", "currentColor", True)])


def accuracy(stages: Sequence[Stage]) -> str:
    """How often a reward model puts a pair in the labelers' order, while it learns; nothing where none was trained."""
    panels, seen = [], set()
    for stage in stages:
        found = {
            metric: line
            for metric, _, shade, dashed in ACCURACIES
            if (line := _line(stage, metric, colour=shade, dashed=dashed)) is not None
        }
        if set(found) - {"accuracy/train"}:
            panels.append(lines(f"{model_name(stage.name)}: share of pairs in the right order", list(found.values()), "step"))
            seen |= set(found)
    return (
        figure(panels, legend=[(label, shade, dashed) for metric, label, shade, dashed in ACCURACIES if metric in seen]) if panels else ""
    )


def ppo(stages: Sequence[Stage], metrics: Mapping[str, str]) -> str:
    """The course of PPO, both runs in one panel a metric."""
    runs = [stage for stage in stages if is_ppo(stage)]
    panels = []
    for metric, title in metrics.items():
        along = "episode" if all("episode" in run.logged() for run in runs) else "step"
        found = [line for run in runs if (line := _line(run, metric, along, label=run.name))]
        if found:
            panels.append(lines(title, found, "episodes" if along == "episode" else "step"))
    return figure(panels, legend=legend_of([run.name for run in runs])) if panels else ""


def over_optimisation(points: Sequence[Mapping[str, Any]]) -> str:
    """The reward model's score and the true utility over KL and over episodes: where they part, the policy has begun to fool its judge."""
    models = in_order(str(point["model"]) for point in points)
    panels = []
    for along, xlabel in (("kl", "KL to the reference, nats"), ("episodes", "episodes")):
        for metric, title in (("score", "Reward model's score"), ("utility", "True utility")):
            found = [line for model in models if (line := _course(points, model, metric, along))]
            if found:
                panels.append(lines(f"{title} over {'KL' if along == 'kl' else along}", found, xlabel))
    return figure(panels, legend=legend_of(models))


def _course(points: Sequence[Mapping[str, Any]], model: str, metric: str, along: str) -> Line | None:
    """One model's course, in the order of training; the interval belongs to the utility."""
    mine = [point for point in points if point["model"] == model and point.get(along) is not None and point.get(metric) is not None]
    mine.sort(key=lambda point: point.get("step") or 0)
    if not mine:
        return None
    x, y = ([float(point[name]) for point in mine] for name in (along, metric))
    band = metric == "utility" and all(point.get("low") is not None and point.get("high") is not None for point in mine)
    low, high = ([float(point[name]) for point in mine] if band else None for name in ("low", "high"))
    return Line(model_name(model), colour(model), x, y, low, high, points=len(x) < 30)
