"""Every formula of the pipeline, defined once, as pure functions of tensors.

Dimension key for every shape comment in this package:

    B sequences in a batch     K completions of one prompt    N real tokens, or completions, picked out of a batch
    P prompt tokens            R completion tokens            T = P + R
    V vocabulary               D model width                  G prompts (groups of completions)
    M predicted tokens, or ranked pairs

Losses are returned per element, (N,) or (G,); the caller averages, so that splitting a batch into microbatches cannot
change a result. Padding after the end of a completion is NaN: select real elements first (`x[mask]`), then compute, so
that a forgotten mask gives NaN instead of a wrong mean.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# --- tokens ------------------------------------------------------------------------------------------------------


def token_logp(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the log-probability of each token in float32: logits (N, V), tokens (N,) -> (N,).

    Pass the sampling temperature wherever log-probabilities are computed, else the KL drifts (Huang et al. 2023,
    detail 10).
    """
    scaled_logits = logits.float() if temperature == 1 else logits.float() / temperature
    return -F.cross_entropy(scaled_logits, tokens, reduction="none")


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each next-token distribution in nats, H = -sum p log p: (N, V) -> (N,)."""
    logp = logits.float().log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


# --- KL divergence from samples (Schulman 2020, "Approximating KL divergence") ------------------------------------


def kl_k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return log pi(a) - log pi_ref(a), a ~ pi: unbiased for KL(pi || pi_ref), can be negative. Any shape."""
    return logp - ref_logp


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Return r - 1 - log r, r = pi_ref(a) / pi(a), a ~ pi: unbiased like k1, never negative, less noisy. Any shape."""
    log_ratio = ref_logp - logp
    return log_ratio.expm1() - log_ratio


# --- reward model (section 3.5) ----------------------------------------------------------------------------------


def ranked_pairs(prompt_index: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the better and the worse completion of every pair of one prompt that is not a tie.

    prompt_index (N,), ranks (N,) with 1 best -> (M,), (M,). The work is G K^2, not N^2.
    """
    # Scatter the completions into a (G, K) grid, one row per prompt, and compare within each row.
    order = prompt_index.argsort(stable=True)
    counts = torch.unique_consecutive(prompt_index[order], return_counts=True)[1]  # (G,)
    column = torch.arange(int(counts.max()) if len(counts) else 0, device=prompt_index.device)
    mask = column < counts[:, None]  # (G, K)
    index = order[(counts.cumsum(0)[:, None] - counts[:, None] + column).where(mask, 0)]
    rank_grid, pair_mask = ranks[index], mask[:, :, None] & mask[:, None, :]
    group, better, worse = (pair_mask & (rank_grid[:, :, None] < rank_grid[:, None, :])).nonzero(as_tuple=True)
    return index[group, better], index[group, worse]


def ranking_losses(scores: Tensor, prompt_index: Tensor, ranks: Tensor) -> Tensor:
    """Return one loss per prompt that has a ranked pair, in the order of their indices (equation 1).

    scores, prompt_index, ranks (N,) -> (G,):

        loss_g = mean over the ranked pairs of g of  -log sigmoid(score of the better - score of the worse)

    Ties are no pairs; the divisor is the number of pairs that remain.
    """
    better, worse = ranked_pairs(prompt_index, ranks)
    losses = -F.logsigmoid(scores[better] - scores[worse])  # (M,)
    # (G,), (M,), (G,)
    groups, group, pairs = torch.unique(prompt_index[better], return_inverse=True, return_counts=True)
    sums: Tensor = losses.new_zeros(len(groups)).index_add(0, group, losses)
    per_prompt: Tensor = sums / pairs
    return per_prompt


def pair_accuracy(scores: Tensor, prompt_index: Tensor, ranks: Tensor) -> Tensor:
    """Return 1 for each ranked pair whose better completion has the higher score, 1/2 for equal scores, else 0.

    scores, prompt_index, ranks (N,) -> (M,).
    """
    better, worse = ranked_pairs(prompt_index, ranks)
    return ((scores[better] - scores[worse]).sign() + 1) / 2


# --- DPO (Rafailov et al. 2023) ----------------------------------------------------------------------------------


def dpo_scores(logp: Tensor, ref_logp: Tensor, beta: float) -> Tensor:
    """Return the scores that a policy implies, up to a constant of the prompt: beta log(pi(y|x) / pi_ref(y|x)).

    logp, ref_logp (N,), of completions. Equation 1 on these scores is DPO's loss (equation 7 there) for K
    completions.
    """
    return beta * (logp - ref_logp)


def plackett_luce_losses(scores: Tensor, prompt_index: Tensor, ranks: Tensor) -> Tensor:
    """Return minus the log-probability of each ranking, as if completions were drawn one by one, best first.

    scores, prompt_index, ranks (N,) -> (G,), in the order of the indices; K = 2 is equation 1:

        loss_g = sum over i = 1..K-1 of  log(sum over j >= i of exp score_j) - score_i

    Completions that tie are drawn from the same set (Breslow 1974); the worst are not drawn.
    """
    same_prompt = prompt_index[:, None] == prompt_index  # (N, N)
    remaining = same_prompt & (ranks >= ranks[:, None])  # (N, N): what is left when completion i is drawn
    log_sums = scores.expand(len(scores), -1).masked_fill(~remaining, -math.inf).logsumexp(-1)
    is_last = ~(same_prompt & (ranks > ranks[:, None])).any(-1)
    groups, group = torch.unique(prompt_index, return_inverse=True)
    losses: Tensor = scores.new_zeros(len(groups)).index_add(0, group, (log_sums - scores).masked_fill(is_last, 0))
    return losses


