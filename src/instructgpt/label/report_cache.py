"""Reports that take long are kept for a while, so that an owner's page opens at once on a large site.

A report that was waited for and took less than `MIN_CACHED_SECONDS` is never kept: on a small site every page shows the
newest work. A slower one is used again for `AGE_FACTOR` times as long as it took, so the server spends at most a
thirtieth of its time on it. A page that must not wait takes the kept report, however old, while a thread computes the
next one.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
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
    is_cached: bool
    """Whether newer work may be missing from it."""

    @property
    def expires_at(self) -> int:
        return self.computed_at + round(1000 * self.seconds * AGE_FACTOR)

    @property
    def is_expired(self) -> bool:
        return current_time_ms() >= self.expires_at


class ReportCache(Generic[_T]):
    """The newest reports by key, each computed by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of the three dictionaries
        self._reports: OrderedDict[Hashable, CachedReport[_T]] = OrderedDict()
        self._running: dict[Hashable, Future[None]] = {}
        self._errors: dict[Hashable, Exception] = {}  # of background computations, for the next caller
        self._background_lock = threading.Lock()  # of the threads in the background: one computes at a time

    @property
    def is_computing(self) -> bool:
        return bool(self._running)

    def get(self, key: Hashable, compute: Callable[[], _T]) -> CachedReport[_T]:
        """Return the kept report of a key, or compute it. Waits for another thread that computes it.

        Args:
            key: all that the report must never lag behind.
        """
        while True:
            with self._lock:
                report = self._reports.get(key)
                if report is not None and not report.is_expired:
                    return report
                running = self._running.get(key)
                if running is None:
                    self._errors.pop(key, None)
                    self._running[key] = Future()
                    break
            wait([running])
        return self._run(key, compute, is_background=False)

    def get_or_start(
        self, key: Hashable, compute: Callable[[], _T], *, recompute: bool = False
    ) -> CachedReport[_T] | None:
        """Return the kept report of a key at once, also an expired one; None if there is none.

        Without a report that has not expired, one is computed in the background. An error of that computation is
        raised by the next call.

        Args:
            recompute: drop the kept report.
        """
        with self._lock:
            if (error := self._errors.pop(key, None)) is not None:
                raise error
            if recompute:
                self._reports.pop(key, None)
            report = self._reports.get(key)
            if (report is not None and not report.is_expired) or key in self._running:
                return report
            self._running[key] = Future()
        threading.Thread(target=self._run_in_background, args=(key, compute), name="report", daemon=True).start()
        return report

    def load(
        self, key: Hashable, compute: Callable[[], _T], *, is_slow: bool, recompute: bool = False, wait: bool = False
    ) -> CachedReport[_T] | None:
        """Return a slow report as `get_or_start`, another one as `get`. With `wait`, a slow one is never None."""
        report = self.get_or_start(key, compute, recompute=recompute) if is_slow else None
        return self.get(key, compute) if report is None and (wait or not is_slow) else report

    def _run_in_background(self, key: Hashable, compute: Callable[[], _T]) -> None:
        try:
            with self._background_lock:
                self._run(key, compute, is_background=True)
        except Exception as error:
            with self._lock:
                self._errors[key] = error

    def _run(self, key: Hashable, compute: Callable[[], _T], *, is_background: bool) -> CachedReport[_T]:
        start = time.perf_counter()
        try:
            value = compute()
            seconds = time.perf_counter() - start
            report = CachedReport(value, current_time_ms(), seconds, is_background or seconds >= MIN_CACHED_SECONDS)
            with self._lock:
                self._store(key, report)
            return report
        finally:
            with self._lock:
                running = self._running.pop(key)
            running.set_result(None)

    def _store(self, key: Hashable, report: CachedReport[_T]) -> None:
        self._reports.pop(key, None)
        if report.is_cached:
            self._reports[key] = report
        while len(self._reports) > _MAX_REPORTS:
            self._reports.popitem(last=False)
