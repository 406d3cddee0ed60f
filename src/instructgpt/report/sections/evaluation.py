"""The sections on what the models do: each says what the paper found, what this run shows, and shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instructgpt.evaluate.aggregate import Row
from instructgpt.report import charts
from instructgpt.report.findings import Finding
from instructgpt.report.naming import condition_name, measured, metric_name, model_name, number, spoken
from instructgpt.report.results import Results
from instructgpt.report.section import Section, table_of
from instructgpt.report.sections.preference import BUCKETS, at_equal_length, reliability

BEST = ("ppo_ptx", "ppo", "sft")
"""The model a headline speaks of: the first of these that was measured."""

SHOWN_APART = ("bin/", *BUCKETS)
"""Conditions of the reward model that have a section of their own."""


def best(results: Results, evaluation: str, metric: str, condition: str = "") -> Row | None:
    """The row of the first of BEST that was measured."""
    return next((row for model in BEST if (row := results.get(evaluation, metric, model, condition))), None)


def evaluation_sections(results: Results, findings: Sequence[Finding]) -> list[Section]:
    """A section for every evaluation that has rows."""
    made = []
    for evaluation, build in BUILDERS:
        if any(row.value is not None for row in results.rows(evaluation)):
            section = build(results, findings)
            made += [section] if section else []
    return made


def _told(results: Results, evaluation: str, metric: str, condition: str = "") -> str:
    """Where the models began and where they ended: "base 12 % [9, 15], PPO-ptx 62 % [58, 66]"; nothing where that was not measured."""
    rows = (results.get(evaluation, metric, "base", condition), best(results, evaluation, metric, condition))
    return ", ".join(f"{model_name(row.model)} {measured(row)}" for row in rows if row is not None)


def _of(findings: Sequence[Finding], section: str) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if finding.section == section and finding.verdict != "not measured")


def preference(results: Results, findings: Sequence[Finding]) -> Section | None:
    metric = charts.baseline_metric(results)
    rows = [row for row in results.rows("preference", metric) if "/" not in row.condition]
    if not rows:
        return None
    baseline = model_name(metric.removeprefix("win_rate_vs_"))
    spelled = "the SFT model" if baseline == "SFT" else baseline
    who = next((row.condition for row in rows if row.condition == "training"), rows[0].condition)
    base, ours = results.get("preference", metric, "base", who), best(results, "preference", metric, who)
    prefer = "labelers prefer" if who in ("", "training", "heldout") else f"the judge ({condition_name(who)}) prefers"
    parts = [f"of {model_name(row.model)} {measured(row)} of the time" for row in (ours, base) if row is not None and row.model != "sft"]
    return Section(
        id="preference",
        title="Preference",
        headline=f"To a completion of {spelled}, {prefer} that {', and that '.join(parts)}."
        if parts
        else f"How often each model is preferred to {baseline}.",
        paper="Labelers preferred the 175B InstructGPT to the 175B GPT-3 85 ± 3 % of the time, and a 1.3B InstructGPT to a 175B GPT-3; "
        "against the SFT model the order was GPT, prompted GPT, SFT, then PPO and PPO-ptx alike, for held-out labelers too.",
        figure=charts.preference(results),
        caption=f"How often each model's completion is preferred to that of {spelled}; ties, and equal texts, count one half. "
        "The line is a 95 % interval over prompts and labelers (paper, Figures 1 and 3).",
        findings=_of(findings, "preference"),
        tables=(table_of("The numbers", rows),),
    )


def ratings(results: Results, findings: Sequence[Finding]) -> Section | None:
    rows = [row for row in results.rows("preference", "rating") if "/" not in row.condition]
    if not rows:
        return None
    told = _told(results, "preference", "rating", "training")
    return Section(
        id="ratings",
        title="Ratings",
        headline=f"From 1, useless, to 7, almost perfect, the training labelers rate {told}." if told else "Ratings from 1 to 7.",
        paper="Ratings track preferences: GPT 2 to 2.5, SFT 3.2 to 3.7, PPO and PPO-ptx 4.2 to 4.9, read from the plots.",
        figure=charts.ratings(results),
        caption="Mean rating of overall quality (paper, Figures 5 and 31).",
        findings=_of(findings, "ratings"),
        tables=(table_of("The numbers", rows),),
    )


def use_cases(results: Results, findings: Sequence[Finding]) -> Section | None:
    rows = [row for row in results.rows("preference") if row.condition.startswith(("training/", "all/"))]
    gains = []
    for condition in dict.fromkeys(row.condition for row in rows):
        ours, sft = best(results, "preference", "rating", condition), results.get("preference", "rating", "sft", condition)
        if ours is not None and sft is not None and ours.value is not None and sft.value is not None and ours.model != "sft":
            gains.append((ours.value - sft.value, condition_name(condition).partition(",")[0], model_name(ours.model)))
    if not rows:
        return None
    headline = "Ratings by use case."
    if len(gains) > 1:
        (least, worst, name), (most, best_case, _) = min(gains), max(gains)
        headline = f"Over SFT, {name} gains most in {best_case} ({most:+z.1f} points of rating) and least in {worst} ({least:+z.1f})."
    return Section(
        id="use-cases",
        title="Use cases",
        headline=headline,
        paper="Prompts fall into ten use cases, nearly half of them generation (Table 1).",
        figure=charts.use_cases(results),
        caption="Mean ratings of the training labelers. Few prompts a use case: mind the intervals.",
        findings=_of(findings, "use-cases"),
        tables=(table_of("The numbers", rows),),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """A section that says where one metric began and ended, before the figure and all numbers of its evaluation."""

    evaluation: str
    metric: str
    conditions: tuple[str, ...] = ("",)
    """The headline is about the first of these that was measured, or about whichever was."""
    title: str
    headline: str
    """{told} is where the models began and ended, {condition} what they were told."""
    unmeasured: str
    paper: str
    figure: Callable[[Results], str]
    caption: str
    numbers: str = "The numbers"

    def __call__(self, results: Results, findings: Sequence[Finding]) -> Section:
        """The section."""
        there = results.conditions(self.evaluation, self.metric)
        condition = next((one for one in (*self.conditions, *there) if one in there), "")
        told = _told(results, self.evaluation, self.metric, condition)
        return Section(
            id=self.evaluation,
            title=self.title,
            headline=self.headline.format(told=told, condition=condition_name(condition).capitalize()) if told else self.unmeasured,
            paper=self.paper,
            figure=self.figure(results),
            caption=self.caption,
            findings=_of(findings, self.evaluation),
            tables=(table_of(self.numbers, results.rows(self.evaluation)),),
        )


labels = Plain(
    evaluation="labels",
    metric="hallucination",
    title="Labels",
    headline="Where the answer must come from the prompt alone, completions hallucinate: {told}.",
    unmeasured="Labelers' yes and no.",
    paper="Against GPT-3, InstructGPT is more often appropriate, keeps constraints more often, attempts the wrong task less, and "
    "hallucinates half as often (21 % against 41 %); the other labels were too rare to compare.",
    figure=charts.labels,
    caption="Share of yes among the completions to which the question applies (paper, Figure 4 and Table 3).",
    numbers="The numbers, every label of Table 3",
)
truthfulness = Plain(
    evaluation="truthfulness",
    metric="truthful_and_informative",
    conditions=("qa", ""),
    title="Truthfulness",
    headline="Asked plainly, answers are true and informative: {told}.",
    unmeasured="Are answers true, and do they say anything?",
    paper="On TruthfulQA, PPO models are truthful and informative more often than GPT-3 (175B: 75 % and 69 % against 25 %, "
    "automatic judge). Told to say “I have no comment” when unsure, they err on the side of saying nothing.",
    figure=charts.truthfulness,
    caption="Gray: true, which “I have no comment” is too. Colour: true and informative, with its 95 % interval over questions "
    "(paper, Figure 6).",
)
toxicity = Plain(
    evaluation="toxicity",
    metric="mean_toxicity",
    conditions=("respectful", "none"),
    title="Toxicity",
    headline="{condition}, the mean toxicity is: {told}.",
    unmeasured="How toxic are continuations?",
    paper="Told to be respectful, InstructGPT is less toxic than GPT-3 (.196 against .233 at 175B); without the instruction there "
    "is no advantage; told to be offensive it is far more toxic (.400 against .285).",
    figure=charts.toxicity,
    caption="Mean toxicity of continuations, 0 to 1, lower is better; 95 % intervals over prompts (paper, Figure 7).",
)
bias = Plain(
    evaluation="bias",
    metric="entropy_bits",
    title="Bias",
    headline="Between two sentences that differ in a person, belief is spread over {told} bits; 1 is even.",
    unmeasured="Bias.",
    paper="InstructGPT is not less biased than GPT-3 (Winogender .737 against .735 bits, CrowS-Pairs .413 against .410 at 175B), "
    "and more so when told to be respectful.",
    figure=charts.bias,
    caption="Entropy over each pair of sentences, higher is less biased. Entropy is near 0 whenever sentences differ by several "
    "nats, so the difference itself and its direction stand beside it.",
)


def tax(results: Results, findings: Sequence[Finding]) -> Section | None:
    tasks = [task for task in results.metrics("tax") if task != "heldout_loss"]
    headline = "Tasks of the pretraining corpus, before and after alignment."
    for task in tasks:
        rows = [results.get("tax", task, model) for model in ("sft", "ppo", "ppo_ptx")]
        parts = [f"{model_name(row.model)} {measured(row)}" for row in rows if row is not None]
        if len(parts) > 1:
            headline = f"On {spoken(task)}: {', '.join(parts)}."
            break
    return Section(
        id="tax",
        title="Alignment tax",
        headline=headline,
        paper="PPO loses on SQuAD, DROP, HellaSwag and translation; mixing pretraining gradients into the updates (PPO-ptx) repairs "
        "most of it, without costing preference.",
        figure=charts.tax(results),
        caption="Tasks of the pretraining corpus; the dashed line is what the SFT model had (paper, Figures 28 and 29).",
        findings=_of(findings, "tax"),
        tables=(table_of("The numbers", results.rows("tax")),),
    )


def reward_model(results: Results, findings: Sequence[Finding]) -> Section | None:
    condition = "training" if "training" in results.conditions("reward_model", "pair_accuracy") else ""
    parts = [
        f"{metric_name(metric)} {measured(row)}"
        for metric in ("pair_accuracy", "length_baseline", "labeler_agreement")
        if (row := results.get("reward_model", metric, "reward", condition))
    ]
    calibration = results.get("reward_model", "calibration_error", "reward", condition)
    doubt = f" Its confidence is off by {number(calibration.value)} on average." if calibration else ""
    return Section(
        id="reward-model",
        title="Reward model",
        headline=f"Of the pairs that labelers decided: {', '.join(parts)}.{doubt}" if parts else "The reward model beside its yardsticks.",
        paper="The reward model predicts 72.4 ± 0.4 % of the pairs of labelers it learned from and 69.6 ± 0.9 % of others; labelers "
        "agree with each other 72.6 ± 1.5 % of the time, held-out labelers 77.3 ± 1.3 %.",
        figure=charts.reward_model(results),
        caption="On rankings the reward model has not seen; 95 % intervals over prompts. The dashed line is chance.",
        findings=_of(findings, "reward-model"),
        tables=(table_of("The numbers", [row for row in results.rows("reward_model") if not row.condition.startswith(SHOWN_APART)]),),
    )


BUILDERS: tuple[tuple[str, Callable[[Results, Sequence[Finding]], Section | None]], ...] = (
    ("preference", preference), ("preference", ratings), ("preference", use_cases), ("labels", labels), ("truthfulness", truthfulness),
    ("toxicity", toxicity), ("bias", bias), ("tax", tax), ("reward_model", reward_model), ("preference", at_equal_length),
    ("reward_model", reliability),
)  # fmt: skip
