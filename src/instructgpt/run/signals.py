"""Graceful stop: on SIGINT or SIGTERM a training stage finishes its step, writes a checkpoint and ends.

A second signal ends it at once. A signal that is ignored (nohup) stays ignored.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SAME_REQUEST_S = 2.0
"""Signals this close together count once: a terminal signals the whole group, and torchrun repeats it to its ranks."""


class StopRequest:
    """A request to stop and its time. While `deferred`, signals are only recorded; otherwise they end the process."""

    def __init__(self) -> None:
        self.deferred = False
        self.requested_at: float | None = None

    def on_signal(self, _: int, __: FrameType | None) -> None:
        now = time.monotonic()
        if not self.deferred or (self.requested_at is not None and now - self.requested_at > SAME_REQUEST_S):
            raise KeyboardInterrupt
        self.requested_at = self.requested_at or now


_active_requests: list[StopRequest] = []


@contextmanager
def defer_interrupts() -> Iterator[StopRequest]:
    """Handle SIGINT and SIGTERM by a new StopRequest while a stage runs."""
    request = StopRequest()
    previous_handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # Python allows handlers in the main thread only
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                previous_handlers[number] = signal.signal(number, request.on_signal)
    _active_requests.append(request)
    try:
        yield request
    finally:
        _active_requests.remove(request)
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def get_stop_request() -> StopRequest:
    """Return the request of the innermost running stage."""
    return _active_requests[-1] if _active_requests else StopRequest()
