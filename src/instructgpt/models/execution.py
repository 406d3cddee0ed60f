"""How a loaded model is computed: said when a stage loads it, kept in `run.json`, and shown by `plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from instructgpt.distributed.comm import is_sharded
from instructgpt.models.cuda_graphs import captures_graphs
from instructgpt.models.families import get_family, max_context
from instructgpt.models.head import has_plain_head
from instructgpt.models.loading import model_notices
from instructgpt.models.lora import get_backbone
from instructgpt.models.packed_attention import PACKED_ATTENTION
from instructgpt.models.precision import compute_device
from instructgpt.models.varlen_attention import VARLEN_DEVICES, VARLEN_DTYPES, has_varlen_attention


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
