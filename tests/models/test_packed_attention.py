"""Batches without padding, and shared prompts, against transformers' own forward pass over single sequences.

pytest tests/models/test_packed_attention.py
"""

import copy
import json

import pytest
import torch
import transformers
from conftest import CONTEXT, CPU, FAMILIES, assert_same_tensors, tiny_model

from instructgpt.data import packing
from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.data.rankings import LabelerRanks, RankedPrompt
from instructgpt.models import last_layer_subset, packed_attention
from instructgpt.models.packed_attention import PACKED_ATTENTION, hidden_states, use_packed_attention
from instructgpt.models.policy import load_policy, save_policy
from instructgpt.models.reward_model import load_reward_model
from instructgpt.train import rankings
from instructgpt.train.reward import ranking_backward

MORE_FAMILIES = (*FAMILIES, "qwen3")


def random_tokens(length, seed=0):
    """Draw tokens, the same for the same arguments."""
    return torch.randint(0, 250, (length,), generator=torch.Generator().manual_seed(100 * length + seed)).tolist()


def make_examples(prompt, *lengths):
    """Make examples with completions of the given lengths to one prompt."""
    return [
        TokenizedExample(random_tokens(prompt, 1), random_tokens(length, place)) for place, length in enumerate(lengths)
    ]


GROUPS = {
    "one completion": make_examples(12, 5),
    "two": make_examples(9, 3, 11),
    "nine": make_examples(20, 7, 1, 30, 2, 2, 9, 16, 4, 12),
    "one to nine": [example for k in range(1, 10) for example in make_examples(10 + k, *range(1, k + 1))],
    "a short prompt": make_examples(2, 4, 6, 1),
    "an empty completion": make_examples(10, 0, 3),
    "prompts of very different lengths": [
        *make_examples(50, 3, 9, 14),
        *make_examples(8, 40, 1),
        *make_examples(1, 2, 2),
        *make_examples(17, 5),
    ],
    "the same twice": make_examples(11, 6, 6, 6),
    "as long as the context": make_examples(CONTEXT - 3, 3, 2, 1),
    "completions of two prompts in turn": [
        pair[i] for i in (0, 1) for pair in (make_examples(15, 4, 7), make_examples(16, 6, 2))
    ],
    "documents of a window": [
        TokenizedExample([5], random_tokens(20), document_starts=(4, 15)),
        *make_examples(9, 2, 3),
    ],
}


def make_model(family):
    if family != "qwen3":
        return tiny_model(family, 300, 0)
    torch.manual_seed(4)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = transformers.Qwen3Config(
        vocab_size=300,
        head_dim=8,
        initializer_range=0.3,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=0,
        **shape,
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def texts(example):
    """Split an example into its documents."""
    tokens = example.prompt_ids + example.completion_ids
    return [
        tokens[begin:end]
        for begin, end in zip((0, *example.document_starts), (*example.document_starts, len(tokens)), strict=True)
    ]


def stock_states(model, examples):
    """Compute last hidden states by transformers, one document at a time. -> a tensor an example."""
    return [
        torch.cat(
            [
                model.base_model(input_ids=torch.tensor([text]), use_cache=False).last_hidden_state[0]
                for text in texts(example)
            ]
        )
        for example in examples
    ]


@pytest.mark.parametrize("few", [0, 1], ids=["all", "few"])
@pytest.mark.parametrize("examples", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_states_and_gradients_equal_those_of_separate_sequences(family, examples, few, gradients, monkeypatch):
    """With the last feed-forward part for all tokens, and for any share of them that is read."""
    monkeypatch.setattr(last_layer_subset, "MAX_SUBSET_SHARE", few)
    stock = make_model(family)
    ours = copy.deepcopy(stock)
    use_packed_attention(ours)
    assert ours.config._attn_implementation == PACKED_ATTENTION
    states = stock_states(stock, examples)
    last = torch.stack([of_example[-1] for of_example in states])
    before = torch.cat(
        [
            of_example[len(example.prompt_ids) - 1 : len(example) - 1]
            for of_example, example in zip(states, examples, strict=True)
        ]
    )
    batch = collate(examples)
    got = [hidden_states(ours, batch, read) for read in ("last_positions", "target_positions")]
    assert [
        last_layer_subset.get_token_subset(batch, read) is not None for read in ("last_positions", "target_positions")
    ] == [few, few]
    for states_read, expected_states in zip(got, (last, before), strict=True):
        torch.testing.assert_close(states_read, expected_states, atol=1e-5, rtol=1e-5)

    weight = torch.linspace(-1, 1, last.shape[-1])
    ((last @ weight).sin().sum() + (before @ weight).cos().sum()).backward()
    ((got[0] @ weight).sin().sum() + (got[1] @ weight).cos().sum()).backward()
    expected = gradients(stock.base_model)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    scaled = [
        {name: gradient / max(1, largest) for name, gradient in found.items()}
        for found in (gradients(ours.base_model), expected)
    ]
    assert_same_tensors(*scaled, 1e-5)


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_the_last_mlp_computes_selected_tokens_only(family):
    model, rows = make_model(family), []
    use_packed_attention(model)
    for name, module in model.named_modules():
        if name.endswith(".mlp"):
            module.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[-2]))
    batch = collate(make_examples(20, 3, 4))
    hidden_states(model, batch, "last_positions")
    hidden_states(model, batch, "target_positions")  # of both completions' first tokens by the prompt's last one
    assert rows == [27, 2, 27, 6]


