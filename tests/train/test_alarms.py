"""Diverging runs stop with a message that names the likely cause.

pytest tests/train/test_alarms.py
"""

import json
import math

import pytest
import torch
from conftest import CPU, DEMONSTRATIONS, PROMPTS, SHORT_PROMPTS

from instructgpt.config import make_config
from instructgpt.errors import RunError
from instructgpt.models.policy import load_policy
from instructgpt.train import ppo, sft
from instructgpt.train.alarms import HeldoutHistory, LossAlarm, PPOAlarms
from instructgpt.train.configs import SFTConfig

LONG_RUN = {"episodes": 64 * 40, "batch": 64, "minibatch": 32, "epochs": 4, "eos_penalty": 0, "kl_coef": 0, "lr": 3e-2}


def share_of_one_token(tokens):
    return sum(token == 70 for token in tokens) / len(tokens)


def nearness_to_one_token(tokens):
    """Return a score that most completions have some of: one for a single token is found by luck, or never."""
    return sum(1 / (1 + abs(token - 70)) for token in tokens) / len(tokens)


def test_entropy_collapse_stops_the_run(small_ppo, scripted, write):
    """One token satisfies the reward and no KL penalty holds the policy; two tokens cannot reach a KL of 50 nats."""
    scripted(nearness_to_one_token)
    with pytest.raises(RunError, match=r"the entropy has collapsed .* a reward that one phrase satisfies"):
        ppo.main(small_ppo(prompts=(write("short.jsonl", SHORT_PROMPTS),), max_tokens=2, **LONG_RUN))


def test_runaway_kl_stops_the_run(small_ppo, scripted, write):
    """With twelve tokens the KL passes four times 12.5 nats before the entropy collapses."""
    scripted(share_of_one_token)
    with pytest.raises(
        RunError, match=r"the policy has diverged from its reference: KL .* too high or --kl-coef too low"
    ):
        ppo.main(small_ppo(prompts=(write("short.jsonl", SHORT_PROMPTS),), max_tokens=12, kl_alarm=12.5, **LONG_RUN))


def test_weight_change_after_sampling_stops_the_run(small_ppo, monkeypatch):
    measure = ppo.measure_logp_parity

    def disturbed(models, rollout):
        parity = measure(models, rollout)
        with torch.no_grad():
            models.policy.get_output_embeddings().weight.mul_(1.05)
        return parity

    monkeypatch.setattr(ppo, "measure_logp_parity", disturbed)
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


CALM = {"objective/kl": 0.0, "policy/entropy_avg": 2.0, "completion/truncated": 0.1}


def test_entropy_is_compared_with_the_first(small_ppo):
    alarms = PPOAlarms(small_ppo())
    for entropy in (2.0, 0.5, 0.05):
        assert alarms.check(CALM | {"policy/entropy_avg": entropy}) == []
    low = CALM | {"policy/entropy_avg": 0.039}
    for again in (alarms, PPOAlarms(small_ppo(), json.loads(json.dumps(alarms.state_dict())))):
        (alarm,) = again.check(low)
        assert alarm.stops
        assert "collapsed from 2.00 to 0.0390 nats per token" in alarm.message
    assert PPOAlarms(small_ppo(min_entropy=0), alarms.state_dict()).check(low) == []


def test_kl_warns_once_then_stops(small_ppo):
    alarms = PPOAlarms(small_ppo(kl_alarm=30))
    assert alarms.check(CALM | {"objective/kl": 29.9}) == []
    (alarm,) = alarms.check(CALM | {"objective/kl": 31.0})
    assert not alarm.stops
    assert "31.0 nats per completion, above --kl-alarm 30; the run stops at 120" in alarm.message
    resumed = PPOAlarms(small_ppo(kl_alarm=30), alarms.state_dict())
    assert resumed.check(CALM | {"objective/kl": 119.0}) == []
    (alarm,) = resumed.check(CALM | {"objective/kl": 121.0})
    assert alarm.stops
    assert PPOAlarms(small_ppo(kl_alarm=0)).check(CALM | {"objective/kl": 1e6}) == []


