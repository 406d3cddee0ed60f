"""Every formula against numbers worked by hand, slow definitions, or exact enumeration.

pytest tests/core/test_functional.py
"""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from instructgpt import functional as f

NAN = float("nan")


def near(got, expected, tolerance=1e-6):
    torch.testing.assert_close(
        torch.as_tensor(got), torch.as_tensor(expected), atol=tolerance, rtol=tolerance, equal_nan=True
    )


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_token_logp_by_hand():
    # probabilities 1/6, 2/6, 3/6: the logits are their logarithms, plus a constant that must not matter
    logits = tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]).log() + tensor([[0.0], [7.0]])
    near(f.token_logp(logits, tensor([2, 0])), [math.log(1 / 2), math.log(1 / 6)])
    # temperature 1/2 squares the weights: 1, 4, 9 of 14
    near(f.token_logp(logits, tensor([2, 1]), 0.5), [math.log(9 / 14), math.log(4 / 14)])


def test_token_logp_is_computed_in_float32():
    assert f.token_logp(random(2, 5).bfloat16(), tensor([0, 1])).dtype == torch.float32
    near(f.token_logp(tensor([[1e4, 0.0]]), tensor([1])), [-1e4])


def test_entropy_by_hand():
    # uniform over 4: log 4; (1/2, 1/4, 1/4): 1/2 log 2 + 2 * 1/4 log 4 = 1.5 log 2; all on one: 0
    logits = torch.stack([torch.zeros(4), tensor([0.5, 0.25, 0.25, 1e-30]).log(), tensor([200.0, 0.0, 0.0, 0.0])])
    near(f.entropy(logits), [math.log(4), 1.5 * math.log(2), 0.0])


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9))
def test_entropy_is_between_zero_and_uniform(logits):
    assert -1e-6 <= f.entropy(tensor([logits])).item() <= math.log(len(logits)) + 1e-5


def test_entropy_gradient_increases_entropy():
    logits = random(3, 7).requires_grad_()
    f.entropy(logits).sum().backward()
    assert (f.entropy(logits.detach() + 0.1 * logits.grad) > f.entropy(logits.detach())).all()


# --- KL --------------------------------------------------------------------------------------------------------------


def test_kl_estimators_by_hand():
    # pi(a) = 1/2, reference 1/4: k1 = log 2; r = 1/2, k3 = 1/2 - 1 - log 1/2 = log 2 - 1/2
    # pi(a) = 1/4, reference 1/2: k1 = -log 2, negative; r = 2, k3 = 2 - 1 - log 2
    logp, reference = tensor([0.5, 0.25]).log(), tensor([0.25, 0.5]).log()
    near(f.kl_k1(logp, reference), [math.log(2), -math.log(2)])
    near(f.kl_k3(logp, reference), [math.log(2) - 0.5, 1 - math.log(2)])


def test_kl_estimators_are_unbiased_by_enumeration():
    """Over all completions of two tokens from four, weighted by the policy, both means are the exact KL."""
    first, then = random(4).log_softmax(0), random(4, 4, seed=1).log_softmax(1)
    first_reference, then_reference = random(4, seed=2).log_softmax(0), random(4, 4, seed=3).log_softmax(1)
    logp = tensor([[first[a], then[a, b]] for a, b in itertools.product(range(4), repeat=2)])  # (16, 2)
    reference = tensor([[first_reference[a], then_reference[a, b]] for a, b in itertools.product(range(4), repeat=2)])
    weight = logp.sum(1).exp()
    exact = (weight * (logp.sum(1) - reference.sum(1))).sum()
    assert exact > 0.1
    near((weight * f.kl_k1(logp, reference).sum(1)).sum(), exact)
    near((weight * f.kl_k3(logp, reference).sum(1)).sum(), exact)
    assert (f.kl_k1(logp, reference) < 0).any(), "single estimates are signed"
    assert (f.kl_k3(logp, reference) >= 0).all()


def test_gradients_are_finite_with_nan_padding():
    mask = tensor([[True, True, False], [True, False, False]])
    for losses in (f.kl_k1, f.kl_k3, lambda logp, old: f.clipped_policy_losses(logp, old, torch.ones_like(old), 0.2)):
        logp = random(2, 3).masked_fill(~mask, NAN).requires_grad_()
        losses(logp[mask], random(2, 3, seed=1)[mask]).sum().backward()
        assert logp.grad.isfinite().all()
        assert (logp.grad[~mask] == 0).all()


