"""Low-rank adapters: exact when new or disabled, gradients of the low-rank factors, saving and resuming.

pytest tests/train/test_lora.py
"""

import json
import shutil
from math import prod
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from conftest import (
    CORPUS,
    CPU,
    DEMONSTRATIONS,
    FAMILIES,
    FRESH_RANKINGS,
    RANKINGS,
    assert_same_tensors,
    weights_of,
)
from support import family_checks as checks
from test_ppo import make_prompts
from test_resume import outcome, stop_at_step
from torch.func import functional_call

from instructgpt import functional
from instructgpt.config import make_config
from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.errors import InputError
from instructgpt.models.lora import BaseModelView, add_lora, get_backbone, get_trainable_module, merged_state_dict
from instructgpt.models.policy import completion_logp, load_policy
from instructgpt.models.reward_model import load_reward_model, value_model_from_adapter, value_model_from_copy
from instructgpt.run.checkpoints import LazyTensor, read_checkpoint
from instructgpt.run.directory import RunDirectory
from instructgpt.train import ppo, reward, sft
from instructgpt.train.configs import PretrainConfig, RewardConfig, SFTConfig
from instructgpt.train.reward_functions import Reward
from instructgpt.train.rollout import PPOModels, collect_rollout

EXAMPLES = [
    TokenizedExample([5, 9, 70], [40, 41, 0]),
    TokenizedExample([40], [7, 7, 9, 12, 0]),
    TokenizedExample([3, 3, 8, 100], [0]),
]
BATCH = collate(EXAMPLES)
by_peft_alone = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft uses an old name of transformers