def test_a_stopped_run_goes_on_from_there_with_another_limit(small_ppo, rows_of):
    config = small_ppo(kl_alarm=1e-9, lr=1e-2, episodes=32)
    with pytest.raises(RunError, match="resume with a higher --kl-alarm, or with 0"):
        ppo.main(config)
    stopped = rows_of(config.out / "metrics.jsonl")
    assert 1 < len(stopped) < 4
    ppo.main(small_ppo(kl_alarm=0, lr=1e-2, episodes=32))
    rows = rows_of(config.out / "metrics.jsonl")
    assert len(rows) == 4
    assert rows[: len(stopped)] == stopped, "no step is made again"


def test_completions_that_never_stop_are_reported(small_ppo, rows_of):
    folder = ppo.main(small_ppo(max_tokens=1, episodes=24))
    said = [row["said"] for row in rows_of(folder / "log.jsonl") if "cut off at --max-tokens 1" in row["said"]]
    assert len(said) == 1


# --- held-out prompts ----------------------------------------------------------------------------------------------


def test_heldout_scores_are_compared_with_their_best_in_pairs():
    """Differences -2, -2, -2, -2, 0 have mean -1.6, standard deviation 0.894, standard error 0.4."""
    history = HeldoutHistory(training=[0.0, 2.0])
    assert history.compare([1.0, 2.0, 3.0, 4.0, 5.0]) == (0.0, 0.0, 0.0)
    history.training += [4.0, 5.0]
    change, error, training = history.compare([-1.0, 0.0, 1.0, 2.0, 5.0])
    assert (change, error, training) == pytest.approx((-1.6, 0.4, 3.5))
    history.training.append(0.5)
    assert history.compare([-1.0, 0.0, 1.0, 2.0, 5.0])[2] == pytest.approx(-0.5)
    assert history.compare([2.0] * 5)[0] == pytest.approx(-1.0)
    assert history.compare([4.0] * 5) == (0.0, 0.0, 0.0)
    assert history.best == [4.0] * 5


@pytest.mark.parametrize(("heldout", "training", "raised"), [(-2.0, 5.0, 1), (-2.0, -5.0, 0), (2.0, 5.0, 0)])
def test_over_optimization_is_reported_once(small_ppo, write, heldout, training, raised):
    config = small_ppo(validation=(write("v.jsonl", PROMPTS[:1]),))
    alarms, noise = PPOAlarms(config), [0.1, -0.1, 0.2, -0.2, 0.0]
    alarms.add_heldout([0.0] * 5, 1.0)
    said = []
    for _ in range(2):
        metrics = alarms.add_heldout([heldout + x for x in noise], 1.0 + training)
        said += [alarm for alarm in alarms.check(CALM | metrics) if "over-optimization" in alarm.message]
    assert len(said) == raised


# --- language models -----------------------------------------------------------------------------------------------


def test_a_diverged_loss_stops_the_run():
    """Ln 100 = 4.61: the limit is 6.61, or 2 above a first loss that is higher."""
    for first, limit in ((4.0, 6.605), (9.0, 11.0)):
        alarm = LossAlarm(100)
        alarm.check(first)
        assert alarm.limit == pytest.approx(limit, abs=1e-3)
        for loss in (99.0, 0.0, 0.0, 0.0):  # a spike that passes
            alarm.check(loss)
        for _ in range(4):
            alarm.check(0.0)
        alarm.check(limit + 0.1)
        alarm.check(limit + 0.1)
        with pytest.raises(RunError, match=r"training has diverged: the loss is .* uniform guess .* 4\.61; lower --lr"):
            alarm.check(limit + 0.1)
    for check in (lambda alarm: alarm.check(7.0, is_last=True), lambda alarm: alarm.check_validation(7.0)):
        alarm = LossAlarm(100)
        alarm.check(4.0)
        with pytest.raises(RunError, match="diverged"):
            check(alarm)


@pytest.mark.parametrize("epochs", [1, 8])
def test_sft_with_an_absurd_learning_rate_stops(save, write, tmp_path, epochs):
    out = tmp_path / "sft"
    config = make_config(
        SFTConfig,
        {"base": str(save()), "data": (write("d.jsonl", DEMONSTRATIONS),), "out": out},
        {"epochs": epochs, "lr": 50.0},
    )
    with pytest.raises(RunError, match="diverged"):
        sft.main(config)
    assert not list(out.glob("*.safetensors"))
