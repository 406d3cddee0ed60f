"""PPO: what its curves say when they go wrong. Each check gives what it finds, or nothing where it was not logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from instructgpt.doctor.base import Finding, Patient

NEGATIVE_KL, FAR_KL = -0.05, 20.0
PARITY = 1e-3
LONGER, COLLAPSED, CUT_OFF = 1.5, 0.2, 0.1
EXPLAINED, CLIPPED = 0.1, 0.3
FAR_SCORE = 5.0


def examine_policy(patient: Patient, truth: Sequence[Mapping[str, Any]] = ()) -> Iterator[Finding]:
    """Everything that can be seen in the metrics of a PPO run.

    Args:
        truth: where known, the true utility over updates (`step`, `score`, `kl`, `utility`, `low`, `high`), as the small world records it.
    """
    for check in (kl, parity, length, collapse, truncation, value_model, clipping, scale):
        yield from check(patient)
    yield from over_optimisation(patient, truth)


def kl(patient: Patient) -> Iterator[Finding]:
    """The KL to the reference is never negative on average when completions are sampled from the policy itself."""
    last = patient.course.last("objective/kl")
    if last is None:
        return
    if last < NEGATIVE_KL:
        yield patient.bad(
            f"KL to the reference is {last:.2f} nats a completion: below 0, as sampling from the policy cannot give it",
            "completions were not sampled from the policy as it is trained: a temperature other than 1, top-p or top-k, dropout left on, "
            "padding counted, or another template; look at val/parity, and never clamp the estimate",
        )
    if last > FAR_KL:
        yield patient.bad(
            f"KL to the reference has reached {last:.1f} nats a completion",
            "so far from the reference the reward model is guessing: raise --kl-coef, lower --lr, or stop earlier",
        )


def parity(patient: Patient) -> Iterator[Finding]:
    """The sampler's log-probabilities are the trainer's."""
    worst = max(patient.course.values("val/parity"), default=0.0)
    if worst > PARITY:
        yield patient.bad(
            f"log-probabilities of sampler and trainer differ by up to {worst:.1e} nats a token",
            "the ratio is not 1 where it must be; use float32 for sampling, or the same attention for both",
        )


def length(patient: Patient) -> Iterator[Finding]:
    """Completions that grow while nothing else does are the first sign of a reward model that likes length."""
    growth = patient.course.growth("completion/length")
    if growth is not None and growth > LONGER:
        first, last = patient.course.first("completion/length"), patient.course.last("completion/length")
        yield patient.notice(
            f"completions grew from {first:.0f} to {last:.0f} tokens",
            "read samples.jsonl: if they only ramble, the reward model likes length; see its length_baseline and score_length_difference, "
            "and rank completions of like quality and unlike length",
        )


def collapse(patient: Patient) -> Iterator[Finding]:
    """A policy without entropy explores nothing."""
    share = patient.course.growth("policy/entropy_avg")
    if share is not None and share < COLLAPSED:
        yield patient.bad(
            f"entropy fell to {100 * share:.0f} % of where it began",
            "each prompt has almost one completion left: lower --lr, raise --kl-coef, and read samples.jsonl for the phrase that won",
        )


def truncation(patient: Patient) -> Iterator[Finding]:
    """Completions that do not end have no end to be judged, and all of them lose the same penalty."""
    share = patient.course.last("completion/truncated")
    if share is not None and share > CUT_OFF:
        yield (patient.bad if share > 0.5 else patient.notice)(
            f"{100 * share:.0f} % of completions are cut off at --max-tokens",
            "they are scored unfinished, less the penalty: raise --max-tokens, or train the start until it ends what it says (EOS in SFT)",
        )


def value_model(patient: Patient) -> Iterator[Finding]:
    """Without a value model that explains returns, advantages are noise."""
    last = patient.course.last("val/explained_variance")
    if last is not None and last < EXPLAINED:
        yield patient.notice(
            f"the value model explains {100 * last:.0f} % of the variance of returns",
            "advantages are mostly noise: raise --value-lr, make batches larger, or train longer before judging the policy",
        )


def clipping(patient: Patient) -> Iterator[Finding]:
    """Many clipped tokens: steps are larger than the batch supports."""
    last = patient.course.last("policy/clipfrac_avg")
    if last is not None and last > CLIPPED:
        yield patient.notice(
            f"{100 * last:.0f} % of tokens are clipped",
            "steps are too large: lower --lr, or fewer minibatches a batch",
        )


def scale(patient: Patient) -> Iterator[Finding]:
    """Demonstrations score 0 on average; a start far from that was scored by a model whose offset or scale is off."""
    first = patient.course.first("objective/scores")
    if first is not None and abs(first) > FAR_SCORE:
        yield patient.notice(
            f"the first completions score {first:+.1f}, demonstrations score 0 on average",
            "either the start is far below the demonstrations, or the offset is stale: make the reward model again with --demonstrations; "
            "--kl-coef is in units of the score, so its scale matters",
        )


def over_optimisation(patient: Patient, truth: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """The score goes on rising while what it stands for falls (paper, section 4.1; known only where the truth is)."""
    if len(truth) < 4:
        return
    best, last = max(truth, key=lambda row: float(row["utility"])), truth[-1]
    if float(last["high"]) < float(best["low"]) and float(last["score"]) >= float(best["score"]):
        yield patient.bad(
            f"over-optimised: the score held, utility fell from {best['utility']:.2f} (update {best['step']}) to {last['utility']:.2f}",
            "stop near that update, raise --kl-coef, or rank completions of this policy and train the reward model again",
        )
