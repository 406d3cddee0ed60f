"""Decoding in slots: prompts are prefilled into free slots, a step samples a token for every row, finished rows leave.

A step reads and writes tensors of fixed size on the device, so it never waits for the host, and on CUDA it can be
captured as a graph and replayed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instructgpt import functional
from instructgpt.data.packing import TokenizedExample, collate, microbatches, token_budget
from instructgpt.distributed.comm import call_sharded, is_sharded
from instructgpt.errors import is_out_of_memory, one_line
from instructgpt.models.execution import captures_graphs, stop_capturing
from instructgpt.models.flop_count import cached_shape, count_batch, count_decoding_step
from instructgpt.models.head import compute_logits
from instructgpt.models.lora import get_backbone
from instructgpt.models.packed_attention import PACKED_ATTENTION, get_attention_layout, no_mask, padded_rows
from instructgpt.models.precision import compute_device
from instructgpt.run.directory import console
from instructgpt.sampling.kv_cache import AttentionWindow, StaticKVCache, decode_mask

FINISH_CHECK_INTERVAL = {"cpu": 1, "cuda": 4}
"""Steps between two checks for finished rows, by device type: on a GPU a check waits for all steps before it."""
REFILL_FREE_SHARE = 1 / 8
"""Waiting prompts enter when this share of the slots is free."""
ROW_BUCKETS, COLUMN_BUCKET_SIZE = (1, 2, 4, 8, 16, 32), 128
"""Numbers of rows of a captured step, and multiples of the last; columns come in multiples of the bucket size."""
CDF_BLOCK_SIZE, _MAX_UNBLOCKED_VOCAB = 128, 1024
"""Tokens in a block of the vocabulary when a token is drawn; a small vocabulary is not divided."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a token is sampled, and which tokens end a completion."""

    stop_tokens: tuple[int, ...]
    temperature: float = 1.0
    top_p: float = 1.0


def is_stop_token(tokens: Tensor, params: SamplingParams) -> Tensor:
    """Return which tokens end a completion, a mask of the same shape."""
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    for stop_token in params.stop_tokens:
        mask |= tokens == stop_token
    return mask


def inverse_cdf_sample(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Return the token at which each row's cumulative probability exceeds its uniform number. (B, V), (B,) -> (B,).

    Cumulative sums are in float64. A large vocabulary takes two: over blocks, then within the block that is hit.
    """
    if probabilities.shape[1] <= _MAX_UNBLOCKED_VOCAB:
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        return _searchsorted_above(cumulative, uniforms[:, None] * cumulative[:, -1:])[0][:, 0]
    padding = -probabilities.shape[1] % CDF_BLOCK_SIZE
    padded = F.pad(probabilities, (0, padding)) if padding else probabilities
    blocks = padded.view(len(probabilities), -1, CDF_BLOCK_SIZE)
    cumulative = blocks.sum(-1).double().cumsum(-1)
    block_index, target = _searchsorted_above(cumulative, uniforms[:, None] * cumulative[:, -1:])
    block = blocks.gather(1, block_index[..., None].expand(-1, -1, CDF_BLOCK_SIZE))[:, 0]
    block_cumulative = block.cumsum(-1, dtype=torch.float64)
    offset, _ = _searchsorted_above(block_cumulative, target - F.pad(cumulative, (1, 0)).gather(1, block_index))
    return (block_index * CDF_BLOCK_SIZE + offset)[:, 0]


def _searchsorted_above(cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the index of the first sum above the target, and the target, clamped below the last sum. -> (B, 1) each.

    Strictly above: a token or block with probability 0 does not raise the sum, and so is never hit.
    """
    total = cumulative[:, -1:]
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True), target


