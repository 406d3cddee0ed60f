"""Episodes of PPO: sample completions, score them, remember everything about the moment they were sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from instructgpt.data.packing import PackedBatch, TokenizedExample, collate, microbatches, token_budget
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.distributed.comm import (
    gather_in_order,
    get_model_dist_info,
    pad_steps,
    shard_by_length,
    tokens_per_rank,
)
from instructgpt.errors import RunError
from instructgpt.models.policy import completion_logp
from instructgpt.models.reward_model import ScalarModel
from instructgpt.records import Prompt
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.sampling.completions import decode_samples, retokenize_for
from instructgpt.sampling.distributed import sample_on_ranks
from instructgpt.sampling.engine import SampledTokens

PARITY_TOLERANCE = 1e-3
"""Largest difference, in nats, that rounding may make between a log-probability when sampled and when trained on."""
PARITY_TOLERANCE_BF16 = 2e-2
"""In bf16 the root of the mean square of the differences: the largest of many thousands is a matter of chance there."""
_PARITY_PROMPTS, _PARITY_TOKENS = 3, 16
"""Prompts that the parity probe samples again and how often each; how many tokens at most."""


@dataclass(slots=True)
class PPOModels:
    """The four models of PPO, and the moving average of the first."""

    policy: Any
    reference: Any
    value: ScalarModel
    reward: ScalarModel
    ema: Any
    tokenizer: PromptTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A batch of episodes. Whatever lies after the end of a completion is NaN, so that using it shows."""

    prompts: list[Prompt]
    examples: list[TokenizedExample]  # B prompts with their completions
    finished: Tensor  # (B,) bool: ended by itself, with an end-of-text token
    mask: Tensor  # (B, R) bool: True on sampled tokens, the end-of-text token included
    logp: Tensor  # (B, R) under the policy that sampled them
    ref_logp: Tensor  # (B, R) under the frozen reference
    values: Tensor  # (B, R) value estimate before each token
    scores: Tensor  # (B,) of the reward model, less the penalty for a missing end-of-text

    def __post_init__(self) -> None:
        """Check every shape once, where the value is made."""
        count, max_length = self.mask.shape
        for name in ("logp", "ref_logp", "values"):
            shape = tuple(getattr(self, name).shape)
            assert shape == (count, max_length), f"Rollout.{name} is {shape}, expected {(count, max_length)}"
        assert len(self.examples) == len(self.scores) == count
        assert self.mask.any(1).all(), "a completion without even one token"


def collect_rollout(
    models: PPOModels, prompts: Sequence[Prompt], *, max_tokens: int, eos_penalty: float, seed: int
) -> Rollout:
    """Sample one completion a prompt at temperature 1 from the whole distribution, and score it with every model.

    The reward model reads the very tokens the policy sampled, or, where it has another tokenizer, their text rendered
    again; a completion that was cut off keeps its last token and is scored there, less `eos_penalty`.
    """
    tokenizer = models.tokenizer
    prompt_tokens = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    with PHASE_TIMER("sampling"):
        samples = sample_on_ranks(models.policy, prompt_tokens, eos=tokenizer.eos, max_tokens=max_tokens, seed=seed)
    completions = decode_samples(tokenizer, prompts, prompt_tokens, samples)
    examples = [completion.example for completion in completions]
    mask, logp = pad_logps(samples)
    finished = torch.tensor([completion.finished for completion in completions])
    rank_token_count = tokens_per_rank(sum(map(len, examples)), get_model_dist_info(models.policy))
    PHASE_TIMER.add_tokens("sampling", rank_token_count)
    with PHASE_TIMER("score", rank_token_count):
        scores = (
            models.reward.score(retokenize_for(models.reward.tokenizer, tokenizer, completions))
            - eos_penalty * ~finished
        )
    with PHASE_TIMER("reference", rank_token_count):
        ref_logp = per_token_values(
            models.reference, examples, mask, lambda batch: completion_logp(models.reference, batch)
        )
    with PHASE_TIMER("values", rank_token_count):
        values = per_token_values(models.value.model, examples, mask, lambda batch: token_values(models.value, batch))
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


