"""Cost of one pass in tokens, FLOPs and bytes, and the resulting plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from instructgpt.data.packing import TokenizedExample, microbatches
from instructgpt.models.flops import FLOAT_BYTES, ModelShape, SequenceShape
from instructgpt.plan.hardware import Machine
from instructgpt.plan.meta_trace import TracedModel

_ADAM_BYTES = 3 * FLOAT_BYTES
"""Bytes AdamW moves per parameter beside its moments: weight and gradient read, weight written."""
_CLIP_BYTES = 3 * FLOAT_BYTES
"""Bytes of gradient clipping per parameter: read for the norm, read and written for the scaling."""
ACTIVATIONS_PART, ALLOCATOR_PART = "activations and logits", "holes between them"
"""Memory parts that grow with the microbatch."""
_EMA_BYTES = 3 * FLOAT_BYTES
"""Bytes of the moving average per parameter: both weights read, one written."""
_EXPECTED_UTILIZATION = {
    "cpu": {"matmul": 0.75, "decode": 0.5, "memory": 0.5, "link": 0.8},
    "cuda": {"matmul": 0.5, "decode": 0.6, "memory": 0.7, "link": 0.8},
}
"""Expected share of the roofline by kind of phase (CPU measured, see
docs/explanation/performance.md; CUDA targets), and of the interconnect (assumed).
"""


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a step on one rank: its compute and memory traffic."""

    name: str
    tokens: float
    flops: float
    bytes_moved: float  # bytes
    kind: str = "matmul"  # or decode, memory: what decides its speed
    bytes_sent: float = 0.0  # bytes to other ranks
    calls: float = 0.0  # times that all ranks wait for each other

    def roofline_seconds(self, machine: Machine) -> float:
        """Return the lower bound in seconds: computing and sending overlap."""
        return max(
            machine.compute_seconds(self.flops, self.bytes_moved), machine.send_seconds(self.bytes_sent, self.calls)
        )

    def expected_seconds(self, machine: Machine, device: str) -> float:
        """Return the expected seconds. A GPU overlaps communication; on a CPU the same cores do both in sequence."""
        shares = _EXPECTED_UTILIZATION.get(device, _EXPECTED_UTILIZATION["cpu"])
        computing = machine.compute_seconds(self.flops, self.bytes_moved) / shares[self.kind]
        sending = machine.send_seconds(self.bytes_sent, self.calls) / shares["link"]
        return max(computing, sending) if device == "cuda" else computing + sending

    def scale(self, factor: float) -> Phase:
        tokens, flops, bytes_moved, bytes_sent, calls = (
            factor * n for n in (self.tokens, self.flops, self.bytes_moved, self.bytes_sent, self.calls)
        )
        return Phase(self.name, tokens, flops, bytes_moved, self.kind, bytes_sent, calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Phases of one step, number of steps, and memory at its peak moments."""

    stage: str
    step: str  # what one step is, in words
    steps: int
    phases: list[Phase]
    memory_peaks: dict[str, dict[str, float]]  # moment -> part -> bytes
    notes: list[str] = field(default_factory=list)
    ranks: int = 1
    microbatch_tokens: int = 0  # tokens in a microbatch

    def roofline_seconds(self, machine: Machine) -> float:
        """Return the lower bound of a step."""
        return sum(phase.roofline_seconds(machine) for phase in self.phases)

    def expected_seconds(self, machine: Machine, device: str) -> float:
        """Return the expected seconds of a step."""
        return sum(phase.expected_seconds(machine, device) for phase in self.phases)

    @property
    def bytes_sent(self) -> float:
        """Return the bytes a rank sends in a step."""
        return sum(phase.bytes_sent for phase in self.phases)

    @property
    def peak_moment(self) -> str:
        return max(self.memory_peaks, key=lambda moment: sum(self.memory_peaks[moment].values()))

    @property
    def peak_bytes(self) -> float:
        """Return the peak bytes, without the interpreter and libraries."""
        return sum(self.memory_peaks[self.peak_moment].values())

    @property
    def fixed_bytes(self) -> float:
        """Return the bytes that do not depend on the microbatch."""
        return max(
            sum(size for part, size in parts.items() if part not in (ACTIVATIONS_PART, ALLOCATOR_PART))
            for parts in self.memory_peaks.values()
        )


def split_microbatches(examples: Sequence[TokenizedExample], budget: int) -> list[list[TokenizedExample]]:
    return [[examples[row] for row in rows] for rows in microbatches([len(example) for example in examples], budget)]


def sequence_shapes(examples: Iterable[TokenizedExample]) -> list[SequenceShape]:
    """Return examples as sequences without shared prompts, with outputs at predicted positions."""
    return [SequenceShape(len(example), output_tokens=len(example.completion_ids)) for example in examples]


def count_predicted_tokens(examples: Iterable[TokenizedExample]) -> int:
    return sum(len(example.completion_ids) for example in examples)


def ring_bytes(size: float, ranks: int) -> float:
    """Return the bytes a rank sends in a ring all-gather or reduce-scatter of `size` bytes.

    A rank passes on 1/R of them R - 1 times; all-reduce takes twice that.
    """
    return size * (ranks - 1) / ranks


def forward_backward_phases(
    model: TracedModel,
    sequences: Sequence[SequenceShape],
    predicted_tokens: float,
    *,
    microbatch_count: float,
    saved_bytes: float = 0.0,
    ranks: int = 1,
    phase_names: tuple[str, str] = ("forward", "backward"),
) -> list[Phase]:
    """Return the forward and backward pass over some sequences.

    Args:
        predicted_tokens: tokens with logits.
        microbatch_count: weights are read and gradients accumulated once per microbatch.
        saved_bytes: activations written by the forward pass and read by the backward pass.
        ranks: ranks that shard the model: all weights are gathered for the forward pass, the layers' again for the
            backward pass, and gradients are reduced, per microbatch.
    """
    shape, gather_sizes = model.shape, model.gather_sizes if ranks > 1 else []
    tokens = sum(text.tokens for text in sequences)
    regathered_bytes = ring_bytes(model.gather_bytes * sum(gather_sizes[1:]), ranks)
    gathered_bytes = regathered_bytes + ring_bytes(FLOAT_BYTES * sum(gather_sizes[:1]), ranks)
    forward = Phase(
        phase_names[0],
        tokens,
        shape.forward_flops(sequences, predicted_tokens),
        microbatch_count * shape.weight_bytes + saved_bytes,
        bytes_sent=microbatch_count * gathered_bytes,
        calls=microbatch_count * len(gather_sizes),
    )
    flops = shape.backward_flops(sequences, predicted_tokens)
    if "checkpointing" in model.memory:
        flops += shape.forward_flops(sequences)  # the layers once more
    backward = Phase(
        phase_names[1],
        tokens,
        flops,
        microbatch_count * (shape.weight_bytes + FLOAT_BYTES * shape.trainable_parameters) + saved_bytes,
        bytes_sent=microbatch_count * (regathered_bytes + ring_bytes(FLOAT_BYTES * shape.trainable_parameters, ranks)),
        calls=microbatch_count * max(0, 2 * len(gather_sizes) - 1),
    )
    return [forward, backward]


def merge_phases(name: str, phases: Iterable[Phase]) -> Phase:
    """Merge phases that are timed as one: tokens of the first, work of all."""
    phases = list(phases)
    flops, bytes_moved, bytes_sent, calls = (
        sum(numbers) for numbers in zip(*((p.flops, p.bytes_moved, p.bytes_sent, p.calls) for p in phases), strict=True)
    )
    return replace(phases[0], name=name, flops=flops, bytes_moved=bytes_moved, bytes_sent=bytes_sent, calls=calls)


def optimizer_phase(parameters: float, ema_parameters: float = 0, state_bytes: float | None = None) -> Phase:
    """Return clipping, AdamW and the moving average: memory traffic only.

    `state_bytes`: of the moments, default float32.
    """
    state_bytes = 2 * FLOAT_BYTES * parameters if state_bytes is None else state_bytes
    return Phase(
        "optimizer",
        0,
        0,
        (_ADAM_BYTES + _CLIP_BYTES) * parameters + 2 * state_bytes + _EMA_BYTES * ema_parameters,
        "memory",
    )


def sampling_phases(
    shape: ModelShape, prompts: Sequence[int], completions: Sequence[int], rows: int, element_bytes: int = FLOAT_BYTES
) -> list[Phase]:
    """Return prefill and decode of a batch, `rows` at a time: every step reads the weights once, and keys and values of
    live rows.

    `element_bytes`: bytes of a number in the weights and in the KV cache.
    """
    prefill = Phase(
        "prefill",
        sum(prompts),
        shape.forward_flops([SequenceShape(p) for p in prompts], len(prompts)),
        shape.weight_bytes * -(-len(prompts) // rows),
    )
    tokens = flops = bytes_moved = 0.0
    weight_bytes = element_bytes * shape.matrix_parameters + FLOAT_BYTES * shape.hidden_size * shape.vocab_size
    for start in range(0, len(prompts), rows):
        wave = list(zip(prompts[start : start + rows], completions[start : start + rows], strict=True))
        for t in range(max(length for _, length in wave) - 1):
            context_lengths = [prompt + t for prompt, length in wave if length > t + 1]
            tokens += len(context_lengths)
            flops += shape.forward_flops((SequenceShape(1, before) for before in context_lengths), len(context_lengths))
            bytes_moved += weight_bytes + element_bytes * shape.kv_cache_size_per_token * sum(context_lengths)
    return [prefill, Phase("decode", tokens, flops, bytes_moved, "decode")]
