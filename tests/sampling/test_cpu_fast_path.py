"""A model that is laid out for sampling says what it said, and is left as it was.

pytest tests/sampling/test_cpu_fast_path.py
"""

import pytest
import torch
from conftest import CPU, FAMILIES

from instructgpt.models.policy import load_policy
from instructgpt.sampling.cpu_fast_path import DirectCall, cpu_fast_path

TOKENS = [[3, 3, 3, 8, 100, 21, 77, 50]]


@pytest.fixture(scope="module")
def models(save):
    return {family: load_policy(save(family), CPU)[0] for family in FAMILIES}


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_lean_model_says_the_same_and_is_itself_again_afterwards(models, family):
    model, tokens = models[family], torch.tensor(TOKENS)
    before = {name: (id(parameter), parameter.stride()) for name, parameter in model.named_parameters()}
    held = [dict(module.__dict__) for module in model.modules()]
    expected = model(input_ids=tokens).logits
    with cpu_fast_path(model):
        torch.testing.assert_close(model(input_ids=tokens).logits, expected, atol=1e-5, rtol=0)
        assert len(model.state_dict()) >= len(before)
        assert isinstance(model.get_output_embeddings(), DirectCall)
    assert {name: (id(parameter), parameter.stride()) for name, parameter in model.named_parameters()} == before
    assert [set(module.__dict__) for module in model.modules()] == [set(one) for one in held]


@torch.no_grad()
def test_hooks_are_heard_and_lists_stay_lists_in_a_lean_model(models):
    model, heard = models["llama"], []
    hook = model.model.layers[0].mlp.down_proj.register_forward_hook(lambda *_: heard.append(1))
    with cpu_fast_path(model):
        assert len(model.model.layers[:1]) == 1
        model(input_ids=torch.tensor([[1, 2]]))
    hook.remove()
    assert heard == [1]
