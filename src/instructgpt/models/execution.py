"""How a loaded model is computed: said when a stage loads it, kept in `run.json`, and shown by `plan`.

And whether sampling steps are captured as CUDA graphs: an option of the process says so, and a failed capture ends it.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch

from instructgpt.distributed.comm import is_sharded
from instructgpt.models.families import get_family, max_context
from instructgpt.models.head import has_plain_head
from instructgpt.models.loading import model_notices
from instructgpt.models.lora import get_backbone
from instructgpt.models.packed_attention import PACKED_ATTENTION
from instructgpt.models.precision import compute_device
from instructgpt.models.varlen_attention import VARLEN_DEVICES, VARLEN_DTYPES, has_varlen_attention

GRAPH_DEVICES = ("cuda",)
"""Device types on which sampling steps are captured as graphs."""
CUDA_GRAPHS_SWITCH = "INSTRUCTGPT_CUDA_GRAPHS"
"""The environment variable that switches graphs off with 0, for commands without `--no-cuda-graphs`."""


@dataclass(slots=True)
class _GraphState:
    is_enabled: bool = True
    failure: str | None = None  # why the last capture failed


_STATE = _GraphState()


def enable_cuda_graphs(enabled: bool) -> None:
    """Switch CUDA graphs on or off for the process, as `--cuda-graphs` says; on, a failed capture is tried again."""
    _STATE.is_enabled, _STATE.failure = enabled, None


def stop_capturing(reason: str) -> str:
    """Run all later steps without graphs, and return the message to print."""
    _STATE.failure = reason
    return f"a CUDA graph could not be captured ({reason}); sampling goes on without graphs, which is slower"


def captures_graphs(device: torch.device) -> bool:
    """Return whether sampling steps on a device are captured."""
    is_enabled = _STATE.is_enabled and _STATE.failure is None and os.environ.get(CUDA_GRAPHS_SWITCH) != "0"
    return device.type in GRAPH_DEVICES and is_enabled


@dataclass(frozen=True, slots=True)
class ExecutionPath:
    """The way a model is computed on a device."""

    family: str
    batches: str  # "packed": sequences laid end to end; "padded": one row a sequence
    attention: str  # transformers' name of the implementation, or our packed one
    logits: str | None  # "output layer", or "own head" where the model scales or caps them; None without logits
    sampling: str | None  # "KV cache": slots of a static cache; "recomputation": the whole text again for each token
    cuda_graphs: bool
    context: int

    def __str__(self) -> str:
        """Say it in one line."""
        parts = [f"{self.batches} batches ({self.attention} attention)"]
        if self.sampling == "KV cache":
            parts.append(f"sampling with a KV cache, {'with' if self.cuda_graphs else 'without'} CUDA graphs")
        elif self.sampling:
            parts.append("sampling without a KV cache: each token computes its whole text again, which is slow")
        if self.logits == "own head":
            parts.append("logits scaled or capped by the model's own code")
        return f"family {self.family}: {'; '.join(parts)}; context {self.context:,} tokens"

    def as_record(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)


def execution_path(model: Any, device: torch.device | None = None, *, sampled: bool = True) -> ExecutionPath:
    """Return how a loaded model is computed.

    Args:
        model: a causal model, or a reward or value model.
        device: where it will compute; by default where it is.
        sampled: whether completions are sampled from it.
    """
    family, device = get_family(model.config), device or compute_device(model)
    is_packed = model.config._attn_implementation == PACKED_ATTENTION
    has_logits = model.get_output_embeddings() is not None
    uses_cache = family is not None and family.cache
    return ExecutionPath(
        family=model.config.model_type,
        batches="packed" if is_packed else "padded",
        attention=_packed_attention_name(model, device) if is_packed else str(model.config._attn_implementation),
        logits=("output layer" if has_plain_head(model) else "own head") if has_logits else None,
        sampling=("KV cache" if uses_cache else "recomputation") if has_logits and sampled else None,
        cuda_graphs=has_logits and sampled and uses_cache and captures_graphs(device) and not is_sharded(model),
        context=max_context(model.config),
    )


def _packed_attention_name(model: Any, device: torch.device) -> str:
    in_half_precision = model.dtype in VARLEN_DTYPES or getattr(get_backbone(model), "computes_in_bf16", False)
    # of another machine's device, as in `plan`, all that is known is that it is one
    is_varlen = in_half_precision and device.type in VARLEN_DEVICES and not torch.cuda.is_available()
    return "packed varlen" if is_varlen or (in_half_precision and has_varlen_attention(device)) else "packed sdpa"


def describe_model(model: Any, *, sampled: bool = True) -> list[str]:
    """Return the lines that are printed when a model is loaded: the way it is computed, and what loading decided."""
    return [str(execution_path(model, sampled=sampled)), *model_notices(model)]
