"""Sections on training: over-optimization, PPO, learning curves, samples, lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt.formatting import format_short_number
from instructgpt.report import curves, lineage, samples
from instructgpt.report.inputs import RunFiles, Stage
from instructgpt.report.language import format_count, format_duration, join_list, translate
from instructgpt.report.naming import model_name, sort_models
from instructgpt.report.section import ReportTable, Section


def _over_optimization_section(run: RunFiles) -> Section | None:
    """Score against true utility; only where the truth is known."""
    points = [point for point in run.over_optimization if "model" in point]
    if not points:
        return None
    models = sort_models(str(point["model"]) for point in points)
    columns = ("model", "step", "episodes", "kl", "score", "utility", "low", "high")
    head = tuple(translate(f"columns.{column}") for column in columns)
    table_rows = tuple(tuple(_format_cell(point.get(column)) for column in columns) for point in points)
    return Section(
        id="over-optimization",
        title=translate("over_optimization.title"),
        headline=" ".join(
            description
            for model in models
            if (description := _describe_utility_peak([point for point in points if point["model"] == model], model))
        ),
        paper=translate("over_optimization.paper"),
        figure=curves.over_optimization_figure(points),
        caption=translate("over_optimization.caption"),
        tables=(ReportTable(translate("tables.numbers"), head, table_rows),),
    )


def _format_cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "–"
    return (
        format_short_number(value)
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int)
        else str(value)
    )


def _describe_utility_peak(points: Sequence[Mapping[str, Any]], model: str) -> str:
    utility_points = [point for point in points if point.get("utility") is not None]
    if not utility_points:
        return ""
    best_point, last_point = (
        max(utility_points, key=lambda point: point["utility"]),
        max(utility_points, key=lambda point: point.get("step") or 0),
    )
    name = model_name(model)
    if best_point is last_point:
        return translate("over_optimization.still_best", name=name, utility=format_short_number(last_point["utility"]))
    kl_phrase = (
        translate("over_optimization.at_kl", kl=format_short_number(best_point["kl"]))
        if best_point.get("kl") is not None
        else ""
    )
    is_worse = (
        last_point.get("high") is not None
        and best_point.get("low") is not None
        and last_point["high"] < best_point["low"]
    )
    verdict = translate("over_optimization.worse") if is_worse else translate("over_optimization.within")
    return translate(
        "over_optimization.peak",
        name=name,
        at_kl=kl_phrase,
        best=format_short_number(best_point["utility"]),
        last=format_short_number(last_point["utility"]),
        verdict=verdict,
    )


def _ppo_section(run: RunFiles) -> Section | None:
    ppo_stages = [stage for stage in run.stages.values() if curves.is_ppo_stage(stage)]
    if not ppo_stages:
        return None
    return Section(
        id="ppo",
        title=translate("ppo.title"),
        headline=" ".join(_describe_ppo_run(stage) for stage in ppo_stages),
        paper=translate("ppo.paper"),
        figure=curves.ppo_figure(ppo_stages, curves.PPO_MAIN_METRICS),
        caption=translate("ppo.caption"),
        extra_figure=curves.ppo_figure(ppo_stages, curves.PPO_EXTRA_METRICS),
    )


def _describe_ppo_run(stage: Stage) -> str:
    _, scores = stage.series("objective/scores")
    _, kl = stage.series("objective/kl")
    episodes = max((row["episode"] for row in stage.metrics if "episode" in row), default=None)
    episodes_phrase = translate("ppo.after_episodes", episodes=f"{episodes:,.0f}") if episodes else ""
    score_phrase = (
        translate("ppo.score", first=format_short_number(scores[0]), last=format_short_number(scores[-1]))
        if scores
        else ""
    )
    return translate(
        "ppo.headline",
        name=model_name(stage.name),
        score=score_phrase,
        kl=format_short_number(kl[-1]),
        after_episodes=episodes_phrase,
    )


def _learning_curves_section(run: RunFiles) -> Section | None:
    stages = [
        stage
        for stage in run.stages.values()
        if not curves.is_ppo_stage(stage) and any("loss" in name for name in stage.metric_names())
    ]
    if not stages:
        return None
    final_losses = []
    for stage in stages:
        validation_losses = next(
            (losses for name in ("loss/validation", "validation/loss") if (losses := stage.series(name)[1])), []
        )
        if validation_losses:
            best_phrase = (
                translate("learning.best", loss=format_short_number(min(validation_losses)))
                if min(validation_losses) < validation_losses[-1] - 1e-9
                else ""
            )
            final_losses.append(f"{model_name(stage.name)} {format_short_number(validation_losses[-1])}{best_phrase}")
    return Section(
        id="learning",
        title=translate("learning.title"),
        headline=translate("learning.headline", losses=join_list(final_losses))
        if final_losses
        else translate("learning.fallback"),
        paper=translate("learning.paper"),
        figure=curves.learning_curves_figure(stages) + curves.reward_accuracy_figure(stages),
        caption=translate("learning.caption"),
    )


def samples_section(run: RunFiles) -> Section | None:
    sample_groups = samples.select_sample_groups(run.rankings, run.use_cases)
    if not sample_groups:
        return None
    spread_phrase = translate("samples.spread") if any(each.kind for each in sample_groups) else ""
    has_ratings = any(ranking.ratings is not None for ranking in run.rankings)
    return Section(
        id="samples",
        title=translate("samples.title"),
        headline=translate("samples.headline", count=len(sample_groups), spread=spread_phrase),
        caption=translate("samples.rating_caption") if has_ratings else translate("samples.rank_caption"),
        sample_groups=sample_groups,
        open_samples=3,
    )


def _training_samples_section(run: RunFiles) -> Section | None:
    sample_groups = tuple(
        group for stage in run.stages.values() for group in samples.select_training_samples(stage.samples, stage.name)
    )
    if not sample_groups:
        return None
    return Section(
        id="while-learning",
        title=translate("training_samples.title"),
        headline=translate("training_samples.headline"),
        caption=translate("training_samples.caption"),
        sample_groups=sample_groups,
    )


def _lineage_section(run: RunFiles) -> Section | None:
    if not run.stages:
        return None
    stages = list(run.stages.values())
    seconds, tokens = lineage.sum_over_stages(stages, "seconds"), lineage.sum_over_stages(stages, "tokens")
    unfinished = [model_name(stage.name) for stage in stages if not lineage.is_stage_finished(stage)]
    models = translate("lineage.models", count=len(stages)) if len(stages) > 1 else translate("lineage.one_model")
    return Section(
        id="lineage",
        title=translate("lineage.title"),
        headline=translate(
            "lineage.headline", models=models, time=format_duration(seconds), tokens=format_count(tokens)
        )
        + (
            translate("lineage.unfinished", stages=join_list(unfinished))
            if unfinished
            else translate("lineage.repeatable")
        ),
        figure=lineage.render_family_tree(run.stages),
        caption=translate("lineage.caption"),
        tables=lineage.build_lineage_tables(stages),
    )


def build_training_sections(run: RunFiles) -> list[Section]:
    return [
        section
        for build_section in (
            _over_optimization_section,
            _ppo_section,
            _learning_curves_section,
            _training_samples_section,
            _lineage_section,
        )
        if (section := build_section(run))
    ]


RUN_FILES = {
    "results.json": "missing.evaluations",
    "evaluation/preference/rankings.jsonl": "missing.samples",
    "evaluation/over_optimisation.jsonl": "missing.over_optimization",
    "ppo/metrics.jsonl": "missing.ppo",
}
"""Run file -> message that says what the page lacks without it."""


def missing_files(run: RunFiles) -> list[str]:
    return [f"{name}: {translate(key)}" for name, key in RUN_FILES.items() if not (run.directory / name).is_file()]
