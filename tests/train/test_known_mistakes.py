"""Mistakes that other implementations shipped, and the test that catches each.

    pytest tests/train/test_known_mistakes.py

- greedy rollouts for one model family: test_engine: test_sampled_frequencies_are_the_softmax_of_the_logits
- KL clamped at 0, or absolute: test_functional: test_kl_estimators_are_unbiased_by_enumeration; here: logged KL is
  signed
- made-up end-of-text after truncation: test_tokenization: test_end_of_text_ends_a_completion_and_nothing_else; here:
  a cut-off completion
- score on padding: test_ppo: test_rollout_equals_stock_forward_passes, test_models: test_stock_scores_equal…
- sentinel for the logp of padding: here: statistics do not change when padding grows
- ranking loss over every token after the divergence: test_reward: test_ranking_loss_equals_its_definition; here: only
  last tokens count
- score bias dropped; two labels by default: test_models: test_scores_survive_saving_and_loading,
  …_with_two_labels_is_refused
- normalisation that does nothing: test_reward_models: test_the_offset_is_measured_on_demonstrations; here: PPO says
  that there is none
- option that does nothing: test_pretrain_and_sft, test_ppo: test_ineffective_options_are_refused; here: the KL
  coefficient acts
- ptx as a convex mix; ptx in a step of its own: test_ppo: test_ptx_adds_gamma_times_the_lm_gradient
- ptx and episodes zipped, the shorter ends the epoch: test_ppo: test_ptx_reads_its_ratio_of_rows; here: a corpus
  shorter than the run
- resume silently ignored: test_resume: test_resumed_run_equals_uninterrupted_run
- LoRA head not saved: test_lora: test_saved_reward_model_keeps_its_head
- README flags that do not parse: test_docs: test_commands_parse, test_readme: test_every_command_of_the_readme_runs
- entropy of the wrong sign: test_functional: test_entropy_gradient_increases_entropy,
  test_entropy_is_between_zero_and_uniform
- off by one where padding is end-of-text: test_models: test_end_of_text_is_learned_when_padding_…; here: the reward
  model
- loss divided by the wrong batch: test_pretrain_and_sft, test_reward, test_ppo: test_gradients_are_microbatch_…
- more than one PPO epoch diverges: test_ppo: test_four_epochs_reach_the_exact_optimum,
  …_on_whole_completions_are_stable
- temperature left out where logp is computed: test_engine: test_logp_includes_the_temperature
- two beginnings of text: test_tokenization: test_exactly_one_beginning_of_text
- tokens of prompt + completion differ between stages: test_tokenization: test_every_stage_sees_the_same_tokens
"""

import dataclasses
import re
from pathlib import Path
from statistics import mode

import pytest
import torch
from conftest import CORPUS, CPU, PROMPTS, SHORT_PROMPTS

from instructgpt import functional
from instructgpt.data.packing import TokenizedExample
from instructgpt.data.rankings import LabelerRanks, RankedPrompt
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.models.policy import load_policy
from instructgpt.models.reward_model import (
    ScalarModel,
    load_reward_model,
    new_reward_model,
    value_model_from_copy,
)
from instructgpt.records import Prompt, Ranking
from instructgpt.train import ppo
from instructgpt.train.ppo_metrics import compute_update_metrics
from instructgpt.train.reward import ranking_backward
from instructgpt.train.reward_functions import Reward
from instructgpt.train.rollout import PPOModels, collect_rollout


