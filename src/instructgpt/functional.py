"""Every formula of the pipeline, once. Pure functions of tensors: no model, no configuration, no state.

Dimension key, for every shape comment in this package:

    B sequences in a batch     K completions of one prompt    N real tokens, or completions, picked out of a batch
    P prompt tokens            R completion tokens            T = P + R
    V vocabulary               D model width                  G prompts (groups of completions)
    M tokens to be predicted, or decided pairs

Losses come back element by element, (N,) or (G,): the caller says over what they are averaged, so that splitting a
batch into microbatches cannot change a result. Padding is NaN where nothing was sampled: real elements are picked out
first (`x[mask]`), then computed with, so that a forgotten mask shows as NaN instead of hiding in a mean.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# --- tokens ------------------------------------------------------------------------------------------------------


def token_logp(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token under the distribution it is sampled from, in float32.

    logits (N, V), tokens (N,) -> (N,). The temperature divides the logits wherever log-probabilities are computed;
    leaving it out in one place makes the KL drift (Huang et al. 2023, detail 10).
    """
    scaled_logits = logits.float() if temperature == 1 else logits.float() / temperature
    return -F.cross_entropy(scaled_logits, tokens, reduction="none")


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each next-token distribution, in nats: H = -sum p log p. (N, V) -> (N,)."""
    logp = logits.float().log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


# --- KL divergence from samples (Schulman 2020, "Approximating KL divergence") ------------------------------------


def kl_k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """The estimator log pi(a) - log pi_ref(a), a ~ pi: unbiased for KL(pi || pi_ref), can be negative. Any shape."""
    return logp - ref_logp


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """The estimator r - 1 - log r, r = pi_ref(a) / pi(a), a ~ pi: unbiased like k1, never negative, less noisy. Any shape."""
    log_ratio = ref_logp - logp
    return log_ratio.expm1() - log_ratio


# --- reward model (section 3.5) ----------------------------------------------------------------------------------


def ranked_pairs(prompt_index: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Every pair of completions of one prompt of which one is ranked better; ties give none.

    prompt (N,) which prompt each completion answers, rank (N,) 1 is best, equal is a tie -> the places of the better and
    of the worse completion of each pair, (M,) and (M,). Completions are compared prompt by prompt, N of them never with N.
    """
    order = prompt_index.argsort(stable=True)
    counts = torch.unique_consecutive(prompt_index[order], return_counts=True)[1]  # (G,)
    column = torch.arange(int(counts.max()) if len(counts) else 0, device=prompt_index.device)
    mask = column < counts[:, None]  # (G, K)
    index = order[(counts.cumsum(0)[:, None] - counts[:, None] + column).where(mask, 0)]
    rank_grid, pair_mask = ranks[index], mask[:, :, None] & mask[:, None, :]
    group, better, worse = (pair_mask & (rank_grid[:, :, None] < rank_grid[:, None, :])).nonzero(as_tuple=True)
    return index[group, better], index[group, worse]


def ranking_losses(scores: Tensor, prompt_index: Tensor, ranks: Tensor) -> Tensor:
    """All decided pairs of one prompt count as one element (equation 1).

    scores (N,), prompt and rank as in `decided_pairs` -> (G,), one loss for each prompt that has a decided pair, in the
    order of their numbers:

        loss_g = mean over the decided pairs of g of  -log sigmoid(score of the better - score of the worse)

    Ties give no pair; the divisor is the number of pairs that remain.
    """
    better, worse = ranked_pairs(prompt_index, ranks)
    losses = -F.logsigmoid(scores[better] - scores[worse])  # (M,)
    groups, group, pairs = torch.unique(
        prompt_index[better], return_inverse=True, return_counts=True
    )  # (G,), (M,), (G,)
    sums: Tensor = losses.new_zeros(len(groups)).index_add(0, group, losses)
    per_prompt: Tensor = sums / pairs
    return per_prompt


def pair_accuracy(scores: Tensor, prompt_index: Tensor, ranks: Tensor) -> Tensor:
    """For every decided pair whether the better completion has the higher score; equal scores count one half.

    Shapes as in `ranking_losses`. -> (M,) of 0, 1/2, 1.
    """
    better, worse = ranked_pairs(prompt_index, ranks)
    return ((scores[better] - scores[worse]).sign() + 1) / 2


# --- PPO (section 3.5, equation 2, appendix C.4) -----------------------------------------------------------------


def kl_shaped_rewards(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """The per-token reward of PPO: a KL penalty at every token, the score at the last one.

    scores (B,); logp, ref_logp, mask (B, R) -> (B, R), NaN after the end of a completion.

        reward_t = -kl_coef (logp_t - ref_logp_t)  +  score at the last sampled token
    """
    rewards = -kl_coef * kl_k1(logp, ref_logp)
    rows = torch.arange(len(scores), device=scores.device)
    last = mask.sum(1) - 1
    rewards[rows, last] += scores
    return rewards.masked_fill(~mask, float("nan"))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16); nothing comes after the last token.

    rewards, values, mask (B, R); values are estimated *before* each token -> advantages, returns (B, R), NaN after the end.

        delta_t = r_t + gamma V_{t+1} - V_t        A_t = delta_t + gamma lam A_{t+1}        return_t = A_t + V_t
    """
    advantages = torch.full_like(rewards, float("nan"))
    next_advantage = rewards.new_zeros(len(rewards))  # A_{t+1}
    next_value = rewards.new_zeros(len(rewards))  # V_{t+1}
    for t in reversed(range(rewards.shape[1])):
        is_token = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(is_token, advantage, advantages[:, t])
        next_advantage = torch.where(is_token, advantage, next_advantage)
        next_value = torch.where(is_token, values[:, t], next_value)
    return advantages, advantages + values


def whiten(x: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 (biased, as in OpenAI's code). (N,) -> (N,)."""
    return (x - x.mean()) / (x.std(unbiased=False) + 1e-8)


def clipped_policy_losses(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """PPO's clipped surrogate, one number a token (Schulman et al. 2017, equation 7). All (N,) -> (N,).

    loss = -min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A),    ratio = pi / pi_old
    """
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped_value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Squared error of the value, the worse of the plain and the clipped estimate (OpenAI's PPO code). All (N,) -> (N,).

    loss = 1/2 max((V - return)^2, (clamp(V, V_old - clip, V_old + clip) - return)^2)
    """
    clipped_values = torch.maximum(torch.minimum(values, old_values + clip), old_values - clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped_values - returns) ** 2)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - Var(return - value) / Var(return): 1 is a perfect value function, 0 no better than a constant. (N,) -> ()."""
    return 1 - (returns - values).var(unbiased=False) / returns.var(unbiased=False).clamp_min(1e-8)


# --- schedules ---------------------------------------------------------------------------------------------------


def cosine_decay(step: int, steps: int, floor: float = 0.1, warmup: int = 0) -> float:
    """Factor on the learning rate: linear warm-up, then a cosine to `floor` at the last step (appendix C.1)."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def linear_warmup(step: int, warmup: int, start: float = 0.1) -> float:
    """Factor on the learning rate of PPO: from `start` to 1 over the first `warmup` updates, then constant (appendix C.4)."""
    return 1.0 if step >= warmup else start + (1 - start) * step / warmup
