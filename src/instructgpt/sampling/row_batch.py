"""A batch whose rows enter and leave between two steps, each with its own sampling parameters and random stream.

The completions of a row do not depend on the rows beside it. Three rules keep the floating-point numbers equal too:
a prompt is prefilled by itself, a step has at least MIN_STEP_ROWS rows, and it sees a multiple of COLUMN_MULTIPLE
columns. Below these sizes matrix libraries choose other kernels, which sum in another order (see docs/guides/serve.md).

The prefill gives the first token's logits, so that a new row need not wait for the step of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.models.head import compute_logits
from instructgpt.models.packed_attention import hidden_states
from instructgpt.models.precision import compute_device
from instructgpt.sampling.decoder import SamplingParams, next_token_logits, prefill, sample_with_logp
from instructgpt.sampling.engine import cache_bytes_per_token
from instructgpt.sampling.kv_cache import AttentionWindow, StaticKVCache
from instructgpt.sampling.random_streams import open_stream

MIN_STEP_ROWS = 4
"""Rows of the smallest step; slots without a row are computed and not read."""
COLUMN_MULTIPLE = 64
"""Columns of a step come in multiples of this."""


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass(slots=True, eq=False)
class Row:
    """One completion that is sampled.

    Attributes:
        seed: fixes the random numbers, together with the indices of the prompt and of its completion.
        num_top_logps: how many of the likeliest tokens are reported with each token; None reports no logp at all.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    max_tokens: int
    seed: int
    index: int = 0
    num_top_logps: int | None = None
    prompt_index: int = 0
    tokens: list[int] = field(default_factory=list)
    uniforms: np.random.Generator = field(init=False)
    prompt_logits: Tensor | None = field(default=None, init=False)
    """Logits after the prompt (1, V), from the row's prefill."""

    def __post_init__(self) -> None:
        self.uniforms = open_stream(self.seed, (self.prompt_index, self.index))

    @property
    def max_columns(self) -> int:
        """Columns that the row may fill: the last token is sampled, never fed."""
        return len(self.prompt) + self.max_tokens - 1

    @property
    def is_finished(self) -> bool:
        """Whether the row ended with a stop token or at its length."""
        return len(self.tokens) >= self.max_tokens or self.is_stopped

    @property
    def is_stopped(self) -> bool:
        return bool(self.tokens) and self.tokens[-1] in self.params.stop_tokens


@dataclass(frozen=True, slots=True)
class TokenLogp:
    """A token with its logp at temperature 1, and the likeliest tokens with theirs. None: nothing stands before it."""

    token: int
    logp: float | None
    top: tuple[tuple[int, float], ...] = ()


