"""Plans as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from instructgpt.formatting import format_seconds, format_si
from instructgpt.plan.hardware import Machine
from instructgpt.plan.roofline import Plan
from instructgpt.plan.utilization import PhaseUtilization


def _align_columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *remaining_cells = (
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *remaining_cells]).rstrip()


def format_plan(plan: Plan, machine: Machine, device: str) -> Iterator[str]:
    yield f"{plan.stage}: {plan.steps} times {plan.step}" + (
        f", on {plan.ranks} ranks; this is what one of them does" if plan.ranks > 1 else ""
    )
    yield f"this machine does {format_si(machine.matmul, 'FLOP/s')} and moves {format_si(machine.bandwidth, 'B/s')}"
    yield ""
    yield from _format_phases(plan, machine, device)
    yield ""
    expected, minimum = (
        plan.steps * seconds for seconds in (plan.expected_seconds(machine, device), plan.roofline_seconds(machine))
    )
    yield f"the run: {format_seconds(expected)} expected, {format_seconds(minimum)} at least"
    yield ""
    yield from _format_memory(plan)
    for note in plan.notes:
        yield f"- {note}"


def _format_phases(plan: Plan, machine: Machine, device: str) -> Iterator[str]:
    rows = [["phase", "tokens", "FLOPs", "bytes", "sent", "at least", "expected"]]
    for phase in plan.phases:
        sizes = [
            format_si(phase.tokens),
            format_si(phase.flops),
            format_si(phase.bytes_moved, "B"),
            format_si(phase.bytes_sent, "B"),
        ]
        rows.append(
            [
                phase.name,
                *sizes,
                format_seconds(phase.roofline_seconds(machine)),
                format_seconds(phase.expected_seconds(machine, device)),
            ]
        )
    sums = [
        format_si(plan.bytes_sent, "B"),
        format_seconds(plan.roofline_seconds(machine)),
        format_seconds(plan.expected_seconds(machine, device)),
    ]
    rows.append(["a step", "", "", "", *sums])
    yield from _align_columns(rows if plan.ranks > 1 else [row[:4] + row[5:] for row in rows])


def format_scaling(plans: Sequence[tuple[Plan, Machine]], device: str) -> Iterator[str]:
    """Format a stage on several numbers of ranks, one line each; scaling is relative to the fewest."""
    first, first_machine = plans[0]
    yield f"{first.stage}: {first.steps} times {first.step}"
    yield (
        f"a rank does {format_si(first_machine.matmul, 'FLOP/s')} and moves {format_si(first_machine.bandwidth, 'B/s')}"
    )
    yield ""
    rows = [("ranks", "memory a rank", "at once", "sent a step", "a step", "the run", "faster by", "of ideal")]
    for plan, machine in plans:
        seconds = plan.expected_seconds(machine, device)
        speedup = first.expected_seconds(first_machine, device) / seconds
        efficiency = speedup * first.ranks / plan.ranks
        microbatch_tokens = f"{plan.microbatch_tokens:,}" if plan.microbatch_tokens else "no room"
        sizes = (
            format_si(plan.peak_bytes, "B"),
            microbatch_tokens,
            format_si(plan.bytes_sent, "B"),
            format_seconds(seconds),
            format_seconds(plan.steps * seconds),
        )
        rows.append((str(plan.ranks), *sizes, f"{speedup:.3g}", f"{efficiency:.0%}"))
    yield from _align_columns(rows)
    for note in first.notes:
        yield f"- {note}"


def format_utilization(phases: Sequence[PhaseUtilization], machine: Machine) -> Iterator[str]:
    yield f"this machine does {format_si(machine.matmul, 'FLOP/s')} and moves {format_si(machine.bandwidth, 'B/s')}"
    yield ""
    total = sum(phase.seconds for phase in phases)
    planned = [phase for phase in phases if phase.roofline_seconds is not None]
    minimum = sum(phase.roofline_seconds or 0.0 for phase in planned)
    rows = [("phase", "tokens", "took", "of all", "at least", "reached")]
    for phase in phases:
        bound, utilization = (
            ("", "")
            if phase.roofline_seconds is None or phase.utilization is None
            else (format_seconds(phase.roofline_seconds), f"{phase.utilization:.0%}")
        )
        rows.append(
            (
                phase.name,
                format_si(phase.tokens),
                format_seconds(phase.seconds),
                f"{phase.seconds / total:.0%}",
                bound,
                utilization,
            )
        )
    utilization = f"{minimum / max(1e-9, sum(phase.seconds for phase in planned)):.0%}"
    yield from _align_columns(
        [*rows, ("together", "", format_seconds(total), "100%", format_seconds(minimum), utilization)]
    )


def _format_memory(plan: Plan) -> Iterator[str]:
    peak_parts = plan.memory_peaks[plan.peak_moment]
    rows = [(f"memory while {plan.peak_moment}", "")] + [
        (part, format_si(size, "B")) for part, size in peak_parts.items() if size
    ]
    yield from _align_columns(
        [*rows, ("together, beside the interpreter and its libraries", format_si(plan.peak_bytes, "B"))]
    )
