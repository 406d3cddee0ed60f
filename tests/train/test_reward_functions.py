"""What PPO maximizes: several reward models, Python functions, weights, normalization, clipping; other starts.

pytest tests/train/test_reward_functions.py
"""

import json
import statistics

import pytest
import torch
from conftest import CPU, DEMONSTRATIONS, PROMPTS, assert_same_tensors, weights_of

from instructgpt.data.packing import TokenizedExample
from instructgpt.errors import InputError, RunError
from instructgpt.models.policy import load_policy
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Message, Prompt
from instructgpt.run.lineage import content_hash
from instructgpt.sampling.completions import SampledCompletion
from instructgpt.train import ppo
from instructgpt.train.reward_functions import PythonReward, Reward, RunningMoments, load_function, unique_names

RULES = '''
from dataclasses import dataclass

@dataclass
class Rule:
    weight: float

def short(prompts, completions):
    """Fewer characters are better."""
    return [-Rule(1.0).weight * len(text) for text in completions]

def polite(prompts, completions):
    return [float("please" in str(prompt)) for prompt in prompts]

def broken(prompts, completions):
    return [1 / 0 for _ in prompts]

def few(prompts, completions):
    return [0.0]

def infinite(prompts, completions):
    return [float("inf") for _ in prompts]

def fails_later(prompts, completions):
    if len(completions) > 2:
        raise KeyError("no such rule")
    return [0.0] * len(completions)
'''


@pytest.fixture
def rules(tmp_path):
    file = tmp_path / "rules.py"
    file.write_text(RULES)
    return file


def completions_of(*texts, prompt="Name a frog"):
    record = prompt if isinstance(prompt, Prompt) else Prompt(prompt=prompt)
    return [SampledCompletion(record, text, TokenizedExample([1], [2]), True) for text in texts]


# --- the sum -------------------------------------------------------------------------------------------------------


def test_parts_are_added_with_their_weights(rules):
    short, polite = (PythonReward(name, load_function(f"{rules}:{name}")) for name in ("short", "polite"))
    scores = Reward((short, polite), (0.5, 10.0)).score(completions_of("abcd", "", prompt="please sing"))
    assert scores.total.tolist() == [8.0, 10.0]
    assert scores.raw.tolist() == [8.0, 10.0]
    assert {name: part.tolist() for name, part in scores.parts.items()} == {"short": [-4.0, 0.0], "polite": [1.0, 1.0]}
    assert scores.metrics() == {
        "scores/short/mean": -2.0,
        "scores/short/std": 2.0,
        "scores/polite/mean": 1.0,
        "scores/polite/std": 0.0,
    }
    assert Reward((short,), (1.0,)).score(completions_of("ab")).metrics() == {}


def test_running_moments_equal_those_of_all_values():
    moments, values = RunningMoments(), [3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0]
    for start, end in ((0, 1), (1, 4), (4, 7)):
        moments.update(torch.tensor(values[start:end]))
    assert (moments.mean, moments.std) == (
        pytest.approx(statistics.fmean(values)),
        pytest.approx(statistics.pstdev(values)),
    )


@pytest.mark.parametrize("kind", ["scale", "standardize"])
def test_scores_are_normalized_then_clipped(kind):
    values = [3.0, -1.0, 4.0, 10.0]
    formula = PythonReward("values", lambda _, texts: [float(text) for text in texts])
    reward = Reward((formula,), (1.0,), kind, 1.25)
    reward.score(completions_of(*map(str, values[:2])))
    before = reward.state_dict()
    scores = reward.score(completions_of(*map(str, values[2:])))
    mean = statistics.fmean(values) if kind == "standardize" else 0.0
    expected = [max(-1.25, min(1.25, (value - mean) / statistics.pstdev(values))) for value in values[2:]]
    assert scores.total.tolist() == pytest.approx(expected)
    assert scores.raw.tolist() == values[2:]
    resumed = Reward((formula,), (1.0,), kind, 1.25)
    resumed.load_state_dict(json.loads(json.dumps(before)))
    assert torch.equal(resumed.score(completions_of(*map(str, values[2:]))).total, scores.total)
    after = resumed.state_dict()
    resumed.score(completions_of("100"), update_moments=False)
    assert resumed.state_dict() == after


