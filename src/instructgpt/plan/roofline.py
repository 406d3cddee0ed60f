"""Work of one pass: tokens, FLOPs and bytes; and what a plan is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from instructgpt.data.packing import TokenizedExample, microbatches
from instructgpt.models.flops import FLOAT_BYTES, ModelShape, SequenceShape
from instructgpt.plan.hardware import Machine
from instructgpt.plan.meta_trace import TracedModel

_ADAM_BYTES = 3 * FLOAT_BYTES
"""Bytes AdamW moves a parameter, beside its moments, which are read and written: weight and gradient read, weight written."""
BF16_BYTES = 2
"""Bytes of a number in bf16."""
_CLIP_BYTES = 3 * FLOAT_BYTES
"""Gradients read for their norm, read and written to scale them."""
ACTIVATIONS_PART, ALLOCATOR_PART = "activations and logits", "holes between them"
"""Parts of the memory that grow with the tokens computed at once."""
_EMA_BYTES = 3 * FLOAT_BYTES
"""Bytes the moving average moves a parameter: both weights read, one written."""
_EXPECTED_UTILIZATION = {
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
    bytes_moved: float  # bytes
    kind: str = "matmul"  # or decode, memory: what decides its speed
    bytes_sent: float = 0.0  # bytes to other ranks
    calls: float = 0.0  # times that all ranks wait for each other

    def roofline_seconds(self, machine: Machine) -> float:
        """Seconds below which no program can do it on this machine: computing and sending go side by side at best."""
        return max(
            machine.compute_seconds(self.flops, self.bytes_moved), machine.send_seconds(self.bytes_sent, self.calls)
        )

    def expected_seconds(self, machine: Machine, device: str) -> float:
        """Seconds it is expected to take. A GPU sends while it computes; on a CPU the same cores do both, one after the other."""
        shares = _EXPECTED_UTILIZATION.get(device, _EXPECTED_UTILIZATION["cpu"])
        computing = machine.compute_seconds(self.flops, self.bytes_moved) / shares[self.kind]
        sending = machine.send_seconds(self.bytes_sent, self.calls) / shares["link"]
        return max(computing, sending) if device == "cuda" else computing + sending

    def scale(self, factor: float) -> Phase:
        """The same phase with more or less of everything."""
        tokens, flops, bytes_moved, bytes_sent, calls = (
            factor * n for n in (self.tokens, self.flops, self.bytes_moved, self.bytes_sent, self.calls)
        )
        return Phase(self.name, tokens, flops, bytes_moved, self.kind, bytes_sent, calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a stage needs: the phases of one step, how many steps there are, and what is in memory at its fullest moments."""

    stage: str
    step: str  # what one step is, in words
    steps: int
    phases: list[Phase]
    memory_peaks: dict[str, dict[str, float]]  # moment -> part -> bytes
    notes: list[str] = field(default_factory=list)
    ranks: int = 1
    microbatch_tokens: int = 0  # tokens in a microbatch

    def roofline_seconds(self, machine: Machine) -> float:
        """Seconds of a step below which no program can do it."""
        return sum(phase.roofline_seconds(machine) for phase in self.phases)

    def expected_seconds(self, machine: Machine, device: str) -> float:
        """Seconds that a step is expected to take."""
        return sum(phase.expected_seconds(machine, device) for phase in self.phases)

    @property
    def bytes_sent(self) -> float:
        """Bytes that a rank sends in a step."""
        return sum(phase.bytes_sent for phase in self.phases)

    @property
    def peak_moment(self) -> str:
        """The moment at which most memory is needed."""
        return max(self.memory_peaks, key=lambda moment: sum(self.memory_peaks[moment].values()))

    @property
    def peak_bytes(self) -> float:
        """Bytes needed at that moment, beside the interpreter and its libraries."""
        return sum(self.memory_peaks[self.peak_moment].values())

    @property
    def fixed_bytes(self) -> float:
        """Bytes needed however few tokens are computed at once."""
        return max(
            sum(size for part, size in parts.items() if part not in (ACTIVATIONS_PART, ALLOCATOR_PART))
            for parts in self.memory_peaks.values()
        )


def split_microbatches(examples: Sequence[TokenizedExample], budget: int) -> list[list[TokenizedExample]]:
    """The microbatches of a batch of examples."""
    return [[examples[row] for row in rows] for rows in microbatches([len(example) for example in examples], budget)]


def sequence_shapes(examples: Iterable[TokenizedExample]) -> list[SequenceShape]:
    """Examples as texts that share nothing, read where they predict their completions."""
    return [SequenceShape(len(example), output_tokens=len(example.completion_ids)) for example in examples]


def count_predicted_tokens(examples: Iterable[TokenizedExample]) -> int:
    """Completion tokens, each of which is predicted once."""
    return sum(len(example.completion_ids) for example in examples)


def ring_bytes(size: float, ranks: int) -> float:
    """Bytes a rank sends so that all have `size` bytes of which each holds a part, or so that each has a part of their sum.

    In a ring, R - 1 times a rank passes on an R-th of them. To add up all and give the whole sum to all takes twice that.
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
    """A forward and a backward pass over some texts.

    Args:
        network: the model; texts: what is computed; predicted: tokens with logits.
        groups: microbatches, for each of which all weights are read once and gradients are added.
        kept: bytes the forward pass keeps for the backward pass: written once and read once.
        ranks: how many hold parts of the model: all weights are gathered for the forward pass, those of the layers again for the
            backward pass, whose gradients are then added up, for each microbatch.
        names: of the two phases.
    """
    shape, gather_sizes = model.shape, model.gather_sizes if ranks > 1 else []
    tokens = sum(text.tokens for text in sequences)
    gathered_bytes, regathered_bytes = (
        ring_bytes(shape.weight_bytes, ranks),
        ring_bytes(FLOAT_BYTES * sum(gather_sizes[1:]), ranks),
    )
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
    """Phases that are timed as one: tokens of the first, work of all."""
    phases = list(phases)
    flops, bytes_moved, bytes_sent, calls = (
        sum(numbers) for numbers in zip(*((p.flops, p.bytes_moved, p.bytes_sent, p.calls) for p in phases), strict=True)
    )
    return replace(phases[0], name=name, flops=flops, bytes_moved=bytes_moved, bytes_sent=bytes_sent, calls=calls)


def optimizer_phase(parameters: float, ema_parameters: float = 0, state_bytes: float | None = None) -> Phase:
    """Clipping, AdamW and the moving average: no tokens, hardly arithmetic, all memory. `moments`: their bytes, float32 where not given."""
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
    """Prefill and decode of a batch, `rows` at a time: every step reads the weights once, and of every row that has not ended all
    its keys and values. `number`: bytes of a number in the trunk's matrices and in the cache.
    """
    prefill = Phase(
        "prefill",
        sum(prompts),
        shape.forward_flops([SequenceShape(p, output_tokens=1) for p in prompts], len(prompts)),
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
