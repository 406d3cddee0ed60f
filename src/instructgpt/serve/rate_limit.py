"""Requests a minute of each key: a bucket that fills steadily and holds one minute's requests."""

from __future__ import annotations

import math
import time
from collections.abc import Callable


class RateLimiter:
    """Counts requests by the sender's name."""

    def __init__(self, requests_per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow this many requests a minute; 0 allows any number."""
        self.requests_per_minute, self._clock = requests_per_minute, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and when

    def take(self, name: str) -> int:
        """Take one request. Returns 0, or the whole seconds to wait where none is left."""
        if not self.requests_per_minute:
            return 0
        capacity, rate = float(self.requests_per_minute), self.requests_per_minute / 60
        now = self._clock()
        balance, before = self._buckets.get(name, (capacity, now))
        balance = min(capacity, balance + (now - before) * rate)
        if balance < 1:
            self._buckets[name] = (balance, now)
            return max(1, math.ceil((1 - balance) / rate))
        self._buckets[name] = (balance - 1, now)
        return 0
