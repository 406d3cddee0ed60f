"""Diverging runs stop with a message that names the likely cause.

pytest tests/train/test_divergence_guard.py
"""

import math

import pytest
import torch
from conftest import CPU, SHORT_PROMPTS

from instructgpt.errors import RunError
from instructgpt.models.policy import load_policy
from instructgpt.train import ppo
from instructgpt.train.ppo_metrics import DivergenceGuard

LONG_RUN = {"episodes": 64 * 40, "batch": 64, "minibatch": 32, "epochs": 4, "eos_penalty": 0, "kl_coef": 0, "lr": 3e-2}


def share_of_one_token(tokens):
    return sum(token == 70 for token in tokens) / len(tokens)


def test_entropy_collapse_stops_the_run(small_ppo, scripted, write):
    """One token satisfies the reward and no KL penalty holds the policy; two tokens cannot reach a KL of 50 nats."""
    scripted(share_of_one_token)
    with pytest.raises(RunError, match=r"the entropy has collapsed .* a reward that one phrase satisfies"):
        ppo.main(small_ppo(prompts=(write("short.jsonl", SHORT_PROMPTS),), max_tokens=2, **LONG_RUN))


def test_runaway_kl_stops_the_run(small_ppo, scripted, write):
    """With twelve tokens the KL passes 50 nats before the entropy collapses."""
    scripted(share_of_one_token)
    with pytest.raises(
        RunError, match=r"the policy has diverged from its reference: KL .* too high or --kl-coef too low"
    ):
        ppo.main(small_ppo(prompts=(write("short.jsonl", SHORT_PROMPTS),), max_tokens=12, **LONG_RUN))


def test_weight_change_after_sampling_stops_the_run(small_ppo, monkeypatch):
    check = ppo.check_logp_parity

    def disturbed(models, rollout, bf16):
        parity = check(models, rollout, bf16)
        with torch.no_grad():
            models.policy.get_output_embeddings().weight.mul_(1.05)
        return parity

    monkeypatch.setattr(ppo, "check_logp_parity", disturbed)
    with pytest.raises(RunError, match=r"the ratio is off 1 .* likely dropout left on, or weights changed"):
        ppo.main(small_ppo())


def test_dropout_in_sampling_stops_the_run(small_ppo, save, monkeypatch):
    """The parity check stops the run before its first step."""
    load = ppo.load_models

    def trained(config, run):
        models = load(config, run)
        models.policy, _ = load_policy(save("gpt2"), CPU, 0.2)
        models.policy.train()
        return models

    monkeypatch.setattr(ppo, "load_models", trained)
    with pytest.raises(RunError, match=r"sampling and training disagree .* dropout left on"):
        ppo.main(small_ppo())


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_nonfinite_scores_stop_the_run(small_ppo, scripted, score):
    scripted(lambda _: score)
    with pytest.raises(RunError, match=r"loss/policy_avg is nan: .* the reward model's scores are not finite"):
        ppo.main(small_ppo())


def test_absurd_learning_rate_stops_the_run(small_ppo):
    """Whichever check fails first, no model is saved."""
    config = small_ppo(lr=1e6, value_lr=1e6, episodes=80)
    with pytest.raises(RunError, match="learning rate"):
        ppo.main(config)
    assert not list(config.out.glob("*.safetensors"))


def test_guard_compares_with_the_first_entropy():
    alarms = DivergenceGuard()
    for entropy in (2.0, 0.5, 0.05):
        alarms.check({"objective/kl": 49.0, "policy/entropy_avg": entropy})
    with pytest.raises(RunError, match=r"collapsed from 2.00 to 0.0390 nats per token"):
        alarms.check({"objective/kl": 0.0, "policy/entropy_avg": 0.039})
    with pytest.raises(RunError, match="collapsed"):
        DivergenceGuard(**alarms.state_dict()).check({"objective/kl": 0.0, "policy/entropy_avg": 0.039})
    with pytest.raises(RunError, match=r"KL 51\.0 nats"):
        alarms.check({"objective/kl": 51.0, "policy/entropy_avg": 2.0})
