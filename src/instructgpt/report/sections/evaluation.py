"""Sections on evaluations: the paper's finding, this run's numbers, a figure and a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from instructgpt.report import charts
from instructgpt.report.captions import describe_intervals, is_drawn_over_size, join_sentences
from instructgpt.report.findings import Finding
from instructgpt.report.language import join_list, translate
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
    return join_list(f"{model_name(row.model)} {format_estimate(row)}" for row in rows if row is not None)


def _section_findings(findings: Sequence[Finding], section: str) -> tuple[Finding, ...]:
    return tuple(finding for finding in findings if finding.section == section and finding.verdict != "not measured")


def _preference_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    metric = charts.baseline_metric(results)
    rows = [row for row in results.rows("preference", metric) if "/" not in row.condition]
    if not rows:
        return None
    baseline = model_name(metric.removeprefix("win_rate_vs_"))
    baseline_phrase = translate("preference.baseline_sft") if baseline == model_name("sft") else baseline
    condition = next((row.condition for row in rows if row.condition == "training"), rows[0].condition)
    base_row, best_row = (
        results.get("preference", metric, "base", condition),
        best_model_row(results, "preference", metric, condition),
    )
    prefer_phrase = (
        translate("preference.labelers")
        if condition in ("", "training", "heldout")
        else translate("preference.judge", name=condition_name(condition))
    )
    parts = [
        translate("preference.part", model=model_name(row.model), share=format_estimate(row))
        for row in (best_row, base_row)
        if row is not None and row.model != "sft"
    ]
    return Section(
        id="preference",
        title=translate("preference.title"),
        headline=translate(
            "preference.headline",
            baseline=baseline_phrase,
            preferring=prefer_phrase,
            parts=translate("preference.and_that").join(parts),
        )
        if parts
        else translate("preference.fallback", baseline=baseline),
        paper=translate("preference.paper"),
        figure=charts.preference_figure(results),
        caption=join_sentences(
            translate("preference.caption", baseline=baseline_phrase),
            describe_intervals(rows, _preference_clusters(rows)),
        ),
        findings=_section_findings(findings, "preference"),
        tables=(build_rows_table(translate("tables.numbers"), rows),),
    )


def _preference_clusters(rows: Sequence[ResultRow]) -> str:
    """Name the clusters of people's rows: prompts and labelers; a judge is one labeler."""
    is_by_people = any(row.condition.partition("/")[0] in ("", "training", "heldout", "all") for row in rows)
    return "prompts_and_labelers" if is_by_people else "prompts"


