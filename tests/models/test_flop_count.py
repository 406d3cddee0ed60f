"""FLOPs of passes as they run, against torch's own counter."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import CPU
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.models.flop_count import cached_shape, count_read_tokens
from instructgpt.models.flops import SequenceShape
from instructgpt.models.lora import add_lora
from instructgpt.models.policy import load_policy
from instructgpt.models.precision import apply_memory_options
from instructgpt.models.reward_model import load_reward_model
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.sampling.engine import sample_tokens
from instructgpt.train.optim import lm_loss

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12], [5, 6, 7, 8, 9, 10, 11, 12], [9, 8, 7, 6, 5]]
EXAMPLES = [TokenizedExample(prompt, [20 + row] * (3 + row)) for row, prompt in enumerate(PROMPTS)]


def count(run):
    """Run a pass -> FLOPs needed and done by our count, FLOPs by torch's."""
    PHASE_TIMER.clear()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    needed, done = PHASE_TIMER.total_flops()
    PHASE_TIMER.clear()
    return needed, done, counter.get_total_flops()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
@pytest.mark.parametrize("backward", [False, True])
def test_done_is_what_torch_counts_and_needed_is_less_by_masked_pairs(save, family, backward):
    model, _ = load_policy(save(family), CPU)
    needed, done, torchs = count(lambda: lm_loss(model, EXAMPLES, backward=backward))
    # Microbatches keep their tokens apart; the three examples fit in one, with the prompt of two of them once.
    tokens = len(collate(EXAMPLES).input_ids)
    assert tokens == 8 + 3 + 4 + 5 + 5
    assert done == torchs
    shape = cached_shape(model)
    sequences = [SequenceShape(8), SequenceShape(3, 8), SequenceShape(4, 8), SequenceShape(10)]
    read = 3 + 4 + 5 - 1  # two completions share the token before them
    by_hand = shape.forward_flops(sequences, 12) - 2 * shape.last_mlp_parameters * (tokens - read)
    assert needed == (3 if backward else 1) * by_hand
    assert needed < done


def test_layers_that_are_computed_again_are_done_and_not_needed(save):
    model, _ = load_policy(save("llama"), CPU)
    needed, done, _ = count(lambda: lm_loss(model, EXAMPLES))
    apply_memory_options(model, ["checkpointing"])
    again_needed, again_done, torchs = count(lambda: lm_loss(model, EXAMPLES))
    assert again_needed == needed
    assert again_done > done
    # torch stops computing a layer again before its last matrix, where nothing needs the result.
    last_matrices = sum(layer.mlp.down_proj.weight.numel() for layer in model.model.layers)
    assert torchs <= again_done <= torchs + 2 * 25 * last_matrices


def test_frozen_matrices_have_no_gradient(save):
    model, _ = load_policy(save("llama"), CPU)
    whole, _, _ = count(lambda: lm_loss(model, EXAMPLES))
    adapted = add_lora(model, 2, 0)
    needed, done, torchs = count(lambda: lm_loss(adapted, EXAMPLES))
    assert needed < whole
    # The first layer's adapters need no gradient of their input; the count takes it that all inputs have one.
    assert done == pytest.approx(torchs, rel=0.05)


def test_a_score_reads_the_last_tokens(save_reward):
    reward = load_reward_model(save_reward(), CPU)
    _, done, torchs = count(lambda: reward.score(EXAMPLES))
    batch = collate(EXAMPLES)
    assert count_read_tokens(batch, "last_positions") == 3
    assert count_read_tokens(batch, "target_positions") == 11
    assert count_read_tokens(batch, None) == 25
    assert done == torchs


def test_sampling_needs_each_token_once(save):
    model, tokenizer = load_policy(save("llama"), CPU)
    with torch.no_grad():
        PHASE_TIMER.clear()
        samples = sample_tokens(model, PROMPTS, stop_tokens=tokenizer.stop_tokens, max_tokens=6, seed=0)
        needed, done = PHASE_TIMER.total_flops()
        PHASE_TIMER.clear()
    shape = cached_shape(model)
    # The beginnings of the two different prompts once, then a token a step, which sees all before it.
    sequences = [SequenceShape(7), SequenceShape(4)]
    sequences += [SequenceShape(len(s.tokens), len(p) - 1) for p, s in zip(PROMPTS, samples, strict=True)]
    assert needed == shape.forward_flops(sequences, sum(len(sample.tokens) for sample in samples))
    assert done >= needed


def test_flops_go_to_the_open_phase_and_survive_a_resume(save):
    model, _ = load_policy(save("gpt2"), CPU)
    PHASE_TIMER.clear()
    lm_loss(model, EXAMPLES)
    lm_loss(model, EXAMPLES, backward=False)
    summary = PHASE_TIMER.summary()
    assert summary["forward"]["flops"] == 3 * summary["validation"]["flops"] > 0
    total = PHASE_TIMER.total_flops()
    PHASE_TIMER.clear(summary)
    assert PHASE_TIMER.total_flops() == total
    PHASE_TIMER.clear()


@pytest.mark.slow
def test_ranks_add_up_to_one_process(kit, command, tmp_path):
    records = []
    for processes in (1, 2):
        out = tmp_path / f"of-{processes}"
        assert command(*kit.pretrain(out, "--processes", processes)).code == 0
        records.append(json.loads((out / "run.json").read_text()))
    assert records[0]["flops"] == records[1]["flops"] > 0
    assert records[0]["flops_done"] == pytest.approx(records[1]["flops_done"], rel=0.05)  # other microbatches
