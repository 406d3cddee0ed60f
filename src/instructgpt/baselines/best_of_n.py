"""`best`: the best of N completions by score, as demonstrations (rejection sampling, Nakano et al. 2021).

    instructgpt sample --model runs/sft --prompts prompts.jsonl -n 16 --out completions.jsonl
    instructgpt score  --reward runs/reward --data completions.jsonl --out scored.jsonl
    instructgpt best   --data scored.jsonl -n 16 --out best.jsonl
    instructgpt sft    --base runs/sft --data best.jsonl --out runs/best

Best-of-N needs no training and moves the policy by a known KL divergence: what PPO buys is measured against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch

from instructgpt.baselines.configs import BestConfig
from instructgpt.errors import InputError
from instructgpt.functional import best_of_n_estimate, best_of_n_kl_bound
from instructgpt.io import check_output_file
from instructgpt.records import Demonstration, PromptFields, SkippedLines, read_all_records, write_records
from instructgpt.run.directory import console


class ScoredCompletion(Demonstration):
    """A completion with its score, as `score` writes it."""

    score: float
    finish: Literal["stop", "length"] = "stop"
    model: str | None = None


def main(config: BestConfig) -> Path:
    """Write the best of the first N completions of each prompt, and print the KL bound and the gain in score.

    Raises:
        InputError: a record has no score, or a prompt has fewer than N completions (without `skip_bad`).
    """
    check_output_file(config.out)
    skipped = SkippedLines(config.skip_bad)
    groups = group_by_prompt(read_all_records(ScoredCompletion, config.data, skipped))
    complete = {prompt: group for prompt, group in groups.items() if len(group) >= config.n}
    for prompt, group in groups.items():
        if prompt not in complete:
            _skip_prompt(prompt, len(group), config.n, skipped)
    if not complete:
        raise InputError(f"--n {config.n}: no prompt has so many completions")
    best = [choose_best(group[: config.n]) for group in complete.values()]
    write_records(config.out, (_to_demonstration(completion, config.n) for completion in best))
    for line in format_summary(best, list(complete.values()), config, len(skipped.reasons)):
        console.print(line, markup=False, soft_wrap=True)
    return config.out


def group_by_prompt(completions: Iterable[ScoredCompletion]) -> dict[PromptFields, list[ScoredCompletion]]:
    """Return the completions of each prompt, both in the order of the files."""
    groups: dict[PromptFields, list[ScoredCompletion]] = {}
    for completion in completions:
        groups.setdefault(completion.bare_prompt, []).append(completion)
    return groups


def choose_best(completions: Sequence[ScoredCompletion]) -> ScoredCompletion:
    """Return the completion with the highest score; the first of equal ones."""
    return max(completions, key=lambda completion: completion.score)


def estimate_scores(groups: Sequence[Sequence[ScoredCompletion]], n: int) -> list[tuple[int, float]]:
    """Return (k, mean score of the best of k) for k = 1, 2, 4 … up to n, each from all completions of every prompt."""
    sizes = [*(2**power for power in range(n.bit_length()) if 2**power < n), n]
    scores = [torch.tensor([completion.score for completion in group], dtype=torch.float64) for group in groups]
    return [(k, float(torch.stack([best_of_n_estimate(x, x, k) for x in scores]).mean())) for k in sizes]


def format_summary(
    best: Sequence[ScoredCompletion], groups: Sequence[Sequence[ScoredCompletion]], config: BestConfig, left_out: int
) -> list[str]:
    """Return the lines to print: what was written, the KL bound, scores, and what limits their meaning."""
    n = config.n
    lines = [
        f"{len(best)} demonstrations, each the best of {n} completions: {config.out}; left out: {left_out}",
        f"KL divergence from the sampled policy: at most log {n} - {n - 1}/{n} = {best_of_n_kl_bound(n):.3f} nats",
        "score: " + ", ".join(f"best of {k} {score:.3f}" for k, score in estimate_scores(groups, n)),
    ]
    models = {completion.model for group in groups for completion in group[:n]}
    if len(models) > 1:
        names = ", ".join(sorted(map(str, models)))
        lines.append(f"completions are of {len(models)} models ({names}); the bound is that of one policy")
    if truncated := sum(completion.finish == "length" for completion in best):
        lines.append(
            f"{truncated} of the best are truncated; sft would learn to end there: sample with more --max-tokens"
        )
    return lines


def _to_demonstration(completion: ScoredCompletion, n: int) -> Demonstration:
    columns = completion.to_dict()
    for name in ("finish", "sampling"):
        columns.pop(name, None)
    return Demonstration.model_validate({"source": f"best of {n}"} | columns)


def _skip_prompt(prompt: PromptFields, count: int, n: int, skipped: SkippedLines) -> None:
    text = " ".join(prompt.prompt.split())[:40]
    reason = f"prompt '{text}' has {count} completions, fewer than --n {n}"
    if not skipped.allowed:
        raise InputError(f"{reason}; sample more, lower --n, or leave such prompts out with --skip-bad")
    skipped.reasons.append(reason)
