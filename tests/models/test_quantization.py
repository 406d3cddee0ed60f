"""Frozen weights in 4 bits: an NF4 worked out here, gradients through it, all stages, and what is refused.

pytest tests/models/test_quantization.py
"""

import json
import sys

import numpy as np
import pytest
import safetensors.torch
import scipy.stats
import torch
from conftest import CPU, DEMONSTRATIONS, FAMILIES, FRESH_RANKINGS, RANKINGS, assert_same_tensors, weights_of
from support.signals import stop_at
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from instructgpt import cli
from instructgpt.config import make_config
from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.errors import InputError
from instructgpt.models import quantization
from instructgpt.models.flops import build_on_meta, get_model_shape
from instructgpt.models.lora import BaseModelView, add_lora, get_backbone, merged_state_dict
from instructgpt.models.policy import completion_logp, count_parameters, load_policy
from instructgpt.models.precision import apply_memory_options, cached_bf16_weights, hold_frozen_in_bf16
from instructgpt.plan.memory import held_weights
from instructgpt.plan.meta_trace import TracedModel, forward_logp
from instructgpt.sampling.engine import sample_tokens
from instructgpt.train import export, ppo, reward, sft
from instructgpt.train.configs import ExportConfig, PretrainConfig, RewardConfig, SFTConfig

BATCH = collate(
    [TokenizedExample([5, 9, 70], [40, 41, 0]), TokenizedExample([40], [7, 7, 9, 12, 0]), TokenizedExample([3, 8], [0])]
)
OPTIONS = {"lora": 4, "memory": ("4bit",)}


@pytest.fixture
def _bitsandbytes():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'bitsandbytes>=0.50'")


needs_bitsandbytes = pytest.mark.usefixtures("_bitsandbytes")


