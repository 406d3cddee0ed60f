"""Checks of PPO's metrics; a check yields nothing where its metric was not logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructgpt.doctor.base import Diagnosis, StageReport
from instructgpt.train.alarms import is_overoptimized

_MIN_KL, _MAX_KL = -0.05, 20.0
_MAX_PARITY_ERROR, _MAX_PARITY_RMS_BF16 = 1e-3, 2e-2
_MAX_LENGTH_GROWTH, _MIN_ENTROPY_RATIO, _MAX_TRUNCATED = 1.5, 0.2, 0.1
_UNTERMINATED = 0.95
_MIN_EXPLAINED_VARIANCE, _MAX_CLIP_FRACTION = 0.1, 0.3
_MAX_INITIAL_SCORE = 5.0


def diagnose_ppo(stage: StageReport, utility_curve: Sequence[Mapping[str, Any]] = ()) -> Iterator[Diagnosis]:
    """Check the metrics of a PPO run.

    Args:
        utility_curve: true utility over updates (`step`, `score`, `kl`, `utility`, `low`, `high`), recorded in the
            small world.
    """
    for check in (
        _check_kl,
        _check_logp_parity,
        _check_length_growth,
        _check_entropy_collapse,
        _check_truncation,
        _check_explained_variance,
        _check_clipping,
        _check_score_offset,
        _check_heldout_score,
    ):
        yield from check(stage)
    yield from _check_over_optimization(stage, utility_curve)


def _check_kl(stage: StageReport) -> Iterator[Diagnosis]:
    """Check the mean KL to the reference, which is never negative for samples of the policy itself."""
    last = stage.history.last("objective/kl")
    if last is None:
        return
    if last < _MIN_KL:
        yield stage.error(
            f"KL to the reference is {last:.2f} nats a completion: below 0, as sampling from the policy cannot give it",
            "completions were not sampled from the policy as it is trained: a temperature other than 1, top-p or "
            "top-k, dropout left on, "
            "padding counted, or another template; look at val/parity, and never clamp the estimate",
        )
    if last > _MAX_KL:
        yield stage.error(
            f"KL to the reference has reached {last:.1f} nats a completion",
            "so far from the reference the reward model is guessing: raise --kl-coef, lower --lr, or stop earlier",
        )


def _check_logp_parity(stage: StageReport) -> Iterator[Diagnosis]:
    """Check that the sampler's and the trainer's log-probabilities agree."""
    if "bf16" in (stage.setting("memory") or ()):
        rms = max(stage.history.values("val/parity_rms"), default=0.0)
        limit = stage.setting("parity_rms_tolerance") or _MAX_PARITY_RMS_BF16
        if rms > limit:
            yield stage.warning(
                f"log-probabilities of sampler and trainer differ by {rms:.1e} nats a token, root mean square",
                "bf16 rounds more in this model than usual: look at policy/clipfrac_avg, or leave out --memory bf16",
            )
        return
    max_error = max(stage.history.values("val/parity"), default=0.0)
    if max_error > (stage.setting("parity_tolerance") or _MAX_PARITY_ERROR):
        yield stage.error(
            f"log-probabilities of sampler and trainer differ by up to {max_error:.1e} nats a token",
            "the ratio is not 1 where it must be; use float32 for sampling, or the same attention for both",
        )


def _check_length_growth(stage: StageReport) -> Iterator[Diagnosis]:
    """Check for growing completions, the first sign of a length-biased reward model."""
    growth = stage.history.growth("completion/length")
    if growth is not None and growth > _MAX_LENGTH_GROWTH:
        first, last = stage.history.first("completion/length"), stage.history.last("completion/length")
        yield stage.warning(
            f"completions grew from {first:.0f} to {last:.0f} tokens",
            "read samples.jsonl: if they only ramble, the reward model likes length; see its length_baseline and "
            "score_length_difference, "
            "and rank completions of like quality and unlike length",
        )


def _check_entropy_collapse(stage: StageReport) -> Iterator[Diagnosis]:
    """Check that the policy keeps entropy to explore."""
    ratio = stage.history.growth("policy/entropy_avg")
    if ratio is not None and ratio < _MIN_ENTROPY_RATIO:
        yield stage.error(
            f"entropy fell to {100 * ratio:.0f} % of where it began",
            "each prompt has almost one completion left: lower --lr, raise --kl-coef, and read samples.jsonl for the "
            "phrase that won",
        )


def _check_truncation(stage: StageReport) -> Iterator[Diagnosis]:
    """Check truncation: cut-off completions all get the same penalty."""
    share = stage.history.last("completion/truncated")
    if share is not None and share > _UNTERMINATED:
        yield stage.error(
            f"{100 * share:.0f} % of completions are cut off at --max-tokens: the policy hardly ever stops",
            "train it first with 'instructgpt sft' on completions that end with its stop token, or raise --max-tokens; "
            "as it is, every episode only pays the penalty",
        )
        return
    if share is not None and share > _MAX_TRUNCATED:
        yield (stage.error if share > 0.5 else stage.warning)(
            f"{100 * share:.0f} % of completions are cut off at --max-tokens",
            "they are scored unfinished, less the penalty: raise --max-tokens, or train the start until it ends what "
            "it says (EOS in SFT)",
        )


def _check_explained_variance(stage: StageReport) -> Iterator[Diagnosis]:
    """Check the value model: without explained variance, advantages are noise."""
    last = stage.history.last("val/explained_variance")
    if last is not None and last < _MIN_EXPLAINED_VARIANCE:
        yield stage.warning(
            f"the value model explains {100 * last:.0f} % of the variance of returns",
            "advantages are mostly noise: raise --value-lr, make batches larger, or train longer before judging the "
            "policy",
        )


def _check_clipping(stage: StageReport) -> Iterator[Diagnosis]:
    """Check clipping: many clipped tokens mean steps larger than the batch supports."""
    last = stage.history.last("policy/clipfrac_avg")
    if last is not None and last > _MAX_CLIP_FRACTION:
        yield stage.warning(
            f"{100 * last:.0f} % of tokens are clipped",
            "steps are too large: lower --lr, or fewer minibatches a batch",
        )


def _check_score_offset(stage: StageReport) -> Iterator[Diagnosis]:
    """Check the initial score: demonstrations score 0 on average, so a distant start means a wrong offset or scale."""
    first = stage.history.first("objective/scores")
    if first is not None and abs(first) > _MAX_INITIAL_SCORE:
        yield stage.warning(
            f"the first completions score {first:+.1f}, demonstrations score 0 on average",
            "either the start is far below the demonstrations, or the offset is stale: make the reward model again "
            "with --demonstrations; "
            "--kl-coef is in units of the score, so its scale matters",
        )


def _check_heldout_score(stage: StageReport) -> Iterator[Diagnosis]:
    """Check for a training score that rises while that of held-out prompts falls."""
    measured = [row for row in stage.history.rows if "validation/scores" in row]
    fallen = [row for row in measured if is_overoptimized(row)]
    if not fallen or fallen[-1] is not measured[-1]:
        return
    best = max(measured, key=lambda row: row["validation/scores"])
    yield stage.error(
        f"over-optimized: the score of held-out prompts fell from {best['validation/scores']:.2f} (update "
        f"{best['step']:.0f}) to {fallen[-1]['validation/scores']:.2f} while the training score rose",
        "stop near that update, raise --kl-coef, or rank completions of this policy and train the reward model again",
    )


def _check_over_optimization(stage: StageReport, utility_curve: Sequence[Mapping[str, Any]]) -> Iterator[Diagnosis]:
    """Check for a rising score with falling true utility (paper, section 4.1)."""
    if len(utility_curve) < 4:
        return
    best, last = max(utility_curve, key=lambda row: float(row["utility"])), utility_curve[-1]
    if float(last["high"]) < float(best["low"]) and float(last["score"]) >= float(best["score"]):
        yield stage.error(
            f"over-optimized: the score held, utility fell from {best['utility']:.2f} (update {best['step']}) to "
            f"{last['utility']:.2f}",
            "stop near that update, raise --kl-coef, or rank completions of this policy and train the reward model "
            "again",
        )
