"""Variable-length attention against the blocks that it stands for: layouts on the CPU, torch's kernel on a GPU.

pytest tests/models/test_varlen_attention.py
"""

import copy

import pytest
import torch
from test_packed_attention import CPU, GROUPS, make_model

from instructgpt.data.packing import collate
from instructgpt.models import packed_attention, varlen_attention
from instructgpt.models.execution import execution_path
from instructgpt.models.packed_attention import hidden_states, use_packed_attention
from instructgpt.models.precision import apply_memory_options

CUDA = torch.device("cuda")


def documented_kernel(q, k, v, q_starts, k_starts, max_q, max_k, *, scale, window_size, enable_gqa):
    """What torch documents of `varlen_attn`, row by row."""
    assert window_size == (-1, 0)
    assert enable_gqa == (q.shape[1] != k.shape[1])
    group, rows = q.shape[1] // k.shape[1], []
    for text in range(len(q_starts) - 1):
        (q_first, q_end), (k_first, k_end) = q_starts[text : text + 2].tolist(), k_starts[text : text + 2].tolist()
        assert q_end - q_first <= max_q
        assert k_end - k_first <= max_k
        for row in range(q_first, q_end):
            seen = slice(k_first, k_end - (q_end - 1 - row))  # the last row sees the last key
            heads = []
            for head in range(q.shape[1]):
                seen_k, seen_v = k[seen, head // group], v[seen, head // group]
                size = q.shape[2] ** -0.5 if scale is None else scale
                heads.append((size * seen_k @ q[row, head]).softmax(0) @ seen_v)
            rows.append(torch.stack(heads))
    return torch.stack(rows)


@pytest.fixture
def kernel_on_cpu(monkeypatch):
    """Let float32 on the CPU take the kernel's path."""
    calls = []
    monkeypatch.setattr(varlen_attention, "VARLEN_DEVICES", ("cpu",))
    monkeypatch.setattr(packed_attention, "VARLEN_DTYPES", (torch.float32,))
    monkeypatch.setattr(
        varlen_attention, "_load_kernel", lambda: lambda *args, **kw: calls.append(1) or documented_kernel(*args, **kw)
    )
    varlen_attention.has_varlen_attention.cache_clear()
    yield calls
    varlen_attention.has_varlen_attention.cache_clear()


@pytest.mark.parametrize("examples", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_layouts_give_the_states_and_gradients_of_blocks(family, examples, kernel_on_cpu, gradients, monkeypatch):
    model = make_model(family)
    use_packed_attention(model)
    weight = torch.linspace(-1, 1, model.config.hidden_size)
    results = []
    for has_kernel in (True, False):
        kernel_on_cpu.clear()
        monkeypatch.setattr(packed_attention, "has_varlen_attention", lambda _, has_kernel=has_kernel: has_kernel)
        states = hidden_states(model, collate(examples))
        assert bool(kernel_on_cpu) == has_kernel
        (states @ weight).sin().sum().backward()
        results.append((states.detach(), gradients(model)))
    (states, grads), (expected, expected_grads) = results
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in expected_grads.items():
        torch.testing.assert_close(grads[name], gradient, atol=1e-4, rtol=1e-3)


@pytest.mark.usefixtures("kernel_on_cpu")
def test_a_kernel_with_other_numbers_is_not_used(monkeypatch):
    """For example one that aligns causal attention at the first key instead of the last."""
    assert varlen_attention.has_varlen_attention(CPU)
    varlen_attention.has_varlen_attention.cache_clear()

    def first_aligned(q, k, v, q_starts, k_starts, max_q, max_k, **options):
        shorter = k_starts[:-1] + q_starts.diff()
        parts = [torch.arange(int(a), int(b)) for a, b in zip(k_starts[:-1], shorter, strict=True)]
        index = torch.cat(parts)
        assert max_k >= max_q
        return documented_kernel(q, k[index], v[index], q_starts, q_starts, max_q, max_q, **options)

    monkeypatch.setattr(varlen_attention, "_load_kernel", lambda: first_aligned)
    assert not varlen_attention.has_varlen_attention(CPU)


def test_the_cpu_computes_in_blocks():
    assert not varlen_attention.has_varlen_attention(CPU)
    model = make_model("llama")
    use_packed_attention(model)
    assert collate(GROUPS["two"]).cache == {}
    assert packed_attention.get_attention_layout(collate(GROUPS["two"])).varlen is None
    assert "packed sdpa" in str(execution_path(model))


def test_plans_for_a_gpu_name_the_kernel():
    model = make_model("llama")
    use_packed_attention(model)
    assert "packed sdpa" in str(execution_path(model, CUDA))
    apply_memory_options(model, ("bf16",))
    assert "packed varlen" in str(execution_path(model, CUDA))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's variable-length attention needs a CUDA device")
@pytest.mark.parametrize("examples", GROUPS.values(), ids=GROUPS.keys())
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_the_kernel_equals_the_blocks_on_cuda(family, examples, gradients, monkeypatch):
    assert varlen_attention.has_varlen_attention(CUDA), "this torch has no such kernel, or its numbers differ"
    blocks = make_model(family).to(CUDA)
    use_packed_attention(blocks)
    apply_memory_options(blocks, ("bf16",))
    model = copy.deepcopy(blocks)
    states = hidden_states(model, collate(examples, CUDA))
    states.float().square().sum().backward()
    monkeypatch.setattr(packed_attention, "has_varlen_attention", lambda _: False)
    expected = hidden_states(blocks, collate(examples, CUDA))
    expected.float().square().sum().backward()
    torch.testing.assert_close(states, expected, atol=5e-2, rtol=5e-2)
    grads, expected_grads = gradients(model), gradients(blocks)
    for name, gradient in expected_grads.items():
        assert (grads[name] - gradient).norm() < 0.05 * gradient.norm() + 1e-2, name
