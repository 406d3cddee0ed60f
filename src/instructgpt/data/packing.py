"""Token batches without padding, microbatches, and the order of an epoch.

A batch is one line of tokens, and a prompt shared by several completions occurs once. Spans record where sequences
begin and what they continue; completions are found by position, never by token id, so equal pad and end-of-text ids are
harmless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

MICROBATCH_TOKENS = {"cpu": 2_048, "cuda": 65_536}
"""Tokens of a microbatch by device type, counted as padded rows without shared prompts.

Affects memory and speed only.
"""
MIN_MICROBATCH_TOKENS = 256
"""Smallest microbatch worth trying after out-of-memory: below it the model itself is too large."""
MIN_SHARED_PREFIX = 4
"""Minimum prompt length for computing it once per group of completions (see docs/explanation/performance.md)."""


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """Tokens of one prompt and its completion, including end-of-text where it has one.

    A window of pretraining text is an example too; `document_starts` are positions where a document begins that must
    not attend to earlier ones.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    document_starts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


class Span(NamedTuple):
    """Tokens `start` to `end` of a batch, causal; a completion's span also attends to its whole prompt span."""

    start: int
    end: int
    prompt: Span | None = None

    @property
    def offset(self) -> int:
        """Return the position of the first token: after its prompt, or 0."""
        return self.prompt.end - self.prompt.start if self.prompt else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """B examples laid end to end, N tokens, M of them predicted."""

    input_ids: Tensor  # (N,) int64
    position_ids: Tensor  # (N,) int64, counted from the beginning of each text
    spans: tuple[Span, ...]  # in order, together all tokens
    last_positions: Tensor  # (B,) where each example's last token stands
    target_positions: (
        Tensor  # (M,) where the token before each completion token stands; values "before a token" stand there too
    )
    targets: Tensor  # (M,) the completion tokens, example by example
    cache: dict[str, Any] = field(
        default_factory=dict, repr=False, compare=False
    )  # what models have worked out about it, for the next one


def collate(examples: Sequence[TokenizedExample], device: torch.device | str = "cpu") -> PackedBatch:
    """Pack examples into one batch; a repeated prompt occurs once if that saves work.

    No examples give a batch of one unread token, so that an idle rank can still run the model.
    """
    prompt_counts = Counter(
        tuple(example.prompt_ids)
        for example in examples
        if len(example.prompt_ids) >= MIN_SHARED_PREFIX and not example.document_starts
    )
    prompt_spans: dict[tuple[int, ...], Span] = {}
    input_ids: list[int] = []
    spans: list[Span] = []
    last_positions: list[int] = []
    target_positions: list[int] = []

    def append_span(ids: Sequence[int], prompt: Span | None = None) -> Span:
        input_ids.extend(ids)
        span = Span(len(input_ids) - len(ids), len(input_ids), prompt)
        if ids:
            spans.append(span)
        return span

    for example in examples:
        prompt_ids = tuple(example.prompt_ids)
        if prompt_counts[prompt_ids] > 1 and not example.document_starts:
            if prompt_ids not in prompt_spans:
                prompt_spans[prompt_ids] = append_span(prompt_ids)
            completion_span = append_span(example.completion_ids, prompt_spans[prompt_ids])
            positions = [
                prompt_spans[prompt_ids].end - 1,
                *range(completion_span.start, completion_span.end),
            ]  # the prompt's last token, and the completion
        else:
            ids, start = [*prompt_ids, *example.completion_ids], len(input_ids)
            for begin, end in pairwise((0, *example.document_starts, len(ids))):
                append_span(ids[begin:end])
            positions = list(range(start + len(prompt_ids) - 1, start + len(ids)))
        last_positions.append(positions[-1])
        target_positions += positions[:-1]
    if not examples:
        append_span([0])
    return PackedBatch(
        input_ids=torch.tensor(input_ids, device=device),
        position_ids=torch.cat([torch.arange(span.end - span.start) + span.offset for span in spans]).to(device),
        spans=tuple(spans),
        last_positions=torch.tensor(last_positions, dtype=torch.long, device=device),
        target_positions=torch.tensor(target_positions, dtype=torch.long, device=device),
        targets=torch.tensor(
            [token for example in examples for token in example.completion_ids], dtype=torch.long, device=device
        ),
    )


def microbatches(lengths: Sequence[int], budget: int, rows: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Yield indices of microbatches: similar lengths, at most `budget` tokens if padded (at least one element).

    Args:
        lengths: tokens of each element, or of its longest row.
        rows: rows of each element; default one.
    """
    rows = rows or [1] * len(lengths)
    group: list[int] = []
    num_rows = 0
    for element in sorted(range(len(lengths)), key=lambda element: (lengths[element], element)):
        if group and lengths[element] * (num_rows + rows[element]) > budget:
            yield group
            group, num_rows = [], 0
        group.append(element)
        num_rows += rows[element]
    if group:
        yield group


def microbatches_by_prompt(examples: Sequence[TokenizedExample], budget: int) -> Iterator[list[int]]:
    """Yield indices of microbatches that keep the examples of a prompt together, within the budget."""
    rows_by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, example in enumerate(examples):
        rows_by_prompt.setdefault(tuple(example.prompt_ids), []).append(row)
    chunks: list[list[int]] = []
    for group in rows_by_prompt.values():
        max_rows = max(1, budget // max(1, max(len(examples[row]) for row in group)))
        chunks += [group[start : start + max_rows] for start in range(0, len(group), max_rows)]
    max_lengths = [max(len(examples[row]) for row in chunk) for chunk in chunks]
    for chunk_indices in microbatches(max_lengths, budget, [len(chunk) for chunk in chunks]):
        yield [row for chunk in chunk_indices for row in chunks[chunk]]


def token_budget(device: torch.device) -> int:
    """Return the tokens of a microbatch on this device type."""
    return MICROBATCH_TOKENS.get(device.type, MICROBATCH_TOKENS["cpu"])


def halve_token_budget() -> bool:
    """Halve the microbatch size after out-of-memory. Returns False if it is at its minimum."""
    if min(MICROBATCH_TOKENS.values()) < 2 * MIN_MICROBATCH_TOKENS:
        return False
    for device_type in MICROBATCH_TOKENS:
        MICROBATCH_TOKENS[device_type] //= 2
    return True


def epoch_permutation(dataset_size: int, seed: int, epoch: int) -> list[int]:
    """Return the order of an epoch: a function of seed and epoch, so that resuming needs no generator state."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    permutation: list[int] = torch.randperm(dataset_size, generator=generator).tolist()
    return permutation


def steps_per_epoch(dataset_size: int, batch_size: int) -> int:
    """Return optimizer steps per epoch; the last batch may be smaller."""
    return -(-dataset_size // batch_size)


def step_indices(step: int, dataset_size: int, batch_size: int, seed: int) -> list[int]:
    """Return the elements of an optimizer step; every epoch is reshuffled and cut into batches."""
    epoch, step_in_epoch = divmod(step, steps_per_epoch(dataset_size, batch_size))
    return epoch_permutation(dataset_size, seed, epoch)[step_in_epoch * batch_size : (step_in_epoch + 1) * batch_size]


def stream_indices(start: int, length: int, dataset_size: int, seed: int) -> list[int]:
    """Return elements `start` to `start + length` of an endless stream, reshuffled every epoch."""
    indices: list[int] = []
    while len(indices) < length:
        epoch, position = divmod(start + len(indices), dataset_size)
        indices += epoch_permutation(dataset_size, seed, epoch)[position : position + length - len(indices)]
    return indices
