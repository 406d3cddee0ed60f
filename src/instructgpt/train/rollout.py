"""PPO rollouts: sample completions, score them with every model, and record the log-probabilities of sampling time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from instructgpt.models.policy import completion_logp
from instructgpt.models.precision import compute_device
from instructgpt.models.reward_model import ScalarModel
from instructgpt.records import Prompt
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.sampling.completions import decode_samples
from instructgpt.sampling.distributed import sample_on_ranks
from instructgpt.sampling.engine import SampledTokens
from instructgpt.train.reward_functions import Reward

_PARITY_PROMPTS, _PARITY_TOKENS = 3, 16  # the parity probe samples each prompt as often as there are prompts


@dataclass(slots=True)
class PPOModels:
    """The models of PPO, what it maximizes, and the exponential moving average of the policy."""

    policy: Any
    reference: Any
    value: ScalarModel
    reward: Reward
    ema: Any
    tokenizer: PromptTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A batch of B episodes with at most R tokens. Positions after the end of a completion are NaN, so misuse shows."""

    prompts: list[Prompt]
    examples: list[TokenizedExample]  # B prompts with their completions
    finished: Tensor  # (B,) bool: ended with the end-of-text token
    mask: Tensor  # (B, R) bool: True on sampled tokens, the end-of-text token included
    logp: Tensor  # (B, R) under the policy that sampled them
    ref_logp: Tensor  # (B, R) under the frozen reference
    values: Tensor  # (B, R) value estimate before each token
    scores: Tensor  # (B,) of the reward, less the penalty for a missing end-of-text
    raw_scores: Tensor  # (B,) the same before normalization and clipping
    score_metrics: dict[str, float] = field(default_factory=dict)  # of the parts of the reward

    def __post_init__(self) -> None:
        count, max_length = self.mask.shape
        for name in ("logp", "ref_logp", "values"):
            shape = tuple(getattr(self, name).shape)
            assert shape == (count, max_length), f"Rollout.{name} is {shape}, expected {(count, max_length)}"
        assert len(self.examples) == len(self.scores) == len(self.raw_scores) == count
        assert self.mask.any(1).all(), "a completion has no tokens"


def collect_rollout(
    models: PPOModels,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    eos_penalty: float,
    seed: int,
    update_moments: bool = True,
) -> Rollout:
    """Sample one completion per prompt (temperature 1, no top-k or top-p) and score it with every model.

    Truncated completions get no end-of-text: they are scored at their last token, less `eos_penalty`. Completions that
    train nothing leave the running moments of the scores as they are (`update_moments`).
    """
    policy, tokenizer = models.policy, models.tokenizer
    prompt_tokens = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    with PHASE_TIMER("sampling"):
        samples = sample_on_ranks(
            policy, prompt_tokens, stop_tokens=tokenizer.stop_tokens, max_tokens=max_tokens, seed=seed
        )
    completions = decode_samples(tokenizer, prompts, prompt_tokens, samples)
    examples = [completion.example for completion in completions]
    mask, logp = pad_logps(samples)
    finished = torch.tensor([completion.finished for completion in completions])
    token_count = tokens_per_rank(sum(map(len, examples)), get_model_dist_info(policy))
    PHASE_TIMER.add_tokens("sampling", token_count)
    with PHASE_TIMER("score", token_count):
        scores = models.reward.score(completions, update_moments=update_moments)
    with PHASE_TIMER("reference", token_count):
        ref_logp = logp_per_token(models.reference, examples, mask)
    with PHASE_TIMER("values", token_count):
        values = per_token_values(models.value.model, examples, mask, lambda batch: token_values(models.value, batch))
    return Rollout(
        prompts=list(prompts),
        examples=examples,
        finished=finished,
        mask=mask,
        logp=logp,
        ref_logp=ref_logp,
        values=values,
        scores=scores.total - eos_penalty * ~finished,
        raw_scores=scores.raw - eos_penalty * ~finished,
        score_metrics=scores.metrics(),
    )


def pad_logps(samples: Sequence[SampledTokens]) -> tuple[Tensor, Tensor]:
    """Pad sampled log-probabilities with NaN -> mask of sampled tokens (B, R), logp (B, R)."""
    lengths = torch.tensor([len(sample.tokens) for sample in samples])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    logp = torch.full(mask.shape, float("nan"))
    logp[mask] = torch.tensor([value for sample in samples for value in sample.logp])
    return mask, logp


def token_values(value: ScalarModel, batch: PackedBatch) -> Tensor:
    """Return the value estimates before the batch's completion tokens, (M,)."""
    return value.token_outputs(batch, "target_positions")


def logp_per_token(model: Any, examples: Sequence[TokenizedExample], mask: Tensor) -> Tensor:
    """Return the log-probabilities of all completion tokens without gradients, (B, R), NaN after the end."""
    return per_token_values(model, examples, mask, lambda batch: completion_logp(model, batch))


@torch.no_grad()
def per_token_values(
    model: Any, examples: Sequence[TokenizedExample], mask: Tensor, compute: Callable[[PackedBatch], Tensor]
) -> Tensor:
    """Apply `compute`, batch -> (M,), to microbatches divided among ranks -> (B, R) on the CPU, NaN after the end."""
    lengths, dist_info = [len(example) for example in examples], get_model_dist_info(model)
    device = compute_device(model)
    rank_rows = shard_by_length(lengths, dist_info)
    values = torch.full((len(rank_rows), mask.shape[1]), float("nan"))
    for group in pad_steps(microbatches([lengths[row] for row in rank_rows], token_budget(device)), dist_info):
        rows = [rank_rows[index] for index in group]
        group_values = torch.full((len(rows), mask.shape[1]), float("nan"))
        group_values[mask[rows]] = compute(collate([examples[row] for row in rows], device)).cpu()
        values[group] = group_values
    # Gathered as floats: a pickled row of a tensor carries the storage of the whole tensor.
    return torch.tensor(gather_in_order(rank_rows, values.tolist(), len(examples), dist_info))


def measure_logp_parity(models: PPOModels, rollout: Rollout) -> tuple[float, float]:
    """Return how far log-probabilities in sampling and in training differ, in nats: largest, and root mean square.

    PPO's ratio is wrong by as much.
    """
    # Besides the rollout a probe: repeated prompts, two rows at a time, so that rows are replaced and prefixes shared.
    prompts = [example.prompt_ids for example in rollout.examples[:_PARITY_PROMPTS] for _ in range(_PARITY_PROMPTS)]
    max_tokens, stop_tokens = min(_PARITY_TOKENS, rollout.mask.shape[1]), models.tokenizer.stop_tokens
    with PHASE_TIMER("parity"):
        options: dict[str, Any] = {"stop_tokens": stop_tokens, "max_tokens": max_tokens, "max_rows": 2}
        probe = sample_on_ranks(models.policy, prompts, seed=0, **options)
    examples = [TokenizedExample(prompt, sample.tokens) for prompt, sample in zip(prompts, probe, strict=True)]

    def differences(examples: Sequence[TokenizedExample], mask: Tensor, logp: Tensor) -> Tensor:
        return (logp_per_token(models.policy, examples, mask) - logp)[mask].abs()

    with PHASE_TIMER("parity", sum(map(len, [*rollout.examples, *examples]))):
        sets = [
            differences(rollout.examples, rollout.mask, rollout.logp),
            differences(examples, *pad_logps(probe)),
        ]
    largest = float(torch.cat(sets).max())  # torch's max, unlike Python's, is NaN if any difference is
    return largest, float(torch.stack([values.square().mean().sqrt() for values in sets]).max())
