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
from instructgpt.data.packing import Example, collate, microbatches, token_budget
from instructgpt.distributed.comm import enter, is_divided
from instructgpt.models.packed_attention import PACKED, Enough, layout_of, padded_rows
from instructgpt.models.policy import next_logits, trunk
from instructgpt.sampling.kv_cache import Sight, Slots, visible

CHECK_EVERY = {"cpu": 1, "cuda": 4}
"""Tokens between two looks at which rows have ended, by kind of device: on a GPU a look waits for everything before it."""
REFILL_AT = 1 / 8
"""Waiting prompts are written when this share of the slots is free."""
STATIC = ("cuda",)
"""Kinds of device on which a step is computed for round numbers of rows and columns, so that few different steps are captured."""
ROWS_ALIKE, COLUMNS_ALIKE = (1, 2, 4, 8, 16, 32), 128
"""These numbers of rows, and multiples of the last; multiples of so many columns."""

BLOCK, SMALL = 128, 1024
"""Tokens whose probabilities are added first when one is chosen; a vocabulary of at most so many is not divided."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How a token is chosen, and which ends a completion."""

    eos: int
    temperature: float = 1.0
    top_p: float = 1.0


def choose(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """The token of each row: the inverse of the distribution function at the row's uniform number. (B, V), (B,) -> (B,).

    Sums run in float64: over the vocabulary where it is small, else over its blocks, and then within the block that is met.
    """
    if probabilities.shape[1] <= SMALL:
        sums = probabilities.cumsum(-1, dtype=torch.float64)
        return first_above(sums, uniforms[:, None] * sums[:, -1:])[0][:, 0]
    rest = -probabilities.shape[1] % BLOCK
    blocks = (F.pad(probabilities, (0, rest)) if rest else probabilities).view(len(probabilities), -1, BLOCK)
    sums = blocks.sum(-1).double().cumsum(-1)  # a block's own sum in float32, as its probabilities are
    block, target = first_above(sums, uniforms[:, None] * sums[:, -1:])
    within = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1, dtype=torch.float64)
    place, _ = first_above(within, target - F.pad(sums, (1, 0)).gather(1, block))
    return (block * BLOCK + place)[:, 0]


