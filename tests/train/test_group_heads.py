"""Heads of groups: the fit beside scipy's optimizer, planted tastes, and groups without a taste of their own."""

import json
import random

import numpy as np
import pytest
import torch
import transformers
from conftest import CPU, DEMONSTRATIONS
from scipy import optimize

from instructgpt.config import make_config
from instructgpt.errors import InputError
from instructgpt.models.group_heads import GROUP_HEADS_FILE
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Prompt
from instructgpt.sampling.cli import score_completions
from instructgpt.sampling.completions import SampledCompletion
from instructgpt.sampling.configs import ScoreConfig
from instructgpt.train import ppo
from instructgpt.train import reward as reward_stage
from instructgpt.train.configs import PPOConfig, RewardConfig
from instructgpt.train.group_heads import RankedFeatures, fit_group_head, measure_gain

SIZE = 6
SHARED = np.array([1.0, 0.5, -0.5, 0.0, 0.0, 0.0])


def rankings_of_group(offset, labelers=8, prompts=40, k=4, seed=0):
    """Every labeler ranks 12 of the prompts by shared taste and the group's offset, with Gumbel noise."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(prompts, k, SIZE))
    rows = []
    for labeler in range(labelers):
        for prompt in rng.permutation(prompts)[:12]:
            worth = features[prompt] @ (SHARED + offset) + rng.gumbel(size=k)
            ranks = tuple(int(rank) for rank in (-worth).argsort().argsort() + 1)
            scores = torch.tensor(features[prompt] @ SHARED)
            rows.append(RankedFeatures(int(prompt), f"l{labeler}", "A", torch.tensor(features[prompt]), scores, ranks))
    return rows


def test_the_offset_is_that_of_scipy():
    rankings = rankings_of_group(np.array([-1.0, 0, 0, 0, 0, 1.0]), labelers=5)
    centered = np.concatenate([r.features.numpy() - r.features.numpy().mean(0) for r in rankings])
    spread = np.sqrt((centered**2).mean(0))

    def loss(offset):
        total = 0.0
        for ranking in rankings:
            scores = ranking.scores.numpy() + ranking.features.numpy() @ offset
            pairs = [(i, j) for i in range(4) for j in range(4) if ranking.ranks[i] < ranking.ranks[j]]
            total += np.mean([np.logaddexp(0, scores[j] - scores[i]) for i, j in pairs])
        return total / len(rankings) + 0.1 / 2 * ((offset * spread) ** 2).sum()

    expected = optimize.minimize(loss, np.zeros(SIZE), method="BFGS", options={"gtol": 1e-6})
    ours = fit_group_head(rankings, 0.1).offset
    assert ours.numpy() == pytest.approx(expected.x, abs=1e-3)


def test_a_planted_taste_is_learned_and_helps_heldout_labelers_on_new_prompts():
    offset = np.array([-2.0, 0, 0, 1.5, 0, 0])
    head = fit_group_head(rankings_of_group(offset))
    assert head.shrinkage is not None
    assert np.corrcoef(head.offset.numpy(), offset)[0, 1] > 0.95
    gain = measure_gain(head, rankings_of_group(offset, seed=1))
    assert gain.verdict == "helps"
    assert gain.gain.value == pytest.approx(gain.conditioned.value - gain.shared.value)


def test_a_group_without_a_taste_of_its_own_gets_next_to_nothing():
    verdicts = []
    for seed in range(3):
        head = fit_group_head(rankings_of_group(np.zeros(SIZE), seed=seed))
        assert float(head.offset.abs().max()) < 0.3
        verdicts.append(measure_gain(head, rankings_of_group(np.zeros(SIZE), seed=seed + 10)).verdict)
    assert "helps" not in verdicts


def test_four_labelers_are_no_group():
    with pytest.raises(ValueError, match="5 labelers"):
        fit_group_head(rankings_of_group(np.zeros(SIZE), labelers=4))
    head = fit_group_head(rankings_of_group(np.zeros(SIZE), labelers=5))
    gain = measure_gain(head, rankings_of_group(np.zeros(SIZE), labelers=4, seed=1))
    assert (gain.gain.value, gain.verdict) == (None, "not measured")


# --- the stage -------------------------------------------------------------------------------------------------------

COLORS = ("red", "blue", "green", "grey")


def colored_rankings(cohort, people, prompts, seed):
    """Reds rank the other way round than Blues; four hamlet-dwellers like grey."""
    rng = random.Random(seed)
    tastes = {"Reds": (1, 4, 2, 3), "Blues": (4, 1, 3, 2), "Hamlet-dwellers": (2, 2, 2, 1)}
    rows = []
    for index in range(prompts):
        for group, ranks in tastes.items():
            labeler = f"{cohort}-{group}-{rng.randrange(min(people, 4) if group == 'Hamlet-dwellers' else people)}"
            order = rng.sample(range(4), 4)
            rows.append(
                {
                    "prompt": f"{cohort} {index}",
                    "completions": [COLORS[i] for i in order],
                    "ranks": [ranks[i] for i in order],
                    "labeler": labeler,
                    "cohort": cohort,
                    "group": group,
                }
            )
    return rows


@pytest.fixture
def grouped_reward(write, save, tmp_path):
    def train(training=None, heldout=None, **options):
        files = {
            "data": (write("t.jsonl", training or colored_rankings("training", 6, 30, 0)),),
            "validation": (write("v.jsonl", heldout or colored_rankings("heldout", 6, 20, 1)),),
            "demonstrations": (write("d.jsonl", DEMONSTRATIONS),),
        }
        sizes = {"epochs": 1, "batch": 8, "lr": 1e-4, "groups": True, "out": tmp_path / "reward"}
        return reward_stage.main(make_config(RewardConfig, {"base": str(save()), **files, **sizes}, options))

    return train


@pytest.mark.parametrize("lora", [0, 2])
def test_the_stage_saves_heads_that_help_and_names_no_group_of_four(grouped_reward, capsys, lora):
    folder = grouped_reward(lora=lora)
    printed, record = capsys.readouterr().out, json.loads((folder / "run.json").read_text())
    assert set(record["groups"]) == {"Reds", "Blues"}
    verdicts = set()
    for group in record["groups"].values():
        assert group["conditioned"]["value"] > 0.7
        assert group["gain"]["value"] == pytest.approx(group["conditioned"]["value"] - group["shared"]["value"])
        verdicts.add(group["verdict"])
    assert "helps" in verdicts  # no shared head can serve both
    assert "groups of fewer than 5 training labelers get no head" in printed
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"Hamlet" not in path.read_bytes(), path
    assert "Hamlet" not in printed
    shared = load_reward_model(folder, CPU)
    examples = [shared.tokenizer.encode_example("heldout 3", color) for color in COLORS]
    demonstrations = [shared.tokenizer.encode_example(row["prompt"], row["completion"]) for row in DEMONSTRATIONS]
    both = load_reward_model(folder, CPU, ("Reds", "Blues"))
    liked = {}
    for name in ("Reds", "Blues"):
        reward = load_reward_model(folder, CPU, (name,))
        assert reward.score(demonstrations).mean().item() == pytest.approx(0, abs=1e-4)
        torch.testing.assert_close(both.group_scores(examples)[name], reward.score(examples), atol=1e-4, rtol=1e-4)
        red, blue, _, _ = reward.score(examples).tolist()
        liked[name] = "red" if red > blue else "blue"
    assert liked == {"Reds": "red", "Blues": "blue"}
    assert torch.equal(both.score(examples), shared.score(examples))
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    ids = torch.tensor([examples[0].prompt_ids + examples[0].completion_ids])
    assert stock(ids).logits.item() - shared.offset == pytest.approx(shared.score(examples[:1]).item(), abs=1e-4)


def test_a_group_that_agrees_with_the_others_gets_no_help_and_one_without_heldout_labelers_no_number(
    grouped_reward, capsys
):
    def of_one_taste(cohort, people, prompts, seed):
        rows = colored_rankings(cohort, people, prompts, seed)
        like_reds = dict(zip(COLORS, (1, 4, 2, 3), strict=True))
        return [row | {"ranks": [like_reds[color] for color in row["completions"]]} for row in rows]

    heldout = [row for row in of_one_taste("heldout", 6, 20, 1) if row["group"] == "Reds"]
    folder = grouped_reward(of_one_taste("training", 6, 30, 0), heldout, epochs=8, lr=1e-2)
    verdicts = {name: row["verdict"] for name, row in json.loads((folder / "run.json").read_text())["groups"].items()}
    assert verdicts == {"Reds": "does not help", "Blues": "not measured"}
    printed = " ".join(capsys.readouterr().out.split())
    assert "points" in printed
    assert "does not help" in printed
    assert "gain is not measured: fewer than 5 held-out labelers" in printed


def test_strong_shrinkage_leaves_the_shared_head(grouped_reward):
    folder = grouped_reward(group_shrinkage=1e6)
    shared, reds = load_reward_model(folder, CPU), load_reward_model(folder, CPU, ("Reds",))
    examples = [shared.tokenizer.encode_example("p", color) for color in COLORS]
    torch.testing.assert_close(reds.score(examples), shared.score(examples), atol=1e-3, rtol=0)


def test_rankings_without_a_group_of_five_are_refused_before_training(grouped_reward, tmp_path):
    with pytest.raises(InputError, match="no group of 5 labelers or more"):
        grouped_reward(colored_rankings("training", 4, 30, 0))
    assert not (tmp_path / "reward" / "model.safetensors").exists()


def test_an_unknown_group_and_a_damaged_file_are_refused(grouped_reward, save_reward):
    folder = grouped_reward(group_shrinkage=1.0)
    with pytest.raises(InputError, match="no head of this group; it has heads of: Blues, Reds"):
        load_reward_model(folder, CPU, ("Greens",))
    with pytest.raises(InputError, match="train them with 'instructgpt reward --groups'"):
        load_reward_model(save_reward(), CPU, ("Reds",))
    file = folder / GROUP_HEADS_FILE
    content = json.loads(file.read_text())
    content["groups"]["Reds"]["weight_offset"] = [0.0]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="1 weights for a head of"):
        load_reward_model(folder, CPU, ("Reds",))
    file.write_text("{}")
    with pytest.raises(InputError, match="not heads of groups"):
        load_reward_model(folder, CPU, ("Reds",))


def test_score_and_ppo_use_the_group_s_head(grouped_reward, write, save, tmp_path, capsys):
    folder = grouped_reward(group_shrinkage=0.1)
    data = write("completions.jsonl", [{"prompt": "p", "completion": color} for color in COLORS])
    for name in ("Reds", "Blues"):
        out = tmp_path / f"{name}.jsonl"
        score_completions(ScoreConfig(reward=str(folder), data=data, out=out, group=name, device="cpu"))
        written = [json.loads(line)["score"] for line in out.read_text().splitlines()]
        reward = load_reward_model(folder, CPU, (name,))
        expected = reward.score([reward.tokenizer.encode_example("p", color) for color in COLORS])
        assert written == pytest.approx(expected.tolist(), abs=1e-4)
    prompts = write("prompts.jsonl", [{"prompt": f"p {i}"} for i in range(4)])
    common = {"policy": str(save()), "reward": [str(folder)], "prompts": [prompts], "episodes": 4, "batch": 4}
    common |= {"minibatch": 4, "max_tokens": 3, "device": "cpu"}

    def part_of(name, **options):
        config = make_config(PPOConfig, common, options, {"out": tmp_path / name})
        models = ppo.load_models(config, ppo.RunDirectory.open(config))
        (part,) = models.reward.models()
        prompt = Prompt(prompt="p")
        examples = [part.scorer.tokenizer.encode_example(prompt, color) for color in ("red", "red", "blue")]
        completions = [SampledCompletion(prompt, "", example, True) for example in examples]
        return models.reward.score(completions)

    reds, blues = (part_of(name, group=[name]).total for name in ("Reds", "Blues"))
    mean = part_of("mean", group=["Reds", "Blues"])
    torch.testing.assert_close(mean.total, (reds + blues) / 2, atol=1e-4, rtol=1e-4)
    worst = part_of("worst", group=["Reds", "Blues"], group_aggregation="max-min")
    expected = min((reds, blues), key=lambda scores: scores.mean().item())
    torch.testing.assert_close(worst.total, expected, atol=1e-4, rtol=1e-4)
    assert {"scores/reward/Reds/mean", "scores/reward/Blues/mean"} <= set(worst.metrics())
    ppo.main(make_config(PPOConfig, common, {"group": ["Reds"], "lora": 2, "out": tmp_path / "whole"}))
    assert "group Reds: its head predicts" in " ".join(capsys.readouterr().out.split())


def test_ppo_refuses_a_group_that_no_reward_model_has(save, save_reward, write, tmp_path):
    prompts = write("prompts.jsonl", [{"prompt": "p"}])
    options = {"policy": str(save()), "reward": [str(save_reward())], "prompts": [prompts], "group": ["Reds"]}
    sizes = {"episodes": 1, "batch": 1, "minibatch": 1, "max_tokens": 3, "out": tmp_path / "ppo", "device": "cpu"}
    with pytest.raises(InputError, match="no --reward has heads of groups"):
        ppo.main(make_config(PPOConfig, options, sizes))
