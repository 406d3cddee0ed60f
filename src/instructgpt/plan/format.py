"""Plans as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from instructgpt.plan.hardware import Machine
from instructgpt.plan.roofline import Plan
from instructgpt.plan.utilization import Reached

UNITS = ("", "k", "M", "G", "T", "P", "E")


def scaled(number: float, unit: str = "") -> str:
    """A number with three digits and a letter for its thousands."""
    step = 0
    while abs(number) >= 999.5 and step < len(UNITS) - 1:
        number /= 1000
        step += 1
    return f"{number:.3g} {UNITS[step]}{unit}".strip()


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min"), (1, "s")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        first, *others = (
            cell.ljust(width) if not i else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()


def lines(plan: Plan, machine: Machine, device: str) -> Iterator[str]:
    """A whole plan."""
    yield f"{plan.stage}: {plan.steps} times {plan.step}" + (
        f", on {plan.ranks} ranks; this is what one of them does" if plan.ranks > 1 else ""
    )
    yield f"this machine does {scaled(machine.matmul, 'FLOP/s')} and moves {scaled(machine.bandwidth, 'B/s')}"
    yield ""
    yield from phase_lines(plan, machine, device)
    yield ""
    likely, least = (plan.steps * seconds for seconds in (plan.expected(machine, device), plan.least(machine)))
    yield f"the run: {duration(likely)} expected, {duration(least)} at least"
    yield ""
    yield from memory_lines(plan)
    for note in plan.notes:
        yield f"- {note}"


def phase_lines(plan: Plan, machine: Machine, device: str) -> Iterator[str]:
    """The table of a step's phases."""
    rows = [["phase", "tokens", "FLOPs", "bytes", "sent", "at least", "expected"]]
    for phase in plan.phases:
        sizes = [scaled(phase.tokens), scaled(phase.flops), scaled(phase.moved, "B"), scaled(phase.sent, "B")]
        rows.append([phase.name, *sizes, duration(phase.roofline(machine)), duration(phase.expected(machine, device))])
    sums = [scaled(plan.sent, "B"), duration(plan.least(machine)), duration(plan.expected(machine, device))]
    rows.append(["a step", "", "", "", *sums])
    yield from aligned(rows if plan.ranks > 1 else [row[:4] + row[5:] for row in rows])


def scaling_lines(plans: Sequence[tuple[Plan, Machine]], device: str) -> Iterator[str]:
    """The same stage on several numbers of ranks: a line each. What is reached is compared with the fewest of them."""
    first, its = plans[0]
    yield f"{first.stage}: {first.steps} times {first.step}"
    yield f"a rank does {scaled(its.matmul, 'FLOP/s')} and moves {scaled(its.bandwidth, 'B/s')}"
    yield ""
    rows = [("ranks", "memory a rank", "at once", "sent a step", "a step", "the run", "faster by", "of ideal")]
    for plan, machine in plans:
        seconds = plan.expected(machine, device)
        faster = first.expected(its, device) / seconds
        share = faster * first.ranks / plan.ranks
        at_once = f"{plan.at_once:,}" if plan.at_once else "no room"
        sizes = (scaled(plan.memory, "B"), at_once, scaled(plan.sent, "B"), duration(seconds), duration(plan.steps * seconds))
        rows.append((str(plan.ranks), *sizes, f"{faster:.3g}", f"{share:.0%}"))
    yield from aligned(rows)
    for note in first.notes:
        yield f"- {note}"


def reached_lines(phases: Sequence[Reached], machine: Machine) -> Iterator[str]:
    """The table of what a run has reached."""
    yield f"this machine does {scaled(machine.matmul, 'FLOP/s')} and moves {scaled(machine.bandwidth, 'B/s')}"
    yield ""
    total = sum(phase.seconds for phase in phases)
    planned = [phase for phase in phases if phase.least is not None]
    least = sum(phase.least or 0.0 for phase in planned)
    rows = [("phase", "tokens", "took", "of all", "at least", "reached")]
    for phase in phases:
        bound, share = ("", "") if phase.least is None or phase.share is None else (duration(phase.least), f"{phase.share:.0%}")
        rows.append((phase.name, scaled(phase.tokens), duration(phase.seconds), f"{phase.seconds / total:.0%}", bound, share))
    share = f"{least / max(1e-9, sum(phase.seconds for phase in planned)):.0%}"
    yield from aligned([*rows, ("together", "", duration(total), "100%", duration(least), share)])


def memory_lines(plan: Plan) -> Iterator[str]:
    """The table of what is in memory."""
    worst = plan.moments[plan.worst]
    rows = [(f"memory while {plan.worst}", "")] + [(part, scaled(size, "B")) for part, size in worst.items() if size]
    yield from aligned([*rows, ("together, beside the interpreter and its libraries", scaled(plan.memory, "B"))])
