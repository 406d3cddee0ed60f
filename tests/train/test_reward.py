"""Reward-model training: loss, training and validation data, offset.

pytest tests/train/test_reward.py
"""

import json
import math

import pytest
import torch
from conftest import CPU, DEMONSTRATIONS, FRESH_RANKINGS, RANKINGS, assert_same_tensors, weights_of

from instructgpt.config import make_config
from instructgpt.data import packing
from instructgpt.data.rankings import RankedPrompt, tokenize_rankings
from instructgpt.errors import InputError, RunError
from instructgpt.models.reward_model import load_reward_model, new_reward_model
from instructgpt.records import Ranking
from instructgpt.train import rankings
from instructgpt.train import reward as stage
from instructgpt.train.configs import RewardConfig
from instructgpt.train.reward import evaluate_pair_accuracy, ranking_backward


@pytest.fixture
def small_reward(write, save, tmp_path):
    def config(rankings=RANKINGS, **options):
        files = {"data": (write("rankings.jsonl", rankings),), "validation": (write("fresh.jsonl", FRESH_RANKINGS),)}
        sizes = {"epochs": 2, "batch": 3, "lr": 1e-2, "out": tmp_path / "reward"}
        return make_config(RewardConfig, {"base": str(save()), **files, **sizes}, options)

    return config


@pytest.fixture
def prompts(render):
    """Prompts with 3, 2 and 4 completions and 1, 3 and 1 rankings, some with ties."""
    rows = [
        ("p", ("croak", "a", "the sea is wide"), (2, 1, 2), None),
        ("a longer prompt", ("x", "yy yy yy"), (1, 2), "ann"),
        ("a longer prompt", ("yy yy yy", "x"), (1, 2), "bob"),
        ("a longer prompt", ("x", "yy yy yy"), (1, 2), "cid"),
        ("q", ("one", "two", "three", "four"), (3, 1, 1, 2), "ann"),
    ]
    return tokenize_rankings(
        [Ranking(prompt=p, completions=c, ranks=r, labeler=who) for p, c, r, who in rows], render, 64
    )[0]


def slow_ranking_loss(reward, prompts):
    """Equation 1 by loops: the mean over prompts, rankings, decided pairs -> loss, pair accuracy."""
    losses, right = [], []
    for prompt in prompts:
        scores = [reward.score([example]).item() for example in prompt.examples]
        of_prompt = []
        for order in prompt.labeler_ranks:
            apart = [
                scores[i] - scores[j] for i, a in enumerate(order.ranks) for j, b in enumerate(order.ranks) if a < b
            ]
            of_prompt.append(sum(math.log(1 + math.exp(-difference)) for difference in apart) / len(apart))
            right += [difference > 0 for difference in apart]
        losses.append(sum(of_prompt) / len(of_prompt))
    return sum(losses) / len(losses), sum(right) / len(right)


def test_ranking_loss_equals_its_definition(reward, prompts):
    assert [len(prompt.labeler_ranks) for prompt in prompts] == [1, 3, 1]
    assert ranking_backward(reward, prompts) == pytest.approx(slow_ranking_loss(reward, prompts), abs=1e-5)


def test_offset_changes_no_loss(reward, prompts):
    before = ranking_backward(reward, prompts)
    reward.offset += 3.0
    assert ranking_backward(reward, prompts) == pytest.approx(before, abs=1e-6)


def test_gradients_are_microbatch_and_rank_invariant(reward, prompts, gradients, monkeypatch, in_two_processes):
    loss, right = ranking_backward(reward, prompts)
    whole = gradients(reward.model)
    assert set(whole) == {name for name, _ in reward.model.named_parameters()}
    for budget in (1, 40, 80):
        monkeypatch.setitem(packing.MICROBATCH_TOKENS, "cpu", budget)
        assert ranking_backward(reward, prompts) == pytest.approx((loss, right), abs=1e-6)
        assert_same_tensors(gradients(reward.model), whole)
    parts = in_two_processes(rankings, lambda: ranking_backward(reward, prompts)[0])
    assert sum(parts) == pytest.approx(loss, abs=1e-6)
    assert_same_tensors(gradients(reward.model), whole)


def test_prompts_weigh_the_same_for_any_number_of_labelers(reward, prompts, gradients):
    """Rankings of the same completions share one prompt, and count as their mean."""
    together = ranking_backward(reward, prompts[1:2])
    whole = gradients(reward.model)
    apart = [RankedPrompt(prompts[1].examples, (order,), prompts[1].source) for order in prompts[1].labeler_ranks]
    assert ranking_backward(reward, apart) == pytest.approx(together, abs=1e-6)
    assert_same_tensors(gradients(reward.model), whole)


def test_nonfinite_loss_stops_the_run(reward, prompts):
    with torch.no_grad():
        reward.model.score.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="the ranking loss is nan"):
        ranking_backward(reward, prompts)


