"""Decoding rows in slots: prompts are written into free slots, one step gives every row its next token, ended rows leave.

Everything that a step reads or writes is a tensor of fixed size on the device, so that a step never waits for the host,
and on CUDA can be captured as a graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instructgpt import functional
from instructgpt.data.packing import TokenizedExample, collate, microbatches, token_budget
from instructgpt.distributed.comm import call_sharded, is_sharded
from instructgpt.models.packed_attention import PACKED_ATTENTION, StopForwardError, get_attention_layout, padded_rows
from instructgpt.models.policy import compute_logits, get_backbone
from instructgpt.sampling.kv_cache import AttentionWindow, StaticKVCache, decode_mask

FINISH_CHECK_INTERVAL = {"cpu": 1, "cuda": 4}
"""Tokens between two looks at which rows have ended, by kind of device: on a GPU a look waits for everything before it."""
REFILL_FREE_SHARE = 1 / 8
"""Waiting prompts are written when this share of the slots is free."""
STATIC_SHAPE_DEVICES = ("cuda",)
"""Kinds of device on which a step is computed for round numbers of rows and columns, so that few different steps are captured."""
ROW_BUCKETS, COLUMN_BUCKET_SIZE = (1, 2, 4, 8, 16, 32), 128
"""These numbers of rows, and multiples of the last; multiples of so many columns."""

CDF_BLOCK_SIZE, _MAX_UNBLOCKED_VOCAB = 128, 1024
"""Tokens whose probabilities are added first when one is chosen; a vocabulary of at most so many is not divided."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a token is chosen, and which ends a completion."""

    eos: int
    temperature: float = 1.0
    top_p: float = 1.0


def inverse_cdf_sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token of each row: the inverse of the distribution function at the row's uniform number. (B, V), (B,) -> (B,).

    Sums run in float64: over the vocabulary where it is small, else over its blocks, and then within the block that is met.
    """
    if probabilities.shape[1] <= _MAX_UNBLOCKED_VOCAB:
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        return _searchsorted_above(cumulative, uniforms[:, None] * cumulative[:, -1:])[0][:, 0]
    padding = -probabilities.shape[1] % CDF_BLOCK_SIZE
    blocks = (F.pad(probabilities, (0, padding)) if padding else probabilities).view(
        len(probabilities), -1, CDF_BLOCK_SIZE
    )
    cumulative = blocks.sum(-1).double().cumsum(-1)  # a block's own sum in float32, as its probabilities are
    block_index, target = _searchsorted_above(cumulative, uniforms[:, None] * cumulative[:, -1:])
    block_cumulative = blocks.gather(1, block_index[..., None].expand(-1, -1, CDF_BLOCK_SIZE))[:, 0].cumsum(
        -1, dtype=torch.float64
    )
    offset, _ = _searchsorted_above(block_cumulative, target - F.pad(cumulative, (1, 0)).gather(1, block_index))
    return (block_index * CDF_BLOCK_SIZE + offset)[:, 0]


def _searchsorted_above(cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first of rising sums that is above the target, so that what it added is not nothing; and the target, kept below the last.

    sums (B, n), target (B, 1) -> (B, 1), (B, 1).
    """
    total = cumulative[:, -1:]
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True), target


