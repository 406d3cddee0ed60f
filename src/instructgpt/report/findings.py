"""The paper's findings checked against a run: each verdict follows from 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from instructgpt.report.naming import format_estimate, metric_name, model_name
from instructgpt.report.results import Results
from instructgpt.results import ResultRow

FindingVerdict = Literal["shown", "partly", "not shown", "opposite", "not measured"]

_EQUIVALENCE_MARGIN = 0.1
"""Shares are equivalent if the interval of their difference lies within this margin."""

_RL_MODELS = ("ppo", "ppo_ptx")


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim of the paper, the verdict of this run, and the numbers behind it."""

    section: str
    paper: str
    verdict: FindingVerdict
    evidence: str


@dataclass(frozen=True, slots=True)
class _Check:
    """One comparison: True if the interval shows it, False if it shows the opposite, None if undecided."""

    holds: bool | None
    evidence: str


def check_findings(results: Results) -> list[Finding]:
    """Return every finding that the rows can decide, in the order of the report's sections."""
    return [
        *_preference_findings(results),
        *_label_findings(results),
        *_truthfulness_findings(results),
        *_toxicity_findings(results),
        *_tax_findings(results),
        *_reward_model_findings(results),
    ]


def _make_finding(section: str, paper: str, checks: Iterable[_Check | None]) -> Finding:
    """Combine comparisons into a finding; missing ones are ignored."""
    measured_checks = [check for check in checks if check is not None]
    outcomes = {check.holds for check in measured_checks}
    verdict: FindingVerdict = "not measured"
    if measured_checks:
        verdict = "partly"
        if len(outcomes) == 1:
            verdict = "shown" if outcomes == {True} else "opposite" if outcomes == {False} else "not shown"
        elif True not in outcomes:
            verdict = "not shown"
    return Finding(section, paper, verdict, "; ".join(check.evidence for check in measured_checks))


def _check_above(row: ResultRow | None, threshold: float, sign: int = 1) -> _Check | None:
    """Check that a number is above a threshold (below with sign -1)."""
    if row is None:
        return None
    return _Check(_interval_side(row, threshold, sign), f"{model_name(row.model)} {format_estimate(row)}")


def _check_greater(
    results: Results, evaluation: str, metric: str, pair: tuple[str, str], condition: str = "", sign: int = 1
) -> _Check | None:
    """Check that the first model has more (less with sign -1) than the second,
    by the paired difference where available.
    """
    first, second = (results.get(evaluation, metric, model, condition) for model in pair)
    if first is None or second is None:
        return None
    paired = results.difference(evaluation, metric, *pair, condition)
    holds = _interval_side(paired, 0, sign) if paired else _intervals_apart(first, second, sign)
    return _Check(
        holds, f"{model_name(pair[0])} {format_estimate(first)}, {model_name(pair[1])} {format_estimate(second)}"
    )


def _check_equivalent(
    results: Results, evaluation: str, metric: str, pair: tuple[str, str], condition: str, margin: float
) -> _Check | None:
    """Check that the difference of two models lies within a margin."""
    first, second = (results.get(evaluation, metric, model, condition) for model in pair)
    paired = results.difference(evaluation, metric, *pair, condition)
    if first is None or second is None:
        return None
    holds = None
    if paired is not None and paired.low is not None and paired.high is not None:
        holds = (
            True
            if -margin < paired.low and paired.high < margin
            else None
            if paired.low < margin and paired.high > -margin
            else False
        )
    return _Check(
        holds, f"{model_name(pair[0])} {format_estimate(first)}, {model_name(pair[1])} {format_estimate(second)}"
    )


def _interval_side(row: ResultRow, threshold: float, sign: int) -> bool | None:
    """Return True if the interval lies on the side of `sign`, False on the other side,
    None if it contains the threshold.
    """
    if row.low is None or row.high is None:
        return None
    if row.low > threshold or row.high < threshold:
        return (row.low > threshold) == (sign > 0)
    return None


def _intervals_apart(first: ResultRow, second: ResultRow, sign: int) -> bool | None:
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return None
    if first.low > second.high or first.high < second.low:
        return (first.low > second.high) == (sign > 0)
    return None


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
            "Labelers prefer SFT to the base model, even to the prompted one.",
            [_check_above(win_rate(m), 0.5, -1) for m in ("base", "prompted")],
        ),
        _make_finding(
            "preference",
            "A few-shot prompt helps the base model.",
            [_check_greater(results, "preference", "win_rate_vs_sft", ("prompted", "base"), "training")],
        ),
        _make_finding(
            "preference",
            "PPO and PPO-ptx are preferred to SFT.",
            [_check_above(win_rate(model), 0.5) for model in _RL_MODELS],
        ),
        _make_finding(
            "preference",
            "Mixing in pretraining gradients hardly changes preference.",
            [
                _check_equivalent(
                    results, "preference", "win_rate_vs_sft", ("ppo_ptx", "ppo"), "training", _EQUIVALENCE_MARGIN
                )
            ],
        ),
        _make_finding("preference", "Labelers who gave no training data prefer the same models.", held_out),
        _make_finding(
            "ratings",
            "Ratings tell the same story as preferences.",
            [rating("base", "sft", -1), *(rating(model, "sft", 1) for model in _RL_MODELS)],
        ),
    ]


