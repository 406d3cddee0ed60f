"""Memory of one rank, part by part, at its peak moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from instructgpt.data.packing import TokenizedExample
from instructgpt.models.flops import BF16_BYTES, FLOAT_BYTES
from instructgpt.models.quantization import QUANTIZED_BYTES
from instructgpt.plan.context import PlanContext
from instructgpt.plan.meta_trace import PeakMemory, TracedModel
from instructgpt.plan.roofline import ACTIVATIONS_PART, ALLOCATOR_PART
from instructgpt.sampling.engine import CPU_CACHE_BYTES, CUDA_CACHE_SHARE, rows_within

_ALLOCATOR_OVERHEAD_RATIO = 2.0
"""Unusable glibc heap bytes per byte of trained weights, or of activations where these are fewer: Adam moments and
gradients occupy freed activation blocks, and small adapter gradients fragment whole blocks. Measured on Linux
(docs/explanation/performance.md).
"""
_MIN_8BIT_SIZE, _QUANTIZATION_BLOCK = 4096, 256
"""bitsandbytes: minimum tensor size for 8-bit moments, and block size that shares a scale."""

MemoryPeaks = dict[str, dict[str, float]]
"""Moment -> part -> bytes."""


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of a model on one rank: its shard or all of it, and what it gathers while training."""

    weights: float
    gradients: float
    optimizer_state: float
    gathered: float


def held_weights(model: TracedModel, *, frozen: bool = False) -> float:
    """Return the bytes of a model's weights: frozen matrices take fewer with bf16 or 4bit.

    Args:
        model: with adapters, the weights below them are frozen.
        frozen: whether all of it is.
    """
    shape = model.shape
    quantized = shape.quantized_parameters
    narrow = (shape.matrix_parameters if frozen else shape.frozen_matrix_parameters) - quantized
    saved = (FLOAT_BYTES - BF16_BYTES) * narrow * ("bf16" in model.memory) + (FLOAT_BYTES - QUANTIZED_BYTES) * quantized
    return float(shape.weight_bytes - saved)


def rank_memory(model: TracedModel, context: PlanContext, *, frozen: bool = False) -> RankMemory:
    """Return what each rank holds of a model that trains, or is `frozen`.

    The next group of layers is gathered while one is computed, and gradients of one group are reduced while those of
    another are computed; parameters outside the layers stay gathered throughout.
    """
    shape = model.shape
    weights, gradients, optimizer_state = (
        held_weights(model, frozen=frozen),
        float(FLOAT_BYTES * shape.trainable_parameters),
        adam_bytes(model),
    )
    if not context.shards(model):
        return RankMemory(weights, gradients, optimizer_state, 0.0)
    outside_layers, *layers = model.gather_sizes
    largest = 2 * max(layers, default=0)
    gathered = float(FLOAT_BYTES * outside_layers + model.gather_bytes * largest)
    gathered += FLOAT_BYTES * (outside_layers + largest) * shape.trainable_parameters / shape.parameters
    if "offload" in model.memory:  # all of it waits in the memory of the host
        return RankMemory(0.0, 0.0, 0.0, gathered)
    return RankMemory(weights / context.ranks, gradients / context.ranks, optimizer_state / context.ranks, gathered)


def adam_bytes(model: TracedModel) -> float:
    """Return the bytes of Adam's two moments of all trained parameters."""
    if "adam8bit" not in model.memory:
        return 2.0 * FLOAT_BYTES * model.shape.trainable_parameters
    return sum(
        2 * count * (1 + FLOAT_BYTES / _QUANTIZATION_BLOCK if count >= _MIN_8BIT_SIZE else FLOAT_BYTES)
        for count in model.trainable_sizes
    )


def trace_largest_microbatch(
    model: TracedModel,
    microbatches: Sequence[Sequence[TokenizedExample]],
    context: PlanContext,
    *,
    accumulate: bool = False,
) -> PeakMemory:
    """Trace the memory of the largest microbatch beside the weights, gradients included unless sharded.

    `accumulate`: gradients exist before the microbatch.
    """
    largest = max(microbatches, key=lambda examples: sum(map(len, examples)))
    return model.trace(largest, accumulate=accumulate or len(microbatches) > 1, sharded=context.shards(model))


