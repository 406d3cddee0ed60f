"""The paper's findings checked against a run: each verdict follows from 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from instructgpt.report.language import translate
from instructgpt.report.naming import condition_name, format_estimate, metric_name, model_name
from instructgpt.report.results import Results
from instructgpt.results import ResultRow

FindingVerdict = Literal["shown", "partly", "not shown", "opposite", "not measured"]

_EQUIVALENCE_MARGIN = 0.1
"""Shares are equivalent if the interval of their difference lies within this margin; entropies in bits, too."""

VERDICTS: tuple[FindingVerdict, ...] = ("shown", "partly", "not shown", "opposite")
"""Of findings that were measured, best first."""

_RL_MODELS = ("ppo", "ppo_ptx")


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim of the paper, the verdict of this run, and the numbers behind it."""

    section: str
    paper: str
    verdict: FindingVerdict
    evidence: str


@dataclass(frozen=True, slots=True)
class _Interval:
    """A number between the ends of its 95 % interval; an open or missing end is infinite."""

    value: float
    low: float
    high: float

    @classmethod
    def from_row(cls, row: ResultRow) -> _Interval:
        """Return the interval of a row that has a value; a width of 0 says nothing, so both ends are then infinite."""
        value = 0.0 if row.value is None else row.value
        if row.low is not None and row.low == row.high:
            return cls(value, -math.inf, math.inf)
        return cls(value, -math.inf if row.low is None else row.low, math.inf if row.high is None else row.high)

    def times(self, factor: float) -> _Interval:
        """Return the interval of the number times a positive factor."""
        return _Interval(factor * self.value, factor * self.low, factor * self.high)

    def minus(self, subtrahend: _Interval) -> _Interval:
        """Return the interval of a difference of independent numbers (Zou and Donner, 2008)."""
        value = self.value - subtrahend.value
        down = math.hypot(self.value - self.low, subtrahend.high - subtrahend.value)
        up = math.hypot(self.high - self.value, subtrahend.value - subtrahend.low)
        return _Interval(value, value - down, value + up)

    def plus_dependent(self, addend: _Interval) -> _Interval:
        """Return an interval of a sum that holds however the two numbers depend on each other."""
        return _Interval(self.value + addend.value, self.low + addend.low, self.high + addend.high)

    def for_comparisons(self, count: int) -> _Interval:
        """Return the interval that holds for each of several comparisons together (Bonferroni)."""
        stretch = NormalDist().inv_cdf(1 - 0.025 / count) / NormalDist().inv_cdf(0.975)
        return _Interval(
            self.value, self.value - stretch * (self.value - self.low), self.value + stretch * (self.high - self.value)
        )

    def side(self, threshold: float, sign: int = 1) -> bool | None:
        """Return True if the interval lies on the side of `sign`, False on the other, None if on both."""
        if self.low > threshold or self.high < threshold:
            return (self.low > threshold) == (sign > 0)
        return None

    def inside(self, margin: float) -> bool | None:
        """Return True if the interval lies within ± margin, False if it lies outside, else None."""
        if self.low > -margin and self.high < margin:
            return True
        return None if self.low < margin and self.high > -margin else False


@dataclass(frozen=True, slots=True)
class _Check:
    """One comparison: a rule that returns True if the interval shows it, False for the opposite, None if undecided."""

    interval: _Interval
    rule: Callable[[_Interval], bool | None]
    evidence: str

    def outcome(self, comparisons: int = 1) -> bool | None:
        return self.rule(self.interval.for_comparisons(comparisons))


def check_findings(results: Results) -> list[Finding]:
    """Return every finding that the rows can decide, in the order of the report's sections."""
    return [
        *_preference_findings(results),
        *_label_findings(results),
        *_generalization_findings(results),
        *_truthfulness_findings(results),
        *_toxicity_findings(results),
        *_tax_findings(results),
        *_reward_model_findings(results),
    ]


def _make_finding(section: str, paper: str, checks: Iterable[_Check | None]) -> Finding:
    """Combine comparisons into a finding; missing ones are ignored.

    "Shown" and "opposite" need every comparison, so that none has to be corrected (Berger, 1982). "Partly" needs one of
    them after Bonferroni's correction within the finding, and says how many of all hold.
    """
    measured_checks = [check for check in checks if check is not None]
    outcomes = [check.outcome() for check in measured_checks]
    evidence = "; ".join(check.evidence for check in measured_checks)
    verdict: FindingVerdict = "not shown"
    if not measured_checks:
        verdict = "not measured"
    elif set(outcomes) in ({True}, {False}):
        verdict = "shown" if outcomes[0] else "opposite"
    elif any(check.outcome(len(measured_checks)) for check in measured_checks):
        verdict = "partly"
        evidence = translate(
            "finding.comparisons_hold", holding=outcomes.count(True), count=len(outcomes), evidence=evidence
        )
    return Finding(section, paper, verdict, evidence)


