"""The hooks on the last layer: with them hidden states and gradients equal those without.

pytest tests/models/test_last_layer_subset.py
"""

import copy

import pytest
import torch
import transformers
from conftest import CONTEXT, CPU, FAMILIES, assert_same_tensors, tiny_model

from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.models import last_layer_subset
from instructgpt.models.last_layer_subset import enable_last_layer_subset, find_last_mlp
from instructgpt.models.lora import BaseModelView, add_lora
from instructgpt.models.packed_attention import PACKED_ATTENTION, hidden_states, use_packed_attention
from instructgpt.models.policy import load_policy
from instructgpt.models.precision import apply_memory_options

SELECTIONS = ("last_positions", "target_positions")
PROMPT = list(range(20, 40))
EXAMPLES = [TokenizedExample(PROMPT, [1, 2, 3]), TokenizedExample(PROMPT, [4, 5, 6, 7])]
OTHER_EXAMPLES = [TokenizedExample(list(range(50, 65)), [9, 8])]


@pytest.fixture
def mlp_rows():
    """Record the number of tokens that the last feed-forward part of a model computes, call by call."""

    def record(model):
        rows = []
        find_last_mlp(model)[1].register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[-2]))
        return rows

    return record


def whole_layer(model):
    """Copy a model without its hooks."""
    plain = copy.deepcopy(model)
    attention, mlp = find_last_mlp(plain)
    for hooks in (attention._forward_pre_hooks, mlp._forward_pre_hooks, mlp._forward_hooks):
        hooks.clear()
    return plain


@pytest.mark.parametrize("family", FAMILIES)
def test_all_tokens_are_computed_where_all_or_most_are_read(save, family, mlp_rows):
    model = load_policy(save(family), CPU)[0]
    rows, batch = mlp_rows(model), collate(EXAMPLES)
    hidden_states(model, batch, "target_positions")
    hidden_states(model, batch)
    model(input_ids=batch.input_ids[None], use_cache=False)
    hidden_states(model, collate([TokenizedExample([1], [2, 3, 4])]), "target_positions")  # 3 of 4 tokens
    assert rows == [6, 27, 27, 4]


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_layers_use_the_subset_of_their_own_batch(save, family, rank, gradients):
    """Two forward passes before their backward passes, each of which runs the layers again;
    with adapters and without.
    """
    model = add_lora(load_policy(save(family), CPU)[0], rank, seed=0)
    plain = whole_layer(model)
    apply_memory_options(model, ("checkpointing",))
    found = []
    for policy in (model, plain):
        batches = zip((EXAMPLES, OTHER_EXAMPLES), SELECTIONS, strict=True)
        states = [hidden_states(policy, collate(examples), select) for examples, select in batches]
        sum(x.sin().sum() for x in states).backward()
        found.append(gradients(policy))
    assert_same_tensors(found[0], found[1], 1e-5)


@torch.no_grad()
def test_the_reference_below_adapters_computes_the_subset_too(save, mlp_rows):
    model, _ = load_policy(save(), CPU)
    batch, expected = collate(EXAMPLES), whole_layer(model)
    reference = BaseModelView(add_lora(model, 2, seed=0))
    rows = mlp_rows(model)
    for select in SELECTIONS:
        torch.testing.assert_close(hidden_states(reference, batch, select), hidden_states(expected, batch, select))
    assert rows == [2, 6]


@torch.no_grad()
def test_copies_have_hooks_of_their_own(save):
    model = load_policy(save(), CPU)[0]
    copied = copy.deepcopy(model)
    hooks = [next(iter(find_last_mlp(x)[1]._forward_pre_hooks.values())).__self__ for x in (model, copied)]
    assert hooks[0] is not hooks[1]
    attention = next(iter(find_last_mlp(copied)[0]._forward_pre_hooks.values())).__self__
    assert attention is hooks[1], "the hooks of a layer share the subset"


@torch.no_grad()
def test_an_error_leaves_no_subset_behind(save):
    model = load_policy(save(), CPU)[0]
    batch, mlp = collate(EXAMPLES), find_last_mlp(model)[1]
    expected = model(input_ids=batch.input_ids[None]).logits
    forward = mlp.forward
    mlp.forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        hidden_states(model, batch, "last_positions")
    mlp.forward = forward
    torch.testing.assert_close(model(input_ids=batch.input_ids[None]).logits, expected)


def test_the_switch_keeps_the_whole_layer(save, monkeypatch, mlp_rows):
    monkeypatch.setenv(last_layer_subset.SWITCH, "0")
    model = load_policy(save(), CPU)[0]
    rows = mlp_rows(model)
    hidden_states(model, collate(EXAMPLES), "last_positions")
    assert rows == [27]
    assert not find_last_mlp(model)[1]._forward_pre_hooks


def test_families_without_such_a_layer_compute_all_of_it():
    """OPT's layers have no module `mlp`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32, "vocab_size": 300}
    config = transformers.OPTConfig(**sizes, word_embed_proj_dim=16, max_position_embeddings=CONTEXT, dropout=0.0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert find_last_mlp(model) is None
    assert enable_last_layer_subset(model) == []
    batch = collate(EXAMPLES)
    expected = hidden_states(model, batch)
    use_packed_attention(model)
    assert model.config._attn_implementation == PACKED_ATTENTION
    for select in SELECTIONS:
        index = getattr(batch, select)
        torch.testing.assert_close(hidden_states(model, batch, select), expected[index], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_probe_removes_hooks_that_change_a_result(monkeypatch):
    """A feed-forward part that mixes tokens is computed for all of them."""
    model = tiny_model("llama", 300, 0)
    mlp = find_last_mlp(model)[1]
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: forward(x) + x.mean(1, keepdim=True))
    batch = collate([TokenizedExample(PROMPT, [1, 2])])  # one sequence: packed and padded rows have the same tokens
    monkeypatch.setattr("instructgpt.models.packed_attention._PROBE_EXAMPLES", [TokenizedExample(PROMPT, [1, 2])])
    use_packed_attention(model)
    assert model.config._attn_implementation == PACKED_ATTENTION
    assert not mlp._forward_pre_hooks
    states = hidden_states(model, batch)
    torch.testing.assert_close(hidden_states(model, batch, "last_positions"), states[batch.last_positions])