def top_p_filter(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Logits of the likeliest tokens that together have a probability of at least `top_p`, all others minus infinity (B, V)."""
    probabilities, sorted_ids = (
        (logits.float() / (temperature or 1.0)).softmax(-1).sort(dim=-1, descending=True, stable=True)
    )
    mass_before = probabilities.double().cumsum(-1) - probabilities
    return logits.masked_fill(
        torch.empty_like(sorted_ids, dtype=torch.bool).scatter_(-1, sorted_ids, mass_before >= top_p), float("-inf")
    )


def sample_with_logp(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The token of each row, and its logp under the distribution it was drawn from. (B, V), (B,) -> (B,), (B,)."""
    if params.top_p < 1:
        logits = top_p_filter(logits, params.temperature, params.top_p)
    if params.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, functional.token_logp(logits, tokens)
    scaled = logits.float() if params.temperature == 1 else logits.float() / params.temperature
    probabilities = scaled.softmax(-1)
    tokens = inverse_cdf_sample(probabilities, uniforms)
    return tokens, probabilities.gather(1, tokens[:, None])[:, 0].log()


class Decoder:
    """S slots, of which the first `count` are in use."""

    def __init__(
        self,
        model: Any,
        num_slots: int,
        width: int,
        max_tokens: int,
        params: SamplingParams,
        num_layers: int | None = None,
    ) -> None:
        device = model.device
        self.cache = StaticKVCache(num_slots, width, num_layers)
        self.attention_window = AttentionWindow.from_config(model.config)
        self.params = params
        self.max_tokens = max_tokens
        self.num_rows = 0
        self.max_columns = [0] * num_slots  # columns that a slot's row has written or is about to, at most
        self.graphs: dict[tuple[int, int], Callable[[], None]] = {}
        self.graph_pool: Any = None  # memory that the graphs share
        self.static_shapes = device.type in STATIC_SHAPE_DEVICES and not is_sharded(
            model
        )  # what ranks say to each other cannot be captured
        self.slot_index = torch.arange(num_slots, device=device)
        self.next_input = torch.zeros(num_slots, dtype=torch.long, device=device)  # what a slot is fed next,
        self.next_position = torch.zeros_like(self.next_input)  # and the position of that token
        self.num_sampled = torch.zeros_like(self.next_input)  # tokens sampled so far
        self.alive = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self.uniforms = torch.zeros(num_slots, max_tokens, dtype=torch.float64, device=device)
        self.sampled_tokens = torch.zeros(
            num_slots, max_tokens + 1, dtype=torch.long, device=device
        )  # the last column is for rows that have ended
        self.sampled_logp = torch.zeros(num_slots, max_tokens + 1, device=device)

    @property
    def num_free_slots(self) -> int:
        """Slots that no row owns."""
        return self.cache.num_slots - self.num_rows

    def add_rows(
        self, model: Any, prompts: Sequence[list[int]], uniforms: Tensor, slot_prompts: Sequence[list[int]]
    ) -> None:
        """Give free slots to new rows. All but the last token of a prompt is computed here, once where prompts are alike.

        Args:
            model: the causal model.
            prompts: of the new rows.
            uniforms: their random numbers, (rows, max_tokens).
            owners: prompts of the rows that are in slots, in their order; a new row copies the prompt of one of them.
        """
        target_slots = list(range(self.num_rows, self.num_rows + len(prompts)))
        slot_by_prompt = {tuple(prompt): slot for slot, prompt in enumerate(slot_prompts)}
        slots_by_prefix: dict[tuple[int, ...], list[int]] = {}
        for prompt, slot in zip(map(tuple, prompts), target_slots, strict=True):
            if prompt in slot_by_prompt:
                self.cache.copy([slot_by_prompt[prompt]], [slot], len(prompt) - 1)
            elif len(prompt) > 1:
                slots_by_prefix.setdefault(prompt[:-1], []).append(
                    slot
                )  # prompts that differ in their last token are alike here
        device = self.next_input.device
        prefixes = list(slots_by_prefix.items())
        for group in microbatches([len(prompt) for prompt, _ in prefixes], token_budget(device)):
            self._prefill(model, [prefixes[index] for index in group])
        rows = slice(self.num_rows, self.num_rows + len(prompts))
        self.next_input[rows] = torch.tensor([prompt[-1] for prompt in prompts], device=device)
        self.next_position[rows] = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        self.num_sampled[rows] = 0
        self.alive[rows] = True
        self.uniforms[rows] = uniforms.to(device)
        self.max_columns[rows] = [len(prompt) for prompt in prompts]
        self.num_rows += len(prompts)

    def _prefill(self, model: Any, prefixes: Sequence[tuple[tuple[int, ...], list[int]]]) -> None:
        """Compute prompts without their last tokens, no two alike, and keep their keys and values in the slots of each."""
        batch = collate([TokenizedExample(list(prefix), []) for prefix, _ in prefixes])
        starts = [span.start for span in batch.spans]
        lengths = [span.end - span.start for span in batch.spans]
        copies = [
            (start, length, slot)
            for start, length, (_, slots) in zip(starts, lengths, prefixes, strict=True)
            for slot in slots
        ]
        token_index = torch.cat([torch.arange(start, start + length) for start, length, _ in copies])
        rows = torch.cat([torch.full((length,), slot) for _, length, slot in copies])
        columns = torch.cat([torch.arange(length) for _, length, _ in copies])
        device = self.next_input.device
        is_packed = model.config._attn_implementation == PACKED_ATTENTION
        model_inputs: dict[str, Any]
        if is_packed:
            empty_mask = torch.empty(
                (1, 1, 0, 0), dtype=torch.long, device=device
            )  # as in models/packed_attention.py: no mask is made
            model_inputs = {
                "attention_mask": empty_mask,
                "layout": get_attention_layout(batch),
                "position_ids": batch.position_ids[None].to(device),
            }
            tokens = batch.input_ids[None]
        else:
            padded_token_index, flat_index = padded_rows(batch)
            tokens, token_index, model_inputs = batch.input_ids[padded_token_index], flat_index[token_index], {}
        is_identity = is_packed and torch.equal(token_index, torch.arange(len(batch.input_ids)))
        self.cache.write_prompts(None if is_identity else token_index.to(device), rows.to(device), columns.to(device))
        with suppress(StopForwardError):
            call_sharded(
                model,
                lambda: get_backbone(model)(
                    input_ids=tokens.to(device), past_key_values=self.cache, use_cache=True, **model_inputs
                ),
            )

    def step_all(self, model: Any) -> None:
        """One more token for every row in a slot."""
        rows, width = self.num_rows, max(self.max_columns[: self.num_rows])
        if self.static_shapes:
            rows, width = bucket_shape(rows, width, self.cache)
            self.run_graph(model, rows, width)
        else:
            call_sharded(model, self.step, model, rows, width)
        for slot in range(self.num_rows):
            self.max_columns[slot] = min(self.max_columns[slot] + 1, self.cache.width)

    def step(self, model: Any, rows: int, width: int) -> None:
        """Feed each of the first slots its token and choose the next. A slot whose row has ended stays as it is."""
        positions, num_sampled, alive, slot_index = (
            self.next_position[:rows],
            self.num_sampled[:rows],
            self.alive[:rows],
            self.slot_index[:rows],
        )
        self.cache.write_tokens(slot_index, positions, width)
        states = get_backbone(model)(
            input_ids=self.next_input[:rows, None],
            position_ids=positions[:, None],
            attention_mask=decode_mask(self.attention_window, positions, width, model.dtype),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        uniforms = self.uniforms[slot_index, num_sampled.clamp_max(self.max_tokens - 1)]
        next_tokens, logp = sample_with_logp(compute_logits(model, states[:, -1]), uniforms, self.params)
        column = num_sampled.where(alive, self.max_tokens)
        self.sampled_tokens[slot_index, column] = next_tokens
        self.sampled_logp[slot_index, column] = logp
        still_alive = alive & (next_tokens != self.params.eos) & (num_sampled + 1 < self.max_tokens)
        num_sampled += alive
        positions += still_alive
        self.next_input[:rows] = next_tokens.where(still_alive, self.next_input[:rows])
        self.alive[:rows] = still_alive

    def run_graph(self, model: Any, rows: int, width: int) -> None:
        """The step, captured as a CUDA graph where there is CUDA; the same step elsewhere."""
        if self.next_input.device.type != "cuda":
            self.step(model, rows, width)
            return
        if (rows, width) not in self.graphs:
            self.graphs[rows, width] = self.capture_graph(model, rows, width)
        self.graphs[rows, width]()

    def capture_graph(self, model: Any, rows: int, width: int) -> Callable[[], None]:
        """A graph of the step. The first is tried out before, on rows that count as ended, which a step leaves as they are."""
        if not self.graphs:
            alive = self.alive.clone()
            self.alive.zero_()
            side_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                for _ in range(2):
                    self.step(model, rows, width)
            torch.cuda.current_stream().wait_stream(side_stream)
            self.alive.copy_(alive)
            self.graph_pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.graph_pool):  # nothing is computed here
            self.step(model, rows, width)
        replay: Callable[[], None] = graph.replay
        return replay

    def finished_slots(self) -> list[int]:
        """Slots whose rows have ended. This waits for the device."""
        return [slot for slot, alive in enumerate(self.alive[: self.num_rows].tolist()) if not alive]

    def remove_rows(self, slots: Sequence[int]) -> tuple[list[tuple[list[int], list[float]]], list[int]]:
        """Take ended rows out: rows from the far end move into their slots.

        Returns the tokens and logp of those that left, and for every slot still in use which slot its row came from.
        """
        index = torch.tensor(slots, device=self.next_input.device)
        num_sampled, tokens, logp = (
            self.num_sampled[index].tolist(),
            self.sampled_tokens[index].tolist(),
            self.sampled_logp[index].tolist(),
        )
        results = [
            (row[:count], row_logp[:count]) for count, row, row_logp in zip(num_sampled, tokens, logp, strict=True)
        ]
        removed = set(slots)
        num_remaining = self.num_rows - len(removed)
        holes = [slot for slot in range(num_remaining) if slot in removed]
        moved_slots = [slot for slot in range(num_remaining, self.num_rows) if slot not in removed]
        source_slots = list(range(num_remaining))
        if holes:
            self.cache.copy(moved_slots, holes, max(self.max_columns[slot] for slot in moved_slots))
            source, target = (torch.tensor(x, device=self.next_input.device) for x in (moved_slots, holes))
            for state in (
                self.next_input,
                self.next_position,
                self.num_sampled,
                self.alive,
                self.uniforms,
                self.sampled_tokens,
                self.sampled_logp,
            ):
                state[target] = state[source]
            for moved_slot, hole in zip(moved_slots, holes, strict=True):
                source_slots[hole], self.max_columns[hole] = moved_slot, self.max_columns[moved_slot]
        self.num_rows = num_remaining
        return results, source_slots


def bucket_shape(rows: int, width: int, cache: StaticKVCache) -> tuple[int, int]:
    """Numbers of rows and columns for which a step is captured: the least of them that are enough."""
    max_bucket = ROW_BUCKETS[-1]
    num_rows = next((bucket for bucket in ROW_BUCKETS if bucket >= rows), -(-rows // max_bucket) * max_bucket)
    return min(num_rows, cache.num_slots), min(-(-width // COLUMN_BUCKET_SIZE) * COLUMN_BUCKET_SIZE, cache.width)