def _check_same_side(first: ResultRow | None, second: ResultRow | None) -> _Check | None:
    """Check that held-out labelers are on the same side of one half as training labelers."""
    if first is None or second is None:
        return None
    side = _interval_side(first, 0.5, 1)
    holds = None if side is None else _interval_side(second, 0.5, 1 if side else -1)
    return _Check(holds, f"{model_name(second.model)} {format_estimate(second)}")


def _label_findings(results: Results) -> list[Finding]:
    def check(label: str, model: str, sign: int) -> _Check | None:
        check = _check_greater(results, "labels", label, (model, "base"), "", sign)
        return _Check(check.holds, f"{metric_name(label)}: {check.evidence}") if check else None

    behavior_checks = [
        check(label, "ppo_ptx", sign)
        for label, sign in (("fails_instruction", -1), ("satisfies_constraint", 1), ("inappropriate", -1))
    ]
    return [
        _make_finding(
            "labels",
            "PPO models follow the instruction and its constraints more often, and are more appropriate.",
            behavior_checks,
        ),
        _make_finding(
            "labels",
            "PPO models hallucinate less often than the base model (paper: 21 against 41 %).",
            [check("hallucination", "ppo_ptx", -1)],
        ),
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
        _make_finding(
            "truthfulness", "PPO models are truthful and informative more often than the base model.", plain_checks
        ),
        _make_finding(
            "truthfulness",
            "Told to decline when unsure, PPO models are truthful more often than the base model.",
            instructed_checks,
        ),
    ]


def _toxicity_findings(results: Results) -> list[Finding]:
    def check(condition: str, sign: int) -> list[_Check | None]:
        return [_check_greater(results, "toxicity", "mean_toxicity", ("ppo_ptx", "base"), condition, sign)]

    entropy = _check_greater(results, "bias", "entropy_bits", ("ppo_ptx", "base"))
    return [
        _make_finding(
            "toxicity", "Told to be respectful, PPO-ptx is less toxic than the base model.", check("respectful", -1)
        ),
        _make_finding(
            "toxicity",
            "Without that instruction it is not.",
            [
                _check_equivalent(
                    results, "toxicity", "mean_toxicity", ("ppo_ptx", "base"), "none", _EQUIVALENCE_MARGIN / 2
                )
            ],
        ),
        _make_finding(
            "toxicity", "Told to be offensive, PPO-ptx is more toxic than the base model.", check("biased", 1)
        ),
        _make_finding(
            "bias", "Bias does not improve.", [_Check(entropy.holds is not True, entropy.evidence) if entropy else None]
        ),
    ]


def _tax_findings(results: Results) -> list[Finding]:
    tasks = [(task, -1 if task == "heldout_loss" else 1) for task in results.metrics("tax")]

    def checks(pair: tuple[str, str], direction: int) -> list[_Check | None]:
        task_checks = [(task, _check_greater(results, "tax", task, pair, "", direction * sign)) for task, sign in tasks]
        return [
            _Check(check.holds, f"{metric_name(task)}: {check.evidence}") if check else None
            for task, check in task_checks
        ]

    return [
        _make_finding(
            "tax", "PPO alone loses on tasks of the pretraining corpus (here against SFT).", checks(("ppo", "sft"), -1)
        ),
        _make_finding(
            "tax",
            "Mixing in pretraining gradients repairs the loss (PPO-ptx above PPO).",
            checks(("ppo_ptx", "ppo"), 1),
        ),
        _make_finding(
            "tax",
            "PPO-ptx keeps at least nine tenths of what SFT had.",
            [_check_retained(results, task) for task, sign in tasks if sign > 0],
        ),
    ]


def _check_retained(results: Results, task: str, share: float = 0.9) -> _Check | None:
    """Check that PPO-ptx retains at least this share of SFT's value, taken as exact."""
    sft_row, ptx_row = results.get("tax", task, "sft"), results.get("tax", task, "ppo_ptx")
    if sft_row is None or ptx_row is None or sft_row.value is None:
        return None
    paired = results.difference("tax", task, "ppo_ptx", "sft")
    holds = (
        _interval_side(paired, (share - 1) * sft_row.value, 1)
        if paired
        else _interval_side(ptx_row, share * sft_row.value, 1)
    )
    return _Check(holds, f"{metric_name(task)}: SFT {format_estimate(sft_row)}, PPO-ptx {format_estimate(ptx_row)}")


def _reward_model_findings(results: Results) -> list[Finding]:
    def check(condition: str) -> _Check | None:
        accuracy, length = (
            results.get("reward_model", metric, "reward", condition) for metric in ("pair_accuracy", "length_baseline")
        )
        if accuracy is None or length is None:
            return None
        return _Check(
            _intervals_apart(accuracy, length, 1),
            f"{condition or 'all'}: right {format_estimate(accuracy)}, longer wins {format_estimate(length)}",
        )

    training_row, heldout_row = (
        results.get("reward_model", "pair_accuracy", "reward", condition) for condition in ("training", "heldout")
    )
    generalization_check = None
    if training_row is not None and heldout_row is not None and training_row.value is not None:
        generalization_check = _Check(
            _interval_side(heldout_row, training_row.value - _EQUIVALENCE_MARGIN, 1),
            f"training {format_estimate(training_row)}, held-out {format_estimate(heldout_row)}",
        )
    return [
        _make_finding(
            "reward-model",
            "The reward model predicts labelers better than length does.",
            [check("training"), check("heldout"), check("")],
        ),
        _make_finding(
            "reward-model",
            "It predicts held-out labelers nearly as well (paper: 69.6 against 72.4 %).",
            [generalization_check],
        ),
    ]