# --- reward model ----------------------------------------------------------------------------------------------------


def ranking_losses_by_double_loop(scores, prompt, rank):
    losses = []
    for group in sorted(set(prompt)):
        places = [place for place, of in enumerate(prompt) if of == group]
        pairs = [math.log(1 + math.exp(scores[j] - scores[i])) for i in places for j in places if rank[i] < rank[j]]
        losses += [sum(pairs) / len(pairs)] if pairs else []
    return losses


def test_ranking_losses_by_hand():
    # scores 2, 1, 0 in that order: pairs differ by 1, 2, 1; -log sigmoid(x) = log(1 + e^-x)
    one, two = math.log(1 + math.exp(-1)), math.log(1 + math.exp(-2))
    near(f.ranking_losses(tensor([2.0, 1.0, 0.0]), tensor([0, 0, 0]), tensor([1, 2, 3])), [(2 * one + two) / 3])
    # the first two tie: two pairs remain, and two is the divisor, not C(3, 2)
    near(f.ranking_losses(tensor([2.0, 1.0, 0.0]), tensor([0, 0, 0]), tensor([1, 1, 2])), [(one + two) / 2])


def test_ranking_losses_equal_a_double_loop():
    prompt = [0, 2, 0, 1, 0, 2, 0, 3, 3, 1]  # four, two, two and two completions, in any order; prompt 3 only ties
    rank = [3, 1, 1, 2, 3, 2, 2, 1, 1, 1]
    scores = random(10)
    losses = f.ranking_losses(scores, tensor(prompt), tensor(rank))
    near(losses, ranking_losses_by_double_loop(scores.tolist(), prompt, rank))
    assert len(losses) == 3


@given(st.data())
def test_ranking_losses_equal_a_double_loop_for_any_ranks(data):
    count = data.draw(st.integers(2, 9))
    scores = data.draw(st.lists(st.floats(-5, 5, width=32), min_size=count, max_size=count))
    prompt = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    rank = data.draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    losses = f.ranking_losses(tensor(scores), tensor(prompt), tensor(rank))
    near(losses, tensor(ranking_losses_by_double_loop(scores, prompt, rank)), 1e-5)


