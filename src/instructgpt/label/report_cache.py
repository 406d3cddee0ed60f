"""Reports that take long are kept for a while, so that an owner's page opens at once on a large site.

A report that is computed within `MIN_CACHED_SECONDS` is never kept: on a small site every page shows the newest work.
A slower one is used again for `AGE_FACTOR` times as long as it took, so the server spends at most a thirtieth of its
time on it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from instructgpt.label.db.models import current_time_ms

MIN_CACHED_SECONDS = 0.5
AGE_FACTOR = 30
_MAX_REPORTS = 16

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CachedReport(Generic[_T]):
    value: _T
    computed_at: int
    """Milliseconds since the epoch."""
    seconds: float
    """Time it took."""

    @property
    def is_cached(self) -> bool:
        """Whether newer work may be missing from it."""
        return self.seconds >= MIN_CACHED_SECONDS

    @property
    def expires_at(self) -> int:
        return self.computed_at + round(1000 * self.seconds * AGE_FACTOR)


class ReportCache(Generic[_T]):
    """The newest reports by key. Threads that ask for a report that is being computed wait for it."""

    def __init__(self) -> None:
        self._reports: OrderedDict[Hashable, CachedReport[_T]] = OrderedDict()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], _T], *, recompute: bool = False) -> CachedReport[_T]:
        """Return the kept report of a key, or compute it.

        Args:
            key: all that the report must never lag behind.
            recompute: whether to compute it anyway.
        """
        with self._lock:
            key_lock = self._locks.setdefault(key, threading.Lock())
        with key_lock:
            report = self._reports.get(key)
            if report is not None and not recompute and current_time_ms() < report.expires_at:
                return report
            start = time.perf_counter()
            report = CachedReport(compute(), current_time_ms(), time.perf_counter() - start)
            with self._lock:
                self._store(key, report)
            return report

    def _store(self, key: Hashable, report: CachedReport[_T]) -> None:
        self._reports.pop(key, None)
        if report.is_cached:
            self._reports[key] = report
        while len(self._reports) > _MAX_REPORTS:
            self._reports.popitem(last=False)
        for old_key in set(self._locks) - set(self._reports) - {key}:
            if not self._locks[old_key].locked():
                del self._locks[old_key]