class RowBatch:
    """Rows in the first slots of a cache that grows with them."""

    def __init__(self, model: Any, max_rows: int, cache_bytes: int) -> None:
        """Probe the model's cache.

        Args:
            max_rows: rows computed at once.
            cache_bytes: memory for keys and values; a single row may take more.
        """
        self.model, self.max_rows = model, max_rows
        self.rows: list[Row] = []
        bytes_per_token = cache_bytes_per_token(model)
        self.has_cache = bytes_per_token is not None
        self.max_cells = cache_bytes // (bytes_per_token or 1)
        self.cache = StaticKVCache(MIN_STEP_ROWS, COLUMN_MULTIPLE)
        self.window = AttentionWindow.from_config(model.config)

    def fits(self, row: Row) -> bool:
        """Return whether a row can enter now."""
        if not self.rows:
            return True
        slots, width = self._shape_with(row)
        return len(self.rows) < self.max_rows and (not self.has_cache or slots * width <= self.max_cells)

    def _shape_with(self, row: Row) -> tuple[int, int]:
        """Return the slots and columns that the rows and a new one need."""
        width = max(row.max_columns, *(present.max_columns for present in self.rows)) if self.rows else row.max_columns
        return max(MIN_STEP_ROWS, len(self.rows) + 1), round_up(width, COLUMN_MULTIPLE)

    @torch.inference_mode()
    def add(self, row: Row) -> bool:
        """Let a row enter. Return whether its prompt was computed: a row with the same prompt lends its own."""
        slot, lender = len(self.rows), None
        if self.has_cache:
            self._grow(*self._shape_with(row))
            lender = next((i for i, present in enumerate(self.rows) if present.prompt == row.prompt), None)
            if lender is not None:
                self.cache.copy([lender], [slot], len(row.prompt))
                row.prompt_logits = self.rows[lender].prompt_logits
            else:
                states = prefill(self.model, self.cache, [(row.prompt, [slot])])
                row.prompt_logits = compute_logits(self.model, states[len(row.prompt) - 1 : len(row.prompt)])
        self.rows.append(row)
        return self.has_cache and lender is None

    def _grow(self, slots: int, width: int) -> None:
        """Enlarge the cache; where it would exceed the memory, keep what the rows need."""
        cache = self.cache
        if slots <= cache.num_slots and width <= cache.width:
            return
        doubled = cache.num_slots if slots <= cache.num_slots else min(2 * cache.num_slots, self.max_rows)
        generous = (max(slots, doubled), max(width, cache.width))
        cache.resize(*(generous if generous[0] * generous[1] <= self.max_cells else (slots, width)))

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, TokenLogp | None]]:
        """Sample a token for each new row, whose logits are there; where no row is new, for every row.

        Returns these rows, and the token's logp for those that want one.
        """
        rows = [row for row in self.rows if not row.tokens and row.prompt_logits is not None]
        if rows:
            logits = torch.cat([row.prompt_logits for row in rows if row.prompt_logits is not None])
        else:
            rows = list(self.rows)
            logits = self._cached_logits() if self.has_cache else self._recomputed_logits()
        _append_tokens(rows, logits)
        return list(zip(rows, _token_logps_of_rows(rows, logits), strict=True))

    def _cached_logits(self) -> Tensor:
        rows = max(len(self.rows), MIN_STEP_ROWS)
        idle = [0] * (rows - len(self.rows))
        device = compute_device(self.model)
        tokens = [(row.tokens or row.prompt)[-1] for row in self.rows]
        positions = [len(row.prompt) + len(row.tokens) - 1 for row in self.rows]
        width = round_up(max(positions) + 1, COLUMN_MULTIPLE)
        inputs = torch.tensor([tokens + idle, positions + idle], device=device)
        logits = next_token_logits(self.model, self.cache, self.window, inputs[0], inputs[1], width)
        return logits[: len(self.rows)]

    def _recomputed_logits(self) -> Tensor:
        """Compute whole sequences, for families whose caches are of another kind."""
        device = compute_device(self.model)
        examples = [TokenizedExample([*row.prompt, *row.tokens], []) for row in self.rows]
        states = [hidden_states(self.model, collate([example], device), "last_positions") for example in examples]
        return torch.cat([compute_logits(self.model, state) for state in states])

    @torch.inference_mode()
    def remove(self, rows: Sequence[Row]) -> None:
        """Let rows leave, finished or not; the last rows move into their slots."""
        for row in rows:
            slot, last = self.rows.index(row), len(self.rows) - 1
            if slot != last:
                moved = self.rows[last]
                if self.has_cache:
                    self.cache.copy([last], [slot], len(moved.prompt) + len(moved.tokens) - 1)
                self.rows[slot] = moved
            del self.rows[last]


def _append_tokens(rows: Sequence[Row], logits: Tensor) -> None:
    """Sample a token for each row. logits (rows, V)."""
    uniforms = torch.tensor([row.uniforms.random() for row in rows], dtype=torch.float64, device=logits.device)
    groups: dict[tuple[float, float], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((row.params.temperature, row.params.top_p), []).append(index)
    for indices in groups.values():
        selected = slice(None) if len(indices) == len(rows) else torch.tensor(indices, device=logits.device)
        tokens, _ = sample_with_logp(logits[selected], uniforms[selected], rows[indices[0]].params)
        for index, token in zip(indices, tokens.tolist(), strict=True):
            rows[index].tokens.append(token)


def _token_logps_of_rows(rows: Sequence[Row], logits: Tensor) -> list[TokenLogp | None]:
    results: list[TokenLogp | None] = [None] * len(rows)
    indices = [index for index, row in enumerate(rows) if row.num_top_logps is not None]
    if indices:
        tokens = [rows[index].tokens[-1] for index in indices]
        counts = [rows[index].num_top_logps or 0 for index in indices]
        for index, token_logp in zip(indices, token_logps(logits[indices], tokens, counts), strict=True):
            results[index] = token_logp
    return results


def token_logps(logits: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[TokenLogp]:
    """Return tokens with their logps and the `counts` likeliest tokens of each. logits (N, V)."""
    logps = logits.float().log_softmax(-1)
    chosen = logps.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    top_logps, top_tokens = (x.tolist() for x in logps.topk(min(max(counts, default=0), logps.shape[1]), dim=-1))
    return [
        TokenLogp(token, logp, tuple(zip(ids[:count], values[:count], strict=True)))
        for token, logp, ids, values, count in zip(tokens, chosen, top_tokens, top_logps, counts, strict=True)
    ]


@torch.inference_mode()
def prompt_token_logps(model: Any, prompt: Sequence[int], count: int, chunk_rows: int = 256) -> list[TokenLogp]:
    """Return every token of a prompt with its logp given those before; the first has none."""
    batch = collate([TokenizedExample(list(prompt), [])], compute_device(model))
    states = hidden_states(model, batch)[:-1]
    results = [TokenLogp(prompt[0], None)]
    for start in range(0, len(states), chunk_rows):
        tokens = prompt[1 + start : 1 + start + chunk_rows]
        logits = compute_logits(model, states[start : start + chunk_rows])
        results += token_logps(logits, tokens, [count] * len(tokens))
    return results
