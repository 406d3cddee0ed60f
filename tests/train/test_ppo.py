"""PPO and PPO-ptx: episodes, gradients, bookkeeping, and a toy task whose optimum is known.

pytest tests/train/test_ppo.py
"""

import copy
import json
import math
import statistics

import pytest
import torch
from conftest import CORPUS, CPU, PROMPTS, SHORT_PROMPTS, assert_same_tensors, weights_of

from instructgpt import functional
from instructgpt.config import make_config
from instructgpt.data import packing
from instructgpt.data.packing import TokenizedExample
from instructgpt.data.pretraining_text import build_corpus
from instructgpt.errors import InputError
from instructgpt.models.policy import load_policy
from instructgpt.models.reward_model import load_reward_model, value_model_from_copy
from instructgpt.records import Prompt
from instructgpt.train import ppo
from instructgpt.train.configs import PPOConfig
from instructgpt.train.optim import lm_loss
from instructgpt.train.ppo import minibatch_backward
from instructgpt.train.reward_functions import Reward
from instructgpt.train.rollout import PPOModels, collect_rollout, per_token_values, token_values


@pytest.fixture
def models(save, save_reward):
    """The models of PPO; the policy differs from its reference."""
    policy, render = load_policy(save("llama"), CPU)
    reward = load_reward_model(save_reward("llama"), CPU)
    reference, average = copy.deepcopy(policy), copy.deepcopy(policy)
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(1.1)
    value, reward = value_model_from_copy(reward)
    return PPOModels(policy, reference, value, Reward.from_model(reward, render), average, render)


def make_prompts(count=7):
    return [Prompt(prompt=f"Name {'a frog ' * (n % 3)}{n}") for n in range(count)]


def sample_rollout(models, **options):
    return collect_rollout(models, make_prompts(), **({"max_tokens": 6, "eos_penalty": 0.5, "seed": 3} | options))


def sample_uneven_rollout(models, monkeypatch):
    """Sample with a frequent token as the end-of-text, so that lengths differ."""
    tokens = [example.completion_ids for example in sample_rollout(models).examples]
    (reward,) = models.reward.models()
    for render in (models.tokenizer, reward.scorer.tokenizer):
        monkeypatch.setattr(render, "stop_tokens", (tokens[0][2],))
        monkeypatch.setattr(render, "end_of_turn", tokens[0][2])
    rollout = sample_rollout(models)
    assert len(set(rollout.mask.sum(1).tolist())) > 1
    return rollout


# --- episodes ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_rollout_equals_stock_forward_passes(models, monkeypatch):
    """Compare logp, reference logp, values and scores with transformers' own forward, row by row."""
    rollout = sample_uneven_rollout(models, monkeypatch)
    for row, example in enumerate(rollout.examples):
        length, start = len(example.completion_ids), len(example.prompt_ids)
        assert rollout.mask[row].tolist() == [t < length for t in range(rollout.mask.shape[1])]
        tokens = torch.tensor([example.prompt_ids + example.completion_ids])
        for model, numbers in ((models.policy, rollout.logp), (models.reference, rollout.ref_logp)):
            logits = model(input_ids=tokens).logits[0, start - 1 : -1].log_softmax(-1)
            expected = logits[torch.arange(length), example.completion_ids]
            torch.testing.assert_close(numbers[row, :length], expected, atol=1e-5, rtol=0)
        states = models.value.model.model(input_ids=tokens).last_hidden_state[0]
        values = models.value.model.score(states)[:, 0] - 0.75
        torch.testing.assert_close(rollout.values[row, :length], values[start - 1 : -1], atol=1e-5, rtol=0)
        finished = example.completion_ids[-1] == models.tokenizer.end_of_turn
        assert bool(rollout.finished[row]) == finished
        assert rollout.scores[row].item() == pytest.approx(values[-1].item() - (0 if finished else 0.5), abs=1e-5)
        assert finished or length == 6, "what was cut off keeps its last token and gets no end-of-text"
    for numbers in (rollout.logp, rollout.ref_logp, rollout.values):
        assert numbers[~rollout.mask].isnan().all()