def perturb(model, seed=1):
    """Move the adapters and heads away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in get_trainable_module(model).parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def adapter_factors(model):
    """Return A (r, in) and B (out, r) of every adapted matrix by its plain name."""
    found = {name: parameter for name, parameter in model.get_base_model().named_parameters() if ".lora_" in name}
    names = {name.partition(".lora_")[0] for name in found}
    return {f"{name}.weight": tuple(found[f"{name}.lora_{letter}.default.weight"] for letter in "AB") for name in names}


@pytest.mark.parametrize("family", FAMILIES)
def test_new_or_disabled_adapters_change_nothing(save, family):
    plain, _ = load_policy(save(family), CPU)
    model = add_lora(load_policy(save(family), CPU)[0], 3, seed=0)
    reference = BaseModelView(model)
    with torch.no_grad():
        before = completion_logp(plain, BATCH)
        assert torch.equal(completion_logp(model, BATCH), before)
        after = completion_logp(perturb(model), BATCH)
        assert not torch.allclose(after, before, atol=1e-2)
        assert torch.equal(completion_logp(reference, BATCH), before)
        assert torch.equal(completion_logp(model, BATCH), after), "switched on again"


def test_adapters_are_enabled_again_after_an_error(save):
    model = perturb(add_lora(load_policy(save(), CPU)[0], 3, seed=0))
    with torch.no_grad():
        before = completion_logp(model, BATCH)
        with pytest.raises((TypeError, ValueError)):
            get_backbone(BaseModelView(model))(input_ids=None)
        assert torch.equal(completion_logp(model, BATCH), before)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_gradients_equal_those_of_low_rank_factors(save, family, gradients):
    """Compare with the stock model on W + 2 B A, one text at a time."""
    plain, _ = load_policy(save(family), CPU)
    model = perturb(add_lora(load_policy(save(family), CPU)[0], 3, seed=0))
    ours = completion_logp(model, BATCH)
    ours.sum().backward()
    found = gradients(model)

    by_hand = {
        name: [f.detach().clone().requires_grad_() for f in both] for name, both in adapter_factors(model).items()
    }
    weights = {name: weight.detach() for name, weight in plain.named_parameters()}
    for name, (a, b) in by_hand.items():
        product = 2 * (b @ a)
        weights[name] = weights[name] + (
            product.T if family == "gpt2" else product
        )  # GPT-2's Conv1D stores transposed matrices
    expected = []
    for one in EXAMPLES:
        tokens = torch.tensor([one.prompt_ids + one.completion_ids])
        logp = functional_call(plain, weights, (tokens,), {"use_cache": False}).logits[0].log_softmax(-1)
        expected.append(logp[torch.arange(len(one.prompt_ids) - 1, tokens.shape[1] - 1), one.completion_ids])
    torch.testing.assert_close(ours, torch.cat(expected), atol=1e-5, rtol=1e-5)
    torch.cat(expected).sum().backward()
    prefix = "base_model.model."
    of_hand = {
        f"{prefix}{name.removesuffix('.weight')}.lora_{letter}.default.weight": factor.grad
        for name, both in by_hand.items()
        for letter, factor in zip("AB", both, strict=True)
    }
    assert_same_tensors(found, of_hand, 1e-4)
    linear = {
        n
        for n, m in plain.base_model.named_modules()
        if isinstance(m, torch.nn.Linear | transformers.pytorch_utils.Conv1D)
    }
    assert {f"{plain.base_model_prefix}.{name}.weight" for name in linear} == by_hand.keys(), (
        "every matrix of the trunk, no other"
    )


def test_value_adapter_leaves_scores_unchanged(save_reward):
    """Initial values equal the scores bit for bit; training the value model changes no score."""
    plain = load_reward_model(save_reward(), CPU)
    value, under = value_model_from_adapter(load_reward_model(save_reward(), CPU), 3, seed=0)
    with torch.no_grad():
        before = plain.token_outputs(BATCH)
        assert torch.equal(under.token_outputs(BATCH), before)
        assert torch.equal(value.token_outputs(BATCH), before)
        perturb(value.model)
        assert not torch.allclose(value.token_outputs(BATCH), before, atol=1e-2)
        assert torch.equal(under.token_outputs(BATCH), before)
        assert torch.equal(under.score(EXAMPLES), plain.score(EXAMPLES))


# --- PPO -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def both_kinds(save, save_reward):
    """PPO's models with perturbed adapters, and fully trained models that compute the same."""
    policy, render = load_policy(save(), CPU)
    adapted = perturb(add_lora(policy, 3, seed=0))
    value, under = value_model_from_adapter(load_reward_model(save_reward(), CPU), 3, seed=0)
    perturb(value.model, seed=2)
    with_lora = PPOModels(adapted, BaseModelView(adapted), value, Reward.from_model(under, render), None, render)
    whole, _ = load_policy(save(), CPU)
    whole.load_state_dict(merged_state_dict(adapted), strict=True)
    plain = load_reward_model(save_reward(), CPU)
    whole_value, plain = value_model_from_copy(plain)
    whole_value.model.load_state_dict(merged_state_dict(value.model), strict=True)
    return with_lora, PPOModels(
        whole, load_policy(save(), CPU)[0], whole_value, Reward.from_model(plain, render), None, render
    )


def test_adapter_gradients_follow_the_chain_rule_in_ppo(both_kinds, gradients):
    """Episodes, losses and ratios are the same; for W + 2 B A, dA = 2 B' dW and dB = 2 dW A'."""
    with_lora, whole = both_kinds
    rollout, other = (
        collect_rollout(models, make_prompts(), max_tokens=6, eos_penalty=0.5, seed=3) for models in both_kinds
    )
    assert rollout.examples == other.examples
    for name in ("logp", "ref_logp", "values", "scores"):
        torch.testing.assert_close(getattr(rollout, name), getattr(other, name), atol=1e-5, rtol=1e-5, equal_nan=True)
    rewards = functional.kl_shaped_rewards(rollout.scores, rollout.logp, rollout.ref_logp, rollout.mask, 0.1)
    advantages, returns = functional.gae(rewards, rollout.values, rollout.mask, 0.95)
    seen, expected = (
        ppo.minibatch_backward(models, rollout, advantages, returns, torch.arange(7), 0.2, 0.2) for models in both_kinds
    )
    assert seen == pytest.approx(expected, abs=1e-5)
    assert seen["policy/max_log_ratio"] < 1e-5
    for adapted, plain in ((with_lora.policy, whole.policy), (with_lora.value.model, whole.value.model)):
        of_factors, of_weights = gradients(adapted), gradients(plain)
        for name, (a, b) in adapter_factors(adapted).items():
            place = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            torch.testing.assert_close(
                of_factors[f"{place}A.default.weight"], 2 * b.T @ of_weights[name], atol=1e-4, rtol=1e-4
            )
            torch.testing.assert_close(
                of_factors[f"{place}B.default.weight"], 2 * of_weights[name] @ a.T, atol=1e-4, rtol=1e-4
            )
        heads = {name for name in of_factors if "lora_" not in name}
        assert heads == (
            {"base_model.model.score.modules_to_save.default.weight"} if plain is whole.value.model else set()
        )
        for name in heads:
            torch.testing.assert_close(of_factors[name], of_weights["score.weight"], atol=1e-4, rtol=1e-4)