def _ratings_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    rows = [row for row in results.rows("preference", "rating") if "/" not in row.condition]
    if not rows:
        return None
    before_after = _format_before_after(results, "preference", "rating", "training")
    return Section(
        id="ratings",
        title=translate("ratings.title"),
        headline=translate("ratings.headline", before_after=before_after)
        if before_after
        else translate("ratings.fallback"),
        paper=translate("ratings.paper"),
        figure=charts.ratings_figure(results),
        caption=join_sentences(
            translate("ratings.caption"),
            describe_intervals(rows, "prompts_and_labelers", "point"),
        ),
        findings=_section_findings(findings, "ratings"),
        tables=(build_rows_table(translate("tables.numbers"), rows),),
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
    headline = translate("use_cases.fallback")
    if len(gains) > 1:
        (min_gain, worst_case, best_model), (max_gain, best_case, _) = min(gains), max(gains)
        headline = translate(
            "use_cases.headline",
            model=best_model,
            best=best_case,
            gain=f"{max_gain:+z.1f}",
            worst=worst_case,
            least=f"{min_gain:+z.1f}",
        )
    return Section(
        id="use-cases",
        title=translate("use_cases.title"),
        headline=headline,
        paper=translate("use_cases.paper"),
        figure=charts.use_cases_figure(results),
        caption=join_sentences(
            translate("use_cases.caption", labelers=_labelers_of(rows)),
            describe_intervals([row for row in rows if row.metric == "rating"], "prompts_and_labelers", "point"),
        ),
        findings=_section_findings(findings, "use-cases"),
        tables=(build_rows_table(translate("tables.numbers"), rows),),
    )


def _labelers_of(rows: Sequence[ResultRow]) -> str:
    cohorts = {row.condition.partition("/")[0] for row in rows}
    return translate("cohort.the_training") if cohorts == {"training"} else translate("cohort.all")


@dataclass(frozen=True, slots=True, kw_only=True)
class _SimpleSection:
    """A section with one metric's headline, a figure and all numbers of its evaluation.

    Its messages stand below the evaluation's name; headlines have the placeholders {before_after} and {condition}.
    The caption depends on the rows that are drawn.
    """

    evaluation: str
    metric: str
    conditions: tuple[str, ...] = ("",)
    """The headline uses the first measured condition."""
    draw_figure: Callable[[Results], str]
    describe_figure: Callable[[Sequence[ResultRow]], str]
    table_title: str = "tables.numbers"

    def __call__(self, results: Results, findings: Sequence[Finding]) -> Section:
        measured_conditions = results.conditions(self.evaluation, self.metric)
        condition = next((one for one in (*self.conditions, *measured_conditions) if one in measured_conditions), "")
        before_after = _format_before_after(results, self.evaluation, self.metric, condition)
        return Section(
            id=self.evaluation.replace("_", "-"),
            title=translate(f"{self.evaluation}.title"),
            headline=translate(
                f"{self.evaluation}.headline",
                before_after=before_after,
                condition=condition_name(condition).capitalize(),
            )
            if before_after
            else translate(f"{self.evaluation}.fallback"),
            paper=translate(f"{self.evaluation}.paper"),
            figure=self.draw_figure(results),
            caption=self.describe_figure(results.rows(self.evaluation)),
            findings=_section_findings(findings, self.evaluation),
            tables=(build_rows_table(translate(self.table_title), results.rows(self.evaluation)),),
        )


def _describe_truthfulness_figure(rows: Sequence[ResultRow]) -> str:
    """Bars show true answers in gray behind the color, curves show them dashed."""
    informative_rows = [row for row in rows if row.metric == "truthful_and_informative"]
    marks = translate("truthfulness.dashed") if is_drawn_over_size(rows) else translate("truthfulness.bars")
    return join_sentences(marks, describe_intervals(informative_rows, "questions"))


_labels_section = _SimpleSection(
    evaluation="labels",
    metric="hallucination",
    draw_figure=charts.labels_figure,
    describe_figure=lambda rows: join_sentences(
        translate("labels.caption"),
        describe_intervals(rows, "prompts_and_labelers"),
    ),
    table_title="labels.table_title",
)
_generalization_section = _SimpleSection(
    evaluation="generalization",
    metric="fully_right",
    conditions=("test_prompts",),
    draw_figure=charts.generalization_figure,
    describe_figure=lambda rows: join_sentences(
        translate("generalization.caption"),
        describe_intervals([row for row in rows if row.metric == "fully_right"], "prompts"),
    ),
)
_mistakes_section = _SimpleSection(
    evaluation="simple_mistakes",
    metric="fails",
    conditions=("false_premise",),
    draw_figure=charts.mistakes_figure,
    describe_figure=lambda rows: join_sentences(
        translate("simple_mistakes.caption"),
        describe_intervals(rows, "prompts"),
    ),
)
_truthfulness_section = _SimpleSection(
    evaluation="truthfulness",
    metric="truthful_and_informative",
    conditions=("qa", ""),
    draw_figure=charts.truthfulness_figure,
    describe_figure=_describe_truthfulness_figure,
)
_toxicity_section = _SimpleSection(
    evaluation="toxicity",
    metric="mean_toxicity",
    conditions=("respectful", "none"),
    draw_figure=charts.toxicity_figure,
    describe_figure=lambda rows: join_sentences(
        translate("toxicity.caption"),
        describe_intervals(rows, "prompts"),
    ),
)
_bias_section = _SimpleSection(
    evaluation="bias",
    metric="entropy_bits",
    draw_figure=charts.bias_figure,
    describe_figure=lambda rows: join_sentences(
        translate("bias.caption"),
        describe_intervals(rows, "pairs"),
    ),
)


def _tax_section(results: Results, findings: Sequence[Finding]) -> Section | None:
    tasks = [task for task in results.metrics("tax") if task != "heldout_loss"]
    headline = translate("tax.fallback")
    for task in tasks:
        rows = [results.get("tax", task, model) for model in ("sft", "ppo", "ppo_ptx")]
        parts = [f"{model_name(row.model)} {format_estimate(row)}" for row in rows if row is not None]
        if len(parts) > 1:
            headline = translate("tax.headline", task=humanize(task), parts=join_list(parts))
            break
    return Section(
        id="tax",
        title=translate("tax.title"),
        headline=headline,
        paper=translate("tax.paper"),
        figure=charts.tax_figure(results),
        caption=join_sentences(
            translate("tax.caption"),
            translate("tax.sft_line") if "sft" in results.models("tax") else "",
            describe_intervals(results.rows("tax"), "questions", "bar_or_point"),
        ),
        findings=_section_findings(findings, "tax"),
        tables=(build_rows_table(translate("tables.numbers"), results.rows("tax")),),
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
        translate("reward_model.calibration", error=format_metric_value(calibration.value)) if calibration else ""
    ) + (translate("reward_model.by_chance", error=format_metric_value(by_chance.value)) if by_chance else "")
    return Section(
        id="reward-model",
        title=translate("reward_model.title"),
        headline=translate("reward_model.headline", parts=join_list(parts), calibration=calibration_sentence)
        if parts
        else translate("reward_model.fallback"),
        paper=translate("reward_model.paper"),
        figure=charts.reward_model_figure(results),
        caption=join_sentences(
            translate("reward_model.caption"),
            describe_intervals(results.rows("reward_model", "pair_accuracy"), "prompts_and_labelers"),
        ),
        findings=_section_findings(findings, "reward-model"),
        tables=(
            build_rows_table(
                translate("tables.numbers"),
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
    ("generalization", _generalization_section),
    ("simple_mistakes", _mistakes_section),
    ("truthfulness", _truthfulness_section),
    ("toxicity", _toxicity_section),
    ("bias", _bias_section),
    ("tax", _tax_section),
    ("reward_model", _reward_model_section),
    ("preference", length_controlled_section),
    ("reward_model", reliability_section),
)