def test_advantages_by_hand(models, monkeypatch):
    """The score counts at the last sampled token only, without discount."""
    rollout = sample_uneven_rollout(models, monkeypatch)
    rewards = functional.kl_shaped_rewards(rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, 0.1)
    advantages, returns = functional.gae(rewards, rollout.values, rollout.mask, 1.0)
    for row, length in enumerate(rollout.mask.sum(1).tolist()):
        penalties = [-0.1 * (rollout.logp[row, t] - rollout.ref_logp[row, t]).item() for t in range(length)]
        for t in range(length):
            to_come = sum(penalties[t:]) + rollout.scores[row].item()
            assert returns[row, t].item() == pytest.approx(to_come, abs=1e-5)
            assert advantages[row, t].item() == pytest.approx(to_come - rollout.values[row, t].item(), abs=1e-5)


def test_minibatches_cover_each_episode_once_per_epoch(small_ppo):
    groups = [rows.tolist() for rows in ppo.iter_minibatches(small_ppo(epochs=2), 5)]
    assert [len(group) for group in groups] == [4] * 4
    assert sorted(groups[0] + groups[1]) == sorted(groups[2] + groups[3]) == list(range(8))
    assert groups[0] + groups[1] != groups[2] + groups[3]


# --- gradients -----------------------------------------------------------------------------------------------------


def ppo_gradients(models, rollout, gradients, rows=range(7), value_clip=0.2):
    rewards = functional.kl_shaped_rewards(rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, 0.02)
    advantages, returns = functional.gae(rewards, rollout.values, rollout.mask, 0.95)
    seen = minibatch_backward(models, rollout, advantages, returns, torch.tensor(list(rows)), 0.2, value_clip)
    return seen, gradients(models.policy), gradients(models.value.model), advantages, returns


def test_first_ratio_is_one(models, gradients):
    seen, *_ = ppo_gradients(models, sample_rollout(models), gradients)
    assert seen["policy/max_log_ratio"] < 1e-5
    assert seen["val/ratio"] == pytest.approx(1, abs=1e-5)
    assert (seen["policy/clipfrac_avg"], seen["val/clipfrac_avg"]) == (0, 0)
    assert seen["policy/approxkl_avg"] == pytest.approx(0, abs=1e-9)


def test_losses_and_gradients_equal_a_loop_over_tokens(models, gradients, monkeypatch):
    """The models have changed since sampling, so that some ratios and values are clipped."""
    rollout = sample_uneven_rollout(models, monkeypatch)
    with torch.no_grad():
        models.policy.get_output_embeddings().weight.mul_(1.4)
        models.value.model.score.weight.mul_(1.5)
    seen, policy_gradient, value_gradient, advantages, returns = ppo_gradients(models, rollout, gradients)
    policy_losses, value_losses, entropies, clipped = [], [], [], 0
    for row, example in enumerate(rollout.examples):
        tokens, start = torch.tensor([example.prompt_ids + example.completion_ids]), len(example.prompt_ids)
        logp = models.policy(input_ids=tokens).logits[0].log_softmax(-1)
        values = models.value.model.score(models.value.model.model(input_ids=tokens).last_hidden_state)[0, :, 0] - 0.75
        for t, token in enumerate(example.completion_ids):
            now, value = logp[start - 1 + t], values[start - 1 + t]
            ratio, gain = (now[token] - rollout.logp[row, t]).exp(), advantages[row, t]
            policy_losses.append(-min(ratio * gain, min(max(ratio, 0.8), 1.2) * gain))
            clipped += bool(abs(ratio - 1) > 0.2)
            old, target = rollout.values[row, t], returns[row, t]
            held = min(max(value, old - 0.2), old + 0.2)
            value_losses.append(0.5 * max((value - target) ** 2, (held - target) ** 2))
            entropies.append(-(now.exp() * now).sum())
    count = len(policy_losses)
    assert 0 < clipped < count
    policy_loss, value_loss = sum(policy_losses) / count, sum(value_losses) / count
    assert seen["loss/policy_avg"] == pytest.approx(policy_loss.item(), abs=1e-5)
    assert seen["loss/value_avg"] == pytest.approx(value_loss.item(), rel=1e-5)
    assert seen["policy/entropy_avg"] == pytest.approx(sum(entropies).item() / count, abs=1e-5)
    assert seen["policy/clipfrac_avg"] == pytest.approx(clipped / count)
    policy_loss.backward()
    value_loss.backward()
    assert_same_tensors(policy_gradient, gradients(models.policy), 1e-5)
    assert_same_tensors(value_gradient, gradients(models.value.model), 1e-4)