@pytest.fixture
def watched_models(monkeypatch):
    seen, load = [], ppo.load_models
    monkeypatch.setattr(ppo, "load_models", lambda *given: seen.append(load(*given)) or seen[-1])
    return seen


def test_ppo_trains_adapters_only(small_ppo, watched_models, save, save_reward, rows_of):
    folder = ppo.main(small_ppo(lora=3, ema=0.5))
    (models,) = watched_models
    first = rows_of(folder / "metrics.jsonl")[0]
    assert first["objective/kl"] == pytest.approx(0, abs=1e-6)
    assert first["val/parity"] < 1e-5
    for model, source in ((models.policy, save()), (models.value.model, save_reward())):
        frozen = {
            n: p
            for n, p in model.get_base_model().named_parameters()
            if ".lora_" not in n and "modules_to_save" not in n
        }
        plain = {n.replace(".base_layer", "").replace(".original_module", ""): p for n, p in frozen.items()}
        stored = weights_of(source)
        assert plain.keys() == stored.keys()
        assert all(torch.equal(plain[name], stored[name]) and not plain[name].requires_grad for name in plain)
        assert all(b.abs().max() > 0 for _, b in adapter_factors(model).values())
    record = json.loads((folder / "run.json").read_text())
    assert (record["config"]["lora"], record["config"]["memory"]) == (3, [])
    assert record["trained"] == sum(a.numel() + b.numel() for a, b in adapter_factors(models.policy).values())
    assert record["parameters"] == sum(tensor.numel() for tensor in weights_of(save()).values()) + record["trained"]


def test_lora_shares_trunks_between_models(small_ppo):
    """Count each tensor once: two trunks and heads, two adapters, one averaged adapter."""

    def count_parameters(models):
        (reward,) = models.reward.models()
        everything = (models.policy, models.reference, models.value.model, reward.scorer.model, models.ema)
        return sum({p.data_ptr(): p.numel() for model in everything for p in model.parameters()}.values())

    config = small_ppo()
    whole, adapted = (ppo.load_models(c, RunDirectory(c, {})) for c in (config, config.model_copy(update={"lora": 2})))
    policy, value = (sum(p.numel() for p in model.parameters()) for model in (whole.policy, whole.value.model))
    assert count_parameters(whole) == 3 * policy + 2 * value
    of_policy, of_value = (
        sum(p.numel() for p in get_trainable_module(model).parameters())
        for model in (adapted.policy, adapted.value.model)
    )
    assert count_parameters(adapted) == policy + value + 2 * of_policy + of_value
    assert 2 * of_policy + of_value < 0.25 * (policy + value)


def test_ema_averages_adapter_factors(small_ppo, save, monkeypatch):
    seen, average = [], ppo.update_ema

    def noted(slow, fast, decay):
        if not seen:
            seen.append({name: tensor.clone() for name, tensor in slow.state_dict().items()})
        average(slow, fast, decay)
        seen.append({name: tensor.clone() for name, tensor in fast.state_dict().items()})

    monkeypatch.setattr(ppo, "update_ema", noted)
    saved = weights_of(ppo.main(small_ppo(lora=3, ema=0.75)))
    slow = seen[0]
    for fast in seen[1:]:
        slow = {name: 0.75 * slow[name] + 0.25 * fast[name] for name in slow}
    expected = weights_of(save())
    for name in list(expected):
        place = f"base_model/model/{name.removesuffix('.weight').replace('.', '/')}/lora_"
        if f"{place}A/default/weight" in slow:
            expected[name] = expected[name] + 2 * slow[f"{place}B/default/weight"] @ slow[f"{place}A/default/weight"]
    assert len(seen) == 5
    assert_same_tensors(saved, expected, 1e-6)