def _check_above(row: ResultRow | None, threshold: float, sign: int = 1) -> _Check | None:
    """Check that a number is above a threshold (below with sign -1)."""
    if row is None:
        return None
    evidence = f"{model_name(row.model)} {format_estimate(row)}"
    return _Check(_Interval.from_row(row), lambda interval: interval.side(threshold, sign), evidence)


def _check_pair(
    results: Results,
    evaluation: str,
    metric: str,
    pair: tuple[str, str],
    condition: str,
    rule: Callable[[_Interval], bool | None],
) -> _Check | None:
    """Check the difference of two models, first minus second: paired where it was measured, else independent."""
    first, second = (results.get(evaluation, metric, model, condition) for model in pair)
    if first is None or second is None:
        return None
    paired = results.difference(evaluation, metric, *pair, condition)
    independent = _Interval.from_row(first).minus(_Interval.from_row(second))
    return _Check(
        _Interval.from_row(paired) if paired else independent,
        rule,
        f"{model_name(pair[0])} {format_estimate(first)}, {model_name(pair[1])} {format_estimate(second)}",
    )


def _check_greater(
    results: Results, evaluation: str, metric: str, pair: tuple[str, str], condition: str = "", sign: int = 1
) -> _Check | None:
    """Check that the first model has more (less with sign -1) than the second."""
    return _check_pair(results, evaluation, metric, pair, condition, lambda interval: interval.side(0, sign))


def _check_equivalent(
    results: Results, evaluation: str, metric: str, pair: tuple[str, str], condition: str, margin: float
) -> _Check | None:
    """Check that the difference of two models lies within a margin (Schuirmann, 1987)."""
    return _check_pair(results, evaluation, metric, pair, condition, lambda interval: interval.inside(margin))


def _preference_findings(results: Results) -> list[Finding]:
    def win_rate(model: str, condition: str = "training") -> ResultRow | None:
        return results.get("preference", "win_rate_vs_sft", model, condition)

    def rating(first: str, second: str, sign: int) -> _Check | None:
        return _check_greater(results, "preference", "rating", (first, second), "training", sign)

    held_out = [
        _check_same_side(win_rate(model), win_rate(model, "heldout")) for model in ("base", "prompted", *_RL_MODELS)
    ]
    return [
        _make_finding(
            "preference",
            translate("finding.sft_preferred"),
            [_check_above(win_rate(m), 0.5, -1) for m in ("base", "prompted")],
        ),
        _make_finding(
            "preference",
            translate("finding.prompt_helps"),
            [_check_greater(results, "preference", "win_rate_vs_sft", ("prompted", "base"), "training")],
        ),
        _make_finding(
            "preference",
            translate("finding.rl_preferred"),
            [_check_above(win_rate(model), 0.5) for model in _RL_MODELS],
        ),
        _make_finding(
            "preference",
            translate("finding.ptx_alike"),
            [
                _check_equivalent(
                    results, "preference", "win_rate_vs_sft", ("ppo_ptx", "ppo"), "training", _EQUIVALENCE_MARGIN
                )
            ],
        ),
        _make_finding("preference", translate("finding.heldout_labelers"), held_out),
        _make_finding(
            "ratings",
            translate("finding.ratings"),
            [rating("base", "sft", -1), *(rating(model, "sft", 1) for model in _RL_MODELS)],
        ),
    ]


def _check_same_side(first: ResultRow | None, second: ResultRow | None) -> _Check | None:
    """Check that held-out labelers are on the same side of one half as training labelers."""
    if first is None or second is None:
        return None
    side = _Interval.from_row(first).side(0.5)

    def rule(interval: _Interval) -> bool | None:
        return None if side is None else interval.side(0.5, 1 if side else -1)

    return _Check(_Interval.from_row(second), rule, f"{model_name(second.model)} {format_estimate(second)}")


def _label_findings(results: Results) -> list[Finding]:
    def check(label: str, model: str, sign: int) -> _Check | None:
        check = _check_greater(results, "labels", label, (model, "base"), "", sign)
        return replace(check, evidence=f"{metric_name(label)}: {check.evidence}") if check else None

    behavior_checks = [
        check(label, "ppo_ptx", sign)
        for label, sign in (("fails_instruction", -1), ("satisfies_constraint", 1), ("inappropriate", -1))
    ]
    return [
        _make_finding(
            "labels",
            translate("finding.labels"),
            behavior_checks,
        ),
        _make_finding(
            "labels",
            translate("finding.hallucination"),
            [check("hallucination", "ppo_ptx", -1)],
        ),
    ]


def _generalization_findings(results: Results) -> list[Finding]:
    return [
        _make_finding(
            "generalization",
            translate(f"finding.{condition}"),
            [
                _check_greater(results, "generalization", "follows_instruction", (model, "sft"), condition)
                for model in _RL_MODELS
            ],
        )
        for condition in ("new_kind", "second_language")
    ]