def pad_logps(samples: Sequence[SampledTokens]) -> tuple[Tensor, Tensor]:
    """Which tokens were sampled, and their logp when they were. -> (B, R) and (B, R), NaN after the end."""
    lengths = torch.tensor([len(sample.tokens) for sample in samples])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    logp = torch.full(mask.shape, float("nan"))
    logp[mask] = torch.tensor([value for sample in samples for value in sample.logp])
    return mask, logp


def token_values(value: ScalarModel, batch: PackedBatch) -> Tensor:
    """Value estimate before every completion token of a batch. -> (N,)."""
    return value.token_outputs(batch, "target_positions")


@torch.no_grad()
def per_token_values(
    model: Any, examples: Sequence[TokenizedExample], mask: Tensor, compute: Callable[[PackedBatch], Tensor]
) -> Tensor:
    """One number for every completion token, which `measure` has of the model, in microbatches. -> (B, R), NaN after the end."""
    lengths, dist_info = [len(example) for example in examples], get_model_dist_info(model)
    rank_rows = shard_by_length(lengths, dist_info)
    values = torch.full((len(rank_rows), mask.shape[1]), float("nan"))
    for group in pad_steps(microbatches([lengths[row] for row in rank_rows], token_budget(model.device)), dist_info):
        rows = [rank_rows[index] for index in group]
        microbatch_values = torch.full((len(rows), mask.shape[1]), float("nan"))
        microbatch_values[mask[rows]] = compute(collate([examples[row] for row in rows], model.device)).cpu()
        values[group] = microbatch_values
    return torch.tensor(
        gather_in_order(rank_rows, values.tolist(), len(examples), dist_info)
    )  # as numbers: a row of a tensor brings all of it along


def check_logp_parity(models: PPOModels, rollout: Rollout, bf16: bool = False) -> float:
    """Sampling and training must agree on log-probabilities, or the ratio of PPO is wrong. Returns the largest difference.

    A few prompts are sampled once more, each several times and two rows at once, so that rows take the places of others
    and share prompts, whatever the rollout needed.

    Raises:
        RunFailed: they do not.
    """
    prompts = [example.prompt_ids for example in rollout.examples[:_PARITY_PROMPTS] for _ in range(_PARITY_PROMPTS)]
    max_tokens = min(_PARITY_TOKENS, rollout.mask.shape[1])
    probe_samples = sample_on_ranks(
        models.policy, prompts, eos=models.tokenizer.eos, max_tokens=max_tokens, seed=0, max_rows=2
    )
    examples = [TokenizedExample(prompt, sample.tokens) for prompt, sample in zip(prompts, probe_samples, strict=True)]

    def differences(examples: Sequence[TokenizedExample], mask: Tensor, logp: Tensor) -> Tensor:
        training_logp = per_token_values(
            models.policy, examples, mask, lambda batch: completion_logp(models.policy, batch)
        )
        return (training_logp - logp)[mask].abs()

    with PHASE_TIMER("parity", sum(map(len, [*rollout.examples, *examples]))):
        differences_by_set = (
            differences(rollout.examples, rollout.mask, rollout.logp),
            differences(examples, *pad_logps(probe_samples)),
        )
    largest = float(torch.cat(differences_by_set).max())  # what is not a number counts as the largest
    deviation, tolerance = largest, PARITY_TOLERANCE
    if bf16:
        deviation, tolerance = (
            float(torch.stack([difference.square().mean().sqrt() for difference in differences_by_set]).max()),
            PARITY_TOLERANCE_BF16,
        )
    if not deviation <= tolerance:
        raise RunError(
            f"sampling and training disagree on log-probabilities by {deviation:.2g} nats (rounding allows {tolerance}): "
            "likely causes are dropout left on, half-precision weights, or a model family whose cache is not exact"
        )
    return largest
