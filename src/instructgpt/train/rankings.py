"""What training on rankings needs, whatever gives the scores (a reward model, or in DPO the policy): data, the backward
pass of a ranking loss, and pair accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from instructgpt import functional
from instructgpt.data.packing import PackedBatch, collate, token_budget
from instructgpt.data.rankings import (
    RankedPrompt,
    count_ranking_tokens,
    flatten_ranks,
    prompt_microbatches,
    tokenize_rankings,
)
from instructgpt.data.splits import is_heldout
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.distributed.comm import (
    all_reduce_sum,
    get_model_dist_info,
    nonfinite_ranks_suffix,
    pad_steps,
    shard_by_length,
)
from instructgpt.errors import InputError, RunError
from instructgpt.formatting import format_left_out
from instructgpt.models.precision import compute_device
from instructgpt.records import Ranking, SkippedLines, read_all_records
from instructgpt.run.directory import RunDirectory
from instructgpt.run.timing import PHASE_TIMER


class RankingFiles(Protocol):
    """Options that name rankings."""

    @property
    def data(self) -> tuple[Path, ...]: ...
    @property
    def validation(self) -> tuple[Path, ...]: ...


def load_rankings(
    config: RankingFiles, tokenizer: PromptTokenizer, context: int, run: RunDirectory, skipped: SkippedLines
) -> tuple[list[RankedPrompt], list[RankedPrompt]]:
    """Return the prompts to train on and those to validate on. Rankings of held-out labelers only validate.

    Raises:
        InputError: one of the two is empty.
    """
    rankings = read_all_records(Ranking, config.data, skipped, tokenizer.check_prompt)
    validation_rankings = (
        read_all_records(Ranking, config.validation, skipped, tokenizer.check_prompt)
        if config.validation
        else [r for r in rankings if is_heldout(r.prompt)]
    )
    validation_prompts = {ranking.prompt for ranking in validation_rankings}
    remaining = [ranking for ranking in rankings if ranking.prompt not in validation_prompts]
    training_rankings = [ranking for ranking in remaining if ranking.cohort != "heldout"]
    training, left_out = tokenize_rankings(training_rankings, tokenizer, context)
    validation, validation_left_out = tokenize_rankings(validation_rankings, tokenizer, context)
    left_out = {name: left_out[name] + validation_left_out[name] for name in left_out} | {
        "rankings of training prompts by held-out labelers": len(remaining) - len(training_rankings),
        "bad lines": len(skipped.reasons),
    }
    if not training or not validation:
        counts = f"{len(training)} prompts with a decided pair to train on, {len(validation)} to validate on"
        raise InputError(f"{counts} ({format_left_out(left_out, context)}); add rankings, or give --validation")
    run.summary["left_out"] = left_out
    run.info(f"rankings of {len(training)} prompts, of {len(validation)} for validation; left out: {left_out}")
    return training, validation


def backward_ranking_losses(
    model: torch.nn.Module,
    prompts: Sequence[RankedPrompt],
    compute_scores: Callable[[PackedBatch, Sequence[RankedPrompt]], Tensor],
    ranking_losses: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[float, float]:
    """Accumulate the gradient of the mean loss over a batch of prompts; return the loss and pair accuracy.

    Every prompt weighs the same, however many labelers ranked it. Every rank passes the whole batch.

    Args:
        model: the model that computes the scores.
        prompts: the batch.
        compute_scores: a microbatch and its prompts -> scores of all their completions in order, (N,).
        ranking_losses: scores, ranking index, ranks (M,) -> a loss per ranking.

    Raises:
        RunError: the loss is not finite.
    """
    device, dist_info = compute_device(model), get_model_dist_info(model)
    rank_stats = torch.zeros(3, device=device)  # mean loss, right pairs, pairs
    lengths = [count_ranking_tokens([prompt]) for prompt in prompts]
    rank_prompts = [prompts[row] for row in shard_by_length(lengths, dist_info)]
    for group in pad_steps(prompt_microbatches(rank_prompts, token_budget(device)), dist_info):
        batch = collate([example for prompt in group for example in prompt.examples], device)
        with PHASE_TIMER("forward", len(batch.input_ids)):
            scores = compute_scores(batch, group)
        completion_index, ranking_index, ranks = flatten_ranks(group, device)
        weights = [1 / len(prompt.labeler_ranks) for prompt in group for _ in prompt.labeler_ranks]
        weight = torch.tensor(weights, device=device)
        loss = (ranking_losses(scores[completion_index], ranking_index, ranks) * weight).sum() / len(prompts)
        with PHASE_TIMER("backward", len(batch.input_ids)):
            loss.backward()  # type: ignore[no-untyped-call]
        correct = functional.pair_accuracy(scores.detach()[completion_index], ranking_index, ranks)
        rank_stats += torch.stack([loss.detach(), correct.sum(), torch.ones_like(correct).sum()])
    mean_loss, right_pairs, pairs = all_reduce_sum(rank_stats.clone(), dist_info).tolist()
    if not mean_loss < float("inf"):
        cause = "the learning rate is likely too high, or the initial weights are damaged"
        raise RunError(f"the ranking loss is {mean_loss}{nonfinite_ranks_suffix(rank_stats, dist_info)}: {cause}")
    return mean_loss, right_pairs / pairs


def measure_pair_accuracy(scores: Tensor, prompts: Sequence[RankedPrompt]) -> dict[str, float]:
    """Return pair accuracy, ranking loss and the accuracy of "the longer completion wins", by cohort and by source.

    scores (N,): of all completions of the prompts, in order.
    """
    lengths = torch.tensor([float(len(example.completion_ids)) for prompt in prompts for example in prompt.examples])
    completion_index, ranking_index, ranks = flatten_ranks(prompts)
    cohorts = [order.cohort for prompt in prompts for order in prompt.labeler_ranks]
    sources = [prompt.source for prompt in prompts for _ in prompt.labeler_ranks]
    suffixes = {"": "training", "_heldout": "heldout", "_user": "user"}
    groups = {suffix: [cohort == name for cohort in cohorts] for suffix, name in suffixes.items()}
    if len(set(sources)) > 1:
        groups |= {f"/{name}": [source == name for source in sources] for name in sorted(set(sources))}
    metrics: dict[str, float] = {}
    for suffix, selected in groups.items():
        rows = torch.tensor(selected)[ranking_index]
        if rows.any():
            index, group = completion_index[rows], (ranking_index[rows], ranks[rows])
            means = {
                "accuracy": functional.pair_accuracy(scores[index], *group).mean(),
                "length_baseline": functional.pair_accuracy(lengths[index], *group).mean(),
                "loss": functional.ranking_losses(scores[index], *group).mean(),
            }
            metrics |= {f"validation/{name}{suffix}": float(mean) for name, mean in means.items()}
    return metrics