def test_functions_see_messages_where_a_prompt_has_them():
    seen = []
    reward = PythonReward("f", lambda prompts, texts: seen.append((prompts, texts)) or [0.0] * len(texts))
    turns = (Message(role="system", content="Be brief."), Message(role="user", content="Hi"))
    reward.score([*completions_of("a"), *completions_of("b", prompt=Prompt(messages=turns))])
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert seen == [(["Name a frog", turns], ["a", "b"])]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("broken", "the function failed .*division by zero"),
        ("few", "1 scores for 2 completions"),
        ("infinite", "the score of '.*' is inf"),
        ("nothing", r"has no function 'nothing'; it has: .*broken, .*short"),
    ],
)
def test_a_wrong_function_is_refused_before_the_run(small_ppo, rules, name, complaint):
    config = small_ppo(reward=f"{rules}:{name}")
    with pytest.raises(InputError, match=complaint):
        ppo.main(config)
    assert not config.out.exists()


def test_a_wrong_file_is_refused(small_ppo, tmp_path):
    with pytest.raises(InputError, match=r"no such file .*gone\.py"):
        ppo.main(small_ppo(reward=f"{tmp_path / 'gone.py'}:f"))
    (tmp_path / "bad.py").write_text("import nothing_of_that_name")
    with pytest.raises(InputError, match=r"bad\.py does not run \(ModuleNotFoundError"):
        ppo.main(small_ppo(reward=f"{tmp_path / 'bad.py'}:f"))


def test_a_function_that_fails_in_the_run_stops_it(small_ppo, rules):
    with pytest.raises(RunError, match=r"rules:fails_later: the function failed .*no such rule"):
        ppo.main(small_ppo(reward=f"{rules}:fails_later"))


def test_sources_get_short_unique_names():
    sources = ["runs/a/reward", "runs/b/reward", "org/Big-RM", "x/rules.py:short"]
    assert unique_names(sources) == ["runs/a/reward", "runs/b/reward", "Big-RM", "rules:short"]


# --- whole runs ----------------------------------------------------------------------------------------------------


def test_two_reward_models_and_a_function(small_ppo, save_reward, rules, rows_of):
    """Recomputed from samples.jsonl: 1 · first + 0.5 · second + 0.01 · function, less the penalty."""
    sources = (str(save_reward()), str(save_reward("gpt2", "foreign")), f"{rules}:short")
    folder = ppo.main(small_ppo(reward=sources, reward_weights=(1.0, 0.5, 0.01)))
    record, row = json.loads((folder / "run.json").read_text()), rows_of(folder / "metrics.jsonl")[0]
    assert record["config"]["reward"] == list(sources)
    assert record["parents"]["reward rules:short"]["sha256"] == content_hash(rules)
    models = [load_reward_model(source, CPU) for source in sources[:2]]
    samples = [sample for sample in rows_of(folder / "samples.jsonl") if sample["step"] == 1]
    parts = {"llama-plain-0.75": [], "gpt2-foreign-0.75": [], "rules:short": []}
    for sample in samples:
        ended = sample["finish"] == "stop"
        encoded = [m.tokenizer.encode_example(sample["prompt"], sample["completion"], finished=ended) for m in models]
        numbers = [m.score(m.truncate([example])[0]).item() for m, example in zip(models, encoded, strict=True)]
        numbers.append(-len(sample["completion"]))
        for part, number in zip(parts.values(), numbers, strict=True):
            part.append(number)
    for name, numbers in list(parts.items())[1:]:  # decoded text is not always the sampled tokens of the first
        assert row[f"scores/{name}/mean"] == pytest.approx(statistics.fmean(numbers), abs=1e-3)
    means = [row[f"scores/{name}/mean"] for name in parts]
    penalty = statistics.fmean(sample["finish"] == "length" for sample in samples)
    assert row["objective/scores"] == pytest.approx(means[0] + 0.5 * means[1] + 0.01 * means[2] - penalty, abs=1e-3)
    assert row["objective/scores_std"] == pytest.approx(statistics.pstdev(s["score"] for s in samples), abs=1e-3)
    said = " ".join(line["said"] for line in rows_of(folder / "log.jsonl"))
    assert "the value model starts from the reward model llama-plain-0.75" in said


def test_a_function_alone_trains_a_policy_without_a_reward_model(small_ppo, rules, rows_of):
    folder = ppo.main(small_ppo(reward=f"{rules}:short", eos_penalty=0))
    assert "since there is no reward model" in " ".join(row["said"] for row in rows_of(folder / "log.jsonl"))
    samples = [row for row in rows_of(folder / "samples.jsonl") if row["step"] == 1]
    assert [row["score"] for row in samples] == [-len(row["completion"]) for row in samples]
    load_policy(folder, CPU)