def test_reward_model_with_another_tokenizer(small_ppo, save_reward, watched_models):
    ppo.main(small_ppo(lora=2, reward=save_reward("gpt2", "foreign")))
    (models,) = watched_models
    assert models.value.model.get_base_model().score.original_module.weight.abs().max() == 0
    (reward,) = models.reward.models()
    assert not hasattr(reward.scorer.model, "peft_config")


# --- saving and resuming -------------------------------------------------------------------------------------------


@pytest.fixture
def stage(write, save, save_reward, tmp_path):

    def build(name, folder, family="llama"):
        common = {"lora": 3, "lr": 2e-2, "out": tmp_path / folder}
        if name == "sft":
            data, fresh = (write("data.jsonl", DEMONSTRATIONS),), (write("fresh.jsonl", DEMONSTRATIONS[:2]),)
            options = {"base": str(save(family)), "data": data, "validation": fresh, "epochs": 3, "batch": 4}
            return sft.main, make_config(SFTConfig, {**options, **common})
        if name == "reward":
            files = {
                "data": (write("rankings.jsonl", RANKINGS),),
                "validation": (write("fresh_rankings.jsonl", FRESH_RANKINGS),),
            }
            return reward.main, make_config(
                RewardConfig, {"base": str(save(family)), **files, "epochs": 4, "batch": 3, **common}
            )
        files = {"policy": str(save()), "reward": save_reward(), "prompts": (write("prompts.jsonl", DEMONSTRATIONS),)}
        text = {"pretraining": (write("corpus.jsonl", CORPUS),), "ptx_ratio": 0.5}
        sizes = {"episodes": 40, "batch": 8, "minibatch": 4, "max_tokens": 5, "value_lr": 1e-2, "ema": 0.9}
        return ppo.main, make_config(ppo.PPOConfig, {**files, **text, **sizes, **common})

    return build


