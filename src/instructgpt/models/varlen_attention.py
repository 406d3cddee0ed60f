"""Attention over the spans of a batch by one kernel: torch's variable-length attention, for half precision on CUDA.

The blocks of `packed_attention.py` are the definition, and what is computed everywhere else: in float32, on a CPU, with
dropout, with a torch that lacks the kernel, and where a probe on the device does not give equal numbers.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instructgpt.data.packing import Span

VARLEN_DEVICES = ("cuda",)
VARLEN_DTYPES = (torch.bfloat16, torch.float16)
"""What the kernel computes in."""
_CAUSAL = (-1, 0)
"""Window of causal attention, aligned at the end: the last query sees all keys, the prompt's included."""
_REQUIRED_ARGUMENTS = ("window_size", "enable_gqa", "scale")
_PROBE_TOLERANCE = 2e-2


@dataclass(frozen=True, slots=True)
class VarlenLayout:
    """The spans of a batch, in order; each attends to its prompt's keys, if any, then causally to its own."""

    q_starts: Tensor  # (S + 1,) int32: where each span begins, and the end
    k_starts: Tensor  # (S + 1,) int32: where the keys of each span begin, and the end
    k_index: Tensor | None  # (T,) positions of the keys in the batch; None where each span has its own only
    longest_q: int
    longest_k: int


def build_varlen_layout(spans: Sequence[Span], device: torch.device) -> VarlenLayout:
    """Return where the queries and keys of spans are; together they are all tokens of a batch, in order."""
    parts = [[part[:2] for part in (span.prompt, span) if part] for span in spans]
    q_lengths = [span.end - span.start for span in spans]
    k_lengths = [sum(end - start for start, end in own) for own in parts]
    k_index = None
    if k_lengths != q_lengths:
        k_index = torch.cat([torch.arange(start, end) for own in parts for start, end in own]).to(device)

    def starts(lengths: list[int]) -> Tensor:
        return F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32)

    return VarlenLayout(starts(q_lengths), starts(k_lengths), k_index, max(q_lengths), max(k_lengths))


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, layout: VarlenLayout, scale: float | None) -> Tensor:
    """Compute causal attention of all spans. q (N, H, D), k and v (N, H or fewer, D) -> (N, H, D)."""
    kernel = _load_kernel()
    assert kernel is not None
    if layout.k_index is not None:
        k, v = (x.index_select(0, layout.k_index) for x in (k, v))
    out: Tensor = kernel(
        q,
        k,
        v,
        layout.q_starts,
        layout.k_starts,
        layout.longest_q,
        layout.longest_k,
        scale=scale,
        window_size=_CAUSAL,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out


@functools.cache
def _load_kernel() -> Callable[..., Any] | None:
    """Return torch's function, or None where the installed torch has none, or another one."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    parameters = inspect.signature(varlen_attn).parameters
    return varlen_attn if all(name in parameters for name in _REQUIRED_ARGUMENTS) else None


@functools.cache
@torch.no_grad()
def has_varlen_attention(device: torch.device) -> bool:
    """Return whether the kernel is there, and equal to the definition on a small batch on this device."""
    if device.type not in VARLEN_DEVICES or _load_kernel() is None:
        return False
    prompt = Span(0, 5)
    spans = [prompt, Span(5, 8, prompt), Span(8, 10), Span(10, 17, prompt)]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(17, heads, 16, generator=generator) for heads in (4, 2, 2))
    expected = _definition(q, k, v, spans)
    dtype = VARLEN_DTYPES[0] if device.type == "cuda" else torch.float32
    try:
        layout = build_varlen_layout(spans, device)
        states = varlen_attention(q.to(device, dtype), k.to(device, dtype), v.to(device, dtype), layout, None)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # no kernel for this device
        return False
    return torch.allclose(states.float().cpu(), expected, atol=_PROBE_TOLERANCE, rtol=_PROBE_TOLERANCE)


def _definition(q: Tensor, k: Tensor, v: Tensor, spans: Sequence[Span]) -> Tensor:
    """Compute the same span by span."""
    results = []
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    for span in spans:
        rows = torch.cat([torch.arange(*part[:2]) for part in (span.prompt, span) if part])
        length = span.end - span.start
        mask = torch.ones(length, len(rows), dtype=torch.bool).tril(len(rows) - length)
        own_q, own_k, own_v = (x.transpose(0, 1) for x in (q[span.start : span.end], k[rows], v[rows]))
        results.append(F.scaled_dot_product_attention(own_q, own_k, own_v, mask).transpose(0, 1))
    return torch.cat(results)
