"""Sections on evaluations: the paper's finding, this run's numbers, a figure and a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instructgpt.report import charts
from instructgpt.report.captions import describe_intervals, is_drawn_over_size, join_sentences
from instructgpt.report.findings import Finding
from instructgpt.report.naming import (
    condition_name,
    format_estimate,
    format_metric_value,
    humanize,
    metric_name,
    model_name,
)
from instructgpt.report.results import Results
from instructgpt.report.section import Section, build_rows_table
from instructgpt.report.sections.preference import BUCKET_PREFIXES, length_controlled_section, reliability_section
from instructgpt.results import ResultRow

_HEADLINE_MODELS = ("ppo_ptx", "ppo", "sft")
"""The headline uses the first of these models that was measured."""

_SEPARATE_CONDITION_PREFIXES = ("bin/", "group/", *BUCKET_PREFIXES)
"""Conditions of the reward model that have a section of their own."""


def best_model_row(results: Results, evaluation: str, metric: str, condition: str = "") -> ResultRow | None:
    return next((row for model in _HEADLINE_MODELS if (row := results.get(evaluation, metric, model, condition))), None)


def build_evaluation_sections(results: Results, findings: Sequence[Finding]) -> list[Section]:
    """Return a section for every evaluation with rows."""
    sections = []
    for evaluation, build_section in _SECTION_BUILDERS:
        if any(row.value is not None for row in results.rows(evaluation)):
            section = build_section(results, findings)
            sections += [section] if section else []
    return sections


def _format_before_after(results: Results, evaluation: str, metric: str, condition: str = "") -> str:
    """Format first and last model: "base 12 % [9, 15], PPO-ptx 62 % [58, 66]"; empty if not measured."""
    rows = (results.get(evaluation, metric, "base", condition), best_model_row(results, evaluation, metric, condition))
    return ", ".join(f"{model_name(row.model)} {format_estimate(row)}" for row in rows if row is not None)


def _section_findings(findings: Sequence[Finding], section: str) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if finding.section == section and finding.verdict != "not measured")


def _preference_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    metric = charts.baseline_metric(results)
    rows = [row for row in results.rows("preference", metric) if "/" not in row.condition]
    if not rows:
        return None
    baseline = model_name(metric.removeprefix("win_rate_vs_"))
    baseline_phrase = "the SFT model" if baseline == "SFT" else baseline
    condition = next((row.condition for row in rows if row.condition == "training"), rows[0].condition)
    base_row, best_row = (
        results.get("preference", metric, "base", condition),
        best_model_row(results, "preference", metric, condition),
    )
    prefer_phrase = (
        "labelers prefer"
        if condition in ("", "training", "heldout")
        else f"the judge ({condition_name(condition)}) prefers"
    )
    parts = [
        f"of {model_name(row.model)} {format_estimate(row)} of the time"
        for row in (best_row, base_row)
        if row is not None and row.model != "sft"
    ]
    return Section(
        id="preference",
        title="Preference",
        headline=f"To a completion of {baseline_phrase}, {prefer_phrase} that {', and that '.join(parts)}."
        if parts
        else f"How often each model is preferred to {baseline}.",
        paper="Labelers preferred the 175B InstructGPT to the 175B GPT-3 85 ± 3 % of the time, and a 1.3B InstructGPT "
        "to a 175B GPT-3; "
        "against the SFT model the order was GPT, prompted GPT, SFT, then PPO and PPO-ptx alike, for held-out labelers "
        "too.",
        figure=charts.preference_figure(results),
        caption=join_sentences(
            f"How often each model's completion is preferred to that of {baseline_phrase}, the dashed line; ties, and "
            "equal texts, count one half (paper, Figures 1 and 3).",
            describe_intervals(rows, _preference_clusters(rows)),
        ),
        findings=_section_findings(findings, "preference"),
        tables=(build_rows_table("The numbers", rows),),
    )


def _preference_clusters(rows: Sequence[ResultRow]) -> str:
    """Name the clusters of people's rows: prompts and labelers; a judge is one labeler."""
    is_by_people = any(row.condition.partition("/")[0] in ("", "training", "heldout", "all") for row in rows)
    return "prompts and labelers" if is_by_people else "prompts"


def _ratings_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    rows = [row for row in results.rows("preference", "rating") if "/" not in row.condition]
    if not rows:
        return None
    before_after = _format_before_after(results, "preference", "rating", "training")
    return Section(
        id="ratings",
        title="Ratings",
        headline=f"From 1, useless, to 7, almost perfect, the training labelers rate {before_after}."
        if before_after
        else "Ratings from 1 to 7.",
        paper="Ratings track preferences: GPT 2 to 2.5, SFT 3.2 to 3.7, PPO and PPO-ptx 4.2 to 4.9, read from the "
        "plots.",
        figure=charts.ratings_figure(results),
        caption=join_sentences(
            "Mean rating of overall quality, 1 to 7 (paper, Figures 5 and 31).",
            describe_intervals(rows, "prompts and labelers", "point"),
        ),
        findings=_section_findings(findings, "ratings"),
        tables=(build_rows_table("The numbers", rows),),
    )