def nf4_levels():
    """The 16 levels: quantiles of a normal distribution, 8 above and 7 below zero, in units of the largest."""
    outermost = 0.9677083
    positive = scipy.stats.norm.ppf(np.linspace(outermost, 0.5, 9)[:-1])
    negative = -scipy.stats.norm.ppf(np.linspace(outermost, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([positive, [0.0], negative]))
    return levels / levels.max()


def round_to_nf4(weight):
    """Round each block of 64 numbers, row by row, to the nearest level times its largest magnitude."""
    flat = weight.detach().double().numpy().ravel()
    blocks = np.pad(flat, (0, -len(flat) % 64)).reshape(-1, 64)
    scales = np.abs(blocks).max(1, keepdims=True)
    nearest = np.abs(blocks[..., None] / np.where(scales, scales, 1)[..., None] - nf4_levels()).argmin(-1)
    rounded = (nf4_levels()[nearest] * scales).ravel()[: len(flat)].reshape(weight.shape)
    return torch.from_numpy(rounded).float()


def linear_layers(model):
    return {
        name: module
        for name, module in get_backbone(model).named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    }


def rounded_policy(folder):
    """A plain model whose matrices are rounded by `round_to_nf4`."""
    model, _ = load_policy(folder, CPU)
    for layer in linear_layers(model).values():
        layer.weight.data = round_to_nf4(layer.weight)
    return model


def quantized_policy(folder, memory=("4bit",), lora=4):
    """A model whose adapters have been moved away from zero."""
    model, tokenizer = load_policy(folder, CPU)
    apply_memory_options(model, memory)
    model = add_lora(model, lora, 3)
    hold_frozen_in_bf16(model)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model, tokenizer


@needs_bitsandbytes
@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (10, 32), (5, 7), (33, 10), (1, 1), (64, 130)])
def test_numbers_are_the_nearest_of_sixteen_levels(shape):
    for layer in (torch.nn.Linear(shape[1], shape[0]), Conv1D(shape[0], shape[1])):
        weight = layer.weight.detach().clone()
        assert quantization.quantize_matrices(torch.nn.Sequential(layer)) == weight.numel()
        torch.testing.assert_close(layer.weight, round_to_nf4(weight), atol=1e-6, rtol=1e-6)
        assert layer.packed.numel() == -(-weight.numel() // 2)
        assert layer.scales.numel() == -(-weight.numel() // 64)
        assert list(layer.state_dict()) == ["bias"]


@needs_bitsandbytes
@pytest.mark.parametrize("family", FAMILIES)
def test_it_computes_as_the_rounded_model_forward_and_backward(save, family):
    folder = save(family)
    model, plain = quantized_policy(folder)[0], add_lora(rounded_policy(folder), 4, 3)
    plain.load_state_dict({**plain.state_dict(), **{n: p for n, p in model.named_parameters() if p.requires_grad}})
    results = [completion_logp(one, BATCH) for one in (model, plain)]
    torch.testing.assert_close(*results, atol=2e-6, rtol=1e-5)
    for result in results:
        result.square().sum().backward()
    gradients = [{n: p.grad for n, p in one.named_parameters() if p.requires_grad} for one in (model, plain)]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient - gradients[1][name]).norm() <= 1e-4 * gradient.norm(), name
    reference = rounded_policy(folder)
    torch.testing.assert_close(
        completion_logp(BaseModelView(model), BATCH), completion_logp(reference, BATCH), atol=2e-6, rtol=1e-5
    )
    reference.load_state_dict(merged_state_dict(model), strict=True)
    torch.testing.assert_close(completion_logp(reference, BATCH), results[0], atol=2e-6, rtol=1e-5)


@needs_bitsandbytes
def test_no_whole_matrix_is_kept_for_the_backward_pass(save):
    def saved_shapes(model):
        saved = set()

        def pack(tensor):
            saved.update({tuple(tensor.shape), tuple(tensor.T.shape) if tensor.ndim == 2 else ()})
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            completion_logp(model, BATCH)
        return saved

    folder = save("llama")
    matrices = {tuple(layer.weight.shape) for layer in linear_layers(load_policy(folder, CPU)[0]).values()}
    assert matrices <= saved_shapes(add_lora(load_policy(folder, CPU)[0], 4, 3))
    assert not matrices & saved_shapes(quantized_policy(folder)[0])


@needs_bitsandbytes
def test_sampling_and_training_agree_in_bf16(save):
    model, tokenizer = quantized_policy(save("llama"), ("4bit", "bf16"))
    arguments = {"stop_tokens": tokenizer.stop_tokens, "max_tokens": 6, "seed": 0}
    with torch.no_grad(), cached_bf16_weights(model):
        (sampled,) = sample_tokens(model, [[5, 9, 70]], **arguments)
    batch = collate([TokenizedExample([5, 9, 70], sampled.tokens)])
    torch.testing.assert_close(torch.tensor(sampled.logp), completion_logp(model, batch).detach(), atol=3e-2, rtol=0)


@needs_bitsandbytes
def test_what_is_counted(save):
    """The plan, which builds the model without weights, counts what the loaded model holds."""
    folder = save("llama")
    model, plain = quantized_policy(folder)[0], load_policy(folder, CPU)[0]
    matrices = sum(layer.weight.numel() for layer in linear_layers(plain).values())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count_parameters(model) == count_parameters(plain) + trained
    shape = get_model_shape(model)
    assert shape == get_model_shape(build_on_meta(plain.config, lora=4, memory=("4bit",)))
    assert (shape.quantized_parameters, shape.trainable_parameters) == (matrices, trained)
    tensors = [*model.parameters(), *(b for layer in model.modules() for b in layer.buffers(recurse=False))]
    held = sum(t.numel() * t.element_size() for t in tensors if t.dtype == torch.uint8 or t.requires_grad)
    planned = TracedModel(plain.config, forward_logp, lora=4, memory=("4bit",))
    rest = 4 * (count_parameters(plain) - matrices)
    scales = sum(4 * layer.scales.numel() for layer in model.modules() if quantization.is_quantized(layer))
    assert held_weights(planned) == pytest.approx(held + rest + scales, rel=0.01)


def run_options(folder, write, tmp_path):
    return {
        "base": str(folder),
        "data": (write("d.jsonl", DEMONSTRATIONS),),
        "validation": (write("v.jsonl", DEMONSTRATIONS[:2]),),
        "epochs": 2,
        "batch": 4,
        "lr": 1e-2,
        "out": tmp_path / "sft",
        **OPTIONS,
    }


@needs_bitsandbytes
def test_sft_saves_the_rounded_matrices_with_its_adapters(save, write, tmp_path, capsys):
    """The saved model minus the adapters' products is the base rounded to NF4; a killed run goes on to the bit."""
    folder = save("gpt2")
    config = make_config(SFTConfig, run_options(folder, write, tmp_path))
    sft.main(config)
    assert "frozen weights are held in 4 bits (NF4), rounded so in the saved model too" in capsys.readouterr().out
    saved, base = AutoModelForCausalLM.from_pretrained(config.out), rounded_policy(folder)
    adapter = safetensors.torch.load_file(config.out / "adapter" / "adapter_model.safetensors")
    checked = 0
    for name, layer in linear_layers(base).items():
        a, b = (next(t for key, t in adapter.items() if key.endswith(f"{name}.lora_{which}.weight")) for which in "AB")
        product = 2 * (b @ a).T  # GPT-2's matrices are transposed
        torch.testing.assert_close(linear_layers(saved)[name].weight, layer.weight + product, atol=1e-5, rtol=1e-4)
        checked += bool(product.abs().max() > 1e-4)
    assert checked
    stopped = make_config(SFTConfig, run_options(folder, write, tmp_path) | {"out": tmp_path / "stopped"})
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            sft.main(stopped)
    exported = export.main(ExportConfig(checkpoint=stopped.out, out=tmp_path / "exported", latest=True))
    sft.main(stopped)
    assert_same_tensors(weights_of(config.out), weights_of(stopped.out), 0)
    adapter = safetensors.torch.load_file(exported / "adapter" / "adapter_model.safetensors")
    for name, layer in linear_layers(AutoModelForCausalLM.from_pretrained(exported)).items():
        a, b = (next(t for key, t in adapter.items() if key.endswith(f"{name}.lora_{which}.weight")) for which in "AB")
        expected = linear_layers(base)[name].weight + 2 * (b @ a).T
        torch.testing.assert_close(layer.weight, expected, atol=1e-5, rtol=1e-4)


@needs_bitsandbytes
def test_reward_and_ppo_run_on_quantized_weights(save, small_ppo, write, tmp_path):
    """PPO's first ratio is 1 and its first KL 0: policy and reference are the same quantized weights."""
    options = {
        "base": str(save("llama")),
        "data": (write("r.jsonl", RANKINGS),),
        "validation": (write("v.jsonl", FRESH_RANKINGS),),
        "out": tmp_path / "reward",
    }
    reward.main(make_config(RewardConfig, options | {"batch": 2, "lr": 1e-3} | OPTIONS))
    config = small_ppo(reward=(str(tmp_path / "reward"),), **OPTIONS)
    ppo.main(config)
    rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert abs(rows[0]["objective/kl"]) < 1e-4
    loaded, _ = load_policy(config.out, CPU)
    assert torch.isfinite(completion_logp(loaded, BATCH)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": ("4bit",)}, "without --lora all weights train; give --lora 16"),
        ({"memory": ("4bit", "offload"), "lora": 2}, "does not work with offload"),
        ({"memory": ("4bit",), "lora": 2, "processes": 2}, "works in one process"),
    ],
)
def test_conflicts_are_refused(options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        make_config(SFTConfig, {"base": "b", "data": ("d.jsonl",), "out": tmp_path, **options})
    with pytest.raises(InputError, match="without --lora"):
        make_config(PretrainConfig, {"corpus": ("c.txt",), "out": tmp_path, "memory": ("4bit",)})


def test_a_missing_library_is_said_before_the_model_is_read(monkeypatch, save, write, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(sft, "load_policy", lambda *_: pytest.fail("the model was read"))
    line = ["--base", str(save("llama")), "--data", str(write("d.jsonl", DEMONSTRATIONS))]
    assert cli.run_command(["sft", *line, "--out", str(tmp_path / "o"), "--lora", "2", "--memory", "4bit"]) == 2
    assert "--memory 4bit needs bitsandbytes; run: pip install 'bitsandbytes>=0.50'" in capsys.readouterr().err


def test_a_device_without_kernels_is_named(monkeypatch):
    """The library of another version is there, but has no kernels for the CPU."""

    class Library:
        @staticmethod
        def quantize_4bit(*_, **__):
            raise NotImplementedError("no kernel image for cpu")

    monkeypatch.setitem(sys.modules, "bitsandbytes", Library)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", Library)
    with pytest.raises(InputError, match=r"cannot quantize on the device 'cpu' \(.*no kernel image"):
        quantization.check_quantization(torch.device("cpu"))


def test_the_plan_needs_no_library(monkeypatch, save, write, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    line = ["plan", "sft", "--base", str(save("llama")), "--data", str(write("d.jsonl", DEMONSTRATIONS * 3))]
    rates = ["--matmul", "1", "--bandwidth", "1", "--lora", "2", "--memory", "4bit", "--out", str(tmp_path)]
    assert cli.run_command([*line, *rates]) == 0
    assert cli.run_command([*line, *rates, "--ranks", "2"]) == 2
    assert "works in one process" in capsys.readouterr().err