def test_pairs_are_counted_per_prompt():
    # comparing each with each would be 160 billion comparisons
    better, worse = f.ranked_pairs(torch.arange(400_000) // 4, torch.tensor([1, 2, 2, 1]).repeat(100_000))
    assert len(better) == 4 * 100_000
    assert sorted(zip(better[:4].tolist(), worse[:4].tolist(), strict=True)) == [(0, 1), (0, 2), (3, 1), (3, 2)]
    nothing = torch.empty(0, dtype=torch.long)
    assert [len(places) for places in f.ranked_pairs(nothing, nothing)] == [0, 0]


def test_pair_accuracy_by_hand():
    # prompt 0: 3 > 1 right, 3 > 3 equal, 1 < 3 wrong; prompt 1 ties, no pair
    right = f.pair_accuracy(tensor([3.0, 1.0, 3.0, 5.0, 6.0]), tensor([0, 0, 0, 1, 1]), tensor([1, 2, 3, 1, 1]))
    assert sorted(right.tolist()) == [0.0, 0.5, 1.0]


# --- PPO -------------------------------------------------------------------------------------------------------------


def test_shaped_rewards_by_hand():
    # row 0: three tokens, KL 0.5, -0.25, 1.0 times -0.1, score 2 on the third; row 1: one token, KL 2, score -1 on it
    logp = tensor([[-1.0, -1.0, -1.0], [-1.0, NAN, NAN]])
    reference = tensor([[-1.5, -0.75, -2.0], [-3.0, NAN, NAN]])
    mask = ~logp.isnan()
    expected = tensor([[-0.05, 0.025, 1.9], [-1.2, NAN, NAN]])
    near(f.kl_shaped_rewards(tensor([2.0, -1.0]), logp, reference, mask, 0.1), expected)
    # padding may hold anything: it is never read
    near(f.kl_shaped_rewards(tensor([2.0, -1.0]), logp.nan_to_num(1.0), reference.nan_to_num(9.0), mask, 0.1), expected)


def test_gae_by_hand():
    # rewards 1, 0, 2; values 0.5, 1, -1; lambda 0.5, gamma 1
    # delta_2 = 2 - (-1) = 3          A_2 = 3
    # delta_1 = 0 + (-1) - 1 = -2     A_1 = -2 + 0.5 * 3 = -0.5
    # delta_0 = 1 + 1 - 0.5 = 1.5     A_0 = 1.5 + 0.5 * -0.5 = 1.25
    rewards, values = tensor([[1.0, 0.0, 2.0], [4.0, NAN, NAN]]), tensor([[0.5, 1.0, -1.0], [1.0, NAN, NAN]])
    advantages, returns = f.gae(rewards, values, ~rewards.isnan(), 0.5)
    near(advantages, [[1.25, -0.5, 3.0], [3.0, NAN, NAN]])
    near(returns, [[1.75, 0.5, 2.0], [4.0, NAN, NAN]])


@pytest.mark.parametrize(("lam", "gamma"), [(0.95, 1.0), (1.0, 1.0), (0.0, 1.0), (0.7, 0.9)])
def test_gae_equals_its_definition_as_a_sum(lam, gamma):
    """A_t = sum over k of (gamma lam)^k delta_{t+k}, on ragged rows whose padding is NaN."""
    lengths = [5, 1, 3]
    rewards, values = random(3, 5), random(3, 5, seed=1)
    mask = torch.arange(5) < tensor(lengths)[:, None]
    advantages, returns = f.gae(rewards.masked_fill(~mask, NAN), values.masked_fill(~mask, NAN), mask, lam, gamma)
    for row, length in enumerate(lengths):
        r, v = rewards[row].tolist(), [*values[row].tolist()[:length], 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        expected = [sum((gamma * lam) ** k * delta[t + k] for k in range(length - t)) for t in range(length)]
        near(advantages[row], expected + [NAN] * (5 - length), 1e-5)
        near(returns[row], [a + b for a, b in zip(expected, v, strict=False)] + [NAN] * (5 - length), 1e-5)


def test_gae_with_lambda_one_is_return_minus_value():
    rewards, values = random(2, 4), random(2, 4, seed=1)
    advantages, returns = f.gae(rewards, values, torch.ones(2, 4, dtype=torch.bool), 1.0)
    to_come = rewards.flip(1).cumsum(1).flip(1)
    near(advantages, to_come - values, 1e-5)
    near(returns, to_come, 1e-5)


def test_gae_ignores_values_after_the_end():
    mask = torch.arange(4) < tensor([[2], [4]])
    rewards, values = random(2, 4), random(2, 4, seed=1)
    plain = f.gae(rewards, values, mask, 0.9)
    padded = [torch.nn.functional.pad(x.masked_fill(~mask, 1e6), (0, 3), value=-7.0) for x in (rewards, values)]
    wide = f.gae(*padded, torch.nn.functional.pad(mask, (0, 3)), 0.9)
    for one, other in zip(plain, wide, strict=True):
        near(other[:, :4], one)
        assert other[:, 4:].isnan().all()


def test_whiten_by_hand():
    # 1, 3, 5, 7: mean 4, biased variance (9 + 1 + 1 + 9) / 4 = 5
    near(f.whiten(tensor([1.0, 3.0, 5.0, 7.0])), [x / math.sqrt(5) for x in (-3, -1, 1, 3)])
    near(f.whiten(tensor([2.0])), [0.0])


def test_clipped_policy_losses_in_every_branch():
    # ratio, advantage -> loss, with clip 0.2
    cases = [
        (1.0, 2.0, -2.0),  # inside
        (1.5, 2.0, -2.4),  # too high, good: held at 1.2
        (0.5, 2.0, -1.0),  # too low, good: not held
        (1.5, -2.0, 3.0),  # too high, bad: not held
        (0.5, -2.0, 1.6),  # too low, bad: held at 0.8
    ]
    ratio, advantages, expected = (tensor(column) for column in zip(*cases, strict=True))
    old = random(5)
    logp = (old + ratio.log()).requires_grad_()
    losses = f.clipped_policy_losses(logp, old, advantages, 0.2)
    near(losses, expected, 1e-5)
    losses.sum().backward()
    near(logp.grad, [-2.0, 0.0, -1.0, 3.0, 0.0], 1e-5)  # d(ratio A)/d logp = ratio A; nothing where held


def test_clipped_value_losses_in_every_branch():
    # value, old, return -> loss, with clip 0.2
    cases = [
        (1.1, 1.0, 2.0, 0.405),  # inside: 0.9^2 / 2
        (1.5, 1.0, 2.0, 0.32),  # too far towards the return: held at 1.2, 0.8^2 / 2
        (0.5, 1.0, 2.0, 1.125),  # too far away from it: held would be 0.8, the plain 1.5^2 / 2 is worse
        (1.5, 1.0, 0.0, 1.125),  # the same above: 1.5^2 / 2
        (0.5, 1.0, 0.0, 0.32),  # held at 0.8
    ]
    values, old, returns, expected = (tensor(column) for column in zip(*cases, strict=True))
    values.requires_grad_()
    losses = f.clipped_value_losses(values, old, returns, 0.2)
    near(losses, expected, 1e-5)
    losses.sum().backward()
    near(values.grad, [-0.9, 0.0, -1.5, 1.5, 0.0], 1e-5)


def test_explained_variance_by_hand():
    returns = tensor([1.0, 2.0, 3.0, 4.0])  # variance 1.25
    near(f.explained_variance(returns, returns), 1.0)
    near(f.explained_variance(torch.full((4,), 9.0), returns), 0.0)
    # errors 0, 0, 1, 1: variance 0.25; 1 - 0.25 / 1.25
    near(f.explained_variance(tensor([1.0, 2.0, 2.0, 3.0]), returns), 0.8)


# --- schedules -------------------------------------------------------------------------------------------------------


def test_cosine_decay_by_hand():
    # five steps, floor 0.1: 0.1 + 0.9 (1 + cos(pi k / 4)) / 2
    halfway = [0.1 + 0.45 * (1 + math.cos(math.pi * k / 4)) for k in range(5)]
    near(tensor([f.cosine_decay(k, 5) for k in range(5)]), halfway)
    near(tensor([halfway[0], halfway[2], halfway[4]]), [1.0, 0.55, 0.1])
    # three steps of warm-up: a quarter, a half, three quarters, then the whole
    near(tensor([f.cosine_decay(k, 8, warmup=3) for k in range(4)]), [0.25, 0.5, 0.75, 1.0])
    near(f.cosine_decay(7, 8, warmup=3), 0.1)
    assert f.cosine_decay(0, 1) == 1.0


def test_linear_warmup_by_hand():
    # from a tenth over ten updates: 0.1 + 0.09 k
    near(tensor([f.linear_warmup(k, 10) for k in (0, 1, 5, 9, 10, 11)]), [0.1, 0.19, 0.55, 0.91, 1.0, 1.0])


def test_zero_warmup_starts_at_the_full_rate():
    assert f.linear_warmup(0, 0) == 1.0


# --- best of n -------------------------------------------------------------------------------------------------------


def test_best_of_n_kl_bound_by_hand():
    assert f.best_of_n_kl_bound(1) == 0
    near(f.best_of_n_kl_bound(4), 1.386294361 - 0.75)


def test_best_of_n_kl_bound_is_reached_by_a_uniform_policy():
    """Best of n of a fine uniform distribution: p_i = (i/M)^n - ((i-1)/M)^n by enumeration."""
    ranks = torch.arange(1, 20_001, dtype=torch.float64) / 20_000
    for n in (2, 5, 16):
        p = ranks**n - (ranks - 1 / 20_000) ** n
        near(float((p * (p * 20_000).log()).sum()), f.best_of_n_kl_bound(n), 1e-3)


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_best_of_n_estimate_is_the_mean_over_all_subsets(n):
    scores, values = torch.tensor([0.3, -1.0, 2.0, 0.3, 0.7, 5.0]), random(6)

    def best(subset):
        highest = max(float(scores[i]) for i in subset)
        tied = [float(values[i]) for i in subset if float(scores[i]) == highest]
        return sum(tied) / len(tied)

    subsets = list(itertools.combinations(range(6), n))
    expected = sum(map(best, subsets)) / len(subsets)
    near(f.best_of_n_estimate(scores, values, n).float(), expected, 1e-5)