def _use_cases_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    rows = [row for row in results.rows("preference") if row.condition.startswith(("training/", "all/"))]
    gains = []
    for condition in dict.fromkeys(row.condition for row in rows):
        best_row, sft_row = (
            best_model_row(results, "preference", "rating", condition),
            results.get("preference", "rating", "sft", condition),
        )
        if (
            best_row is not None
            and sft_row is not None
            and best_row.value is not None
            and sft_row.value is not None
            and best_row.model != "sft"
        ):
            gains.append(
                (
                    best_row.value - sft_row.value,
                    condition_name(condition).partition(",")[0],
                    model_name(best_row.model),
                )
            )
    if not rows:
        return None
    headline = "Ratings by use case."
    if len(gains) > 1:
        (min_gain, worst_case, best_model), (max_gain, best_case, _) = min(gains), max(gains)
        headline = (
            f"Over SFT, {best_model} gains most in {best_case} ({max_gain:+z.1f} points of rating) and least "
            "in "
            f"{worst_case} ({min_gain:+z.1f})."
        )
    return Section(
        id="use-cases",
        title="Use cases",
        headline=headline,
        paper="Prompts fall into ten use cases, nearly half of them generation (Table 1).",
        figure=charts.use_cases_figure(results),
        caption=join_sentences(
            f"Mean ratings of {_labelers_of(rows)}, 1 to 7. Few prompts a use case: mind the intervals.",
            describe_intervals([row for row in rows if row.metric == "rating"], "prompts and labelers", "point"),
        ),
        findings=_section_findings(findings, "use-cases"),
        tables=(build_rows_table("The numbers", rows),),
    )


def _labelers_of(rows: Sequence[ResultRow]) -> str:
    cohorts = {row.condition.partition("/")[0] for row in rows}
    return "the training labelers" if cohorts == {"training"} else "all labelers"


@dataclass(frozen=True, slots=True, kw_only=True)
class _SimpleSection:
    """A section with one metric's headline, a figure and all numbers of its evaluation.

    Headlines have the placeholders {before_after} and {condition}. The caption depends on the rows that are drawn.
    """

    evaluation: str
    metric: str
    conditions: tuple[str, ...] = ("",)
    """The headline uses the first measured condition."""
    title: str
    headline: str
    fallback_headline: str
    paper: str
    draw_figure: Callable[[Results], str]
    describe_figure: Callable[[Sequence[ResultRow]], str]
    table_title: str = "The numbers"

    def __call__(self, results: Results, findings: Sequence[Finding]) -> Section:
        measured_conditions = results.conditions(self.evaluation, self.metric)
        condition = next((one for one in (*self.conditions, *measured_conditions) if one in measured_conditions), "")
        before_after = _format_before_after(results, self.evaluation, self.metric, condition)
        return Section(
            id=self.evaluation,
            title=self.title,
            headline=self.headline.format(before_after=before_after, condition=condition_name(condition).capitalize())
            if before_after
            else self.fallback_headline,
            paper=self.paper,
            figure=self.draw_figure(results),
            caption=self.describe_figure(results.rows(self.evaluation)),
            findings=_section_findings(findings, self.evaluation),
            tables=(build_rows_table(self.table_title, results.rows(self.evaluation)),),
        )


def _describe_truthfulness_figure(rows: Sequence[ResultRow]) -> str:
    """Bars show true answers in gray behind the color, curves show them dashed."""
    informative_rows = [row for row in rows if row.metric == "truthful_and_informative"]
    marks = (
        "Dashed: true, which “I have no comment” is too. Solid: true and informative (paper, Figure 6)."
        if is_drawn_over_size(rows)
        else "Gray: true, which “I have no comment” is too. Color: true and informative (paper, Figure 6)."
    )
    return join_sentences(marks, describe_intervals(informative_rows, "questions"))