# --- best of n (rejection sampling) ------------------------------------------------------------------------------


def best_of_n_kl_bound(n: int) -> float:
    """Return log n - (n - 1)/n nats, an upper bound of KL(best of n || policy), reached where no two samples are equal.

    Stiennon et al. 2020, appendix G.3; the bound: Beirami et al. 2024.
    """
    return math.log(n) - (n - 1) / n


def best_of_n_weights(samples: int, n: int) -> Tensor:
    """Return the weights of N sorted samples in the mean over all subsets of n, (N,) in float64: C(i-1, n-1) / C(N, n).

    From the last one on, which is n / N, each is (i - n) / (i - 1) times the next: no large numbers.
    """
    index = torch.arange(samples - 1, 0, -1, dtype=torch.float64)  # i - 1 for i = N..2
    factors = ((index - n + 1) / index).clamp_min(0)
    return torch.cat([factors.new_tensor([n / samples]), factors]).cumprod(0).flip(0)


def sort_with_tie_means(scores: Tensor, values: Tensor) -> Tensor:
    """Return the values by ascending score, those of equal scores replaced by their mean: (N,), (N,) -> (N,)."""
    order = scores.argsort(stable=True)
    _, tie, count = torch.unique_consecutive(scores[order], return_inverse=True, return_counts=True)
    means: Tensor = values.new_zeros(len(count)).index_add(0, tie, values[order]) / count
    return means[tie]


def best_of_n_estimate(scores: Tensor, values: Tensor, n: int) -> Tensor:
    """Return the unbiased estimate of the expected value of the best-scored of n samples: (N,), (N,) -> (), N >= n.

    The mean over all C(N, n) subsets (Nakano et al. 2021, appendix I): with samples sorted by score,

        sum over i = n..N of  C(i - 1, n - 1) / C(N, n)  value_i

    Samples with equal scores share their weights, as if ties were broken at random.
    """
    return best_of_n_weights(len(scores), n).to(values) @ sort_with_tie_means(scores, values)


def best_of_n_kl(scores: Tensor, n: int) -> Tensor:
    """Return an estimate of KL(best of n || policy) in nats from N samples of one prompt: (N,) -> (), N >= n.

    Best of n moves probability between scores only, so it is the KL of the scores: sum over distinct scores of
    w log(w / p), with the share p of the samples and the weight w of best of n. It is below `best_of_n_kl_bound`
    where samples repeat. Where n is near N it is too high, by up to 1 nat at n = N.
    """
    weights = best_of_n_weights(len(scores), n)
    _, tie, count = torch.unique_consecutive(scores.sort().values, return_inverse=True, return_counts=True)
    chosen = weights.new_zeros(len(count)).index_add(0, tie.to(weights.device), weights)
    kl: Tensor = torch.special.xlogy(chosen, chosen * len(scores) / count).sum()
    return kl


# --- PPO (section 3.5, equation 2, appendix C.4) -----------------------------------------------------------------


def kl_shaped_rewards(scores: Tensor, logp: Tensor, ref_logp: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Return PPO's per-token reward: a KL penalty at every token, plus the score at the last one.

    scores (B,); logp, ref_logp, mask (B, R) -> (B, R), NaN after the end of a completion.

        reward_t = -kl_coef (logp_t - ref_logp_t)  +  score at the last sampled token
    """
    rewards = -kl_coef * kl_k1(logp, ref_logp)
    rows = torch.arange(len(scores), device=scores.device)
    last = mask.sum(1) - 1
    rewards[rows, last] += scores
    return rewards.masked_fill(~mask, float("nan"))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, lam: float, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return advantages and returns by generalized advantage estimation (Schulman et al. 2016, equation 16).

    rewards, values, mask (B, R) -> (B, R), (B, R), NaN after the end. `values` are estimated *before* each token; the
    value after the last token is 0.

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
    """Shift and scale to mean 0 and (biased, as in OpenAI's code) standard deviation 1: (N,) -> (N,)."""
    return (x - x.mean()) / (x.std(unbiased=False) + 1e-8)


def clipped_policy_losses(logp: Tensor, old_logp: Tensor, advantages: Tensor, clip: float) -> Tensor:
    """Return PPO's clipped surrogate loss per token (Schulman et al. 2017, equation 7). All (N,) -> (N,).

    loss = -min(ratio A, clamp(ratio, 1 - clip, 1 + clip) A),    ratio = pi / pi_old
    """
    ratio = (logp - old_logp).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped_value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return the larger squared error of the plain and the clipped value (OpenAI's PPO code). All (N,) -> (N,).

    loss = 1/2 max((V - return)^2, (clamp(V, V_old - clip, V_old + clip) - return)^2)
    """
    clipped_values = torch.maximum(torch.minimum(values, old_values + clip), old_values - clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped_values - returns) ** 2)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """Return 1 - Var(return - value) / Var(return); 1 is perfect, 0 no better than a constant. (N,) -> ()."""
    return 1 - (returns - values).var(unbiased=False) / returns.var(unbiased=False).clamp_min(1e-8)


# --- schedules ---------------------------------------------------------------------------------------------------


def cosine_decay(step: int, steps: int, floor: float = 0.1, warmup: int = 0) -> float:
    """Return the learning-rate factor: linear warm-up, then a cosine to `floor` at the last step (appendix C.1)."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def linear_warmup(step: int, warmup: int, start: float = 0.1) -> float:
    """Return PPO's learning-rate factor: from `start` to 1 over `warmup` updates, then constant (appendix C.4)."""
    return 1.0 if step >= warmup else start + (1 - start) * step / warmup