def test_gradients_are_microbatch_invariant(models, gradients, monkeypatch):
    rollout = sample_uneven_rollout(models, monkeypatch)
    seen, policy_gradient, value_gradient, *_ = ppo_gradients(models, rollout, gradients)
    for budget in (1, 40, 60):
        monkeypatch.setitem(packing.MICROBATCH_TOKENS, "cpu", budget)
        again, *both, _, _ = ppo_gradients(models, rollout, gradients)
        assert again == pytest.approx(seen, abs=1e-5)
        assert_same_tensors(both[0], policy_gradient, 1e-5)
        assert_same_tensors(both[1], value_gradient, 1e-5)


def split_documents(example):
    """Split a row into documents; each starts with the end-of-text token before it."""
    tokens, ends = example.prompt_ids + example.completion_ids, [*example.document_starts, len(example) - 1]
    return [tokens[start : end + 1] for start, end in zip([0, *ends], ends, strict=False) if end > start]


def document_logp(policy, tokens):
    """Return the summed log-probability of a document's tokens after its first."""
    logp = policy(input_ids=torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    return logp[torch.arange(len(tokens) - 1), tokens[1:]].sum()


def first_gradients(config, monkeypatch):
    """Run a stage; return the gradients of its first optimizer step, and the number of steps."""
    taken, descend = [], ppo.optimizer_step

    def watched(optimizer, lr, max_norm):
        taken.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])
        return descend(optimizer, lr, max_norm)

    with monkeypatch.context() as patch:
        patch.setattr(ppo, "optimizer_step", watched)
        ppo.main(config)
    return taken[0], len(taken)


def test_without_a_value_clip_the_loss_is_half_the_squared_error(models, gradients):
    """The values have moved by more than the clip range of 0.2."""
    rollout = sample_rollout(models)
    with torch.no_grad():
        models.value.model.score.weight.mul_(3)
    clipped, *_ = ppo_gradients(models, rollout, gradients)
    free, _, _, _, returns = ppo_gradients(models, rollout, gradients, value_clip=math.inf)
    values = per_token_values(
        models.value.model, rollout.examples, rollout.mask, lambda batch: token_values(models.value, batch)
    )
    errors = (values - returns)[rollout.mask]
    assert free["loss/value_avg"] == pytest.approx(0.5 * errors.square().mean().item(), rel=1e-4)
    assert free["val/clipfrac_avg"] == 0
    assert clipped["loss/value_avg"] > free["loss/value_avg"]


def test_options_reach_clipping_and_adam(small_ppo, monkeypatch):
    seen, build, backward = [], ppo.build_optimizer, ppo.minibatch_backward
    monkeypatch.setattr(
        ppo, "build_optimizer", lambda model, **options: seen.append(options) or build(model, **options)
    )
    monkeypatch.setattr(ppo, "minibatch_backward", lambda *given: seen.append(given[5:]) or backward(*given))
    ppo.main(small_ppo(adam_eps=1e-6, value_clip=0, clip=0.3, episodes=8, minibatch=8))
    assert [options["eps"] for options in seen[:2]] == [1e-6] * 2
    assert seen[2] == (0.3, math.inf)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_ptx_adds_gamma_times_the_lm_gradient(small_ppo, write, save, monkeypatch, reduction, tmp_path):
    """Each minibatch takes one optimizer step on the sum of both gradients: no convex mix, no second step."""
    plain, steps = first_gradients(small_ppo(out=tmp_path / "plain"), monkeypatch)
    corpus = write("corpus.jsonl", CORPUS)
    config = small_ppo(
        pretraining=(corpus,), ptx_coef=0.7, ptx_ratio=0.5, ptx_reduction=reduction, out=tmp_path / "ptx"
    )
    both, steps_with_text = first_gradients(config, monkeypatch)
    assert steps == steps_with_text == 2 * 16 // 4, "policy and value model, once a minibatch"
    policy, render = load_policy(save(), CPU)
    text = build_corpus([row["text"] for row in CORPUS], render, 63, 0, 4 * 2)
    rows = text.examples(0, 2)  # half of four episodes
    sums = [-sum(document_logp(policy, piece) for piece in split_documents(row)) for row in rows]
    loss = sum(sums) / 2 if reduction == "sequence" else sum(sums) / (2 * 63)
    (0.7 * loss).backward()
    expected = [p.grad for group in ppo.build_optimizer(policy).param_groups for p in group["params"]]
    for one, other, wanted in zip(both, plain, expected, strict=True):
        torch.testing.assert_close(one - other, wanted, atol=2e-5 * (63 if reduction == "sequence" else 1), rtol=1e-4)