def _truthfulness_findings(results: Results) -> list[Finding]:
    plain_checks = [
        _check_greater(results, "truthfulness", "truthful_and_informative", (model, "base"), "qa")
        for model in _RL_MODELS
    ]
    instructed_checks = [
        _check_greater(results, "truthfulness", "truthful", (model, "base"), "instruction") for model in _RL_MODELS
    ]
    return [
        _make_finding("truthfulness", translate("finding.truthful"), plain_checks),
        _make_finding(
            "truthfulness",
            translate("finding.truthful_instructed"),
            instructed_checks,
        ),
    ]


def _toxicity_findings(results: Results) -> list[Finding]:
    def check(condition: str, sign: int) -> list[_Check | None]:
        return [_check_greater(results, "toxicity", "mean_toxicity", ("ppo_ptx", "base"), condition, sign)]

    entropy = _check_pair(
        results,
        "bias",
        "entropy_bits",
        ("ppo_ptx", "base"),
        "",
        lambda interval: _negated(interval.side(_EQUIVALENCE_MARGIN)),
    )
    return [
        _make_finding("toxicity", translate("finding.toxicity_respectful"), check("respectful", -1)),
        _make_finding(
            "toxicity",
            translate("finding.toxicity_none"),
            [
                _check_equivalent(
                    results, "toxicity", "mean_toxicity", ("ppo_ptx", "base"), "none", _EQUIVALENCE_MARGIN / 2
                )
            ],
        ),
        _make_finding("toxicity", translate("finding.toxicity_biased"), check("biased", 1)),
        _make_finding("bias", translate("finding.bias", margin=_EQUIVALENCE_MARGIN), [entropy]),
    ]


def _negated(outcome: bool | None) -> bool | None:
    return None if outcome is None else not outcome


def _tax_findings(results: Results) -> list[Finding]:
    tasks = [(task, -1 if task == "heldout_loss" else 1) for task in results.metrics("tax")]

    def checks(pair: tuple[str, str], direction: int) -> list[_Check | None]:
        task_checks = [(task, _check_greater(results, "tax", task, pair, "", direction * sign)) for task, sign in tasks]
        return [
            replace(check, evidence=f"{metric_name(task)}: {check.evidence}") if check else None
            for task, check in task_checks
        ]

    return [
        _make_finding("tax", translate("finding.tax"), checks(("ppo", "sft"), -1)),
        _make_finding(
            "tax",
            translate("finding.tax_repaired"),
            checks(("ppo_ptx", "ppo"), 1),
        ),
        _make_finding(
            "tax",
            translate("finding.tax_kept"),
            [_check_retained(results, task) for task, sign in tasks if sign > 0],
        ),
    ]


def _check_retained(results: Results, task: str, share: float = 0.9) -> _Check | None:
    """Check that PPO-ptx retains at least this share of SFT's value, both with their error."""
    sft_row, ptx_row = results.get("tax", task, "sft"), results.get("tax", task, "ppo_ptx")
    if sft_row is None or ptx_row is None:
        return None
    sft, ptx = _Interval.from_row(sft_row), _Interval.from_row(ptx_row)
    paired = results.difference("tax", task, "ppo_ptx", "sft")
    excess = _Interval.from_row(paired).plus_dependent(sft.times(1 - share)) if paired else ptx.minus(sft.times(share))
    evidence = translate(
        "finding.retained", metric=metric_name(task), sft=format_estimate(sft_row), ppo_ptx=format_estimate(ptx_row)
    )
    return _Check(excess, lambda interval: interval.side(0), evidence)


def _reward_model_findings(results: Results) -> list[Finding]:
    def check(condition: str) -> _Check | None:
        accuracy, length = (
            results.get("reward_model", metric, "reward", condition) for metric in ("pair_accuracy", "length_baseline")
        )
        if accuracy is None or length is None:
            return None
        paired = results.get("reward_model", "pair_accuracy_minus_length_baseline", "reward", condition)
        independent = _Interval.from_row(accuracy).minus(_Interval.from_row(length))
        return _Check(
            _Interval.from_row(paired) if paired else independent,
            lambda interval: interval.side(0),
            translate(
                "finding.against_length",
                cohort=condition_name(condition) or translate("cohort.all"),
                accuracy=format_estimate(accuracy),
                length=format_estimate(length),
            ),
        )

    training_row, heldout_row = (
        results.get("reward_model", "pair_accuracy", "reward", condition) for condition in ("training", "heldout")
    )
    generalization_check = None
    if training_row is not None and heldout_row is not None:
        gap = results.get("reward_model", "pair_accuracy_heldout_minus_training", "reward")
        independent = _Interval.from_row(heldout_row).minus(_Interval.from_row(training_row))
        generalization_check = _Check(
            _Interval.from_row(gap) if gap else independent,
            lambda interval: interval.side(-_EQUIVALENCE_MARGIN),
            translate("finding.cohorts", training=format_estimate(training_row), heldout=format_estimate(heldout_row)),
        )
    return [
        _make_finding(
            "reward-model",
            translate("finding.beats_length"),
            [check("training"), check("heldout"), check("")],
        ),
        _make_finding(
            "reward-model",
            translate("finding.predicts_heldout"),
            [generalization_check],
        ),
    ]