def test_tests_named_in_the_docstring_exist():
    """A name may be abbreviated at one end by an ellipsis."""
    files = list(Path(__file__).parents[1].rglob("test_*.py"))
    known = {path.stem for path in files}
    known |= {
        name
        for path in files
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert __doc__ is not None
    named = re.findall(r"(?:test_\w+…?|…_\w+)", __doc__)
    assert len(named) > 40
    assert not [
        name
        for name in named
        if name not in known and not ("…" in name and any(name.strip("…") in one for one in known))
    ]


@pytest.fixture
def rollout(save, reward):
    """Episodes of a policy that differs from its reference; some end early."""
    (policy, render), (reference, _) = load_policy(save(), CPU), load_policy(save(), CPU)
    value, frozen = value_model_from_copy(reward)
    models = PPOModels(policy, reference, value, Reward.from_model(frozen, render), policy, render)
    how = {"max_tokens": 8, "eos_penalty": 1.0, "seed": 0}
    asked = [Prompt(prompt=f"Name {n}") for n in range(24)]
    often = mode(
        token for example in collect_rollout(models, asked, **how).examples for token in example.completion_ids
    )
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(1.1)
        policy.get_output_embeddings().weight[render.eos] = policy.get_output_embeddings().weight[often]
    done = collect_rollout(models, asked, **how)
    assert 0 < done.finished.sum() < 24
    return done


def test_logged_kl_is_signed(rollout):
    """A negative estimate is logged as it is."""
    reversed_roles = dataclasses.replace(rollout, logp=rollout.ref_logp, ref_logp=rollout.logp)
    returns = rollout.values.nan_to_num()
    forward, backward = (
        compute_update_metrics(rollout, returns, [], 0.1),
        compute_update_metrics(reversed_roles, returns, [], 0.1),
    )
    assert forward["objective/kl"] == pytest.approx(-backward["objective/kl"])
    assert min(forward["objective/kl"], backward["objective/kl"]) < 0
    assert forward["objective/kl_k3"] >= 0


def test_truncated_completion_keeps_its_last_token(rollout, render):
    for example, finished in zip(rollout.examples, rollout.finished.tolist(), strict=True):
        assert (render.eos in example.completion_ids) == finished
        assert finished or len(example.completion_ids) == 8


def test_metrics_are_padding_invariant(rollout):
    """Positions after the end hold NaN and are never read."""

    def wider(numbers):
        return torch.nn.functional.pad(numbers, (0, 5), value=False if numbers.dtype == torch.bool else float("nan"))

    wide = dataclasses.replace(
        rollout, **{name: wider(getattr(rollout, name)) for name in ("mask", "logp", "ref_logp", "values")}
    )
    measured = []
    for each in (rollout, wide):
        rewards = functional.kl_shaped_rewards(each.scores, each.logp, each.ref_logp, each.mask, 0.1)
        advantages, returns = functional.gae(rewards, each.values, each.mask, 0.95)
        measured.append(compute_update_metrics(each, returns, [], 0.1) | {"advantages": advantages[each.mask].tolist()})
    assert measured[1].pop("advantages") == measured[0].pop("advantages")
    assert measured[1] == pytest.approx(measured[0])
    assert measured[0]["objective/entropy"] > 0
    lengths = [len(example.completion_ids) for example in rollout.examples]
    assert measured[0]["completion/length"] == pytest.approx(sum(lengths) / len(lengths))


def test_only_last_tokens_count_in_the_ranking_loss(reward, monkeypatch):
    """Token outputs before the last token do not change the loss."""
    task = RankedPrompt(
        [TokenizedExample([5, 9], [40, 41, 0]), TokenizedExample([5, 9], [7, 0])],
        (LabelerRanks((1, 2), None, "training"),),
        "",
    )
    plain, per_token = ranking_backward(reward, [task]), ScalarModel.token_outputs

    def disturbed(self, batch, read):
        numbers = per_token(self, batch)
        keep = torch.zeros_like(numbers, dtype=torch.bool)
        keep[[4, 8]] = True
        return torch.where(keep, numbers, 1e3)[getattr(batch, read)]

    monkeypatch.setattr(ScalarModel, "token_outputs", disturbed)
    assert ranking_backward(reward, [task]) == pytest.approx(plain)


def test_ppo_reports_a_reward_model_without_offset(small_ppo, save, tmp_path, rows_of):
    folder = tmp_path / "never"
    folder.mkdir()
    reward = new_reward_model(save(), CPU, 0)
    reward.model.save_pretrained(folder)
    reward.tokenizer.hf_tokenizer.save_pretrained(folder)
    out = ppo.main(small_ppo(reward=folder, episodes=8))
    assert any(
        "records no offset that centers demonstrations on 0" in row["said"] for row in rows_of(out / "log.jsonl")
    )


def test_kl_coefficient_limits_kl(small_ppo, scripted, write, rows_of, tmp_path):
    scripted(lambda tokens: sum(token % 2 for token in tokens))
    reached = []
    for kl_coef in (0.0, 2.0):
        options = {
            "episodes": 32 * 8,
            "batch": 32,
            "minibatch": 16,
            "max_tokens": 3,
            "eos_penalty": 0,
            "lr": 1e-2,
            "kl_coef": kl_coef,
        }
        folder = ppo.main(
            small_ppo(prompts=(write("short.jsonl", SHORT_PROMPTS),), out=tmp_path / str(kl_coef), **options)
        )
        reached.append(rows_of(folder / "metrics.jsonl")[-1]["objective/kl"])
    assert reached[0] > 2 * reached[1]


def test_short_corpus_repeats(small_ppo, write, rows_of):
    """Sixteen episodes need 32 rows of text; the corpus has two."""
    folder = ppo.main(small_ppo(pretraining=(write("short.jsonl", CORPUS[:6]),), ptx_ratio=2.0))
    rows = rows_of(folder / "metrics.jsonl")
    assert [row["episode"] for row in rows] == [8, 16]
    assert all(row["loss/ptx_avg"] > 0 for row in rows)


def test_pad_token_equal_to_eos_changes_no_score(save_reward):
    ranking = Ranking(prompt="p", completions=("croak", "a", "the sea"), ranks=(1, 2, 3))
    measured = []
    for kind in ("plain", "pad_is_eos"):
        reward = load_reward_model(save_reward("llama", kind), CPU)
        examples = [reward.tokenizer.encode_example(row["prompt"], text) for row in PROMPTS for text in ("", "croak")]
        orders = (LabelerRanks(ranking.ranks, None, "training"),)
        prompt = RankedPrompt([reward.tokenizer.encode_example("p", text) for text in ranking.completions], orders, "")
        measured.append([*reward.score(examples).tolist(), *ranking_backward(reward, [prompt])])
        assert (
            PromptTokenizer(reward.tokenizer.hf_tokenizer).eos
            == reward.tokenizer.eos
            != reward.tokenizer.hf_tokenizer.pad_token_id
        )
    assert measured[0] == pytest.approx(measured[1], abs=1e-6)
