"""Models that rank 0 alone reads: every rank computes as with the whole model, replicated or sharded.

pytest tests/models/test_rank0.py
"""

import socket

import pytest
import torch
import torch.distributed as dist
from conftest import CPU
from support import family_checks as checks

from instructgpt.data.packing import collate
from instructgpt.errors import InputError
from instructgpt.models import sharding
from instructgpt.models.lora import add_lora, get_backbone
from instructgpt.models.policy import completion_logp, load_policy
from instructgpt.models.precision import apply_memory_options, cached_bf16_weights, hold_frozen_in_bf16
from instructgpt.models.rank0 import load_on_rank0
from instructgpt.models.reward_model import load_reward_model, new_reward_model, save_reward_model

BATCH = checks.examples(48)


def assert_equal_tensors(named, expected):
    for (name, tensor), (_, other) in zip(named, expected, strict=True):
        assert torch.equal(tensor, other), name


def check_copies(sharded, whole):
    """A copy to train has the same weights and its own memory; copied weights stay when the copy changes."""
    trained, average = sharding.copy_model(sharded, trainable=True), sharding.copy_weights(sharded)
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert set(average.state_dict()) == set(sharded.state_dict())
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(2)
    for model, factor in ((sharded, 1), (trained, 2)):
        with sharding.unsharded(model) as gathered:
            for (name, tensor), expected in zip(gathered.named_parameters(), whole.parameters(), strict=True):
                assert torch.equal(tensor, factor * expected), name
    trained.load_state_dict(average.state_dict())  # as the averaged weights go back into the policy
    with sharding.unsharded(trained) as gathered:
        assert_equal_tensors(gathered.named_parameters(), whole.named_parameters())


def check_head_bias(folder):
    """Rank 0's head has a bias that the stock class lacks; the other rank gets it too."""
    expected = load_reward_model(folder, CPU)
    reward = load_on_rank0(load_reward_model, folder, CPU)
    sharding.shard(reward.model)
    torch.testing.assert_close(reward.score(BATCH), expected.score(BATCH), atol=1e-5, rtol=1e-5)
    assert expected.model.score.bias is not None


def check_bf16(folder, lora):
    """Layers are gathered in bf16, gradients added up in float32, and sampling computes with the same numbers."""
    (whole, _), (model, _) = load_policy(folder, CPU), load_on_rank0(load_policy, folder, CPU)
    whole, model = (add_lora(one, lora, 1) for one in (whole, model))
    seen = {}
    for one in (whole, model):
        apply_memory_options(one, ("bf16",))
        hold_frozen_in_bf16(one)
    sharding.shard(model, memory=("bf16",))
    layer = next(
        module for module in get_backbone(model).modules() if type(module).__name__.endswith("LlamaDecoderLayer")
    )
    watched = {"norm": layer.input_layernorm, "embedding": get_backbone(model).get_input_embeddings()}
    for name, module in watched.items():
        module.register_forward_hook(lambda module, *_, name=name: seen.update({name: module.weight.dtype}))
    logp, expected = (completion_logp(one, collate(BATCH)) for one in (model, whole))
    assert seen == {"norm": torch.bfloat16, "embedding": torch.float32}
    torch.testing.assert_close(logp, expected, atol=0.02, rtol=0.02)
    for values in (logp, expected):
        values.sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        if other.grad is not None:
            assert parameter.grad.dtype == torch.float32
            difference = parameter.grad.full_tensor() / 2 - other.grad  # two ranks had the same rows
            assert difference.norm() < 0.05 * other.grad.norm() + 1e-3, name
    with torch.no_grad(), sharding.unsharded(model) as gathered, cached_bf16_weights(gathered):
        torch.testing.assert_close(completion_logp(gathered, collate(BATCH)), logp.detach(), atol=1e-6, rtol=1e-6)
    full = sharding.full_model_on_rank0(model)
    if dist.get_rank() == 0 and not lora:
        assert_equal_tensors(full.named_parameters(), whole.named_parameters())


def compare(rank, folder, port):
    """Compare a model that rank 0 has read with one that every rank reads, in one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for minimum in (10**9, 0):  # replicated, then sharded in groups of one layer
        sharding.MIN_SHARDED_PARAMETERS = sharding.MIN_FSDP_GROUP_PARAMETERS = minimum
        for lora in (0, 2):
            whole, _ = load_policy(folder, CPU)
            model, tokenizer = load_on_rank0(load_policy, folder, CPU)
            assert all(parameter.is_meta == (rank == 1) for parameter in model.parameters())
            assert tokenizer.eos == 0
            whole, model = (add_lora(one, lora, 1) for one in (whole, model))
            sharding.shard(model)
            with torch.no_grad():
                expected = completion_logp(whole, collate(BATCH))
                torch.testing.assert_close(completion_logp(model, collate(BATCH)), expected, atol=1e-5, rtol=1e-5)
                with sharding.unsharded(model) as gathered:
                    assert_equal_tensors(gathered.named_parameters(), whole.named_parameters())
                    assert_equal_tensors(gathered.named_buffers(), whole.named_buffers())
        expected = new_reward_model(folder, CPU, 5)
        reward = load_on_rank0(new_reward_model, folder, CPU, 5)
        sharding.shard(reward.model)
        torch.testing.assert_close(reward.score(BATCH), expected.score(BATCH), atol=1e-5, rtol=1e-5)
        check_copies(reward.model, expected.model)
        check_head_bias(f"{folder}/biased")
    for lora in (0, 2):
        check_bf16(folder, lora)
    with pytest.raises(InputError, match="no such directory"):  # on both ranks
        load_on_rank0(load_policy, f"{folder}/gone", CPU)
    dist.destroy_process_group()


@pytest.mark.parametrize("tied", [False, True])
def test_ranks_compute_alike_where_rank_0_alone_reads(tied, tmp_path):
    folder = checks.save_small_model("llama", tmp_path, tie_word_embeddings=tied)
    biased = new_reward_model(folder, CPU, 1)
    biased.model.score.bias = torch.nn.Parameter(torch.tensor([0.75]))
    save_reward_model(biased, folder / "biased")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(compare, (str(folder), port), nprocs=2)


def test_one_rank_reads_by_itself(tmp_path):
    folder = checks.save_small_model("llama", tmp_path)
    model, _ = load_on_rank0(load_policy, folder, CPU)
    assert not any(parameter.is_meta for parameter in model.parameters())