def test_accuracies_by_hand(reward, render, monkeypatch):
    rows = [
        (
            "p",
            ("a", "bb", "ccc"),
            (1, 2, 3),
            "training",
            "web",
        ),  # scores 0, 1, 2: accuracy 0, length baseline 0
        ("p", ("a", "bb", "ccc"), (3, 2, 1), "heldout", "web"),  # accuracy 1, length baseline 1
        (
            "q",
            ("dd", "a", "ee"),
            (2, 1, 1),
            "training",
            "book",
        ),  # scores 0, 1, 2: both pairs right; lengths: wrong and tied
    ]
    rankings = [
        Ranking(prompt=p, completions=c, ranks=r, cohort=cohort, source=source) for p, c, r, cohort, source in rows
    ]
    prompts, _ = tokenize_rankings(rankings, render, 64)
    monkeypatch.setattr(type(reward), "score", lambda *_: torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 2.0]))
    got = evaluate_pair_accuracy(reward, prompts)
    expected = {"": (2 / 5, 0.5 / 5), "_heldout": (1, 1), "/web": (3 / 6, 3 / 6), "/book": (1, 0.25)}
    for suffix, (accuracy, by_length) in expected.items():
        assert got[f"validation/accuracy{suffix}"] == pytest.approx(accuracy)
        assert got[f"validation/length_baseline{suffix}"] == pytest.approx(by_length)
    # score differences of q: 1 and 2
    assert got["validation/loss/book"] == pytest.approx(
        (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2, abs=1e-6
    )


# --- the whole stage -----------------------------------------------------------------------------------------------


def test_reward_model_learns_and_is_centered(small_reward, write, rows_of):
    folder = stage.main(small_reward(epochs=8, demonstrations=(write("demonstrations.jsonl", DEMONSTRATIONS),)))
    rows = rows_of(folder / "metrics.jsonl")
    assert rows[-1]["loss/train"] < 0.5 * rows[0]["loss/train"]
    assert rows[-1]["validation/accuracy"] > 0.9
    assert rows[-1]["validation/accuracy_heldout"] < 0.2, "eve's order is the reverse"
    assert {"validation/length_baseline", "validation/length_baseline_heldout"} <= rows[-1].keys()
    reward = load_reward_model(folder, CPU)
    demonstrations = [reward.tokenizer.encode_example(row["prompt"], row["completion"]) for row in DEMONSTRATIONS]
    assert reward.score(demonstrations).mean().item() == pytest.approx(0, abs=1e-5)
    assert reward.offset != 0
    assert json.loads((folder / "run.json").read_text())["validation"]["offset"] == pytest.approx(reward.offset)


@pytest.mark.parametrize("first", [1, 2])
def test_best_ranked_average_zero_without_demonstrations(small_reward, first):
    """Ranks need not start at 1."""
    shifted = [row | {"ranks": [rank + first - 1 for rank in row["ranks"]]} for row in RANKINGS]
    reward = load_reward_model(stage.main(small_reward(shifted)), CPU)
    best = [reward.tokenizer.encode_example(row["prompt"], row["completions"][0]) for row in RANKINGS[::3]]
    assert reward.score(best).mean().item() == pytest.approx(0, abs=1e-5)


def test_a_reward_model_as_base_keeps_its_head(small_reward, save_reward, rows_of):
    """Its scores are those of before at the first step, and its offset is measured again."""
    base = save_reward("llama", offset=7.0)
    folder = stage.main(small_reward(base=str(base), lr=1e-9))
    assert_same_tensors(weights_of(folder), weights_of(base), 1e-6)
    assert abs(load_reward_model(folder, CPU).offset - 7) > 0.5
    assert any("goes on from the reward model" in row["said"] for row in rows_of(folder / "log.jsonl"))


def test_heldout_labelers_and_validation_prompts_never_train(small_reward, tmp_path):
    known = [row for row in RANKINGS if row["cohort"] == "training"]
    folders = [
        stage.main(small_reward(rankings, out=tmp_path / str(number)))
        for number, rankings in enumerate((known, RANKINGS, [*FRESH_RANKINGS, *known]))
    ]
    for folder in folders[1:]:
        assert_same_tensors(weights_of(folder), weights_of(folders[0]), 0)


def test_a_tenth_of_the_prompts_is_held_out(small_reward, save):
    rows = [row | {"prompt": f"{row['prompt']} {n}"} for n in range(10) for row in RANKINGS]
    config = small_reward(rows, validation=())
    training, validation, _ = stage.load_data(config, new_reward_model(save(), CPU, 0), stage.RunDirectory.open(config))
    assert len(training) + len(validation) == 60
    assert 2 <= len(validation) <= 12
    assert {order.cohort for prompt in training for order in prompt.labeler_ranks} == {"training"}
    assert {order.cohort for prompt in validation for order in prompt.labeler_ranks} == {"training", "heldout"}


def test_cross_validation_leaves_one_group_of_labelers_out(small_reward, monkeypatch):
    labelers = ("ann", "bob", "cid", "dee")
    rows = [row | {"labeler": labeler, "cohort": "training"} for row in RANKINGS[::3] for labeler in labelers]
    trained, fit = [], stage.train_loop

    def watched(reward, training, *rest):
        trained.append({order.labeler for prompt in training for order in prompt.labeler_ranks})
        fit(reward, training, *rest)

    monkeypatch.setattr(stage, "train_loop", watched)
    folder = stage.main(small_reward(rows, folds=2, epochs=1))
    assert trained == [set(labelers), {"bob", "dee"}, {"ann", "cid"}]
    folds = json.loads((folder / "cross_validation.json").read_text())
    assert len(folds) == 2
    assert all(0 <= fold[name] <= 1 for fold in folds for name in ("held_out", "in_group"))


def test_cross_validation_needs_labelers_and_rankings(small_reward):
    with pytest.raises(InputError, match="name only 2 labelers"):
        stage.main(small_reward(folds=3))
    few = [*RANKINGS[:1], *(row | {"labeler": f"bob {n}"} for n, row in enumerate(RANKINGS[4::3]))]
    with pytest.raises(InputError, match="a group of labelers ranked none of the 1 prompts"):
        stage.main(small_reward(few, folds=2, resume=False))


def test_tied_rankings_are_refused(small_reward):
    tied = [row | {"ranks": [1, 1, 1]} for row in RANKINGS]
    with pytest.raises(InputError, match="0 prompts with a decided pair to train on, 2 to validate on"):
        stage.main(small_reward(tied))