def test_ptx_reads_its_ratio_of_rows(small_ppo, write, render, monkeypatch):
    """Every step reads the next rows of the stream."""
    seen = []

    def counted(model, examples, **options):
        seen.append(examples)
        return lm_loss(model, examples, **options)

    monkeypatch.setattr(ppo, "lm_loss", counted)
    folder = ppo.main(small_ppo(pretraining=(write("corpus.jsonl", CORPUS),), ptx_ratio=2.0, epochs=2))
    assert [sum(len(e.completion_ids) for e in rows) for rows in seen] == [
        8 * 63
    ] * 8  # 2 epochs of 16 episodes in minibatches of 4, 2 rows per episode
    text = build_corpus([row["text"] for row in CORPUS], render, 63, 0, 64)
    assert [row for rows in seen for row in rows] == text.examples(0, 64)
    assert json.loads((folder / "run.json").read_text())["episodes"] == 16


def test_ema_weights_are_saved(small_ppo, monkeypatch):
    seen, average = [], ppo.update_ema

    def watched(slow, fast, decay):
        seen.append((copy.deepcopy(slow.state_dict()) if not seen else None, copy.deepcopy(fast.state_dict())))
        average(slow, fast, decay)

    monkeypatch.setattr(ppo, "update_ema", watched)
    saved = weights_of(ppo.main(small_ppo(ema=0.75)))
    slow = seen[0][0]
    for _, fast in seen:
        slow = {name: 0.75 * slow[name] + 0.25 * fast[name] for name in slow}
    assert len(seen) == 4
    assert_same_tensors(saved, slow, 1e-6)
    assert not torch.equal(saved["lm_head.weight"], seen[-1][1]["lm_head.weight"])


def test_last_weights_are_saved_without_ema(small_ppo, monkeypatch):
    last, average = {}, ppo.update_ema
    monkeypatch.setattr(
        ppo, "update_ema", lambda slow, fast, decay: (average(slow, fast, decay), last.update(fast.state_dict()))
    )
    assert_same_tensors(weights_of(ppo.main(small_ppo(ema=0.0))), last, 0)


def test_advantages_are_whitened_and_learning_rates_warm_up(small_ppo, monkeypatch, rows_of):
    """Learning rates warm up from a tenth over the first two of ten PPO steps. Returns are not whitened."""
    seen, rates, improve, descend = [], [], ppo.minibatch_backward, ppo.optimizer_step
    monkeypatch.setattr(ppo, "minibatch_backward", lambda *given: seen.append(given[1:4]) or improve(*given))
    monkeypatch.setattr(
        ppo, "optimizer_step", lambda optimizer, lr, norm: rates.append(lr) or descend(optimizer, lr, norm)
    )
    folder = ppo.main(small_ppo(episodes=80, value_lr=3e-3))
    for rollout, advantages, returns in seen:
        real = advantages[rollout.mask]
        assert (real.mean().item(), real.std(unbiased=False).item()) == (
            pytest.approx(0, abs=1e-5),
            pytest.approx(1, abs=1e-4),
        )
        rewards = functional.kl_shaped_rewards(rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, 0.02)
        torch.testing.assert_close(
            returns, functional.gae(rewards, rollout.values, rollout.mask, 0.95)[1], equal_nan=True
        )
    factors = [0.1, 0.55, *[1.0] * 8]
    assert [row["lr"] for row in rows_of(folder / "metrics.jsonl")] == pytest.approx(
        [1e-3 * factor for factor in factors]
    )
    assert rates == pytest.approx([rate * factor for factor in factors for rate in (1e-3, 3e-3) * 2])


