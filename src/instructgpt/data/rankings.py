"""Rankings as tokens: the K completions of a prompt once, with every labeler's order of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from instructgpt.data.packing import Example, microbatches
from instructgpt.data.tokenization import Renderer
from instructgpt.records import Ranking


@dataclass(frozen=True, slots=True)
class Order:
    """One labeler's ranks of a prompt's completions; 1 is best, equal ranks tie."""

    ranks: tuple[int, ...]
    labeler: str | None
    cohort: str


@dataclass(frozen=True, slots=True)
class RankedPrompt:
    """K completions of a prompt, and the orders that labelers gave them. One batch element of the reward model.

    Rankings of the same completions by several labelers are together one of these, so that each completion is computed once.
    """

    examples: list[Example]
    orders: tuple[Order, ...]
    source: str

    def only(self, wanted: Callable[[Order], bool]) -> RankedPrompt | None:
        """The same prompt with some of its orders, or None where none is left."""
        orders = tuple(order for order in self.orders if wanted(order))
        return replace(self, orders=orders) if orders else None


def tokens_in(prompts: Sequence[RankedPrompt]) -> int:
    """Tokens of all completions with their prompts."""
    return sum(len(example) for prompt in prompts for example in prompt.examples)


def ranked_prompts(rankings: Sequence[Ranking], render: Renderer, context: int) -> tuple[list[RankedPrompt], dict[str, int]]:
    """Rankings by prompt, and how many were left out because all their completions tie.

    A completion that does not fit the context is left out of its ranking and counted; the others stay.
    """
    left_out = {"rankings without a decided pair": 0, "completions longer than the context": 0}
    grouped: dict[tuple[str, tuple[str, ...]], list[Ranking]] = {}
    for ranking in rankings:
        grouped.setdefault((ranking.prompt, tuple(sorted(ranking.completions))), []).append(ranking)
    prompts: list[RankedPrompt] = []
    for group in grouped.values():
        completions = group[0].completions
        examples = examples_of(group[0], render)
        fits = [place for place, example in enumerate(examples) if len(example) <= context]
        left_out["completions longer than the context"] += len(examples) - len(fits)
        orders = []
        for ranking in group:
            places = _places(completions, ranking.completions)
            ranks = tuple(ranking.ranks[places[place]] for place in fits)
            if len(set(ranks)) > 1:
                orders.append(Order(ranks, ranking.labeler, ranking.cohort or "training"))
        left_out["rankings without a decided pair"] += len(group) - len(orders)
        if orders:
            prompts.append(RankedPrompt([examples[place] for place in fits], tuple(orders), group[0].source or ""))
    return prompts, left_out


def examples_of(ranking: Ranking, render: Renderer) -> list[Example]:
    """The completions of a ranking with their prompt, as tokens. One that was cut off ends without end-of-text, as the policy's do."""
    prompt = render.prompt(ranking.prompt)
    finish = ranking.finish or ("stop",) * len(ranking.completions)
    return [Example(prompt, render.completion(text, finished=how == "stop")) for text, how in zip(ranking.completions, finish, strict=True)]


def _places(completions: Sequence[str], shuffled: Sequence[str]) -> list[int]:
    """Where each completion stands in another ranking's order of the same texts (repeated texts in turn)."""
    free: dict[str, list[int]] = {}
    for place, text in enumerate(shuffled):
        free.setdefault(text, []).append(place)
    return [free[text].pop(0) for text in completions]


def flat_orders(prompts: Sequence[RankedPrompt], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Every order of every prompt, one element for each completion it ranks.

    -> completion (M,) which of the prompts' completions, in their order; ranking (M,) which order; rank (M,).
    """
    completion: list[int] = []
    ranking: list[int] = []
    rank: list[int] = []
    first = number = 0
    for prompt in prompts:
        for order in prompt.orders:
            completion += range(first, first + len(order.ranks))
            ranking += [number] * len(order.ranks)
            rank += order.ranks
            number += 1
        first += len(prompt.examples)
    flat = torch.tensor([completion, ranking, rank], dtype=torch.long, device=device)
    return flat[0], flat[1], flat[2]


def token_groups(prompts: Sequence[RankedPrompt], budget: int) -> Iterator[list[RankedPrompt]]:
    """Whole prompts computed together: alike in length, at most `budget` tokens if all were padded (always at least one prompt)."""
    widths = [max(map(len, prompt.examples)) for prompt in prompts]
    for group in microbatches(widths, budget, [len(prompt.examples) for prompt in prompts]):
        yield [prompts[number] for number in group]


def labeler_groups(prompts: Sequence[RankedPrompt], count: int) -> list[set[str | None]]:
    """Labelers in `count` groups of about equally many rankings: the busiest first, each to the group with least."""
    loads: dict[str | None, int] = {}
    for order in (order for prompt in prompts for order in prompt.orders):
        loads[order.labeler] = loads.get(order.labeler, 0) + 1
    groups: list[set[str | None]] = [set() for _ in range(count)]
    totals = [0] * count
    for labeler in sorted(loads, key=lambda name: (-loads[name], str(name))):
        least = totals.index(min(totals))
        groups[least].add(labeler)
        totals[least] += loads[labeler]
    return groups