def first_above(sums: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first of rising sums that is above the target, so that what it added is not nothing; and the target, kept below the last.

    sums (B, n), target (B, 1) -> (B, 1), (B, 1).
    """
    last = sums[:, -1:]
    target = torch.minimum(target, torch.nextafter(last, torch.zeros_like(last)))
    return torch.searchsorted(sums, target, right=True), target


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Logits of the likeliest tokens that together have a probability of at least `top_p`, all others minus infinity (B, V)."""
    probabilities, order = (logits.float() / (temperature or 1.0)).softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.double().cumsum(-1) - probabilities
    return logits.masked_fill(torch.empty_like(order, dtype=torch.bool).scatter_(-1, order, before >= top_p), float("-inf"))


def draw(logits: Tensor, uniforms: Tensor, choice: Choice) -> tuple[Tensor, Tensor]:
    """The token of each row, and its logp under the distribution it was drawn from. (B, V), (B,) -> (B,), (B,)."""
    if choice.top_p < 1:
        logits = nucleus(logits, choice.temperature, choice.top_p)
    if choice.temperature == 0:
        chosen = logits.argmax(-1)
        return chosen, functional.token_logp(logits, chosen)
    scaled = logits.float() if choice.temperature == 1 else logits.float() / choice.temperature
    probabilities = scaled.softmax(-1)
    chosen = choose(probabilities, uniforms)
    return chosen, probabilities.gather(1, chosen[:, None])[:, 0].log()


class Decoder:
    """S slots, of which the first `count` are in use."""

    def __init__(self, model: Any, slots: int, width: int, max_tokens: int, choice: Choice, layers: int | None = None) -> None:
        device = model.device
        self.cache = Slots(slots, width, layers)
        self.sight = Sight.of(model.config)
        self.choice = choice
        self.max_tokens = max_tokens
        self.count = 0
        self.reach = [0] * slots  # columns that a slot's row has written or is about to, at most
        self.captured: dict[tuple[int, int], Callable[[], None]] = {}
        self.pool: Any = None  # memory that the graphs share
        self.static = device.type in STATIC and not is_divided(model)  # what ranks say to each other cannot be captured
        self.index = torch.arange(slots, device=device)
        self.token = torch.zeros(slots, dtype=torch.long, device=device)  # what a slot is fed next,
        self.position = torch.zeros_like(self.token)  # and the position of that token
        self.taken = torch.zeros_like(self.token)  # tokens sampled so far
        self.alive = torch.zeros(slots, dtype=torch.bool, device=device)
        self.uniforms = torch.zeros(slots, max_tokens, dtype=torch.float64, device=device)
        self.tokens = torch.zeros(slots, max_tokens + 1, dtype=torch.long, device=device)  # the last column is for rows that have ended
        self.logp = torch.zeros(slots, max_tokens + 1, device=device)

    @property
    def free(self) -> int:
        """Slots that no row owns."""
        return self.cache.slots - self.count

    def admit(self, model: Any, prompts: Sequence[list[int]], uniforms: Tensor, owners: Sequence[list[int]]) -> None:
        """Give free slots to new rows. All but the last token of a prompt is computed here, once where prompts are alike.

        Args:
            model: the causal model.
            prompts: of the new rows.
            uniforms: their random numbers, (rows, max_tokens).
            owners: prompts of the rows that are in slots, in their order; a new row copies the prompt of one of them.
        """
        targets = list(range(self.count, self.count + len(prompts)))
        held = {tuple(prompt): slot for slot, prompt in enumerate(owners)}
        new: dict[tuple[int, ...], list[int]] = {}
        for prompt, slot in zip(map(tuple, prompts), targets, strict=True):
            if prompt in held:
                self.cache.copy([held[prompt]], [slot], len(prompt) - 1)
            elif len(prompt) > 1:
                new.setdefault(prompt[:-1], []).append(slot)  # prompts that differ in their last token are alike here
        device = self.token.device
        parts = list(new.items())
        for group in microbatches([len(prompt) for prompt, _ in parts], token_budget(device)):
            self._prefill(model, [parts[member] for member in group])
        rows = slice(self.count, self.count + len(prompts))
        self.token[rows] = torch.tensor([prompt[-1] for prompt in prompts], device=device)
        self.position[rows] = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)
        self.taken[rows] = 0
        self.alive[rows] = True
        self.uniforms[rows] = uniforms.to(device)
        self.reach[rows] = [len(prompt) for prompt in prompts]
        self.count += len(prompts)

    def _prefill(self, model: Any, parts: Sequence[tuple[tuple[int, ...], list[int]]]) -> None:
        """Compute prompts without their last tokens, no two alike, and keep their keys and values in the slots of each."""
        batch = collate([Example(list(begun), []) for begun, _ in parts])
        starts = [span.start for span in batch.spans]
        lengths = [span.end - span.start for span in batch.spans]
        owned = [(start, length, slot) for start, length, (_, slots) in zip(starts, lengths, parts, strict=True) for slot in slots]
        places = torch.cat([torch.arange(start, start + length) for start, length, _ in owned])
        rows = torch.cat([torch.full((length,), slot) for _, length, slot in owned])
        columns = torch.cat([torch.arange(length) for _, length, _ in owned])
        device = self.token.device
        packed = model.config._attn_implementation == PACKED
        given: dict[str, Any]
        if packed:
            nothing = torch.empty((1, 1, 0, 0), dtype=torch.long, device=device)  # as in models/packed_attention.py: no mask is made
            given = {"attention_mask": nothing, "layout": layout_of(batch), "position_ids": batch.positions[None].to(device)}
            tokens = batch.tokens[None]
        else:
            grid, where = padded_rows(batch)
            tokens, places, given = batch.tokens[grid], where[places], {}
        all_in_order = packed and torch.equal(places, torch.arange(len(batch.tokens)))
        self.cache.write_prompts(None if all_in_order else places.to(device), rows.to(device), columns.to(device))
        with suppress(Enough):
            enter(model, lambda: trunk(model)(input_ids=tokens.to(device), past_key_values=self.cache, use_cache=True, **given))

    def advance(self, model: Any) -> None:
        """One more token for every row in a slot."""
        rows, width = self.count, max(self.reach[: self.count])
        if self.static:
            rows, width = alike(rows, width, self.cache)
            self.replay(model, rows, width)
        else:
            enter(model, self.step, model, rows, width)
        for slot in range(self.count):
            self.reach[slot] = min(self.reach[slot] + 1, self.cache.width)

    def step(self, model: Any, rows: int, width: int) -> None:
        """Feed each of the first slots its token and choose the next. A slot whose row has ended stays as it is."""
        position, place, alive, index = self.position[:rows], self.taken[:rows], self.alive[:rows], self.index[:rows]
        self.cache.write_tokens(index, position, width)
        states = trunk(model)(
            input_ids=self.token[:rows, None],
            position_ids=position[:, None],
            attention_mask=visible(self.sight, position, width, model.dtype),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        uniforms = self.uniforms[index, place.clamp_max(self.max_tokens - 1)]
        chosen, logp = draw(next_logits(model, states[:, -1]), uniforms, self.choice)
        column = place.where(alive, self.max_tokens)
        self.tokens[index, column] = chosen
        self.logp[index, column] = logp
        going = alive & (chosen != self.choice.eos) & (place + 1 < self.max_tokens)
        place += alive
        position += going
        self.token[:rows] = chosen.where(going, self.token[:rows])
        self.alive[:rows] = going

    def replay(self, model: Any, rows: int, width: int) -> None:
        """The step, captured as a CUDA graph where there is CUDA; the same step elsewhere."""
        if self.token.device.type != "cuda":
            self.step(model, rows, width)
            return
        if (rows, width) not in self.captured:
            self.captured[rows, width] = self.capture(model, rows, width)
        self.captured[rows, width]()

    def capture(self, model: Any, rows: int, width: int) -> Callable[[], None]:
        """A graph of the step. The first is tried out before, on rows that count as ended, which a step leaves as they are."""
        if not self.captured:
            alive = self.alive.clone()
            self.alive.zero_()
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):
                    self.step(model, rows, width)
            torch.cuda.current_stream().wait_stream(aside)
            self.alive.copy_(alive)
            self.pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):  # nothing is computed here
            self.step(model, rows, width)
        replay: Callable[[], None] = graph.replay
        return replay

    def ended(self) -> list[int]:
        """Slots whose rows have ended. This waits for the device."""
        return [slot for slot, alive in enumerate(self.alive[: self.count].tolist()) if not alive]

    def leave(self, slots: Sequence[int]) -> tuple[list[tuple[list[int], list[float]]], list[int]]:
        """Take ended rows out: rows from the far end move into their slots.

        Returns the tokens and logp of those that left, and for every slot still in use which slot its row came from.
        """
        which = torch.tensor(slots, device=self.token.device)
        taken, tokens, logp = self.taken[which].tolist(), self.tokens[which].tolist(), self.logp[which].tolist()
        results = [(row[:count], numbers[:count]) for count, row, numbers in zip(taken, tokens, logp, strict=True)]
        gone = set(slots)
        stay = self.count - len(gone)
        holes = [slot for slot in range(stay) if slot in gone]
        movers = [slot for slot in range(stay, self.count) if slot not in gone]
        came = list(range(stay))
        if holes:
            self.cache.copy(movers, holes, max(self.reach[slot] for slot in movers))
            source, target = (torch.tensor(x, device=self.token.device) for x in (movers, holes))
            for kept in (self.token, self.position, self.taken, self.alive, self.uniforms, self.tokens, self.logp):
                kept[target] = kept[source]
            for mover, hole in zip(movers, holes, strict=True):
                came[hole], self.reach[hole] = mover, self.reach[mover]
        self.count = stay
        return results, came


def alike(rows: int, width: int, cache: Slots) -> tuple[int, int]:
    """Numbers of rows and columns for which a step is captured: the least of them that are enough."""
    most = ROWS_ALIKE[-1]
    enough = next((number for number in ROWS_ALIKE if number >= rows), -(-rows // most) * most)
    return min(enough, cache.slots), min(-(-width // COLUMNS_ALIKE) * COLUMNS_ALIKE, cache.width)