# --- the whole stage -----------------------------------------------------------------------------------------------


def test_four_epochs_reach_the_exact_optimum(small_ppo, scripted, save, write):
    """One token per completion, score 1 for a quarter of the tokens, beta 1/4. By enumeration of the vocabulary:

    J(pi) = sum_a pi(a) (r(a) - beta log pi(a) / pi_ref(a)),   max J = beta log sum_a pi_ref(a) exp(r(a) / beta)
    """
    scripted(lambda tokens: tokens[0] % 4 == 1)
    beta = 0.25
    options = {
        "episodes": 512 * 10,
        "batch": 512,
        "minibatch": 256,
        "epochs": 4,
        "max_tokens": 1,
        "eos_penalty": 0,
        "ema": 0.8,
    }
    folder = ppo.main(
        small_ppo(prompts=(write("short.jsonl", SHORT_PROMPTS),), kl_coef=beta, lr=2e-2, value_lr=1e-2, **options)
    )
    (reference, render), (policy, _) = load_policy(save(), CPU), load_policy(folder, CPU)
    reached, best, start = [], [], []
    for row in SHORT_PROMPTS:
        tokens = torch.tensor([render.encode_prompt(row["prompt"])])
        with torch.no_grad():
            logp, old = (model(input_ids=tokens).logits[0, -1].log_softmax(-1) for model in (policy, reference))
        score = (torch.arange(len(logp)) % 4 == 1).float()
        reached.append((logp.exp() * (score - beta * (logp - old))).sum().item())
        best.append(beta * (old + score / beta).logsumexp(0).item())
        start.append((old.exp() * score).sum().item())
    reached, best, start = (sum(numbers) / 3 for numbers in (reached, best, start))
    assert best > start + 0.3
    assert start + 0.9 * (best - start) < reached <= best + 1e-6


def test_four_epochs_on_whole_completions_are_stable(small_ppo, scripted, write, rows_of):
    """The score is the share of odd tokens, at most 1."""
    scripted(lambda tokens: sum(token % 2 for token in tokens) / len(tokens))
    options = {"episodes": 64 * 25, "batch": 64, "minibatch": 32, "epochs": 4, "max_tokens": 4, "eos_penalty": 0}
    folder = ppo.main(small_ppo(prompts=(write("short.jsonl", SHORT_PROMPTS),), lr=1e-2, value_lr=1e-2, **options))
    rows = rows_of(folder / "metrics.jsonl")
    scores = [row["objective/scores"] for row in rows]
    assert scores[0] < 0.65
    assert min(scores[-3:]) > 0.93
    assert (
        statistics.median(abs(row["val/ratio"] - 1) for row in rows) < 0.2
    )  # one rare token can dominate the mean of a PPO step
    assert all(math.isfinite(row["val/ratio"]) and math.isfinite(row["objective/kl"]) for row in rows)
    assert rows[-1]["val/explained_variance"] > rows[0]["val/explained_variance"]
    assert rows[-1]["objective/kl"] > 0


def test_metrics_and_samples_agree(small_ppo, rows_of):
    folder = ppo.main(small_ppo(kl_coef=0.5))
    rows, samples = rows_of(folder / "metrics.jsonl"), rows_of(folder / "samples.jsonl")
    assert [row["episode"] for row in rows] == [8, 16]
    of_first = [row for row in samples if row["step"] == 1]
    assert len(of_first) == 8
    assert sum(row["score"] for row in of_first) / 8 == pytest.approx(rows[0]["objective/scores"], abs=1e-3)
    assert sum(row["kl"] for row in of_first) / 8 == pytest.approx(rows[0]["objective/kl"], abs=1e-3)
    assert all(row["total"] == pytest.approx(row["score"] - 0.5 * row["kl"], abs=2e-4) for row in samples)
    assert sum(row["finish"] == "stop" for row in of_first) == rows[0]["val/num_eos_tokens"]
    assert abs(rows[0]["objective/kl"]) < 1e-4, "the policy starts as its reference"
    assert rows[0]["objective/rlhf_reward"] == pytest.approx(
        rows[0]["objective/scores"] + rows[0]["objective/non_score_reward"]
    )
    assert rows[0]["val/parity"] < 1e-4


