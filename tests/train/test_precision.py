"""Memory options: bf16 with float32 weights, activation checkpointing, 8-bit Adam.

pytest tests/train/test_precision.py
"""

import copy
import json
import math
import sys

import pytest
import torch
from conftest import (
    CORPUS,
    CPU,
    DEMONSTRATIONS,
    FAMILIES,
    FRESH_RANKINGS,
    PROMPTS,
    RANKINGS,
    assert_same_tensors,
    weights_of,
)
from support.signals import stop_at

from instructgpt.config import make_config
from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.distributed.comm import DistInfo
from instructgpt.errors import InputError, RunError
from instructgpt.models import precision
from instructgpt.models.loading import model_notices
from instructgpt.models.lora import add_lora, get_backbone, merged_state_dict
from instructgpt.models.packed_attention import hidden_states
from instructgpt.models.policy import completion_logp, load_policy
from instructgpt.models.precision import (
    apply_memory_options,
    bf16_warning,
    cached_bf16_weights,
    disable_bf16,
    hold_frozen_in_bf16,
)
from instructgpt.models.reward_model import load_reward_model, new_reward_model, save_reward_model
from instructgpt.train import optim, ppo, pretrain, reward, rollout, sft
from instructgpt.train.alarms import PPOAlarms, check_first_ratio, check_parity
from instructgpt.train.configs import PPOConfig, PretrainConfig, RewardConfig, SFTConfig
from instructgpt.train.optim import build_optimizer, lm_loss, optimizer_step
from instructgpt.train.reward_functions import Reward

EXAMPLES = [
    TokenizedExample([5, 9, 70], [40, 41, 0]),
    TokenizedExample([40], [7, 7, 9, 12, 0]),
    TokenizedExample([3, 3, 8, 100], [0]),
]
BATCH = collate(EXAMPLES)


def saved_bytes(work):
    """Return the bytes that autograd saves for a function's backward pass, weights excluded, and its result."""
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and not (
            tensor._is_view() and isinstance(tensor._base, torch.nn.Parameter)
        ):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = work()
    return sum(kept.values()), result


# --- bf16 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_applies_to_the_trunk_only(save, family, gradients):
    """Weights, hidden states, log-probabilities and gradients are float32; the loss is close to float32's."""
    plain, _ = load_policy(save(family), CPU)
    model, _ = load_policy(save(family), CPU)
    apply_memory_options(model, ("bf16",))
    inside = set()
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
            module.register_forward_hook(lambda _, __, output: inside.add(output.dtype))
    losses = [lm_loss(one, EXAMPLES) for one in (model, plain)]
    assert inside == {torch.bfloat16}
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert losses[0] != losses[1]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    ours, exact = gradients(model), gradients(plain)
    assert {g.dtype for g in ours.values()} == {torch.float32}
    for name, gradient in exact.items():
        assert (ours[name] - gradient).norm() < 0.1 * gradient.norm() + 1e-3, name
    states = hidden_states(model, BATCH)
    assert states.dtype == torch.float32
    assert completion_logp(model, BATCH).dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu"), "nothing is left switched on"


def test_bf16_copy_uses_its_own_weights(save):
    model, _ = load_policy(save(), CPU)
    apply_memory_options(model, ("bf16", "checkpointing"))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = completion_logp(model, BATCH)
        assert torch.equal(completion_logp(twin, BATCH), before)
        for parameter in twin.parameters():
            parameter.mul_(1.1)
        assert not torch.equal(completion_logp(twin, BATCH), before)
        assert torch.equal(completion_logp(model, BATCH), before)


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_bf16_weights_change_no_bit(save, family, rank):
    """Results are bit for bit the same, the float32 weights return, and the bf16 copies reuse their memory."""
    model = add_lora(load_policy(save(family), CPU)[0], rank, seed=0)
    apply_memory_options(model, ("bf16",))
    matrix = next(
        m for m in get_backbone(model).modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"
    ).weight
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    seen = []
    for _ in range(2):
        with torch.inference_mode():
            expected = completion_logp(model, BATCH)
            with cached_bf16_weights(model):
                assert matrix.dtype == torch.bfloat16
                assert torch.equal(completion_logp(model, BATCH), expected)
                seen.append((matrix.data_ptr(), expected))
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert seen[0][0] == seen[1][0]
    assert not torch.equal(seen[0][1], seen[1][1])


