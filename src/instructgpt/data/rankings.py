"""Rankings as tokens: the K completions of a prompt once, with every labeler's ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch
from torch import Tensor

from instructgpt.data.packing import TokenizedExample, microbatches
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.records import PromptFields, Ranking


@dataclass(frozen=True, slots=True)
class LabelerRanks:
    """One labeler's ranks of a prompt's completions; 1 is best, equal ranks tie."""

    ranks: tuple[int, ...]
    labeler: str | None
    cohort: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class RankedPrompt:
    """K completions of a prompt with all labelers' ranks: one batch element of the reward model.

    Rankings of the same completions by several labelers share an element, so each completion is computed once.
    """

    examples: list[TokenizedExample]
    labeler_ranks: tuple[LabelerRanks, ...]
    source: str
    reference_logp: tuple[float, ...] = ()
    """Log-probability of each completion under DPO's frozen reference, in nats."""

    def filter(self, predicate: Callable[[LabelerRanks], bool]) -> RankedPrompt | None:
        """Return the prompt with the matching ranks only, or None if none match."""
        labeler_ranks = tuple(ranks for ranks in self.labeler_ranks if predicate(ranks))
        return replace(self, labeler_ranks=labeler_ranks) if labeler_ranks else None


def count_ranking_tokens(prompts: Sequence[RankedPrompt]) -> int:
    return sum(len(example) for prompt in prompts for example in prompt.examples)


def tokenize_rankings(
    rankings: Sequence[Ranking], tokenizer: PromptTokenizer, max_length: int
) -> tuple[list[RankedPrompt], dict[str, int]]:
    """Return rankings grouped by prompt, and counts of those left out because all completions tie.

    A completion that exceeds the context is removed from its ranking and counted.
    """
    skipped = {"rankings without a decided pair": 0, "completions longer than the context": 0}
    groups: dict[tuple[PromptFields, tuple[tuple[str, str], ...]], list[Ranking]] = {}
    for ranking in rankings:
        groups.setdefault((ranking.bare_prompt, tuple(sorted(_completion_keys(ranking)))), []).append(ranking)
    prompts: list[RankedPrompt] = []
    for group in groups.values():
        examples = _tokenize_ranking(group[0], tokenizer)
        fitting = [index for index, example in enumerate(examples) if len(example) <= max_length]
        skipped["completions longer than the context"] += len(examples) - len(fitting)
        labeler_ranks = []
        for ranking in group:
            index_in_ranking = _match_completions(_completion_keys(group[0]), _completion_keys(ranking))
            ranks = tuple(ranking.ranks[index_in_ranking[index]] for index in fitting)
            if len(set(ranks)) > 1:
                labeler_ranks.append(LabelerRanks(ranks, ranking.labeler, ranking.cohort or "training", ranking.group))
        skipped["rankings without a decided pair"] += len(group) - len(labeler_ranks)
        if labeler_ranks:
            prompts.append(
                RankedPrompt([examples[index] for index in fitting], tuple(labeler_ranks), group[0].source or "")
            )
    return prompts, skipped


def subsample_rankings(
    prompts: Sequence[RankedPrompt], max_prompts: int, max_completions: int, seed: int
) -> list[RankedPrompt]:
    """Return random prompts, in their order, with random completions of each. A larger part includes a smaller one.

    Prompts whose remaining completions all tie are dropped before prompts are counted.

    Args:
        prompts: all there are.
        max_prompts: prompts to keep; 0 keeps all.
        max_completions: completions of each prompt to keep; 0 keeps all.
        seed: of both draws; those of completions do not depend on the number of prompts.
    """
    if max_completions:
        shortened = (
            _draw_completions(prompt, max_completions, Random(f"{seed} {i}")) for i, prompt in enumerate(prompts)
        )
        prompts = [prompt for prompt in shortened if prompt is not None]
    if not 0 < max_prompts < len(prompts):
        return list(prompts)
    order = list(range(len(prompts)))
    Random(f"{seed} prompts").shuffle(order)
    return [prompts[index] for index in sorted(order[:max_prompts])]