def test_normalized_and_clipped_scores_reach_ppo(small_ppo, rows_of):
    folder = ppo.main(small_ppo(score_normalization="standardize", score_clip=0.5, eos_penalty=0))
    samples, rows = rows_of(folder / "samples.jsonl"), rows_of(folder / "metrics.jsonl")
    scores = [row["score"] for row in samples if row["step"] == 1]
    assert max(map(abs, scores)) == 0.5
    assert statistics.fmean(scores) == pytest.approx(rows[0]["objective/scores"], abs=1e-3)
    assert "objective/raw_scores" in rows[0]
    assert "objective/raw_scores" not in rows_of(ppo.main(small_ppo(out=folder.parent / "plain")) / "metrics.jsonl")[0]


def test_changed_function_is_noticed_when_resuming(small_ppo, rules, monkeypatch):
    config = small_ppo(reward=f"{rules}:short")
    with monkeypatch.context() as patch:
        patch.setattr(ppo.PPOAlarms, "check", lambda *_: (_ for _ in ()).throw(RunError("stopped")))
        with pytest.raises(RunError):
            ppo.main(config)
    rules.write_text(RULES + "\n# changed\n")
    with pytest.raises(InputError, match=r"'reward' \(.*rules.py\) has changed since the run started"):
        ppo.main(config)


def test_a_missing_offset_is_measured_for_scores_and_values(small_ppo, save_reward, write, tmp_path):
    plain = tmp_path / "plain"
    reward = load_reward_model(save_reward(), CPU)
    del reward.model.config.score_offset
    reward.model.save_pretrained(plain)
    reward.tokenizer.hf_tokenizer.save_pretrained(plain)
    config = small_ppo(reward=plain, demonstrations=(write("d.jsonl", DEMONSTRATIONS),))
    run = ppo.RunDirectory.open(config)
    models = ppo.load_models(config, run)
    ppo.center_rewards(models, ppo.load_data(config, models, run).demonstrations, run)
    (part,) = models.reward.models()
    examples = [reward.tokenizer.encode_example(row["prompt"], row["completion"]) for row in DEMONSTRATIONS]
    expected = (reward.score(examples) + 0.75).mean().item()
    assert part.scorer.offset == models.value.offset == pytest.approx(expected, abs=1e-5)
    assert part.scorer.score(examples).mean().item() == pytest.approx(0, abs=1e-5)


# --- other starts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [0, 2])
def test_a_separate_reference_is_the_penalty_s(small_ppo, save, tmp_path, rows_of, lora):
    """KL starts at that of the policy to the other model, computed here from its logits."""
    other, tokenizer = load_policy(save(), CPU)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(0.7)
    other.save_pretrained(tmp_path / "other")
    tokenizer.hf_tokenizer.save_pretrained(tmp_path / "other")
    folder = ppo.main(small_ppo(reference=str(tmp_path / "other"), lora=lora))
    policy, _ = load_policy(save(), CPU)
    (first, *_), kl = rows_of(folder / "metrics.jsonl"), []
    config = small_ppo(out=tmp_path / "again")
    models = ppo.load_models(config, ppo.RunDirectory.open(config))
    rows = ppo.stream_indices(0, 8, len(PROMPTS), 0)
    rollout = ppo.collect_rollout(
        models, [Prompt(**PROMPTS[row]) for row in rows], max_tokens=6, eos_penalty=1.0, seed=0
    )
    for example in rollout.examples:
        ids, start = torch.tensor([example.prompt_ids + example.completion_ids]), len(example.prompt_ids)
        logps = [m(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1) for m in (policy, other)]
        taken = [logp[torch.arange(len(example.completion_ids)), example.completion_ids].sum() for logp in logps]
        kl.append((taken[0] - taken[1]).item())
    assert first["objective/kl"] == pytest.approx(statistics.fmean(kl), abs=1e-3)
    assert abs(first["objective/kl"]) > 0.05
    parents = json.loads((folder / "run.json").read_text())["parents"]
    assert parents["reference"]["sha256"] == content_hash(tmp_path / "other")


def test_a_reference_with_other_tokens_is_refused(small_ppo, save):
    with pytest.raises(InputError, match="its tokenizer or chat template is not that of --policy"):
        ppo.main(small_ppo(reference=str(save("llama", "foreign"))))


