"""Count the FLOPs of every pass of a model while a stage runs, from the shapes of its batches.

`flops` is what the passes need: each token of each text once, attention between tokens that see each other, a backward
pass through trained models. `flops_done` is what was computed: also padding, tokens that attention computes and masks,
layers computed again with activation checkpointing, and rows of a decoding step that have ended.
A pass with gradients counts its backward pass at once. The sums are kept by `PHASE_TIMER`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from instructgpt.data.packing import PackedBatch
from instructgpt.models.flops import BACKWARD_FLOPS_FACTOR, ModelShape, get_model_shape
from instructgpt.models.precision import recomputes_layers
from instructgpt.run.timing import PHASE_TIMER

_shapes: WeakKeyDictionary[Any, tuple[tuple[int, int], ModelShape]] = WeakKeyDictionary()


def cached_shape(model: Any) -> ModelShape:
    """Return the shape of a model, anew when its parameters were added to, frozen or thawed."""
    requires_grad = [parameter.requires_grad for parameter in model.parameters()]
    state = (len(requires_grad), sum(requires_grad))
    if model not in _shapes or _shapes[model][0] != state:
        _shapes[model] = (state, get_model_shape(model))
    return _shapes[model][1]


def count_batch(
    model: Any, batch: PackedBatch, select: str | None, padded_cells: tuple[int, int], *, subset: bool
) -> None:
    """Count the layers of a pass over a batch.

    Args:
        model: the model.
        batch: the batch.
        select: the field of the batch with the positions whose hidden states are read; None for all.
        padded_cells: tokens that were computed, and pairs of tokens in attention.
        subset: whether the last feed-forward part skipped tokens that nobody reads.
    """
    shape, tokens = cached_shape(model), len(batch.input_ids)
    pairs = sum(_causal_pairs(span.end - span.start, span.offset) for span in batch.spans)
    read_tokens = count_read_tokens(batch, select)
    trains = torch.is_grad_enabled() and shape.trainable_parameters > 0
    needed = _layer_flops(shape, tokens, pairs, read_tokens, trains=trains) if len(batch.last_positions) else 0.0
    cells, computed_pairs = padded_cells
    computed_read = read_tokens if subset else cells
    repeats = trains and recomputes_layers(model)
    computed = _layer_flops(shape, cells, computed_pairs, computed_read, trains=trains, repeats=repeats)
    PHASE_TIMER.add_flops(needed, computed)


def count_outputs(model: Any, states: int, *, head_size: int | None = None, repeats: bool = False) -> None:
    """Count the output layer, or a scalar head, of a pass for as many hidden states.

    With `repeats` it is computed again in the backward pass.
    """
    shape = cached_shape(model)
    forward = 2 * shape.hidden_size * (shape.vocab_size if head_size is None else head_size) * states
    trains = torch.is_grad_enabled() and shape.trainable_parameters > 0
    backward = (BACKWARD_FLOPS_FACTOR - (head_size is None and shape.output_layer_frozen)) * forward if trains else 0
    PHASE_TIMER.add_flops(forward + backward, forward * (1 + (trains and repeats)) + backward)


def count_decoding_step(shape: ModelShape, rows: int, width: int) -> None:
    """Count what a step of sampling computes: a token a row, which attends to `width` columns, and its logits."""
    computed = _layer_flops(shape, rows, rows * width, rows) + shape.output_layer_flops(rows)
    PHASE_TIMER.add_flops(0.0, computed)


def count_sampled(model: Any, prompt_lengths: Sequence[int], completion_lengths: Sequence[int]) -> None:
    """Count what completions needed beside the beginnings of their prompts: a token a step, and its logits."""
    shape = cached_shape(model)
    tokens = sum(completion_lengths)
    pairs = sum(
        _causal_pairs(length, prompt - 1) for prompt, length in zip(prompt_lengths, completion_lengths, strict=True)
    )
    PHASE_TIMER.add_flops(_layer_flops(shape, tokens, pairs, tokens) + shape.output_layer_flops(tokens), 0.0)


def count_read_tokens(batch: PackedBatch, select: str | None) -> int:
    """Return how many tokens' hidden states are read; the last one of a shared prompt is read once."""
    if select is None:
        return len(batch.input_ids)
    if select == "last_positions":
        return len(batch.last_positions)
    continued = [span.prompt for span in batch.spans if span.prompt is not None]
    return len(batch.targets) - (len(continued) - len(set(continued)))


def _causal_pairs(tokens: int, past_tokens: int) -> float:
    return tokens * past_tokens + tokens * (tokens + 1) / 2


def _layer_flops(
    shape: ModelShape, tokens: int, pairs: float, read_tokens: int, *, trains: bool = False, repeats: bool = False
) -> float:
    """Return the FLOPs of all layers, with the backward pass if the model `trains`, and the forward pass twice."""
    unread = tokens - read_tokens
    forward: float = 2 * (shape.matrix_parameters * tokens - shape.last_mlp_parameters * unread)
    forward += 4 * shape.attention_width * shape.layers * pairs
    if not trains:
        return forward
    frozen = 2 * (shape.frozen_matrix_parameters * tokens - shape.frozen_last_mlp_parameters * unread)
    return forward * (1 + repeats) + BACKWARD_FLOPS_FACTOR * forward - frozen
