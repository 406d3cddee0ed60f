"""DPO: the loss by its definition and by enumeration, the stage, and resuming.

pytest tests/baselines/test_dpo.py
"""

import itertools
import json
import math

import pytest
import torch
from conftest import CPU, FRESH_RANKINGS, RANKINGS, assert_same_tensors

from instructgpt import functional
from instructgpt.baselines import dpo
from instructgpt.config import make_config
from instructgpt.data.rankings import tokenize_rankings
from instructgpt.models.policy import load_policy
from instructgpt.records import Ranking
from instructgpt.train import rankings
from instructgpt.train.configs import DPOConfig
from instructgpt.train.optim import build_optimizer, optimizer_step


@pytest.fixture
def small_dpo(write, save, tmp_path):
    def config(rankings=RANKINGS, **options):
        files = {"data": (write("rankings.jsonl", rankings),), "validation": (write("fresh.jsonl", FRESH_RANKINGS),)}
        sizes = {"epochs": 4, "batch": 3, "lr": 1e-2, "out": tmp_path / "dpo"}
        return make_config(DPOConfig, {"policy": str(save()), **files, **sizes}, options)

    return config


@pytest.fixture
def prompts(render):
    rows = [
        ("p", ("croak", "a", "the sea is wide"), (2, 1, 2), None),
        ("a longer prompt", ("x", "yy yy yy"), (1, 2), "ann"),
        ("a longer prompt", ("yy yy yy", "x"), (1, 2), "bob"),
        ("q", ("one", "two", "three", "four"), (3, 1, 1, 2), "ann"),
    ]
    return tokenize_rankings(
        [Ranking(prompt=p, completions=c, ranks=r, labeler=labeler) for p, c, r, labeler in rows], render, 64
    )[0]


def slow_logp(model, example):
    """Log-probability of a completion, token by token, from the model's own forward."""
    ids = [*example.prompt_ids, *example.completion_ids]
    logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logp[i - 1, ids[i]] for i in range(len(example.prompt_ids), len(ids)))


def slow_dpo_loss(model, reference, prompts, beta):
    """DPO's loss by loops: the mean over prompts, labelers and decided pairs."""
    losses = []
    for prompt in prompts:
        with torch.no_grad():
            fixed = [slow_logp(reference, example) for example in prompt.examples]
        logps = [slow_logp(model, example) for example in prompt.examples]
        ratios = [logp - ref_logp for logp, ref_logp in zip(logps, fixed, strict=True)]
        of_prompt = []
        for order in prompt.labeler_ranks:
            pairs = [(i, j) for i, a in enumerate(order.ranks) for j, b in enumerate(order.ranks) if a < b]
            of_prompt.append(sum((1 + (-beta * (ratios[i] - ratios[j])).exp()).log() for i, j in pairs) / len(pairs))
        losses.append(sum(of_prompt) / len(of_prompt))
    return sum(losses) / len(losses)


@pytest.fixture
def moved_policy(policy, prompts):
    """A policy, the reference that it left, and prompts with the reference's log-probabilities."""
    model, _ = policy
    prompts = dpo.add_reference_logps(model, prompts)
    reference = type(model)(model.config).eval()
    reference.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model, reference, prompts


def test_loss_and_gradient_equal_the_definition(moved_policy):
    model, reference, prompts = moved_policy
    config = DPOConfig(policy="p", data=(), out="o", beta=0.3)
    loss, _ = dpo.dpo_backward(model, prompts, config)
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = slow_dpo_loss(model, reference, prompts, 0.3)
    expected.backward()
    assert loss == pytest.approx(expected.item(), abs=1e-5)
    assert_same_tensors(gradients, {name: parameter.grad for name, parameter in model.named_parameters()}, 1e-5)


def test_first_loss_is_log_two(policy, prompts):
    model, _ = policy
    prompts = dpo.add_reference_logps(model, prompts)
    loss, accuracy = dpo.dpo_backward(model, prompts, DPOConfig(policy="p", data=(), out="o"))
    assert loss == pytest.approx(math.log(2), abs=1e-5)
    assert 0 <= accuracy <= 1


