"""Metrics and samples of a PPO run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from torch import Tensor

from instructgpt import functional
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.run.directory import RunDirectory
from instructgpt.train.rollout import Rollout

_PRINTED_SAMPLES = 3
MAX_LOG_RATIO_METRIC = "policy/max_log_ratio"
"""The only minibatch metric that is a maximum; the others are means."""


def compute_update_metrics(
    rollout: Rollout, returns: Tensor, step_stats: Sequence[dict[str, float]], kl_coef: float
) -> dict[str, float]:
    """Return a PPO step's metrics under TRL's names; `step_stats` are those of its optimizer steps."""
    mask = rollout.mask
    kl = functional.kl_k1(rollout.logp, rollout.ref_logp).nansum(1)  # (B,) signed, never clamped
    lengths = mask.sum(1).float()
    metrics = {
        "objective/kl": kl.mean(),
        "objective/kl_k3": functional.kl_k3(rollout.logp, rollout.ref_logp).nansum(1).mean(),
        "objective/entropy": -rollout.logp.nansum(1).mean(),
        "objective/non_score_reward": -kl_coef * kl.mean(),
        "objective/scores": rollout.scores.mean(),
        "objective/scores_std": rollout.scores.std(correction=0),
        "objective/rlhf_reward": (rollout.scores - kl_coef * kl).mean(),
        "val/num_eos_tokens": rollout.finished.sum(),
        "val/explained_variance": functional.explained_variance(rollout.values[mask], returns[mask]),
        "completion/length": lengths.mean(),
        "completion/truncated": 1 - rollout.finished.float().mean(),
    }
    if not rollout.raw_scores.equal(rollout.scores):
        metrics["objective/raw_scores"] = rollout.raw_scores.mean()
    result = {name: float(number) for name, number in metrics.items()} | rollout.score_metrics
    for name in sorted({name for step in step_stats for name in step}):
        numbers = [step[name] for step in step_stats]
        result[name] = max(numbers) if name == MAX_LOG_RATIO_METRIC else sum(numbers) / len(numbers)
    return result


def build_sample_records(
    rollout: Rollout, tokenizer: PromptTokenizer, step: int, kl_coef: float, count: int
) -> list[dict[str, Any]]:
    """Return the first `count` episodes of a rollout as rows of samples.jsonl."""
    kl = functional.kl_k1(rollout.logp, rollout.ref_logp).nansum(1)
    records = []
    for i in range(min(count, len(rollout.examples))):
        score, episode_kl = float(rollout.scores[i]), float(kl[i])
        records.append(
            {
                "step": step,
                "prompt": rollout.prompts[i].prompt,
                "completion": tokenizer.decode(rollout.examples[i].completion_ids),
                "score": round(score, 4),
                "kl": round(episode_kl, 4),
                "total": round(score - kl_coef * episode_kl, 4),
                "finish": "stop" if rollout.finished[i] else "length",
            }
        )
    return records


def print_samples(run: RunDirectory, records: Sequence[dict[str, Any]]) -> None:
    """Print a few completions with their score, KL and total if the run has just printed its metrics."""
    for record in records[:_PRINTED_SAMPLES] if run.logged_to_console else ():
        prompt, completion = (escape(record[name].replace("\n", "⏎")[:120]) for name in ("prompt", "completion"))
        numbers = "  ".join(f"{name} {record[name]:+.2f}" for name in ("score", "kl", "total"))
        run.info(f"[dim]{prompt}[/] → {completion}  [dim]{numbers}[/]")
