"""Work of one pass: tokens, FLOPs and bytes; and what a plan is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from instructgpt.data.batches import Example, microbatches
from instructgpt.models.shape import BACKWARD, FLOAT, Shape, Text, shape_of
from instructgpt.plan.dry import Held, Measure, held
from instructgpt.plan.machine import Machine

ADAM = 7 * FLOAT
"""Bytes AdamW moves a parameter: weight, gradient and two moments read, weight and moments written."""
CLIP = 3 * FLOAT
"""Gradients read for their norm, read and written to scale them."""
AVERAGE = 3 * FLOAT
"""Bytes the moving average moves a parameter: both weights read, one written."""
REACHED = {"cpu": {"matmul": 0.75, "decode": 0.5, "memory": 0.5}, "cuda": {"matmul": 0.5, "decode": 0.6, "memory": 0.7}}
"""Share of the roofline that a phase of each kind is expected to reach (measured on the CPU, see docs/performance.md; goals on CUDA)."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a step, in one process: what it must compute and move."""

    name: str
    tokens: float
    flops: float
    moved: float  # bytes
    kind: str = "matmul"  # or decode, memory: what decides its speed

    def roofline(self, machine: Machine) -> float:
        """Seconds below which no program can do it on this machine."""
        return machine.seconds(self.flops, self.moved)

    def times(self, factor: float) -> Phase:
        """The same phase with more or less of everything."""
        return Phase(self.name, factor * self.tokens, factor * self.flops, factor * self.moved, self.kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a stage needs: the phases of one step, how many steps there are, and what is in memory at its fullest moments."""

    stage: str
    step: str  # what one step is, in words
    steps: int
    phases: list[Phase]
    moments: dict[str, dict[str, float]]  # moment -> part -> bytes
    notes: list[str] = field(default_factory=list)

    @property
    def worst(self) -> str:
        """The moment at which most memory is needed."""
        return max(self.moments, key=lambda moment: sum(self.moments[moment].values()))

    @property
    def memory(self) -> float:
        """Bytes needed at that moment, beside the interpreter and its libraries."""
        return sum(self.moments[self.worst].values())


@dataclass(frozen=True)
class Network:
    """A model that is planned with: its configuration, its shape, and what is measured of a batch."""

    config: Any
    measure: Measure
    scalar: bool = False

    @cached_property
    def shape(self) -> Shape:
        """Its shape."""
        return shape_of(self.config, scalar=self.scalar)

    def holds(self, groups: Sequence[Sequence[Example]], *, again: bool = False) -> Held:
        """What it holds beside its weights while it learns from the largest of some microbatches. `again`: gradients are there before."""
        group = max(groups, key=lambda examples: sum(map(len, examples)))
        return held(self.config, group, self.measure, scalar=self.scalar, again=again or len(groups) > 1)


def grouped(examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """The microbatches of a batch of examples."""
    return [[examples[row] for row in rows] for rows in microbatches([len(example) for example in examples], budget)]


def texts_of(examples: Iterable[Example]) -> list[Text]:
    """Examples as texts that share nothing, read where they predict their completions."""
    return [Text(len(example), read=len(example.completion)) for example in examples]


def predicted_in(examples: Iterable[Example]) -> int:
    """Completion tokens, each of which is predicted once."""
    return sum(len(example.completion) for example in examples)


def passes(
    shape: Shape, texts: Sequence[Text], predicted: float, *, groups: float, kept: float, names: tuple[str, str] = ("forward", "backward")
) -> list[Phase]:
    """A forward and a backward pass over some texts.

    Args:
        shape: the model's; texts: what is computed; predicted: tokens with logits.
        groups: microbatches, for each of which all weights are read once and gradients are added.
        kept: bytes the forward pass keeps for the backward pass: written once and read once.
        names: of the two phases.
    """
    tokens = sum(text.tokens for text in texts)
    flops = shape.forward(texts, predicted)
    forward = Phase(names[0], tokens, flops, groups * shape.bytes + kept)
    return [forward, Phase(names[1], tokens, BACKWARD * flops, 2 * groups * shape.bytes + kept)]


def joined(name: str, phases: Iterable[Phase]) -> Phase:
    """Phases that are timed as one: tokens of the first, work of all."""
    phases = list(phases)
    return Phase(name, phases[0].tokens, sum(p.flops for p in phases), sum(p.moved for p in phases), phases[0].kind)


def optimizer(parameters: float, averaged: float = 0) -> Phase:
    """Clipping, AdamW and the moving average: no tokens, hardly arithmetic, all memory."""
    return Phase("optimizer", 0, 0, (ADAM + CLIP) * parameters + AVERAGE * averaged, "memory")


def sampling(shape: Shape, prompts: Sequence[int], completions: Sequence[int], rows: int) -> list[Phase]:
    """Prefill and decode of a batch, `rows` at a time: every step reads the weights once, and of every row that has not ended all
    its keys and values.
    """
    prefill = Phase(
        "prefill", sum(prompts), shape.forward([Text(p, read=1) for p in prompts], len(prompts)), shape.bytes * -(-len(prompts) // rows)
    )
    tokens = flops = moved = 0.0
    weights = FLOAT * (shape.matrices + shape.width * shape.vocabulary)
    for start in range(0, len(prompts), rows):
        wave = list(zip(prompts[start : start + rows], completions[start : start + rows], strict=True))
        for t in range(max(length for _, length in wave) - 1):
            alive = [prompt + t for prompt, length in wave if length > t + 1]
            tokens += len(alive)
            flops += shape.forward((Text(1, before) for before in alive), len(alive))
            moved += weights + FLOAT * shape.cached * sum(alive)
    return [prefill, Phase("decode", tokens, flops, moved, "decode")]