def allocator_overhead(gradients: float, activations: float, adapters: bool, context: PlanContext) -> float:
    """Return glibc heap bytes lost to fragmentation; 0 on CUDA."""
    if context.device.type != "cpu" or not context.glibc_malloc:
        return 0.0
    return activations if adapters else _ALLOCATOR_OVERHEAD_RATIO * min(gradients, activations)


def training_peaks(
    model: TracedModel, memory: PeakMemory, context: PlanContext, *, keeps_best: bool = False
) -> MemoryPeaks:
    """Return the peaks while one model trains. `keeps_best`: a copy of the best weights is kept."""
    rank_bytes = rank_memory(model, context)
    fixed = {
        "weights": rank_bytes.weights,
        "gradients": rank_bytes.gradients,
        "Adam's moments": rank_bytes.optimizer_state,
    }
    fixed |= {"the weights that validated best": rank_bytes.gradients * keeps_best}
    activations = memory.peak if rank_bytes.gathered else max(0.0, memory.peak - rank_bytes.gradients)
    return {
        "updating": fixed
        | _compute_parts(activations, rank_bytes.gradients, rank_bytes.gathered, model.lora > 0, context)
    } | _distributed_peaks([model], [model], fixed, context)


def _compute_parts(
    activations: float, gradients: float, gathered: float, adapters: bool, context: PlanContext
) -> dict[str, float]:
    """Return what is held only while a model computes its forward and backward pass."""
    return {
        ACTIVATIONS_PART: activations,
        "parts of other ranks": gathered,
        ALLOCATOR_PART: allocator_overhead(gradients, activations, adapters, context),
    }


def _distributed_peaks(
    trained: Sequence[TracedModel], loaded: Sequence[TracedModel], fixed: dict[str, float], context: PlanContext
) -> MemoryPeaks:
    """Return the peaks of several ranks, flattened gradients for all-reduce, and of loading: a whole float32 model
    beside what is held of the others, on a GPU before its frozen weights are narrowed, or on rank 0 beside its parts.
    """
    replicated = [
        FLOAT_BYTES * network.shape.trainable_parameters for network in trained if not context.shards(network)
    ]
    peaks: MemoryPeaks = (
        {"adding up gradients": fixed | {"gradients in a row": float(max(replicated))}}
        if context.ranks > 1 and replicated
        else {}
    )
    if context.device.type == "cpu" and any(context.shards(network) for network in loaded):
        largest = max(float(network.shape.weight_bytes) for network in loaded)
        parts = [rank_memory(network, context).weights for network in loaded]
        peaks["loading"] = {"a whole model": largest, "parts of all models": sum(parts)}
    narrowed = any(held_weights(network) < network.shape.weight_bytes for network in loaded)
    if context.device.type == "cuda" and context.ranks == 1 and narrowed:
        largest_model = max(loaded, key=lambda network: network.shape.weight_bytes)
        resident = sum(held_weights(network) for network in loaded) - held_weights(largest_model)
        peaks["loading"] = {
            "a whole model in float32": float(largest_model.shape.weight_bytes),
            "other models": resident,
        }
    return peaks


def _gathered_to_sample(policy: TracedModel, context: PlanContext) -> float:
    return held_weights(policy, frozen=True) if context.shards(policy) else 0.0


def _cache_element_bytes(policy: TracedModel) -> int:
    return BF16_BYTES if "bf16" in policy.memory else FLOAT_BYTES


def _sampling_parts(policy: TracedModel, decode_rows: int, row_tokens: int, context: PlanContext) -> dict[str, float]:
    shape = policy.shape
    return {
        "weights gathered from other ranks": _gathered_to_sample(policy, context),
        "key-value cache": float(
            _cache_element_bytes(policy) * shape.kv_cache_size_per_token * decode_rows * row_tokens
        ),  # taken once, for all of them
        "logits": 4.0 * FLOAT_BYTES * decode_rows * shape.vocab_size,  # and what choosing a token makes of them
    }


