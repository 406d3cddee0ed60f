"""Tensor nouns: rows of tokens, and how many of them are computed at once.

Rows are padded on the right and nowhere else. Causal attention never looks to the right, so a row's numbers do not
depend on its padding and no attention mask is needed; completions are found by position, never by searching for a
token id, so a tokenizer whose pad and end-of-text are one id changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MICROBATCH_TOKENS = {"cpu": 8_192, "cuda": 65_536}
"""Padded tokens computed at once, by kind of device. Only memory and speed depend on it, never a result."""


@dataclass(frozen=True, slots=True)
class Example:
    """The tokens of one prompt and of its completion (with its end-of-text token, where it has one).

    A window of pretraining text is an example too; `restarts` are the places where a document begins that must not see those before it.
    """

    prompt: list[int]
    completion: list[int]
    restarts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Right-padded rows, each a prompt followed at once by its completion."""

    tokens: Tensor  # (B, T) int64
    lengths: Tensor  # (B,)  real tokens of a row
    completion: Tensor  # (B, T) bool: True on completion tokens
    positions: Tensor | None  # (B, T) counted anew from each restart; None where no row has one

    @property
    def predicts(self) -> Tensor:
        """(B, T) bool: True on the positions whose next token is a completion token; values "before a token" stand there too."""
        return torch.nn.functional.pad(self.completion[:, 1:], (0, 1))

    @property
    def targets(self) -> Tensor:
        """(N,) the completion tokens, row by row, in the order of `predicts`."""
        return self.tokens[self.completion]


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """Examples as one batch of right-padded rows."""
    width = max(len(example) for example in examples)
    tokens = torch.zeros(len(examples), width, dtype=torch.long)
    completion = torch.zeros(len(examples), width, dtype=torch.bool)
    for row, example in enumerate(examples):
        tokens[row, : len(example)] = torch.tensor(example.prompt + example.completion)
        completion[row, len(example.prompt) : len(example)] = True
    lengths = torch.tensor([len(example) for example in examples])
    positions = None
    if any(example.restarts for example in examples):
        positions = torch.arange(width).repeat(len(examples), 1)
        for row, example in enumerate(examples):
            for place in example.restarts:
                positions[row, place:] = torch.arange(width - place)
        positions = positions.to(device)
    return Batch(tokens=tokens.to(device), lengths=lengths.to(device), completion=completion.to(device), positions=positions)


def microbatches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices of rows computed together: rows of similar length, at most `budget` padded tokens (always at least one row)."""
    group: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (lengths[row], row)):
        if group and lengths[row] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def token_budget(device: torch.device) -> int:
    """How many padded tokens are computed at once on this kind of device."""
    return MICROBATCH_TOKENS.get(device.type, MICROBATCH_TOKENS["cpu"])


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """The order of an epoch: a function of seed and epoch alone, so that a resumed run needs no stored generator."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
