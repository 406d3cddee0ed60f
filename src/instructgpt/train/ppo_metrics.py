"""What a person sees of a PPO run, and what stops one that has gone wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape
from torch import Tensor

from instructgpt import functional
from instructgpt.data.tokenization import Renderer
from instructgpt.errors import RunFailed
from instructgpt.run.directory import Run
from instructgpt.train.rollout import Rollout

SHOWN = 3
LARGEST = "policy/max_log_ratio"
"""The one number of a minibatch that is a maximum; all others are means."""


def update_metrics(rollout: Rollout, returns: Tensor, steps: Sequence[dict[str, float]], kl_coef: float) -> dict[str, float]:
    """The metrics of one update, under the names TRL's users know. Sums over real tokens only."""
    real = rollout.mask
    kl = functional.kl_k1(rollout.logp, rollout.ref_logp).nansum(1)  # (B,) signed, never clamped
    lengths = real.sum(1).float()
    metrics = {
        "objective/kl": kl.mean(),
        "objective/kl_k3": functional.kl_k3(rollout.logp, rollout.ref_logp).nansum(1).mean(),
        "objective/entropy": -rollout.logp.nansum(1).mean(),
        "objective/non_score_reward": -kl_coef * kl.mean(),
        "objective/scores": rollout.scores.mean(),
        "objective/rlhf_reward": (rollout.scores - kl_coef * kl).mean(),
        "val/num_eos_tokens": rollout.finished.sum(),
        "val/explained_variance": functional.explained_variance(rollout.values[real], returns[real]),
        "completion/length": lengths.mean(),
        "completion/truncated": 1 - rollout.finished.float().mean(),
    }
    measured = {name: float(number) for name, number in metrics.items()}
    for name in sorted({name for step in steps for name in step}):
        numbers = [step[name] for step in steps]
        measured[name] = max(numbers) if name == LARGEST else sum(numbers) / len(numbers)
    return measured


def sample_rows(rollout: Rollout, render: Renderer, step: int, kl_coef: float, count: int) -> list[dict[str, Any]]:
    """The first episodes of an update as a person wants to read them."""
    kl = functional.kl_k1(rollout.logp, rollout.ref_logp).nansum(1)
    rows = []
    for i in range(min(count, len(rollout.examples))):
        score, distance = float(rollout.scores[i]), float(kl[i])
        rows.append(
            {
                "step": step,
                "prompt": rollout.prompts[i].text,
                "completion": render.text(rollout.examples[i].completion),
                "score": round(score, 4),
                "kl": round(distance, 4),
                "total": round(score - kl_coef * distance, 4),
                "finish": "stop" if rollout.finished[i] else "length",
            }
        )
    return rows


def show_samples(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """A few completions with score, KL and total, when the run has just shown its numbers."""
    for row in rows[:SHOWN] if run.just_shown else ():
        prompt, completion = (escape(row[name].replace("\n", "⏎")[:120]) for name in ("prompt", "completion"))
        run.say(f"[dim]{prompt}[/] → {completion}  [dim]score {row['score']:+.2f}  kl {row['kl']:+.2f}  total {row['total']:+.2f}[/]")


@dataclass(slots=True)
class Alarms:
    """Signs that a run has gone wrong, with their likely causes. Remembers how the run began."""

    first_entropy: float | None = None
    MOST_KL = 50.0
    LEAST_ENTROPY = 0.02

    def state(self) -> dict[str, float | None]:
        """What a checkpoint keeps."""
        return asdict(self)

    def check(self, metrics: dict[str, float]) -> None:
        """Look at the metrics of one update.

        Raises:
            RunFailed: the KL runs away, or the entropy has collapsed.
        """
        kl, entropy = metrics["objective/kl"], metrics["policy/entropy_avg"]
        if self.first_entropy is None:
            self.first_entropy = entropy
        if kl > self.MOST_KL:
            raise RunFailed(
                f"the policy has run away from its reference: KL {kl:.1f} nats a completion (alarm at {self.MOST_KL:.0f}); "
                "the learning rate is likely too high or --kl-coef too low"
            )
        if entropy < self.LEAST_ENTROPY * self.first_entropy:
            raise RunFailed(
                f"the entropy has collapsed to {entropy:.4f} nats a token from {self.first_entropy:.2f}: each prompt has one "
                "completion left; likely a reward that one phrase satisfies, or too high a learning rate"
            )