def test_reward_model_with_another_tokenizer(small_ppo, save_reward, rows_of):
    """The reward model reads text; what is too long for its tokenizer is cut from the left, and counted."""
    folder = ppo.main(small_ppo(reward=save_reward("llama", "foreign"), lam=1.0))
    samples = [row for row in rows_of(folder / "samples.jsonl") if row["step"] == 1]
    foreign = load_reward_model(save_reward("llama", "foreign"), CPU)
    total_cut = 0
    for row in samples:
        ended = row["finish"] == "stop"
        example = foreign.tokenizer.encode_example(row["prompt"], row["completion"], finished=ended)
        ids = example.prompt_ids + example.completion_ids
        total_cut += len(ids) > 64
        if len(ids) > 64:
            assert ids[0] == foreign.tokenizer.bos
            ids = ids[:1] + ids[-63:]
        score = foreign.score([TokenizedExample(ids[:-1], ids[-1:])]).item()
        assert row["score"] == pytest.approx(score - (not ended), abs=1e-3)
    assert rows_of(folder / "metrics.jsonl")[0]["scores/texts_cut"] == total_cut > 0
    assert json.loads((folder / "run.json").read_text())["left_out"]["prompts too long"] == 0


def test_value_model_starts_at_zero_with_another_tokenizer(small_ppo, save_reward):
    config = small_ppo(reward=save_reward("llama", "foreign"))
    models = ppo.load_models(config, ppo.RunDirectory.open(config))
    assert (sample_rollout(models).values.nan_to_num() == 0).all()
    assert models.value.tokenizer.is_compatible(models.tokenizer)


def test_too_long_prompts_are_counted_or_refused(small_ppo, write, tmp_path):
    long = write("long.jsonl", [*PROMPTS, {"prompt": "x" * 58}])
    folder = ppo.main(small_ppo(prompts=(long,)))
    assert json.loads((folder / "run.json").read_text())["left_out"]["prompts too long"] == 1
    with pytest.raises(InputError, match="none of the 6 prompts leaves room for --max-tokens 63"):
        ppo.main(small_ppo(prompts=(long,), max_tokens=63, out=tmp_path / "other"))


def test_policy_as_reward_model_is_refused(small_ppo, save):
    with pytest.raises(InputError, match="not a reward model"):
        ppo.main(small_ppo(reward=save()))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"ptx_coef": 1.0}, "--ptx-coef has no effect without --pretraining"),
        ({"ptx_reduction": "sequence"}, "--ptx-reduction has no effect"),
        ({"ptx_ratio": 1.0}, "--ptx-ratio has no effect"),
        ({"pretraining": ("c.jsonl",), "ptx_coef": 0}, "--pretraining has no effect with --ptx-coef 0"),
        ({"minibatch": 3}, "--batch 8 is not a multiple of --minibatch 3"),
        ({"episodes": 4}, "--episodes 4 is not a multiple of --batch 8: 8 is"),
        ({"kl_coeff": 0.1}, "unknown option 'kl_coeff', did you mean 'kl_coef'"),
    ],
)
def test_ineffective_options_are_refused(small_ppo, options, complaint):
    with pytest.raises(InputError, match=complaint):
        small_ppo(**options)


def test_defaults_are_the_papers(small_ppo):
    config = make_config(PPOConfig, {"policy": "p", "reward": "r", "prompts": ("p",), "out": "o"})
    assert (config.updates, config.optimizer_steps_per_update, config.ptx_rows_per_step, config.warmup) == (
        500,
        8,
        512,
        10,
    )
    assert (config.kl_coef, config.clip, config.lam, config.ema, config.ptx_coef) == (0.02, 0.2, 0.95, 0.992, 27.8)
    assert small_ppo().warmup == 0
