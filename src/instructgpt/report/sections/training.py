"""Sections on training: over-optimization, PPO, learning curves, samples, lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt.formatting import format_large_count, format_short_number, format_training_time
from instructgpt.report import curves, lineage, samples
from instructgpt.report.inputs import RunFiles, Stage
from instructgpt.report.naming import humanize, model_name, sort_models
from instructgpt.report.section import ReportTable, Section


def _over_optimization_section(run: RunFiles) -> Section | None:
    """Score against true utility; only where the truth is known."""
    points = [point for point in run.over_optimization if "model" in point]
    if not points:
        return None
    models = sort_models(str(point["model"]) for point in points)
    columns = ("model", "step", "episodes", "kl", "score", "utility", "low", "high")
    table_rows = tuple(tuple(_format_cell(point.get(column)) for column in columns) for point in points)
    return Section(
        id="over-optimisation",
        title="Score and truth",
        headline=" ".join(
            description
            for model in models
            if (description := _describe_utility_peak([point for point in points if point["model"] == model], model))
        ),
        paper="The KL penalty of equation 2 is there to mitigate over-optimisation: pushed far enough, a reward "
        "model's score goes on "
        "rising while people like the completions less (Stiennon et al. 2020; Gao et al. 2022).",
        figure=curves.over_optimization_figure(points),
        caption="The reward model's score, which PPO climbs, beside the true utility, which it never sees; bands are "
        "95 % intervals.",
        tables=(ReportTable("The numbers", columns, table_rows),),
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
        return f"{name}: true utility was still at its best at the end, {format_short_number(last_point['utility'])}."
    kl_phrase = f" at a KL of {format_short_number(best_point['kl'])}" if best_point.get("kl") is not None else ""
    is_worse = (
        last_point.get("high") is not None
        and best_point.get("low") is not None
        and last_point["high"] < best_point["low"]
    )
    verdict = "surely lower: over-optimised" if is_worse else "within the intervals: no over-optimisation to be seen"
    return (
        f"{name}: true utility was best{kl_phrase}, {format_short_number(best_point['utility'])}, and ended at "
        f"{format_short_number(last_point['utility'])}, {verdict}."
    )


def _ppo_section(run: RunFiles) -> Section | None:
    ppo_stages = [stage for stage in run.stages.values() if curves.is_ppo_stage(stage)]
    if not ppo_stages:
        return None
    return Section(
        id="ppo",
        title="The course of PPO",
        headline=" ".join(_describe_ppo_run(stage) for stage in ppo_stages),
        paper="256 thousand episodes, 512 a batch, one pass over each; KL penalty β = 0.02 against the SFT start, clip "
        "0.2 (appendix C.4).",
        figure=curves.ppo_figure(ppo_stages, curves.PPO_MAIN_METRICS),
        caption="Means over each batch. The ratio is 1 on the first minibatch, and stays near 1 while updates are "
        "small.",
        extra_figure=curves.ppo_figure(ppo_stages, curves.PPO_EXTRA_METRICS),
    )


def _describe_ppo_run(stage: Stage) -> str:
    _, scores = stage.series("objective/scores")
    _, kl = stage.series("objective/kl")
    episodes = max((row["episode"] for row in stage.metrics if "episode" in row), default=None)
    episodes_phrase = f" after {episodes:,.0f} episodes" if episodes else ""
    score_phrase = (
        f" the score went from {format_short_number(scores[0])} to {format_short_number(scores[-1])}," if scores else ""
    )
    return f"{model_name(stage.name)}:{score_phrase} KL ended at {format_short_number(kl[-1])} nats{episodes_phrase}."


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
                f" (best {format_short_number(min(validation_losses))})"
                if min(validation_losses) < validation_losses[-1] - 1e-9
                else ""
            )
            final_losses.append(f"{model_name(stage.name)} {format_short_number(validation_losses[-1])}{best_phrase}")
    return Section(
        id="learning",
        title="Learning curves",
        headline=f"Validation loss at the end: {', '.join(final_losses)}."
        if final_losses
        else "What every stage logged.",
        paper="SFT overfits on validation loss after one epoch, and still gets better in people's eyes for more; the "
        "reward model must see "
        "its rankings only once.",
        figure=curves.learning_curves_figure(stages) + curves.reward_accuracy_figure(stages),
        caption="Nats a token, for the reward model nats a pair. Long curves are drawn as means of neighbouring steps.",
    )


def samples_section(run: RunFiles) -> Section | None:
    sample_groups = samples.select_sample_groups(run.rankings, run.use_cases)
    if not sample_groups:
        return None
    spread_phrase = "spread over the use cases, " if any(each.kind for each in sample_groups) else ""
    has_ratings = any(ranking.ratings is not None for ranking in run.rankings)
    return Section(
        id="samples",
        title="Samples side by side",
        headline=f"{len(sample_groups)} test prompts, {spread_phrase}in the order of the file: none was picked for its "
        "answers.",
        caption="With the mean rating of its labelers, 1 to 7."
        if has_ratings
        else "With its rank among the completions of its prompt; 1 is the best.",
        sample_groups=sample_groups,
    )


def _training_samples_section(run: RunFiles) -> Section | None:
    sample_groups = tuple(
        group for stage in run.stages.values() for group in samples.select_training_samples(stage.samples, stage.name)
    )
    if not sample_groups:
        return None
    return Section(
        id="while-learning",
        title="Written while learning",
        headline="Completions from PPO's own batches, from the first to the last.",
        caption="Score is the reward model's, KL in nats, total the score less the KL penalty.",
        sample_groups=sample_groups,
    )


def _lineage_section(run: RunFiles) -> Section | None:
    if not run.stages:
        return None
    stages = list(run.stages.values())
    seconds, tokens = lineage.sum_over_stages(stages, "seconds"), lineage.sum_over_stages(stages, "tokens")
    unfinished = [model_name(stage.name) for stage in stages if not lineage.is_stage_finished(stage)]
    models = f"{len(stages)} models" if len(stages) > 1 else "One model"
    return Section(
        id="lineage",
        title="Lineage",
        headline=f"{models}, {format_training_time(seconds)} of training, {format_large_count(tokens)} tokens."
        + (
            f" Not finished: {', '.join(unfinished)}."
            if unfinished
            else " Every one can be made again from its parents, its settings and its seed."
        ),
        figure=lineage.render_family_tree(run.stages),
        caption="A line leads from each model to what was made of it; hashes are those that the children recorded.",
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


RUN_FILE_CONTENTS = {
    "results.json": "preference, ratings, labels, truthfulness, toxicity, bias, alignment tax, reward model",
    "evaluation/preference/rankings.jsonl": "samples side by side",
    "evaluation/over_optimisation.jsonl": "score and truth",
    "ppo/metrics.jsonl": "the course of PPO",
}
"""Run file -> what the page lacks without it."""


def missing_files(run: RunFiles) -> list[str]:
    return [
        f"{name}: {humanize(contents)}"
        for name, contents in RUN_FILE_CONTENTS.items()
        if not (run.directory / name).is_file()
    ]