def parameter_bytes(model):
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_matrices_in_bf16_change_no_bit(save, family, gradients):
    """Frozen bytes with --lora --memory bf16: two a matrix number instead of four; outputs and gradients are equal."""
    wide, narrow = (load_policy(save(family), CPU)[0] for _ in range(2))
    matrices = [m for m in wide.base_model.modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"]
    num_matrix_parameters = sum(p.numel() for m in matrices for p in m.parameters(recurse=False))
    for model in (wide, narrow):
        apply_memory_options(model, ("bf16",))
    wide, narrow = (add_lora(model, 3, seed=0) for model in (wide, narrow))
    hold_frozen_in_bf16(narrow)
    assert parameter_bytes(wide) - parameter_bytes(narrow) == 2 * num_matrix_parameters > 0
    assert {p.dtype for p in narrow.parameters() if p.requires_grad} == {torch.float32}
    assert torch.equal(completion_logp(narrow, BATCH), completion_logp(wide, BATCH))
    with torch.no_grad(), cached_bf16_weights(narrow):
        assert torch.equal(completion_logp(narrow, BATCH), completion_logp(wide, BATCH))
    for model in (wide, narrow):
        completion_logp(model, BATCH).sum().backward()
    expected = gradients(wide)
    for name, gradient in gradients(narrow).items():
        assert torch.equal(gradient, expected[name]), name
    assert "frozen weights are held in bf16, rounded as bf16 computes with them" in " ".join(model_notices(narrow))


def test_frozen_bf16_matrices_compute_in_float32_once_bf16_is_off(save):
    """As the merged model computes after saving and loading: its matrices are the rounded ones."""
    model = load_policy(save(), CPU)[0]
    apply_memory_options(model, ("bf16",))
    model = add_lora(model, 3, seed=0)
    hold_frozen_in_bf16(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
        disable_bf16(model)
        plain = load_policy(save(), CPU)[0]
        plain.load_state_dict(merged_state_dict(model))
        torch.testing.assert_close(completion_logp(model, BATCH), completion_logp(plain, BATCH), atol=1e-5, rtol=1e-5)
    assert torch.bfloat16 in {parameter.dtype for parameter in model.parameters()}, "held in bf16 again"


def test_weights_stay_float32_without_bf16(save):
    model, _ = load_policy(save(), CPU)
    with cached_bf16_weights(model):
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_autocast_is_off_after_an_error(save):
    model, _ = load_policy(save(), CPU)
    apply_memory_options(model, ("bf16",))
    with pytest.raises((TypeError, ValueError)):
        model.base_model(input_ids=None)
    assert not torch.is_autocast_enabled("cpu")


@pytest.fixture
def pretrained_models(tmp_path, write):
    """Directories of a pretrained base and of a reward model on it."""
    sizes = {
        "vocabulary": 280,
        "width": 32,
        "layers": 2,
        "heads": 2,
        "context": 64,
        "window": 32,
        "batch": 8,
        "tokens": 256 * 8,
    }
    base = pretrain.main(
        make_config(PretrainConfig, {"corpus": (write("corpus.jsonl", CORPUS),), **sizes, "out": tmp_path / "base"})
    )
    scorer = new_reward_model(base, CPU, seed=3)
    (tmp_path / "scorer").mkdir()
    save_reward_model(scorer, tmp_path / "scorer")
    return base, tmp_path / "scorer"


@pytest.mark.parametrize("rank", [0, 4])
def test_ppo_in_bf16(pretrained_models, write, tmp_path, rows_of, monkeypatch, rank):
    """Sampling and training agree, the first ratio is 1 up to bf16 rounding, the optimizer updates float32 weights."""
    seen = []
    monkeypatch.setattr(
        ppo,
        "build_optimizer",
        lambda model, **options: seen.append((model, build_optimizer(model, **options))) or seen[-1][1],
    )
    files = {
        "policy": str(pretrained_models[0]),
        "reward": pretrained_models[1],
        "prompts": (write("prompts.jsonl", PROMPTS),),
        "out": tmp_path / "ppo",
    }
    sizes = {"episodes": 32, "batch": 16, "minibatch": 16, "max_tokens": 8, "lr": 1e-3, "value_lr": 1e-3, "lora": rank}
    folder = ppo.main(make_config(PPOConfig, {**files, **sizes, "memory": ("bf16", "checkpointing")}))
    first = rows_of(folder / "metrics.jsonl")[0]
    assert 0 < first["val/parity"] < 2e-2
    assert (2 * first["policy/approxkl_avg"]) ** 0.5 < 2e-2
    assert json.loads((folder / "run.json").read_text())["config"]["memory"] == ["bf16", "checkpointing"]
    assert {tensor.dtype for tensor in weights_of(folder).values()} == {torch.float32}
    for model, optimizer in seen:
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        assert {t.dtype for state in optimizer.state.values() for t in state.values()} == {torch.float32}


def test_parity_is_measured_as_largest_and_root_mean_square(models_and_rollout):
    models, played = models_and_rollout
    assert max(rollout.measure_logp_parity(models, played)) < 1e-5
    count = int(played.mask.sum())
    played.logp[0, 0] += 0.05  # one token of many
    largest, rms = rollout.measure_logp_parity(models, played)
    assert (largest, rms) == (pytest.approx(0.05, abs=1e-4), pytest.approx(0.05 / count**0.5, rel=1e-2))


def test_parity_stops_in_float32_and_warns_in_bf16(small_ppo):
    float32, bf16 = small_ppo(), small_ppo(memory=("bf16",))
    for check in (check_parity, check_first_ratio):
        check(9e-4, float32)
        check(0.05, bf16)
        check(0.05, small_ppo(parity_tolerance=0))
        check(0.05, small_ppo(parity_tolerance=0.1))
        for bad in (2e-3, math.nan):
            with pytest.raises(RunError, match="sampling and training"):
                check(bad, float32)
    calm = {"objective/kl": 0.0, "policy/entropy_avg": 1.0, "completion/truncated": 0.0}
    for name in ("val/parity_rms", "val/first_ratio_rms"):
        for config, value, count in ((bf16, 0.019, 0), (bf16, 0.021, 1), (float32, 0.021, 0), (bf16, math.nan, 1)):
            assert len(PPOAlarms(config).check(calm | {name: value})) == count
    assert not PPOAlarms(small_ppo(memory=("bf16",), parity_rms_tolerance=0)).check(calm | {"val/parity_rms": 0.5})


@pytest.fixture
def models_and_rollout(save, save_reward):
    policy, render = load_policy(save(), CPU)
    scorer = load_reward_model(save_reward(), CPU)
    models = rollout.PPOModels(policy, policy, scorer, Reward.from_model(scorer, render), None, render)
    return models, rollout.collect_rollout(
        models, [ppo.Prompt(**row) for row in PROMPTS], max_tokens=6, eos_penalty=0.5, seed=3
    )


def test_bf16_warns_on_cpus_without_it(monkeypatch):
    for known, words, warns in ((False, ("bf16",), True), (True, ("bf16",), False), (False, ("checkpointing",), False)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda known=known: known)
        assert bool(bf16_warning(CPU, words)) == warns
    assert bf16_warning(torch.device("cuda"), ("bf16",)) is None


# --- activation checkpointing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_keeps_gradients(save, family, gradients, rank):
    """Also with dropout and adapters; autograd saves less than half as much."""
    plain, again = (add_lora(load_policy(save(family), CPU, 0.3)[0], rank, seed=0).train() for _ in range(2))
    apply_memory_options(again, ("checkpointing",))
    results = []
    for model in (plain, again):
        torch.manual_seed(7)
        kept, logp = saved_bytes(lambda model=model: completion_logp(model, BATCH))
        logp.sum().backward()
        results.append((kept, logp.detach(), gradients(model)))
    (all_kept, logp, exact), (few_kept, same_logp, same) = results
    assert torch.equal(same_logp, logp)
    assert_same_tensors(same, exact, 1e-6)
    assert few_kept < 0.5 * all_kept


def test_checkpointing_recomputes_with_gradients_only(save):
    model, _ = load_policy(save(), CPU)
    apply_memory_options(model, ("checkpointing",))
    calls = []
    model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        completion_logp(model, BATCH)
    assert len(calls) == 1
    completion_logp(model, BATCH).sum().backward()
    assert len(calls) == 3
    assert type(model.base_model.layers[0]).__name__ == "LlamaDecoderLayer"


def test_a_copy_of_a_checkpointed_model_computes_its_own_layers(save):
    model, _ = load_policy(save(), CPU)
    apply_memory_options(model, ("checkpointing",))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    completion_logp(copied, BATCH).sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is not None for parameter in copied.parameters())


def test_checkpointing_refuses_unsupported_families(save, monkeypatch):
    model, _ = load_policy(save(), CPU)
    monkeypatch.setattr(precision, "GradientCheckpointingLayer", str)
    with pytest.raises(InputError, match="checkpointing: not supported for the family 'llama'"):
        apply_memory_options(model, ("checkpointing",))


# --- 8-bit Adam ----------------------------------------------------------------------------------------------------


def test_adam8bit_needs_bitsandbytes(monkeypatch, save):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(InputError, match="needs bitsandbytes; run: pip install"):
        build_optimizer(load_policy(save(), CPU)[0], memory=("adam8bit",))


def test_adam8bit_refuses_several_ranks(monkeypatch, save):
    monkeypatch.setattr(optim, "get_dist_info", lambda: DistInfo(0, 2))
    with pytest.raises(InputError, match="adam8bit does not work with several ranks"):
        build_optimizer(load_policy(save(), CPU)[0], memory=("adam8bit",))


def test_adam8bit_descends_as_adam_does():
    """On a quadratic loss; its moments take one byte each."""
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    layers = [torch.nn.Linear(128, 64) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    optimizers = [build_optimizer(layers[0]), build_optimizer(layers[1], memory=("adam8bit",))]
    losses = []
    for layer, optimizer in zip(layers, optimizers, strict=True):
        for _ in range(30):
            loss = (layer.weight - 1).square().mean() + layer.bias.square().mean()
            loss.backward()
            optimizer_step(optimizer, 1e-2)
        losses.append(loss.item())
    assert losses[0] < 0.7
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    state = optimizers[1].state[layers[1].weight]
    assert {state["state1"].dtype, state["state2"].dtype} == {torch.uint8}


# --- the stages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pretrain", "sft", "reward"])
def test_memory_options_keep_losses(name, write, save, tmp_path, rows_of, capsys, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)

    def trained(words):
        out = {"out": tmp_path / f"{name}-{len(words)}", "memory": words}
        if name == "pretrain":
            sizes = {
                "vocabulary": 280,
                "width": 32,
                "layers": 2,
                "heads": 2,
                "context": 32,
                "window": 32,
                "batch": 4,
                "tokens": 128 * 4,
            }
            return pretrain.main(make_config(PretrainConfig, {"corpus": (write("c.jsonl", CORPUS),), **sizes, **out}))
        if name == "sft":
            data = {
                "base": str(save("gpt2")),
                "data": (write("d.jsonl", DEMONSTRATIONS),),
                "validation": (write("v.jsonl", DEMONSTRATIONS[:2]),),
            }
            return sft.main(
                make_config(SFTConfig, {**data, "epochs": 2, "batch": 4, "lr": 1e-2, "dropout": 0.0, **out})
            )
        data = {
            "base": str(save()),
            "data": (write("r.jsonl", RANKINGS),),
            "validation": (write("f.jsonl", FRESH_RANKINGS),),
        }
        return reward.main(make_config(RewardConfig, {**data, "epochs": 2, "batch": 3, "lr": 1e-2, **out}))

    plain, exact, rounded = (
        rows_of(trained(words) / "metrics.jsonl") for words in ((), ("checkpointing",), ("bf16", "checkpointing"))
    )
    losses = [[row["loss/train"] for row in rows] for rows in (plain, exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert losses[2] == pytest.approx(losses[0], abs=0.1)
    assert losses[2] != losses[0]
    assert capsys.readouterr().out.count("this CPU lacks native bf16") == 1


def test_unknown_memory_option_is_refused(tmp_path):
    with pytest.raises(
        InputError, match="--memory bf15: Input should be 'bf16', 'checkpointing', '4bit', 'adam8bit' or 'offload'"
    ):
        make_config(PretrainConfig, {"corpus": ("c.txt",), "out": tmp_path, "memory": ("bf15",)})


def test_resume_with_adam8bit_is_exact(write, save, tmp_path, monkeypatch):
    """The embedding is large enough for 8-bit moments."""
    pytest.importorskip("bitsandbytes")
    data, fresh = (write("d.jsonl", DEMONSTRATIONS),), (write("v.jsonl", DEMONSTRATIONS[:2]),)
    options = {
        "base": str(save("gpt2")),
        "data": data,
        "validation": fresh,
        "epochs": 3,
        "batch": 4,
        "lr": 1e-2,
        "memory": ("adam8bit",),
    }
    whole, stopped = (make_config(SFTConfig, {**options, "out": tmp_path / name}) for name in ("whole", "stopped"))
    sft.main(whole)
    with monkeypatch.context() as patch:
        stop_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            sft.main(stopped)
    sft.main(stopped)
    assert_same_tensors(weights_of(whole.out), weights_of(stopped.out), 0)
