"""Seconds and tokens of each phase of a run, so that `plan` can say what was reached of what the machine can do.

On a CPU a clock is read twice a phase. On CUDA two events are put into the stream, and read only when somebody asks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class PhaseTimer:
    """Sums of a process. A phase inside another one belongs to the outer."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.clock = time.perf_counter
        self.clear()

    def clear(self, previous: Mapping[str, Mapping[str, float]] | None = None) -> None:
        """Forget all, or go on from what `summary` said before."""
        previous = previous or {}
        self.seconds = {name: float(sums["seconds"]) for name, sums in previous.items()}
        self.tokens = {name: int(sums["tokens"]) for name, sums in previous.items()}
        self._is_open = False
        self._pending_events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def __call__(self, name: str, tokens: int = 0) -> Iterator[None]:
        """Count what happens within as a phase in which some tokens are computed."""
        if self._is_open:
            yield
            return
        self._is_open = True
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        events = (
            [cuda.Event(enable_timing=True) for _ in range(2)] if cuda is not None and cuda.is_initialized() else None
        )
        start = self.clock()
        if events:
            events[0].record()
        try:
            yield
        finally:
            self._is_open = False
            self.add_tokens(name, tokens)
            if events:
                events[1].record()
                self._pending_events.append((name, *events))
            else:
                self._add_seconds(name, self.clock() - start)

    def add_tokens(self, name: str, tokens: int) -> None:
        """Count tokens of a phase; for one whose tokens are known only after it."""
        self.tokens[name] = self.tokens.get(name, 0) + tokens

    def _add_seconds(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def summary(self) -> dict[str, dict[str, float]]:
        """Seconds and tokens by phase."""
        for name, start, end in self._pending_events:
            end.synchronize()
            self._add_seconds(name, start.elapsed_time(end) / 1000)
        self._pending_events.clear()
        return {
            name: {"seconds": round(seconds, 4), "tokens": self.tokens.get(name, 0)}
            for name, seconds in self.seconds.items()
        }


PHASE_TIMER = PhaseTimer()
"""Of this process."""
