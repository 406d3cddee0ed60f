"""`best`: the best of N completions by score, as demonstrations (rejection sampling, Nakano et al. 2021).

    instructgpt sample --model runs/sft --prompts prompts.jsonl -n 16 --out completions.jsonl
    instructgpt score  --reward runs/reward --data completions.jsonl --out scored.jsonl
    instructgpt best   --data scored.jsonl -n 16 --out best.jsonl
    instructgpt sft    --base runs/sft --data best.jsonl --out runs/best

Best-of-N needs no training and moves the policy by a known KL divergence: what PPO buys is measured against it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from instructgpt.baselines.configs import BestConfig
from instructgpt.errors import InputError
from instructgpt.functional import best_of_n_kl_bound, best_of_n_weights, sort_with_tie_means
from instructgpt.io import check_output_file
from instructgpt.records import (
    Demonstration,
    PromptFields,
    SkippedLines,
    read_all_records,
    write_records,
    write_text_atomic,
)
from instructgpt.run.directory import console
from instructgpt.statistics.intervals import mean


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
    estimates = estimate_best_of_n(list(complete.values()))
    text = json.dumps({"prompts": len(complete), "estimates": estimates}, indent=1)
    write_text_atomic(estimates_path(config.out), text + "\n")
    for line in format_summary(best, list(complete.values()), estimates, config, len(skipped.reasons)):
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


def estimates_path(out: Path) -> Path:
    """Return the file of the estimates beside the demonstrations: `best.jsonl` has `best.estimates.json`."""
    return out.with_name(f"{out.name.removesuffix('.gz').removesuffix('.jsonl')}.estimates.json")


def estimate_best_of_n(groups: Sequence[Sequence[ScoredCompletion]]) -> list[dict[str, float | None]]:
    """Return, for every n up to the completions that each prompt has: mean score, its interval, and the KL bound.

    Each is estimated from all completions of each prompt; the 95 % interval is over prompts.
    """
    by_size: dict[int, list[Tensor]] = defaultdict(list)
    for group in groups:
        scores = torch.tensor([completion.score for completion in group], dtype=torch.float64)
        by_size[len(group)].append(sort_with_tie_means(scores, scores))
    matrices = {size: torch.stack(rows) for size, rows in by_size.items()}  # (G, N)
    rows: list[dict[str, float | None]] = []
    for n in range(1, min(matrices) + 1):
        values = torch.cat([matrix @ best_of_n_weights(size, n) for size, matrix in matrices.items()]).tolist()
        estimate = mean(values, range(len(values)))
        interval = {"low": estimate.low, "high": estimate.high}
        rows.append({"n": n, "score": estimate.value, **interval, "kl_bound": best_of_n_kl_bound(n)})
    return rows


def select_sizes(estimates: Sequence[Mapping[str, float | None]], n: int) -> list[Mapping[str, float | None]]:
    """Return the estimates of 1, 2, 4 … and n."""
    return [row for row in estimates if row["n"] == n or ((row["n"] or 0) < n and int(row["n"] or 0).bit_count() == 1)]


def format_summary(
    best: Sequence[ScoredCompletion],
    groups: Sequence[Sequence[ScoredCompletion]],
    estimates: Sequence[Mapping[str, float | None]],
    config: BestConfig,
    left_out: int,
) -> list[str]:
    """Return the lines to print: what was written, the KL bound, scores, and what limits their meaning."""
    n = config.n
    lines = [
        f"{len(best)} demonstrations, each the best of {n} completions: {config.out}; left out: {left_out}",
        f"KL divergence from the sampled policy: at most log {n} - {n - 1}/{n} = {best_of_n_kl_bound(n):.3f} nats",
        "score: " + ", ".join(f"best of {row['n']} {row['score']:.3f}" for row in select_sizes(estimates, n)),
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
