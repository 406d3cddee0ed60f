"""Held-out prompts of a PPO run: what the policy scores where it does not train.

The reward model is only right near the data it was trained on, so its score on prompts that train can rise while the
policy gets worse (section 4.1; Gao et al. 2023, over-optimization). Held-out prompts show part of it in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from instructgpt import functional
from instructgpt.records import Prompt
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.train.configs import PPOConfig
from instructgpt.train.ppo_metrics import build_sample_records
from instructgpt.train.rollout import PPOModels, collect_rollout

_MAX_LOGGED_SAMPLES = 16
_SEED = 2**40  # far from the seeds of training


@dataclass(frozen=True, slots=True)
class Measurement:
    """The policy on held-out prompts; empty where nothing was measured."""

    metrics: dict[str, float] = field(default_factory=dict)
    scores: list[float] = field(default_factory=list)  # of each prompt, before normalization and clipping
    samples: list[dict[str, Any]] = field(default_factory=list)  # rows of samples.jsonl with "split": "validation"


def measure_on_prompts(models: PPOModels, prompts: Sequence[Prompt], config: PPOConfig, step: int) -> Measurement:
    """Sample one completion of each prompt, and measure score, KL and length. All ranks call it.

    The seed is always the same, so that measurements differ by the policy alone. Nothing that training reads changes.
    """
    options: dict[str, Any] = {
        "max_tokens": config.max_tokens,
        "eos_penalty": config.eos_penalty,
        "update_moments": False,
    }
    with PHASE_TIMER("validation"):
        rollouts = [
            collect_rollout(models, prompts[start : start + config.batch], seed=_SEED + start, **options)
            for start in range(0, len(prompts), config.batch)
        ]
    scores = [score for rollout in rollouts for score in rollout.raw_scores.tolist()]
    kl = [kl for rollout in rollouts for kl in functional.kl_k1(rollout.logp, rollout.ref_logp).nansum(1).tolist()]
    lengths = [length for rollout in rollouts for length in rollout.mask.sum(1).tolist()]
    finished = [is_finished for rollout in rollouts for is_finished in rollout.finished.tolist()]
    count = len(prompts)
    metrics = {
        "validation/scores": sum(scores) / count,
        "validation/kl": sum(kl) / count,
        "validation/length": sum(lengths) / count,
        "validation/truncated": 1 - sum(finished) / count,
    }
    records = build_sample_records(rollouts[0], models.tokenizer, step, config.kl_coef, _MAX_LOGGED_SAMPLES)
    return Measurement(metrics, scores, [record | {"split": "validation"} for record in records])