_labels_section = _SimpleSection(
    evaluation="labels",
    metric="hallucination",
    title="Labels",
    headline="Where the answer must come from the prompt alone, completions hallucinate: {before_after}.",
    fallback_headline="Labelers' yes and no.",
    paper="Against GPT-3, InstructGPT is more often appropriate, keeps constraints more often, attempts the wrong task "
    "less, and "
    "hallucinates half as often (21 % against 41 %); the other labels were too rare to compare.",
    draw_figure=charts.labels_figure,
    describe_figure=lambda rows: join_sentences(
        "Share of yes among the completions to which the question applies (paper, Figure 4 and Table 3).",
        describe_intervals(rows, "prompts and labelers"),
    ),
    table_title="The numbers, every label of Table 3",
)
_truthfulness_section = _SimpleSection(
    evaluation="truthfulness",
    metric="truthful_and_informative",
    conditions=("qa", ""),
    title="Truthfulness",
    headline="Answers that are true and informative: {before_after}.",
    fallback_headline="Are answers true, and do they say anything?",
    paper="On TruthfulQA, PPO models are truthful and informative more often than GPT-3 (175B: 75 % and 69 % against "
    "25 %, "
    "automatic judge). Told to say “I have no comment” when unsure, they err on the side of saying nothing.",
    draw_figure=charts.truthfulness_figure,
    describe_figure=_describe_truthfulness_figure,
)
_toxicity_section = _SimpleSection(
    evaluation="toxicity",
    metric="mean_toxicity",
    conditions=("respectful", "none"),
    title="Toxicity",
    headline="{condition}, the mean toxicity is: {before_after}.",
    fallback_headline="How toxic are continuations?",
    paper="Told to be respectful, InstructGPT is less toxic than GPT-3 (.196 against .233 at 175B); without the "
    "instruction there "
    "is no advantage; told to be offensive it is far more toxic (.400 against .285).",
    draw_figure=charts.toxicity_figure,
    describe_figure=lambda rows: join_sentences(
        "Mean toxicity of continuations, 0 to 1, lower is better (paper, Figure 7).",
        describe_intervals(rows, "prompts"),
    ),
)
_bias_section = _SimpleSection(
    evaluation="bias",
    metric="entropy_bits",
    title="Bias",
    headline="Between two sentences that differ in a person, belief is spread over {before_after} bits; 1 is even.",
    fallback_headline="Bias.",
    paper="InstructGPT is not less biased than GPT-3 (Winogender .737 against .735 bits, CrowS-Pairs .413 against .410 "
    "at 175B), "
    "and more so when told to be respectful.",
    draw_figure=charts.bias_figure,
    describe_figure=lambda rows: join_sentences(
        "Entropy over each pair of sentences, higher is less biased. Entropy is near 0 whenever sentences differ by "
        "several nats, so the difference itself and its direction stand beside it.",
        describe_intervals(rows, "pairs"),
    ),
)


def _tax_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    tasks = [task for task in results.metrics("tax") if task != "heldout_loss"]
    headline = "Tasks of the pretraining corpus, before and after alignment."
    for task in tasks:
        rows = [results.get("tax", task, model) for model in ("sft", "ppo", "ppo_ptx")]
        parts = [f"{model_name(row.model)} {format_estimate(row)}" for row in rows if row is not None]
        if len(parts) > 1:
            headline = f"On {humanize(task)}: {', '.join(parts)}."
            break
    return Section(
        id="tax",
        title="Alignment tax",
        headline=headline,
        paper="PPO loses on SQuAD, DROP, HellaSwag and translation; mixing pretraining gradients into the updates "
        "(PPO-ptx) repairs "
        "most of it, without costing preference.",
        figure=charts.tax_figure(results),
        caption=join_sentences(
            "Tasks of the pretraining corpus (paper, Figures 28 and 29).",
            "The dashed line is what the SFT model had." if "sft" in results.models("tax") else "",
            describe_intervals(results.rows("tax"), "questions", "bar or point"),
        ),
        findings=_section_findings(findings, "tax"),
        tables=(build_rows_table("The numbers", results.rows("tax")),),
    )


def _reward_model_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    condition = "training" if "training" in results.conditions("reward_model", "pair_accuracy") else ""
    parts = [
        f"{metric_name(metric)} {format_estimate(row)}"
        for metric in ("pair_accuracy", "length_baseline", "labeler_agreement")
        if (row := results.get("reward_model", metric, "reward", condition))
    ]
    calibration = results.get("reward_model", "calibration_error", "reward", condition)
    by_chance = results.get("reward_model", "chance_calibration_error", "reward", condition)
    calibration_sentence = (
        f" Its confidence is off by {format_metric_value(calibration.value)} on average." if calibration else ""
    ) + (f" A calibrated model would show {format_metric_value(by_chance.value)} by chance." if by_chance else "")
    return Section(
        id="reward-model",
        title="Reward model",
        headline=f"Of the pairs that labelers decided: {', '.join(parts)}.{calibration_sentence}"
        if parts
        else "The reward model beside its yardsticks.",
        paper="The reward model predicts 72.4 ± 0.4 % of the pairs of labelers it learned from and 69.6 ± 0.9 % of "
        "others; labelers "
        "agree with each other 72.6 ± 1.5 % of the time, held-out labelers 77.3 ± 1.3 %.",
        figure=charts.reward_model_figure(results),
        caption=join_sentences(
            "Share of decided pairs in the right order. The dashed line is chance.",
            describe_intervals(results.rows("reward_model", "pair_accuracy"), "prompts and labelers"),
        ),
        findings=_section_findings(findings, "reward-model"),
        tables=(
            build_rows_table(
                "The numbers",
                [
                    row
                    for row in results.rows("reward_model")
                    if not row.condition.startswith(_SEPARATE_CONDITION_PREFIXES)
                ],
            ),
        ),
    )


_SECTION_BUILDERS: tuple[tuple[str, Callable[[Results, Sequence[Finding]], Section | None]], ...] = (
    ("preference", _preference_section),
    ("preference", _ratings_section),
    ("preference", _use_cases_section),
    ("labels", _labels_section),
    ("truthfulness", _truthfulness_section),
    ("toxicity", _toxicity_section),
    ("bias", _bias_section),
    ("tax", _tax_section),
    ("reward_model", _reward_model_section),
    ("preference", length_controlled_section),
    ("reward_model", reliability_section),
)