def top_p_filter(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Keep the logits of the fewest likeliest tokens with probability `top_p` or more; others become -inf. (B, V)."""
    distribution = (logits.float() / (temperature or 1.0)).softmax(-1)
    probabilities, sorted_ids = distribution.sort(dim=-1, descending=True, stable=True)
    mass_before = probabilities.double().cumsum(-1) - probabilities
    is_excluded = torch.empty_like(sorted_ids, dtype=torch.bool).scatter_(-1, sorted_ids, mass_before >= top_p)
    return logits.masked_fill(is_excluded, float("-inf"))


def sample_with_logp(logits: Tensor, uniforms: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Sample a token a row; return it and its logp in the distribution drawn from. (B, V), (B,) -> (B,), (B,)."""
    if params.top_p < 1:
        logits = top_p_filter(logits, params.temperature, params.top_p)
    if params.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, functional.token_logp(logits, tokens)
    scaled = logits.float() if params.temperature == 1 else logits.float() / params.temperature
    probabilities = scaled.softmax(-1)
    tokens = inverse_cdf_sample(probabilities, uniforms)
    return tokens, probabilities.gather(1, tokens[:, None])[:, 0].log()


def prefill(model: Any, cache: StaticKVCache, prefixes: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """Compute different prompts, or their beginnings, and write keys and values of each to its slots.

    Returns the hidden states (cells, D); those of the first prompt come first.
    """
    batch = collate([TokenizedExample(list(prefix), []) for prefix, _ in prefixes])
    copies = [(span, slot) for span, (_, slots) in zip(batch.spans, prefixes, strict=True) for slot in slots]
    token_index = torch.cat([torch.arange(span.start, span.end) for span, _ in copies])
    rows = torch.cat([torch.full((span.end - span.start,), slot) for span, slot in copies])
    columns = batch.position_ids[token_index]
    device = compute_device(model)
    inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
    if model.config._attn_implementation == PACKED_ATTENTION:
        count_batch(
            model, batch, None, (len(batch.input_ids), get_attention_layout(batch).computed_pairs), subset=False
        )
        is_identity = torch.equal(token_index, torch.arange(len(batch.input_ids)))
        inputs |= {"layout": get_attention_layout(batch), "attention_mask": no_mask(device)}
        inputs |= {"input_ids": batch.input_ids[None], "position_ids": batch.position_ids[None].to(device)}
    else:
        padded_index, flat_index = padded_rows(batch)
        row_count, length = padded_index.shape
        count_batch(model, batch, None, (row_count * length, row_count * length**2), subset=False)
        is_identity, token_index = False, flat_index[token_index]
        inputs["input_ids"] = batch.input_ids[padded_index]
    inputs["input_ids"] = inputs["input_ids"].to(device)
    cache.write_prompts(None if is_identity else token_index.to(device), rows.to(device), columns.to(device))
    states: Tensor = call_sharded(model, lambda: get_backbone(model)(**inputs)).last_hidden_state
    return states.flatten(0, 1)


def next_token_logits(
    model: Any, cache: StaticKVCache, window: AttentionWindow, tokens: Tensor, positions: Tensor, width: int
) -> Tensor:
    """Feed one token to each of the first n slots, at its position, and return the next token's logits.

    tokens (n,), positions (n,) -> (n, V). Rows see the first `width` columns of their slots.
    """
    cache.write_tokens(torch.arange(len(tokens), device=tokens.device), positions, width)
    states = get_backbone(model)(
        input_ids=tokens[:, None],
        position_ids=positions[:, None],
        attention_mask=decode_mask(window, positions, width, model.dtype),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return compute_logits(model, states[:, -1])


class Decoder:
    """Slots and the state of their rows; rows are in the first `num_rows` slots."""

    def __init__(self, model: Any, num_slots: int, width: int, max_tokens: int, params: SamplingParams) -> None:
        device = compute_device(model)
        self.cache = StaticKVCache(num_slots, width)
        self.attention_window = AttentionWindow.from_config(model.config)
        self.shape = cached_shape(model)
        self.params = params
        self.max_tokens = max_tokens
        self.num_rows = 0
        self.max_columns = [0] * num_slots  # upper bound of the columns in use, the next one included
        self.graphs: dict[tuple[int, int], Callable[[], None]] = {}
        self.graph_pool: Any = None  # memory that the graphs share
        # communication of a sharded model cannot be captured
        self.static_shapes = captures_graphs(device) and not is_sharded(model)
        self.slot_index = torch.arange(num_slots, device=device)
        self.next_input = torch.zeros(num_slots, dtype=torch.long, device=device)  # the token of the next step,
        self.next_position = torch.zeros_like(self.next_input)  # and its position
        self.num_sampled = torch.zeros_like(self.next_input)
        self.alive = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self.uniforms = torch.zeros(num_slots, max_tokens, dtype=torch.float64, device=device)
        # steps write finished rows too, into a last column that nobody reads: a step has no branches
        self.sampled_tokens = torch.zeros(num_slots, max_tokens + 1, dtype=torch.long, device=device)
        self.sampled_logp = torch.zeros(num_slots, max_tokens + 1, device=device)

    @property
    def num_free_slots(self) -> int:
        """Slots without a row."""
        return self.cache.num_slots - self.num_rows

    def add_rows(
        self, model: Any, prompts: Sequence[list[int]], uniforms: Tensor, slot_prompts: Sequence[list[int]]
    ) -> None:
        """Put new rows into free slots and prefill their prompts but the last token, each different prompt once.

        Args:
            model: a causal model.
            prompts: prompts of the new rows.
            uniforms: their uniform numbers, (rows, max_tokens).
            slot_prompts: prompts of the rows in the slots; a new row with one of them copies its keys and values.
        """
        target_slots = list(range(self.num_rows, self.num_rows + len(prompts)))
        slot_by_prompt = {tuple(prompt): slot for slot, prompt in enumerate(slot_prompts)}
        slots_by_prefix: dict[tuple[int, ...], list[int]] = {}
        for prompt, slot in zip(map(tuple, prompts), target_slots, strict=True):
            if prompt in slot_by_prompt:
                self.cache.copy([slot_by_prompt[prompt]], [slot], len(prompt) - 1)
            elif len(prompt) > 1:  # prompts that differ in their last token alone share a prefix
                slots_by_prefix.setdefault(prompt[:-1], []).append(slot)
        device = self.next_input.device
        prefixes = list(slots_by_prefix.items())
        for group in microbatches([len(prompt) for prompt, _ in prefixes], token_budget(device)):
            prefill(model, self.cache, [prefixes[index] for index in group])
        rows = slice(self.num_rows, self.num_rows + len(prompts))
        self.next_input[rows] = torch.tensor([prompt[-1] for prompt in prompts], device=device)
        self.next_position[rows] = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        self.num_sampled[rows] = 0
        self.alive[rows] = True
        self.uniforms[rows] = uniforms.to(device)
        self.max_columns[rows] = [len(prompt) for prompt in prompts]
        self.num_rows += len(prompts)

    def step_all(self, model: Any) -> None:
        """Sample one more token for every row."""
        rows, width = self.num_rows, max(self.max_columns[: self.num_rows])
        if self.static_shapes:
            rows, width = bucket_shape(rows, width, self.cache)
        count_decoding_step(self.shape, rows, width)
        if self.static_shapes:
            self.run_graph(model, rows, width)
        else:
            call_sharded(model, self.step, model, rows, width)
        for slot in range(self.num_rows):
            self.max_columns[slot] = min(self.max_columns[slot] + 1, self.cache.width)

    def step(self, model: Any, rows: int, width: int) -> None:
        """Feed the first `rows` slots their next token and sample. Slots with finished rows do not change."""
        positions, num_sampled = self.next_position[:rows], self.num_sampled[:rows]
        alive, slot_index = self.alive[:rows], self.slot_index[:rows]
        tokens = self.next_input[:rows]
        logits = next_token_logits(model, self.cache, self.attention_window, tokens, positions, width)
        uniforms = self.uniforms[slot_index, num_sampled.clamp_max(self.max_tokens - 1)]
        next_tokens, logp = sample_with_logp(logits, uniforms, self.params)
        column = num_sampled.where(alive, self.max_tokens)
        self.sampled_tokens[slot_index, column] = next_tokens
        self.sampled_logp[slot_index, column] = logp
        still_alive = alive & ~is_stop_token(next_tokens, self.params) & (num_sampled + 1 < self.max_tokens)
        num_sampled += alive
        positions += still_alive
        self.next_input[:rows] = next_tokens.where(still_alive, self.next_input[:rows])
        self.alive[:rows] = still_alive

    def run_graph(self, model: Any, rows: int, width: int) -> None:
        """Run a step as a CUDA graph, captured at the first use of its shape, or as it is where graphs are off.

        Where a capture fails, which changes nothing that rows have, this step and all later ones run as they are.
        """
        if not captures_graphs(self.next_input.device):
            self.step(model, rows, width)
            return
        if (rows, width) not in self.graphs:
            if not self.graphs:
                self._warm_up(model, rows, width)
            try:
                self.graphs[rows, width] = self.capture_graph(model, rows, width)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                console.print(stop_capturing(one_line(error, 200)), markup=False, soft_wrap=True)
                self.graphs.clear()
                self.static_shapes = False
                self.step(model, rows, width)
                return
        self.graphs[rows, width]()

    def _warm_up(self, model: Any, rows: int, width: int) -> None:
        """Run a step twice to initialize kernels before the first capture, with all rows marked finished."""
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

    def capture_graph(self, model: Any, rows: int, width: int) -> Callable[[], None]:
        """Capture a step."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.graph_pool):  # records, does not compute
            self.step(model, rows, width)
        replay: Callable[[], None] = graph.replay
        return replay

    def finished_slots(self) -> list[int]:
        """Return the slots of finished rows. Waits for the device."""
        return [slot for slot, alive in enumerate(self.alive[: self.num_rows].tolist()) if not alive]

    def last_tokens(self, count: int) -> list[tuple[int, list[int]]]:
        """Return, per row, how many tokens were sampled and the last `count` of them. Waits for the device."""
        sampled = self.num_sampled[: self.num_rows, None]
        columns = sampled - count + torch.arange(count, device=sampled.device)
        tokens = self.sampled_tokens[: self.num_rows].gather(1, columns.clamp_min(0))
        return [
            (number, row[max(0, count - number) :])
            for number, row in zip(sampled[:, 0].tolist(), tokens.tolist(), strict=True)
        ]

    def end_row(self, slot: int, count: int) -> None:
        """Finish a row after its first `count` tokens."""
        self.num_sampled[slot] = count
        self.alive[slot] = False

    def remove_rows(self, slots: Sequence[int]) -> tuple[list[tuple[list[int], list[float]]], list[int]]:
        """Remove finished rows; the last rows move into their slots.

        Returns tokens and logp of the removed rows, and for every slot still in use the slot that its row came from.
        """
        index = torch.tensor(slots, device=self.next_input.device)
        sampled = (x[index].tolist() for x in (self.num_sampled, self.sampled_tokens, self.sampled_logp))
        results = [(tokens[:count], logp[:count]) for count, tokens, logp in zip(*sampled, strict=True)]
        removed = set(slots)
        num_remaining = self.num_rows - len(removed)
        holes = [slot for slot in range(num_remaining) if slot in removed]
        moved_slots = [slot for slot in range(num_remaining, self.num_rows) if slot not in removed]
        source_slots = list(range(num_remaining))
        if holes:
            self.cache.copy(moved_slots, holes, max(self.max_columns[slot] for slot in moved_slots))
            source, target = (torch.tensor(x, device=self.next_input.device) for x in (moved_slots, holes))
            rows = (self.next_input, self.next_position, self.num_sampled, self.alive)
            for state in (*rows, self.uniforms, self.sampled_tokens, self.sampled_logp):
                state[target] = state[source]
            for moved_slot, hole in zip(moved_slots, holes, strict=True):
                source_slots[hole], self.max_columns[hole] = moved_slot, self.max_columns[moved_slot]
        self.num_rows = num_remaining
        return results, source_slots


def bucket_shape(rows: int, width: int, cache: StaticKVCache) -> tuple[int, int]:
    """Return the smallest bucketed numbers of rows and columns that hold those given."""
    max_bucket = ROW_BUCKETS[-1]
    num_rows = next((bucket for bucket in ROW_BUCKETS if bucket >= rows), -(-rows // max_bucket) * max_bucket)
    return min(num_rows, cache.num_slots), min(-(-width // COLUMN_BUCKET_SIZE) * COLUMN_BUCKET_SIZE, cache.width)
