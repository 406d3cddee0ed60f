"""Episodes of PPO: sample completions, score them, remember everything about the moment they were sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instructgpt.data.packing import Batch, Example, collate, microbatches, token_budget
from instructgpt.data.tokenization import Renderer
from instructgpt.distributed.comm import collect, in_step, own_part, ranks_of, share
from instructgpt.errors import RunFailed
from instructgpt.models.policy import completion_logp
from instructgpt.models.reward_model import ScalarModel
from instructgpt.records import Prompt
from instructgpt.run.timing import PHASES
from instructgpt.sampling.completions import as_generated, read_by
from instructgpt.sampling.distributed import sample_on_ranks
from instructgpt.sampling.engine import Sample

PARITY = 1e-3
"""Largest difference, in nats, that rounding may make between a log-probability when sampled and when trained on."""
PARITY_BF16 = 2e-2
"""In bf16 the root of the mean square of the differences: the largest of many thousands is a matter of chance there."""
PROBED, PROBE_TOKENS = 3, 16
"""Prompts that the parity probe samples again and how often each; how many tokens at most."""


@dataclass(slots=True)
class Models:
    """The four models of PPO, and the moving average of the first."""

    policy: Any
    reference: Any
    value: ScalarModel
    reward: ScalarModel
    average: Any
    render: Renderer


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A batch of episodes. Whatever lies after the end of a completion is NaN, so that using it shows."""

    prompts: list[Prompt]
    examples: list[Example]  # B prompts with their completions
    finished: Tensor  # (B,) bool: ended by itself, with an end-of-text token
    mask: Tensor  # (B, R) bool: True on sampled tokens, the end-of-text token included
    logp: Tensor  # (B, R) under the policy that sampled them
    ref_logp: Tensor  # (B, R) under the frozen reference
    values: Tensor  # (B, R) value estimate before each token
    scores: Tensor  # (B,) of the reward model, less the penalty for a missing end-of-text

    def __post_init__(self) -> None:
        """Check every shape once, where the value is made."""
        count, width = self.mask.shape
        for name in ("logp", "ref_logp", "values"):
            got = tuple(getattr(self, name).shape)
            assert got == (count, width), f"Rollout.{name} is {got}, expected {(count, width)}"
        assert len(self.examples) == len(self.scores) == count
        assert self.mask.any(1).all(), "a completion without even one token"


def roll_out(models: Models, prompts: Sequence[Prompt], *, max_tokens: int, eos_penalty: float, seed: int) -> Rollout:
    """Sample one completion a prompt at temperature 1 from the whole distribution, and score it with every model.

    The reward model reads the very tokens the policy sampled, or, where it has another tokenizer, their text rendered
    again; a completion that was cut off keeps its last token and is scored there, less `eos_penalty`.
    """
    render = models.render
    rendered = [render.prompt(prompt) for prompt in prompts]
    with PHASES("sampling"):
        samples = sample_on_ranks(models.policy, rendered, eos=render.eos, max_tokens=max_tokens, seed=seed)
    answers = as_generated(render, prompts, rendered, samples)
    examples = [answer.example for answer in answers]
    mask, logp = side_by_side(samples)
    finished = torch.tensor([answer.finished for answer in answers])
    total = own_part(sum(map(len, examples)), ranks_of(models.policy))
    PHASES.count("sampling", total)
    with PHASES("score", total):
        scores = models.reward.score(read_by(models.reward.render, render, answers)) - eos_penalty * ~finished
    with PHASES("reference", total):
        ref_logp = of_completions(models.reference, examples, mask, lambda batch: completion_logp(models.reference, batch))
    with PHASES("values", total):
        values = of_completions(models.value.model, examples, mask, lambda batch: values_of(models.value, batch))
    return Rollout(
        prompts=list(prompts),
        examples=examples,
        finished=finished,
        mask=mask,
        logp=logp,
        ref_logp=ref_logp,
        values=values,
        scores=scores,
    )


def side_by_side(samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
    """Which tokens were sampled, and their logp when they were. -> (B, R) and (B, R), NaN after the end."""
    lengths = torch.tensor([len(one.tokens) for one in samples])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    logp = torch.full(mask.shape, float("nan"))
    logp[mask] = torch.tensor([number for one in samples for number in one.logp])
    return mask, logp


def values_of(value: ScalarModel, batch: Batch) -> Tensor:
    """Value estimate before every completion token of a batch. -> (N,)."""
    return value.per_token(batch, "predicts")


@torch.no_grad()
def of_completions(model: Any, examples: Sequence[Example], mask: Tensor, measure: Callable[[Batch], Tensor]) -> Tensor:
    """One number for every completion token, which `measure` has of the model, in microbatches. -> (B, R), NaN after the end."""
    lengths, ranks = [len(example) for example in examples], ranks_of(model)
    mine = share(lengths, ranks)
    numbers = torch.full((len(mine), mask.shape[1]), float("nan"))
    for group in in_step(microbatches([lengths[row] for row in mine], token_budget(model.device)), ranks):
        rows = [mine[place] for place in group]
        part = torch.full((len(rows), mask.shape[1]), float("nan"))
        part[mask[rows]] = measure(collate([examples[row] for row in rows], model.device)).cpu()
        numbers[group] = part
    return torch.tensor(collect(mine, numbers.tolist(), len(examples), ranks))  # as numbers: a row of a tensor brings all of it along


def check_parity(models: Models, rollout: Rollout, bf16: bool = False) -> float:
    """Sampling and training must agree on log-probabilities, or the ratio of PPO is wrong. Returns the largest difference.

    A few prompts are sampled once more, each several times and two rows at once, so that rows take the places of others
    and share prompts, whatever the rollout needed.

    Raises:
        RunFailed: they do not.
    """
    prompts = [example.prompt for example in rollout.examples[:PROBED] for _ in range(PROBED)]
    tokens = min(PROBE_TOKENS, rollout.mask.shape[1])
    again = sample_on_ranks(models.policy, prompts, eos=models.render.eos, max_tokens=tokens, seed=0, rows=2)
    examples = [Example(prompt, one.tokens) for prompt, one in zip(prompts, again, strict=True)]

    def differences(examples: Sequence[Example], mask: Tensor, logp: Tensor) -> Tensor:
        trained = of_completions(models.policy, examples, mask, lambda batch: completion_logp(models.policy, batch))
        return (trained - logp)[mask].abs()

    with PHASES("parity", sum(map(len, [*rollout.examples, *examples]))):
        both = differences(rollout.examples, rollout.mask, rollout.logp), differences(examples, *side_by_side(again))
    largest = float(torch.cat(both).max())  # what is not a number counts as the largest
    found, allowed = largest, PARITY
    if bf16:
        found, allowed = float(torch.stack([some.square().mean().sqrt() for some in both]).max()), PARITY_BF16
    if not found <= allowed:
        raise RunFailed(
            f"sampling and training disagree on log-probabilities by {found:.2g} nats (rounding allows {allowed}): "
            "likely causes are dropout left on, half-precision weights, or a model family whose cache is not exact"
        )
    return largest