@by_peft_alone
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_policy_is_merged_and_its_adapter_fits_the_base(stage, save, family):
    main, config = stage("sft", "sft", family)
    folder = main(config)
    ids = torch.tensor([[5, 9, 70, 40, 41, 0]])
    with torch.no_grad():
        before = transformers.AutoModelForCausalLM.from_pretrained(save(family)).eval()(ids).logits
        stock = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        base = transformers.AutoModelForCausalLM.from_pretrained(save(family)).eval()
        again = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
        torch.testing.assert_close(stock(ids).logits, again(ids).logits, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(stock(ids).logits, before, atol=1e-2)
    assert stock.dtype == torch.float32
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert "rank 3" in (folder / "README.md").read_text()
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (3, 6, 0.0)


def stock_scores(model):
    with torch.no_grad():
        return torch.cat([model(torch.tensor([e.prompt_ids + e.completion_ids])).logits[0] for e in EXAMPLES])


@by_peft_alone
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_reward_model_keeps_its_head(stage, save, family, monkeypatch):
    """After a resume, stock transformers, peft on the base and our loader give the trained model's scores."""
    trained, save_it = [], reward.save_and_verify

    def record_final_save(model, probe, folder, *rest):
        trained.extend([model] if folder.name == ".part" else [])
        save_it(model, probe, folder, *rest)

    monkeypatch.setattr(reward, "save_and_verify", record_final_save)
    main, config = stage("reward", "reward", family)
    stop_at_step(3, main, config, monkeypatch)
    folder = main(config)
    (model,) = trained
    scores = model.score(EXAMPLES)
    assert not torch.equal(
        *(h.weight for h in (model.model.score.original_module, model.model.score.modules_to_save["default"]))
    )
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    torch.testing.assert_close(stock_scores(stock) - stock.config.score_offset, scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(load_reward_model(folder, CPU).score(EXAMPLES), scores, atol=1e-5, rtol=1e-5)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(save(family), num_labels=1).eval()
    again = peft.PeftModel.from_pretrained(base, folder / "adapter").eval()
    torch.testing.assert_close(stock_scores(again) - stock.config.score_offset, scores, atol=1e-5, rtol=1e-5)


def outcome_with_adapter(folder, rows_of):
    adapter = {file.name: file.read_bytes() for file in (folder / "adapter").iterdir()}
    aside = (folder / "adapter").rename(folder.with_name(folder.name + "-adapter"))
    found = outcome(folder, rows_of) | adapter
    aside.rename(folder / "adapter")
    return found


def tensors_in(value):
    if isinstance(value, LazyTensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


@pytest.mark.parametrize("name", ["sft", "reward", "ppo"])
def test_resumed_run_equals_uninterrupted_run(stage, name, monkeypatch, rows_of):
    main, config = stage(name, "whole")
    whole = outcome_with_adapter(main(config), rows_of)
    main, config = stage(name, "stopped")
    stop_at_step(4, main, config, monkeypatch)
    state = read_checkpoint(max((config.out / "checkpoints").iterdir()))
    names = {name for model in state["models"].values() for name in model}
    assert names
    assert all("lora_" in name or "score/modules_to_save" in name for name in names), (
        "adapters and heads, no frozen weights"
    )
    trained = sum(
        prod(tensor.shape)
        for model in ("model", "policy", "value")
        for tensor in state["models"].get(model, {}).values()
    )
    assert sum(prod(tensor.shape) for tensor in tensors_in(state)) < 5 * trained
    (config.out / "adapter").mkdir()
    (config.out / "adapter" / "left").write_text("by a run that was killed while it moved its files in")
    stopped = outcome_with_adapter(main(config), rows_of)
    assert stopped.keys() == whole.keys()
    for file in whole:
        assert stopped[file] == whole[file], file


def test_resume_refuses_another_lora_rank(stage, monkeypatch):
    main, config = stage("sft", "stopped")
    stop_at_step(2, main, config, monkeypatch)
    with pytest.raises(InputError, match="--lora was 3 when the run started and is 4 now"):
        main(config.model_copy(update={"lora": 4}))


def test_pretrain_refuses_lora(tmp_path):
    with pytest.raises(InputError, match="pretrain: unknown option 'lora'"):
        make_config(PretrainConfig, {"corpus": ("c.txt",), "out": tmp_path, "lora": 4})


def test_lora_refuses_model_without_linear_layers():
    model = SimpleNamespace(
        base_model=torch.nn.Sequential(torch.nn.Embedding(3, 2)), config=SimpleNamespace(model_type="odd")
    )
    with pytest.raises(InputError, match="the family 'odd' has no linear layers"):
        add_lora(model, 4, 0)


@by_peft_alone
@pytest.mark.parametrize("place", ["alone", "beside"])
def test_all_weights_train_from_an_adapter_directory(place, save, write, tmp_path):
    """The merged base of an adapter is no frozen base: every matrix moves, in SFT and as PPO's policy."""
    folder = shutil.copytree(save("llama"), tmp_path / "base")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(folder if place == "beside" else tmp_path / "adapter")
    start = {name: tensor.clone() for name, tensor in adapted.merge_and_unload().state_dict().items()}
    source = str(folder if place == "beside" else tmp_path / "adapter")
    data = (write("d.jsonl", DEMONSTRATIONS),)
    sizes = {"epochs": 1, "batch": 4, "lr": 1e-2, "dropout": 0.0}
    sft.main(make_config(SFTConfig, {"base": source, "data": data, "out": tmp_path / "sft", **sizes}))
    saved = weights_of(tmp_path / "sft")
    assert all(not torch.equal(saved[name], start[name]) for name in saved if "proj" in name)


def test_linear_layers_with_names_of_other_modules_are_adapted(tmp_path):
    """CTRL's second linear layer of a block is named 0, as its first layer is."""
    folder = checks.save_small_model("ctrl", tmp_path / "ctrl")
    model, _ = load_policy(folder, CPU)
    linear = {name for name, module in model.base_model.named_modules() if isinstance(module, torch.nn.Linear)}
    adapted = add_lora(model, 2, 0)
    found = {name for name, module in get_backbone(adapted).named_modules() if hasattr(module, "lora_A")}
    assert found == linear


def test_a_family_that_peft_refuses_is_named(tmp_path):
    model, _ = load_policy(checks.save_small_model("mamba", tmp_path / "mamba"), CPU)
    with pytest.raises(InputError, match="--lora: peft cannot adapt the family 'mamba'"):
        add_lora(model, 2, 0)