def test_ranks_share_a_batch(moved_policy, in_two_processes):
    model, _, prompts = moved_policy
    config = DPOConfig(policy="p", data=(), out="o")
    loss, _ = dpo.dpo_backward(model, prompts, config)
    parts = in_two_processes(rankings, lambda: dpo.dpo_backward(model, prompts, config)[0])
    assert sum(parts) == pytest.approx(loss, abs=1e-6)


def test_plackett_luce_is_the_probability_of_drawing_the_order():
    """All orders of four scores have probabilities that sum to 1; each is a product of softmaxes, worked by hand."""
    scores = torch.tensor([0.3, -1.2, 2.0, 0.1], dtype=torch.float64)
    total = 0.0
    for order in itertools.permutations(range(4)):
        ranks = torch.empty(4, dtype=torch.long)
        ranks[list(order)] = torch.arange(1, 5)
        (loss,) = functional.plackett_luce_losses(scores, torch.zeros(4, dtype=torch.long), ranks)
        probability, left = 1.0, list(order)
        for drawn in order:
            probability *= math.exp(scores[drawn]) / sum(math.exp(scores[i]) for i in left)
            left.remove(drawn)
        assert math.exp(-loss) == pytest.approx(probability)
        total += math.exp(-loss)
    assert total == pytest.approx(1)


def test_plackett_luce_of_two_is_equation_1():
    scores, index = torch.tensor([0.3, -1.2, 2.0, 0.1]), torch.tensor([7, 7, 2, 2])
    ranks = torch.tensor([2, 1, 1, 2])
    expected = functional.ranking_losses(scores, index, ranks)
    assert torch.allclose(functional.plackett_luce_losses(scores, index, ranks), expected)


def test_plackett_luce_with_ties_by_hand():
    """Breslow: both of the tied best are drawn from all three; the worst is not drawn."""
    scores = torch.tensor([1.0, 2.0, 0.5])
    (loss,) = functional.plackett_luce_losses(scores, torch.zeros(3, dtype=torch.long), torch.tensor([1, 1, 2]))
    everything = math.log(math.e + math.exp(2) + math.exp(0.5))
    assert loss == pytest.approx((everything - 1) + (everything - 2), abs=1e-6)


@pytest.mark.parametrize("loss", ["pairs", "plackett-luce"])
def test_dpo_learns_the_rankings(small_dpo, loss, rows_of):
    folder = dpo.main(small_dpo(loss=loss, epochs=8))
    rows = rows_of(folder / "metrics.jsonl")
    assert rows[-1]["loss/train"] < 0.8 * rows[0]["loss/train"]
    assert rows[-1]["accuracy/train"] == 1
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    changes = [record["validation"][f"validation/logp_change_{name}"] for name in ("best", "worst")]
    assert changes[0] > changes[1]
    assert load_policy(folder, CPU)[0].config.model_type == "llama"


def test_step_lowers_the_loss(moved_policy):
    model, reference, prompts = moved_policy
    config, optimizer = DPOConfig(policy="p", data=(), out="o"), build_optimizer(model)
    before, _ = dpo.dpo_backward(model, prompts, config)
    optimizer_step(optimizer, 1e-3)
    with torch.no_grad():
        assert float(slow_dpo_loss(model, reference, prompts, config.beta)) < before


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_saved_weights_are_measured_once(small_dpo, monkeypatch, keep):
    measured = []
    measure = dpo.evaluate_implied_scores
    monkeypatch.setattr(dpo, "evaluate_implied_scores", lambda *a: measured.append(measure(*a)) or measured[-1])
    config = small_dpo(keep=keep)
    folder = dpo.main(config)
    record = json.loads((folder / "run.json").read_text())
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validations = sum("validation/accuracy" in row for row in steps)
    kept_last = record["step"] == steps[-1]["step"]
    assert len(measured) == validations + (not kept_last)
    assert record["validation"] == measured[-1]