@pytest.mark.parametrize("lora", [0, 2])
def test_the_value_model_can_start_from_the_policy(small_ppo, save, save_reward, lora):
    config = small_ppo(value_init="policy", lora=lora)
    models = ppo.load_models(config, ppo.RunDirectory.open(config))
    base = models.value.model.get_base_model() if lora else models.value.model
    weights = {name.replace(".base_layer", ""): tensor for name, tensor in base.model.state_dict().items()}
    policy = {name.removeprefix("model."): tensor for name, tensor in weights_of(save()).items()}
    vocab_size = len(policy["embed_tokens.weight"])
    assert torch.equal(weights["layers.1.mlp.up_proj.weight"], policy["layers.1.mlp.up_proj.weight"])
    assert torch.equal(weights["embed_tokens.weight"][:vocab_size], policy["embed_tokens.weight"])
    (part,) = models.reward.models()
    examples = [TokenizedExample([5, 9], [70, 0])]
    assert torch.equal(part.scorer.score(examples), load_reward_model(save_reward(), CPU).score(examples))
    ppo.main(config)


# --- held-out prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"score_normalization": "standardize"}])
def test_validation_is_logged_and_changes_nothing(small_ppo, write, rows_of, tmp_path, options):
    heldout = [{"prompt": f"Sing number {n}"} for n in range(11)]
    plain = ppo.main(small_ppo(episodes=40, **options))
    config = small_ppo(
        episodes=40,
        validation=(write("v.jsonl", [*heldout, {"prompt": "x" * 70}]),),
        validation_interval=2,
        out=tmp_path / "watched",
        **options,
    )
    watched = ppo.main(config)
    assert_same_tensors(weights_of(plain), weights_of(watched), 0)
    rows = rows_of(watched / "metrics.jsonl")
    assert ["validation/scores" in row for row in rows] == [True, False, True, False, True]
    assert abs(rows[0]["validation/kl"]) < 1e-4, "the policy starts as its reference"
    samples = [row for row in rows_of(watched / "samples.jsonl") if row.get("split") == "validation"]
    assert [row["step"] for row in samples] == [1] * 8 + [3] * 8 + [5] * 8
    assert {row["prompt"] for row in samples} == {row["prompt"] for row in heldout[:8]}
    record = json.loads((watched / "run.json").read_text())
    assert record["left_out"] == {"prompts too long": 1, "bad lines": 0, "prompts of --validation": 0}
    assert record["validation"].keys() == {f"validation/{name}" for name in ("scores", "kl", "length", "truncated")}
    assert 0 < rows[0]["validation/length"] <= 6


def test_prompts_of_validation_never_train(small_ppo, write, rows_of):
    folder = ppo.main(small_ppo(validation=(write("v.jsonl", PROMPTS[:2]),)))
    samples = rows_of(folder / "samples.jsonl")
    watched = {row["prompt"] for row in samples if row.get("split") == "validation"}
    assert watched == {row["prompt"] for row in PROMPTS[:2]}
    assert not watched & {row["prompt"] for row in samples if "split" not in row}
    assert json.loads((folder / "run.json").read_text())["left_out"]["prompts of --validation"] == 2


# --- options -------------------------------------------------------------------------------------------------------


def test_prompts_beyond_the_limit_are_left_out(small_ppo, save, rows_of):
    _, tokenizer = load_policy(save(), CPU)
    lengths = {row["prompt"]: len(tokenizer.encode_prompt(row["prompt"])) for row in PROMPTS}
    limit = sorted(lengths.values())[2]
    folder = ppo.main(small_ppo(max_prompt_tokens=limit))
    prompts = {row["prompt"] for row in rows_of(folder / "samples.jsonl")}
    assert prompts <= {prompt for prompt, length in lengths.items() if length <= limit}
    left_out = json.loads((folder / "run.json").read_text())["left_out"]
    assert left_out["prompts too long"] == sum(length > limit for length in lengths.values()) > 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"reward_weights": (1.0, 2.0)}, "2 --reward-weights for 1 --reward"),
        ({"reward": ("a", "a")}, "names the same source twice"),
        ({"validation_interval": 3}, "--validation-interval has no effect without --validation"),
        ({"reward": ()}, "--reward"),
    ],
)
def test_options_that_do_not_fit_are_refused(small_ppo, options, complaint):
    with pytest.raises(InputError, match=complaint):
        small_ppo(**options)