def test_a_shared_prompt_is_in_the_batch_once():
    for completions in range(2, 10):
        batch = collate(make_examples(30, *[5] * completions))
        assert len(batch.input_ids) == 30 + 5 * completions
    assert len(collate(make_examples(packing.MIN_SHARED_PREFIX - 1, 5, 5)).input_ids) == 2 * (
        packing.MIN_SHARED_PREFIX + 4
    )
    unlike = [TokenizedExample([1] * 30, [2]), TokenizedExample([1] * 29 + [3], [2])]
    assert len(collate(unlike).input_ids) == 62


@pytest.mark.parametrize("examples", GROUPS.values(), ids=GROUPS.keys())
def test_padded_rows_give_the_same_states(examples):
    """Families without the attention interface use them."""
    model = make_model("gpt2")
    batch = collate(examples)
    with torch.no_grad():
        rows = hidden_states(model, batch)
        use_packed_attention(model)
        torch.testing.assert_close(rows, hidden_states(model, batch), atol=1e-5, rtol=1e-5)


def test_block_boundaries_do_not_change_states(monkeypatch):
    model, examples = make_model("llama"), [example for group in GROUPS.values() for example in group]
    use_packed_attention(model)
    batch = collate(examples)
    with torch.no_grad():
        expected = hidden_states(model, batch)
        counts = set()
        for factor in (0, 1.5, 1000):
            monkeypatch.setattr(packed_attention, "MAX_LENGTH_RATIO", factor)
            batch = collate(examples)  # a batch keeps its layout
            counts.add(len(packed_attention.get_attention_layout(batch).blocks))
            torch.testing.assert_close(hidden_states(model, batch), expected, atol=1e-5, rtol=1e-5)
    assert min(counts) == 2 < max(counts)


def test_families_with_other_attention_keep_their_own():
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 300}
    usual = {"num_key_value_heads": 1, "intermediate_size": 32, "max_position_embeddings": CONTEXT}
    for config in (
        transformers.MistralConfig(sliding_window=4, **shape, **usual),
        transformers.BloomConfig(
            **{name: size for name, size in shape.items() if "hidden" in name}, n_head=2, vocab_size=300
        ),
    ):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        use_packed_attention(model)
        assert model.config._attn_implementation != PACKED_ATTENTION
        examples = make_examples(12, 3, 9)
        batch = collate(examples)
        with torch.no_grad():
            expected = torch.stack([states[-1] for states in stock_states(model, examples)])
            torch.testing.assert_close(
                hidden_states(model, batch)[batch.last_positions], expected, atol=1e-5, rtol=1e-5
            )


def test_packed_attention_is_not_saved(save, tmp_path):
    model, render = load_policy(save("llama"), CPU)
    assert model.config._attn_implementation == PACKED_ATTENTION
    save_policy(model, render, tmp_path)
    assert PACKED_ATTENTION not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


# --- the reward model ----------------------------------------------------------------------------------------------


def make_ranked_prompts():
    """Make prompts with 4, 9 and 2 ranked completions, with ties; two labelers ranked the second."""
    ann, bob = (9, 8, 7, 6, 5, 4, 3, 2, 1), (1, 1, 2, 2, 3, 3, 1, 1, 2)
    rows = [
        (make_examples(20, 3, 9, 1, 5), [(1, 2, 3, 3)]),
        (make_examples(33, *range(1, 10)), [ann, bob]),
        (make_examples(2, 30, 8), [(1, 2)]),
    ]
    return [
        RankedPrompt(examples, tuple(LabelerRanks(ranks, None, "training") for ranks in orders), "")
        for examples, orders in rows
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_k_wise_loss_and_gradients_equal_those_of_separate_sequences(
    save_reward, family, gradients, monkeypatch, in_two_processes
):
    reward = load_reward_model(save_reward(family), CPU)
    ranked = make_ranked_prompts()
    loss, right = ranking_backward(reward, ranked)
    found = gradients(reward.model)
    parts = in_two_processes(rankings, lambda: ranking_backward(reward, ranked)[0])
    assert sum(parts) == pytest.approx(loss, abs=1e-6)
    assert_same_tensors(gradients(reward.model), found)

    monkeypatch.setattr(packing, "MIN_SHARED_PREFIX", 1000)
    reward.model.set_attn_implementation("eager")
    assert ranking_backward(reward, ranked) == pytest.approx((loss, right), abs=1e-5)
    assert_same_tensors(gradients(reward.model), found, 1e-5)
