"""Seconds, tokens and FLOPs of each phase of a run. `plan` compares seconds with its prediction.

On a CPU, a phase reads the clock twice. On CUDA it records two events, which are read only by `summary`, so that timing
never synchronizes the device.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

UNTIMED = "untimed"
"""Phase of passes outside of every phase: nobody measures their time."""


class PhaseTimer:
    """Sums per phase in one process. A nested phase counts for the outer one."""

    def __init__(self) -> None:
        self.clock = time.perf_counter
        self._pauses_flops = False
        self.clear()

    def clear(self, previous: Mapping[str, Mapping[str, float]] | None = None) -> None:
        """Reset the sums, to those of an earlier `summary` if a run resumes."""
        previous = previous or {}
        self.seconds = {name: float(sums["seconds"]) for name, sums in previous.items()}
        self.tokens = {name: int(sums["tokens"]) for name, sums in previous.items()}
        self.flops = {name: float(sums["flops"]) for name, sums in previous.items() if "flops" in sums}
        self.has_uncounted_passes = False
        self.flops_done = {name: float(previous[name]["flops_done"]) for name in self.flops}
        self._open_phase: str | None = None
        self._pending_events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, name: str, tokens: int = 0) -> Iterator[None]:
        """Time the body as part of a phase that computes `tokens` tokens."""
        if self._open_phase is not None:
            yield
            return
        self._open_phase = name
        cuda = getattr(sys.modules.get("torch"), "cuda", None)  # never loads torch
        uses_cuda = cuda is not None and cuda.is_initialized()
        events = [cuda.Event(enable_timing=True) for _ in range(2)] if cuda is not None and uses_cuda else None
        start = self.clock()
        if events:
            events[0].record()
        try:
            yield
        finally:
            self._open_phase = None
            self.add_tokens(name, tokens)
            if events:
                events[1].record()
                self._pending_events.append((name, *events))
            else:
                self._add_seconds(name, self.clock() - start)

    def add_tokens(self, name: str, tokens: int) -> None:
        """Add tokens to a phase, if their number is known only after it."""
        if self._open_phase is not None:  # nested
            return
        self.tokens[name] = self.tokens.get(name, 0) + tokens

    def add_flops(self, needed: float, computed: float) -> None:
        """Add the FLOPs of a pass to the phase in which it happens: those that it needs, and those that it computed."""
        if self._pauses_flops:
            return
        name = self._open_phase or UNTIMED
        self.flops[name] = self.flops.get(name, 0.0) + needed
        self.flops_done[name] = self.flops_done.get(name, 0.0) + computed

    @contextmanager
    def pause_flops(self) -> Iterator[None]:
        """Count no FLOPs in the body: of probes, which are no part of the work and which a resumed run repeats."""
        before, self._pauses_flops = self._pauses_flops, True
        try:
            yield
        finally:
            self._pauses_flops = before

    def total_flops(self) -> tuple[float, float] | tuple[None, None]:
        """Return the FLOPs that all phases needed and those that they computed; None where a pass was not counted."""
        if self.has_uncounted_passes:
            return None, None
        return math.fsum(self.flops.values()), math.fsum(self.flops_done.values())

    def _add_seconds(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def summary(self) -> dict[str, dict[str, float]]:
        for name, start, end in self._pending_events:
            end.synchronize()
            self._add_seconds(name, start.elapsed_time(end) / 1000)
        self._pending_events.clear()
        rounded = {name: round(seconds, 4) for name, seconds in self.seconds.items()}
        sums = {name: {"seconds": seconds, "tokens": self.tokens.get(name, 0)} for name, seconds in rounded.items()}
        for name, flops in self.flops.items():
            counts = sums.setdefault(name, {"seconds": 0.0, "tokens": 0})
            counts |= {"flops": flops, "flops_done": self.flops_done[name]}
        return sums


PHASE_TIMER = PhaseTimer()
