"""What warns about a run that goes wrong, or stops it: a diverged loss, and the alarms of PPO.

Every limit is an option. An alarm that stops a run writes a checkpoint first, so that the run can go on from there with
another limit.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from instructgpt.errors import RunError
from instructgpt.train.configs import PPOConfig

LOSS_MARGIN = 2.0
"""Nats above a uniform guess, ln(vocabulary), at which a language model's loss has diverged."""
_LOSS_WINDOW = 5
KL_STOP_FACTOR = 4
"""PPO stops at so many times the KL at which it warns."""
_UNTERMINATED_SHARE = 0.95
HELDOUT_STANDARD_ERRORS = 3.0
"""Fall of the held-out score that counts as one, in standard errors of the paired difference."""


class LossAlarm:
    """Stops `pretrain` and `sft` when the loss is worse than a uniform guess, and than at the start.

    A base model that knows nothing of the data begins above a uniform guess, so its first loss counts too.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.first_loss: float | None = None
        self.latest: deque[float] = deque(maxlen=_LOSS_WINDOW)

    @property
    def limit(self) -> float:
        return max(math.log(self.vocab_size), self.first_loss or 0.0) + LOSS_MARGIN

    def check(self, loss: float, *, is_last: bool = False) -> None:
        """Raise RunError if the median of the latest five losses, or of fewer at the last step, is beyond the limit."""
        if self.first_loss is None:
            self.first_loss = loss
            return
        self.latest.append(loss)
        if is_last or len(self.latest) == _LOSS_WINDOW:
            self._raise_above_limit(statistics.median(self.latest))

    def check_validation(self, loss: float) -> None:
        """Raise RunError if a validation loss is beyond the limit."""
        self._raise_above_limit(loss)

    def _raise_above_limit(self, loss: float) -> None:
        if loss > self.limit:
            raise RunError(
                f"training has diverged: the loss is {loss:.4g} nats per token, a uniform guess over the "
                f"{self.vocab_size} tokens has {math.log(self.vocab_size):.2f}; lower --lr"
            )


class Alarm(NamedTuple):
    message: str
    stops: bool = False


@dataclass(slots=True)
class HeldoutHistory:
    """Scores of the held-out prompts at their best, and training scores: do they part?"""

    best: list[float] = field(default_factory=list)  # a score per prompt
    best_training: float = 0.0  # mean training score when the held-out score was best
    training: list[float] = field(default_factory=list)  # training scores since the last measurement

    def compare(self, scores: Sequence[float]) -> tuple[float, float, float]:
        """Return the change of the mean held-out score from its best, its standard error, and that of training scores.

        The same prompts are sampled with the same seeds every time, so the difference is paired.
        """
        training = statistics.fmean(self.training) if self.training else self.best_training
        self.training.clear()
        if not self.best or statistics.fmean(scores) >= statistics.fmean(self.best):
            self.best, self.best_training = list(scores), training
            return 0.0, 0.0, 0.0
        differences = [now - before for now, before in zip(scores, self.best, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
        return statistics.fmean(differences), error, training - self.best_training


class PPOAlarms:
    """Watches the metrics of a PPO run, step by step. Each kind of warning is given once."""

    def __init__(self, config: PPOConfig, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self.config = config
        self.first_entropy: float | None = state.get("first_entropy")
        self.raised: list[str] = list(state.get("raised", ()))
        self.heldout = HeldoutHistory(**state.get("heldout", {}))

    def state_dict(self) -> dict[str, Any]:
        return {"first_entropy": self.first_entropy, "raised": self.raised, "heldout": asdict(self.heldout)}

    def add_heldout(self, scores: Sequence[float], training_score: float) -> dict[str, float]:
        """Compare held-out scores with their best, and return the comparison as metrics."""
        if not self.config.validation:
            return {}
        self.heldout.training.append(training_score)
        if not scores:
            return {}
        change, error, training_change = self.heldout.compare(scores)
        return {
            "validation/change_from_best": change,
            "validation/change_from_best_se": error,
            "validation/training_change_from_best": training_change,
        }

    def check(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """Return the alarms of a PPO step; those that stop the run come last."""
        if self.first_entropy is None:
            self.first_entropy = metrics["policy/entropy_avg"]
        alarms = []
        for kind, alarm in (*self._warnings(metrics), *self._stops(metrics)):
            if alarm.stops or kind not in self.raised:
                alarms.append(alarm)
            if not alarm.stops and kind not in self.raised:
                self.raised.append(kind)
        return alarms

    def _warnings(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, Alarm]]:
        config = self.config
        if config.kl_alarm and (kl := metrics["objective/kl"]) > config.kl_alarm:
            yield (
                "kl",
                Alarm(
                    f"KL to the reference is {kl:.1f} nats per completion, above --kl-alarm {config.kl_alarm:g}; the "
                    f"run stops at {KL_STOP_FACTOR * config.kl_alarm:g}. Where that is meant (long completions, a small "
                    "--kl-coef), resume with a higher --kl-alarm, or with 0"
                ),
            )
        if (truncated := metrics["completion/truncated"]) >= _UNTERMINATED_SHARE:
            yield (
                "unterminated",
                Alarm(
                    f"{truncated:.0%} of the completions are cut off at --max-tokens {config.max_tokens}: the policy "
                    "hardly ever stops. Train it first with 'instructgpt sft', on completions that end with its stop "
                    "token, or raise --max-tokens"
                ),
            )
        if is_overoptimized(metrics):
            yield (
                "overoptimization",
                Alarm(
                    f"the score of held-out prompts has fallen by {-metrics['validation/change_from_best']:.3g} from its "
                    "best while the training score rose: over-optimization. Stop earlier, raise --kl-coef, or rank "
                    "completions of this policy and train the reward model again"
                ),
            )
        tolerance = config.parity_rms_tolerance
        deviations = [metrics.get(name, 0.0) for name in ("val/parity_rms", "val/first_ratio_rms")]
        deviation = next((value for value in deviations if not value <= tolerance), 0.0)  # NaN too
        if config.bf16 and tolerance and deviation:
            yield (
                "parity",
                Alarm(
                    f"sampling and training disagree on log-probabilities by {deviation:.2g} nats, root mean square, "
                    f"above --parity-rms-tolerance {tolerance:g}: bf16 rounds more in this model than usual; ratios "
                    "are off by as much. Look at policy/clipfrac_avg, or leave out --memory bf16"
                ),
            )

    def _stops(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, Alarm]]:
        config, kl, entropy = self.config, metrics["objective/kl"], metrics["policy/entropy_avg"]
        if config.kl_alarm and kl > KL_STOP_FACTOR * config.kl_alarm:
            message = (
                f"the policy has diverged from its reference: KL {kl:.1f} nats per completion (limit "
                f"{KL_STOP_FACTOR * config.kl_alarm:g}); the learning rate is likely too high or --kl-coef too low. To "
                "go on from here resume with a higher --kl-alarm, or with 0"
            )
            yield "diverged", Alarm(message, stops=True)
        assert self.first_entropy is not None
        if entropy < config.min_entropy * self.first_entropy:
            message = (
                f"the entropy has collapsed from {self.first_entropy:.2f} to {entropy:.4f} nats per token: likely a "
                "reward that one phrase satisfies, or too high a learning rate. To go on from here resume with a lower "
                "--min-entropy"
            )
            yield "collapsed", Alarm(message, stops=True)


def is_overoptimized(metrics: Mapping[str, float]) -> bool:
    """Return whether the held-out score has fallen from its best, beyond chance, while the training score rose."""
    change = metrics.get("validation/change_from_best", 0.0)
    error = metrics.get("validation/change_from_best_se", 0.0)
    return change < -HELDOUT_STANDARD_ERRORS * error and metrics.get("validation/training_change_from_best", 0.0) > 0


def check_parity(largest: float, config: PPOConfig) -> None:
    """Raise RunError where sampling and training disagree by more than rounding in float32; bf16 only warns."""
    if config.bf16 or not config.parity_tolerance or largest <= config.parity_tolerance:
        return
    raise RunError(
        f"sampling and training disagree on log-probabilities by {largest:.2g} nats (tolerance "
        f"{config.parity_tolerance:g}): likely dropout left on, half-precision weights, or a model family with an "
        "inexact KV cache; --parity-tolerance sets the limit"
    )


def check_first_ratio(max_log_ratio: float, config: PPOConfig) -> None:
    """Raise RunError if the ratio before any step after sampling is off 1 by more than rounding in float32."""
    if config.bf16 or not config.parity_tolerance or max_log_ratio <= config.parity_tolerance:
        return
    raise RunError(
        f"before any step the ratio is off 1 by exp({max_log_ratio:.2g}), more than rounding: old log-probabilities "
        "are not this policy's; likely dropout left on, or weights changed between sampling and training"
    )
