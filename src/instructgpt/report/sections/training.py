"""The sections on how the models came about: over-optimisation, the course of PPO, learning curves, samples, lineage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from instructgpt.report import curves, lineage, samples
from instructgpt.report.inputs import RunFiles, Stage
from instructgpt.report.naming import amount, duration, in_order, model_name, short, spoken
from instructgpt.report.section import Section, Table


def over_optimisation(run: RunFiles) -> Section | None:
    """Score against true utility; only a run whose truth is known has it."""
    points = [point for point in run.over_optimisation if "model" in point]
    if not points:
        return None
    models = in_order(str(point["model"]) for point in points)
    columns = ("model", "step", "episodes", "kl", "score", "utility", "low", "high")
    lines = tuple(tuple(_cell(point.get(column)) for column in columns) for point in points)
    return Section(
        id="over-optimisation",
        title="Score and truth",
        headline=" ".join(told for model in models if (told := _peak([point for point in points if point["model"] == model], model))),
        paper="The KL penalty of equation 2 is there to mitigate over-optimisation: pushed far enough, a reward model's score goes on "
        "rising while people like the completions less (Stiennon et al. 2020; Gao et al. 2022).",
        figure=curves.over_optimisation(points),
        caption="The reward model's score, which PPO climbs, beside the true utility, which it never sees; bands are 95 % intervals.",
        tables=(Table("The numbers", columns, lines),),
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "–"
    return short(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _peak(points: Sequence[Mapping[str, Any]], model: str) -> str:
    """Where the utility of one model was best, and whether its end is surely worse."""
    known = [point for point in points if point.get("utility") is not None]
    if not known:
        return ""
    best, last = max(known, key=lambda point: point["utility"]), max(known, key=lambda point: point.get("step") or 0)
    name = model_name(model)
    if best is last:
        return f"{name}: true utility was still at its best at the end, {short(last['utility'])}."
    at = f" at a KL of {short(best['kl'])}" if best.get("kl") is not None else ""
    worse = last.get("high") is not None and best.get("low") is not None and last["high"] < best["low"]
    verdict = "surely lower: over-optimised" if worse else "within the intervals: no over-optimisation to be seen"
    return f"{name}: true utility was best{at}, {short(best['utility'])}, and ended at {short(last['utility'])}, {verdict}."


def ppo(run: RunFiles) -> Section | None:
    """The course of PPO."""
    runs = [stage for stage in run.stages.values() if curves.is_ppo(stage)]
    if not runs:
        return None
    return Section(
        id="ppo",
        title="The course of PPO",
        headline=" ".join(_course(stage) for stage in runs),
        paper="256 thousand episodes, 512 a batch, one pass over each; KL penalty β = 0.02 against the SFT start, clip 0.2 (appendix C.4).",
        figure=curves.ppo(runs, curves.PPO_MAIN),
        caption="Means over each batch. The ratio is 1 on the first minibatch, and stays near 1 while updates are small.",
        more=curves.ppo(runs, curves.PPO_MORE),
    )


def _course(stage: Stage) -> str:
    """What happened to score and KL, from the first batch to the last."""
    _, scores = stage.series("objective/scores")
    _, kl = stage.series("objective/kl")
    episodes = max((row["episode"] for row in stage.metrics if "episode" in row), default=None)
    after = f" after {episodes:,.0f} episodes" if episodes else ""
    score = f" the score went from {short(scores[0])} to {short(scores[-1])}," if scores else ""
    return f"{model_name(stage.name)}:{score} KL ended at {short(kl[-1])} nats{after}."


def learning(run: RunFiles) -> Section | None:
    """Learning curves of every stage but PPO."""
    stages = [stage for stage in run.stages.values() if not curves.is_ppo(stage) and any("loss" in name for name in stage.logged())]
    if not stages:
        return None
    ends = []
    for stage in stages:
        validation = next((found for name in ("loss/validation", "validation/loss") if (found := stage.series(name)[1])), [])
        if validation:
            best = f" (best {short(min(validation))})" if min(validation) < validation[-1] - 1e-9 else ""
            ends.append(f"{model_name(stage.name)} {short(validation[-1])}{best}")
    return Section(
        id="learning",
        title="Learning curves",
        headline=f"Validation loss at the end: {', '.join(ends)}." if ends else "What every stage logged.",
        paper="SFT overfits on validation loss after one epoch, and still gets better in people's eyes for more; the reward model must see "
        "its rankings only once.",
        figure=curves.learning(stages) + curves.accuracy(stages),
        caption="Nats a token, for the reward model nats a pair. Long curves are drawn as means of neighbouring steps.",
    )


def side_by_side(run: RunFiles) -> Section | None:
    """A dozen prompts with every model's completion."""
    shown = samples.side_by_side(run.rankings, run.use_cases)
    if not shown:
        return None
    spread = "spread over the use cases, " if any(each.kind for each in shown) else ""
    rated = any(ranking.ratings is not None for ranking in run.rankings)
    return Section(
        id="samples",
        title="Samples side by side",
        headline=f"{len(shown)} test prompts, {spread}in the order of the file: none was picked for its answers.",
        caption="With the mean rating of its labelers, 1 to 7."
        if rated
        else "With its rank among the completions of its prompt; 1 is the best.",
        shown=shown,
    )


def while_learning(run: RunFiles) -> Section | None:
    """What the policies wrote during PPO."""
    shown = tuple(each for stage in run.stages.values() for each in samples.over_time(stage.samples, stage.name))
    if not shown:
        return None
    return Section(
        id="while-learning",
        title="Written while learning",
        headline="Completions from PPO's own batches, from the first to the last.",
        caption="Score is the reward model's, KL in nats, total the score less the KL penalty.",
        shown=shown,
    )


def family(run: RunFiles) -> Section | None:
    """Where every model came from."""
    if not run.stages:
        return None
    stages = list(run.stages.values())
    seconds, tokens = lineage.total(stages, "seconds"), lineage.total(stages, "tokens")
    left = [model_name(stage.name) for stage in stages if not lineage.finished(stage)]
    models = f"{len(stages)} models" if len(stages) > 1 else "One model"
    return Section(
        id="lineage",
        title="Lineage",
        headline=f"{models}, {duration(seconds)} of training, {amount(tokens)} tokens."
        + (f" Not finished: {', '.join(left)}." if left else " Every one can be made again from its parents, its settings and its seed."),
        figure=lineage.family_tree(run.stages),
        caption="A line leads from each model to what was made of it; hashes are those that the children recorded.",
        tables=lineage.tables(stages),
    )


def training_sections(run: RunFiles) -> list[Section]:
    """Every section that the files of a run can fill."""
    return [section for build in (over_optimisation, ppo, learning, while_learning, family) if (section := build(run))]


MISSING = {
    "results.json": "preference, ratings, labels, truthfulness, toxicity, bias, alignment tax, reward model",
    "evaluation/preference/rankings.jsonl": "samples side by side",
    "evaluation/over_optimisation.jsonl": "score and truth",
    "ppo/metrics.jsonl": "the course of PPO",
}
"""What the page lacks when a file is not there."""


def missing(run: RunFiles) -> list[str]:
    """One line for each file that is not there."""
    return [f"{name}: {spoken(lost)}" for name, lost in MISSING.items() if not (run.directory / name).is_file()]