def _draw_completions(prompt: RankedPrompt, count: int, rng: Random) -> RankedPrompt | None:
    """Return the prompt with `count` of its completions, or None where nobody ranks one of them above another."""
    order = list(range(len(prompt.examples)))
    rng.shuffle(order)
    remaining = sorted(order[:count])
    labeler_ranks = [
        replace(ranks, ranks=tuple(ranks.ranks[index] for index in remaining)) for ranks in prompt.labeler_ranks
    ]
    decided = tuple(ranks for ranks in labeler_ranks if len(set(ranks.ranks)) > 1)
    reference_logp = tuple(prompt.reference_logp[index] for index in remaining) if prompt.reference_logp else ()
    examples = [prompt.examples[index] for index in remaining]
    return replace(prompt, examples=examples, labeler_ranks=decided, reference_logp=reference_logp) if decided else None


def count_labels(prompts: Sequence[RankedPrompt]) -> dict[str, int]:
    """Return what labelers did: rankings, completions in them, and pairs that are no ties."""
    rankings = [labeler_ranks.ranks for prompt in prompts for labeler_ranks in prompt.labeler_ranks]
    ties = sum(count * (count - 1) // 2 for ranks in rankings for count in Counter(ranks).values())
    pairs = sum(len(ranks) * (len(ranks) - 1) // 2 for ranks in rankings) - ties
    return {"prompts": len(prompts), "rankings": len(rankings), "completions": sum(map(len, rankings)), "pairs": pairs}


def _tokenize_ranking(ranking: Ranking, tokenizer: PromptTokenizer) -> list[TokenizedExample]:
    """Return the completions with their prompt as tokens; a truncated one has no end-of-text, as in sampling."""
    prompt = tokenizer.encode_prompt(ranking)
    return [
        TokenizedExample(prompt, tokenizer.encode_completion(text, finished=reason == "stop"))
        for text, reason in _completion_keys(ranking)
    ]


def _completion_keys(ranking: Ranking) -> list[tuple[str, str]]:
    """Return the text and finish reason of each completion: a truncated text is another completion than a finished
    one.
    """
    return list(zip(ranking.completions, ranking.finish or ("stop",) * len(ranking.completions), strict=True))


def _match_completions(keys: Sequence[tuple[str, str]], permuted: Sequence[tuple[str, str]]) -> list[int]:
    """Return the index of each completion in another order of the same completions (repeated ones in turn)."""
    free_indices: dict[tuple[str, str], list[int]] = {}
    for index, key in enumerate(permuted):
        free_indices.setdefault(key, []).append(index)
    return [free_indices[key].pop(0) for key in keys]


def flatten_ranks(prompts: Sequence[RankedPrompt], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Flatten all ranks of all prompts, one element a ranked completion.

    Returns: completion (M,) index into the completions in order, ranking (M,), rank (M,).
    """
    completion_index: list[int] = []
    ranking_index: list[int] = []
    ranks: list[int] = []
    completion_offset = ranking_count = 0
    for prompt in prompts:
        for labeler_ranks in prompt.labeler_ranks:
            completion_index += range(completion_offset, completion_offset + len(labeler_ranks.ranks))
            ranking_index += [ranking_count] * len(labeler_ranks.ranks)
            ranks += labeler_ranks.ranks
            ranking_count += 1
        completion_offset += len(prompt.examples)
    flat = torch.tensor([completion_index, ranking_index, ranks], dtype=torch.long, device=device)
    return flat[0], flat[1], flat[2]


def prompt_microbatches(prompts: Sequence[RankedPrompt], budget: int) -> Iterator[list[RankedPrompt]]:
    """Yield microbatches of whole prompts: similar lengths, at most `budget` tokens if padded (at least one prompt)."""
    max_lengths = [max(map(len, prompt.examples)) for prompt in prompts]
    for group in microbatches(max_lengths, budget, [len(prompt.examples) for prompt in prompts]):
        yield [prompts[index] for index in group]


def balanced_labeler_folds(prompts: Sequence[RankedPrompt], num_folds: int) -> list[set[str | None]]:
    """Split labelers into folds of about equally many rankings, greedily by size."""
    loads: dict[str | None, int] = {}
    for labeler_ranks in (labeler_ranks for prompt in prompts for labeler_ranks in prompt.labeler_ranks):
        loads[labeler_ranks.labeler] = loads.get(labeler_ranks.labeler, 0) + 1
    folds: list[set[str | None]] = [set() for _ in range(num_folds)]
    totals = [0] * num_folds
    for labeler in sorted(loads, key=lambda name: (-loads[name], str(name))):
        smallest = totals.index(min(totals))
        folds[smallest].add(labeler)
        totals[smallest] += loads[labeler]
    return folds