def ppo_fixed_parts(
    policy: TracedModel, value: TracedModel, frozen: Sequence[TracedModel], context: PlanContext
) -> dict[str, float]:
    """Return what a PPO run holds all the time. See `ppo_peaks`."""
    policy_bytes, value_bytes = rank_memory(policy, context), rank_memory(value, context)
    shape, bf16 = policy.shape, "bf16" in policy.memory
    reference = 0.0 if policy.lora else rank_memory(policy, context, frozen=True).weights
    ema = policy_bytes.gradients if policy.lora else policy_bytes.weights
    # of a sharded policy they are gathered in bf16, and frozen ones are held in it
    cast_parameters = 0 if context.shards(policy) else shape.matrix_parameters - shape.frozen_matrix_parameters
    return {
        "weights: policy, reference, average": policy_bytes.weights + reference + ema,
        "weights: reward and value model": value_bytes.weights
        + sum(rank_memory(model, context, frozen=True).weights for model in frozen),
        "matrices in bf16, to sample": float(BF16_BYTES * cast_parameters * bf16),
        "Adam's moments": policy_bytes.optimizer_state + value_bytes.optimizer_state,
    }


def count_decode_rows(
    policy: TracedModel, fixed: Mapping[str, float], row_tokens: int, rows: int, context: PlanContext
) -> int:
    """Return how many of `rows` are decoded at once, by the decoder's own rule.

    Args:
        policy: what samples.
        fixed: what is held meanwhile, part by part.
        row_tokens: token slots of each row.
        rows: those to be sampled.
        context: its capacity bounds the KV cache on CUDA.
    """
    cache_bytes = float(CPU_CACHE_BYTES)
    if context.device.type == "cuda":
        free = context.capacity - sum(fixed.values()) - _gathered_to_sample(policy, context)
        cache_bytes = CUDA_CACHE_SHARE * max(0.0, free)
    row_bytes = _cache_element_bytes(policy) * policy.shape.kv_cache_size_per_token * row_tokens
    return min(rows, rows_within(cache_bytes, max(1, row_bytes), policy.shape.vocab_size))


def ppo_peaks(
    policy: TracedModel,
    value: TracedModel,
    frozen: Sequence[TracedModel],
    memory: tuple[PeakMemory, PeakMemory, PeakMemory | None],
    accumulate: bool,
    decode_rows: int,
    row_tokens: int,
    context: PlanContext,
) -> MemoryPeaks:
    """Return the peaks while PPO samples and updates.

    Args:
        policy, value: with adapters if any; then the policy is also the reference.
        frozen: reward models, and a reference of its own, that share no weights with these two.
        memory: of the policy's update, the value model's, and the pretraining text, if any.
        accumulate: gradients of both models exist when a microbatch begins.
        decode_rows: rows sampled at once.
        row_tokens: token slots of each row.
    """
    policy_bytes, value_bytes = rank_memory(policy, context), rank_memory(value, context)
    fixed = ppo_fixed_parts(policy, value, frozen, context)
    sampling = _sampling_parts(policy, decode_rows, row_tokens, context)
    gradients = policy_bytes.gradients + value_bytes.gradients
    policy_peak, value_peak = (
        size.peak + (model.gradients if model.gathered else 0.0)
        for size, model in zip(memory[:2], (policy_bytes, value_bytes), strict=True)
    )
    ptx_peak = memory[2].peak + (policy_bytes.gradients if policy_bytes.gathered else 0.0) if memory[2] else 0.0
    if accumulate:
        peak_bytes = max(
            policy_peak + value_bytes.gradients, value_peak + policy_bytes.gradients, ptx_peak + value_bytes.gradients
        )
    else:
        peak_bytes = max(policy_peak, policy_bytes.gradients + value_peak)
    activations = max(0.0, peak_bytes - gradients)
    fixed_with_gradients = fixed | {"gradients": gradients}
    loaded = [policy, value, *frozen, *([] if policy.lora else [policy, policy])]
    return {
        "sampling": fixed | sampling,
        "updating": fixed_with_gradients
        | _compute_parts(
            activations, gradients, max(policy_bytes.gathered, value_bytes.gathered), policy.lora > 0, context
        ),
    } | _distributed_peaks([policy, value], loaded, fixed_with_gradients, context)
