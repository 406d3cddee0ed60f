"""Work of one pass: tokens, FLOPs and bytes; and what a plan is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from instructgpt.data.packing import Example, microbatches
from instructgpt.models.flops import FLOAT, Shape, Text
from instructgpt.plan.hardware import Machine
from instructgpt.plan.meta_trace import Network

ADAM = 3 * FLOAT
"""Bytes AdamW moves a parameter, beside its moments, which are read and written: weight and gradient read, weight written."""
HALF = 2
"""Bytes of a number in bf16."""
CLIP = 3 * FLOAT
"""Gradients read for their norm, read and written to scale them."""
ACTIVATIONS, HOLES_BETWEEN = "activations and logits", "holes between them"
"""Parts of the memory that grow with the tokens computed at once."""
AVERAGE = 3 * FLOAT
"""Bytes the moving average moves a parameter: both weights read, one written."""
REACHED = {
    "cpu": {"matmul": 0.75, "decode": 0.5, "memory": 0.5, "link": 0.8},
    "cuda": {"matmul": 0.5, "decode": 0.6, "memory": 0.7, "link": 0.8},
}
"""Share of the roofline that a phase of each kind is expected to reach (measured on the CPU, see docs/performance.md; goals on CUDA),
and of the link between ranks (assumed)."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a step, in one process: what it must compute and move."""

    name: str
    tokens: float
    flops: float
    moved: float  # bytes
    kind: str = "matmul"  # or decode, memory: what decides its speed
    sent: float = 0.0  # bytes to other ranks
    calls: float = 0.0  # times that all ranks wait for each other

    def roofline(self, machine: Machine) -> float:
        """Seconds below which no program can do it on this machine: computing and sending go side by side at best."""
        return max(machine.seconds(self.flops, self.moved), machine.sending(self.sent, self.calls))

    def expected(self, machine: Machine, device: str) -> float:
        """Seconds it is expected to take. A GPU sends while it computes; on a CPU the same cores do both, one after the other."""
        shares = REACHED.get(device, REACHED["cpu"])
        computing = machine.seconds(self.flops, self.moved) / shares[self.kind]
        sending = machine.sending(self.sent, self.calls) / shares["link"]
        return max(computing, sending) if device == "cuda" else computing + sending

    def times(self, factor: float) -> Phase:
        """The same phase with more or less of everything."""
        tokens, flops, moved, sent, calls = (factor * n for n in (self.tokens, self.flops, self.moved, self.sent, self.calls))
        return Phase(self.name, tokens, flops, moved, self.kind, sent, calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a stage needs: the phases of one step, how many steps there are, and what is in memory at its fullest moments."""

    stage: str
    step: str  # what one step is, in words
    steps: int
    phases: list[Phase]
    moments: dict[str, dict[str, float]]  # moment -> part -> bytes
    notes: list[str] = field(default_factory=list)
    ranks: int = 1
    at_once: int = 0  # tokens in a microbatch

    def least(self, machine: Machine) -> float:
        """Seconds of a step below which no program can do it."""
        return sum(phase.roofline(machine) for phase in self.phases)

    def expected(self, machine: Machine, device: str) -> float:
        """Seconds that a step is expected to take."""
        return sum(phase.expected(machine, device) for phase in self.phases)

    @property
    def sent(self) -> float:
        """Bytes that a rank sends in a step."""
        return sum(phase.sent for phase in self.phases)

    @property
    def worst(self) -> str:
        """The moment at which most memory is needed."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def memory(self) -> float:
        """Bytes needed at that moment, beside the interpreter and its libraries."""
        return sum(self.moments[self.worst].values())

    @property
    def always(self) -> float:
        """Bytes needed however few tokens are computed at once."""
        return max(sum(size for part, size in parts.items() if part not in (ACTIVATIONS, HOLES_BETWEEN)) for parts in self.moments.values())


def grouped(examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """The microbatches of a batch of examples."""
    return [[examples[row] for row in rows] for rows in microbatches([len(example) for example in examples], budget)]


def texts_of(examples: Iterable[Example]) -> list[Text]:
    """Examples as texts that share nothing, read where they predict their completions."""
    return [Text(len(example), read=len(example.completion)) for example in examples]


def predicted_in(examples: Iterable[Example]) -> int:
    """Completion tokens, each of which is predicted once."""
    return sum(len(example.completion) for example in examples)


def ring(size: float, ranks: int) -> float:
    """Bytes a rank sends so that all have `size` bytes of which each holds a part, or so that each has a part of their sum.

    In a ring, R - 1 times a rank passes on an R-th of them. To add up all and give the whole sum to all takes twice that.
    """
    return size * (ranks - 1) / ranks


def passes(
    network: Network,
    texts: Sequence[Text],
    predicted: float,
    *,
    groups: float,
    kept: float = 0.0,
    ranks: int = 1,
    names: tuple[str, str] = ("forward", "backward"),
) -> list[Phase]:
    """A forward and a backward pass over some texts.

    Args:
        network: the model; texts: what is computed; predicted: tokens with logits.
        groups: microbatches, for each of which all weights are read once and gradients are added.
        kept: bytes the forward pass keeps for the backward pass: written once and read once.
        ranks: how many hold parts of the model: all weights are gathered for the forward pass, those of the layers again for the
            backward pass, whose gradients are then added up, for each microbatch.
        names: of the two phases.
    """
    shape, parts = network.shape, network.groups if ranks > 1 else []
    tokens = sum(text.tokens for text in texts)
    gathered, again = ring(shape.bytes, ranks), ring(FLOAT * sum(parts[1:]), ranks)
    forward = Phase(
        names[0],
        tokens,
        shape.forward(texts, predicted),
        groups * shape.bytes + kept,
        sent=groups * gathered,
        calls=groups * len(parts),
    )
    flops = shape.backward(texts, predicted)
    if "checkpointing" in network.memory:
        flops += shape.forward(texts)  # the layers once more
    backward = Phase(
        names[1],
        tokens,
        flops,
        groups * (shape.bytes + FLOAT * shape.trained) + kept,
        sent=groups * (again + ring(FLOAT * shape.trained, ranks)),
        calls=groups * max(0, 2 * len(parts) - 1),
    )
    return [forward, backward]


def joined(name: str, phases: Iterable[Phase]) -> Phase:
    """Phases that are timed as one: tokens of the first, work of all."""
    phases = list(phases)
    flops, moved, sent, calls = (sum(numbers) for numbers in zip(*((p.flops, p.moved, p.sent, p.calls) for p in phases), strict=True))
    return replace(phases[0], name=name, flops=flops, moved=moved, sent=sent, calls=calls)


def optimizer(parameters: float, averaged: float = 0, moments: float | None = None) -> Phase:
    """Clipping, AdamW and the moving average: no tokens, hardly arithmetic, all memory. `moments`: their bytes, float32 where not given."""
    moments = 2 * FLOAT * parameters if moments is None else moments
    return Phase("optimizer", 0, 0, (ADAM + CLIP) * parameters + 2 * moments + AVERAGE * averaged, "memory")


def sampling(shape: Shape, prompts: Sequence[int], completions: Sequence[int], rows: int, number: int = FLOAT) -> list[Phase]:
    """Prefill and decode of a batch, `rows` at a time: every step reads the weights once, and of every row that has not ended all
    its keys and values. `number`: bytes of a number in the trunk's matrices and in the cache.
    """
    prefill = Phase(
        "prefill", sum(prompts), shape.forward([Text(p, read=1) for p in prompts], len(prompts)), shape.bytes * -(-len(prompts) // rows)
    )
    tokens = flops = moved = 0.0
    weights = number * shape.matrices + FLOAT * shape.width * shape.vocabulary
    for start in range(0, len(prompts), rows):
        wave = list(zip(prompts[start : start + rows], completions[start : start + rows], strict=True))
        for t in range(max(length for _, length in wave) - 1):
            alive = [prompt + t for prompt, length in wave if length > t + 1]
            tokens += len(alive)
            flops += shape.forward((Text(1, before) for before in alive), len(alive))
            moved += weights + number * shape.cached * sum(alive)
    return [prefill, Phase("decode", tokens, flops, moved, "decode")]
