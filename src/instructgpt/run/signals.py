"""Being asked to end, by Ctrl-C or SIGTERM, while a stage trains: the step is finished and kept, then the run stops.

Asked a second time it stops at once. A signal that is ignored, as under nohup, stays ignored.
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
"""Seconds in which signals are one and the same request: a terminal tells every process, and torchrun tells its ranks once more."""


class StopRequest:
    """Whether somebody wants this process to end, and since when.

    While `deferred`, a signal is noted and answered at the end of the step; otherwise it ends the process at once.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.requested_at: float | None = None

    def on_signal(self, _: int, __: FrameType | None) -> None:
        """The handler of both signals."""
        now = time.monotonic()
        if not self.deferred or (self.requested_at is not None and now - self.requested_at > SAME_REQUEST_S):
            raise KeyboardInterrupt
        self.requested_at = self.requested_at or now


@contextmanager
def defer_interrupts() -> Iterator[StopRequest]:
    """While a stage runs, signals are noted instead of ending it, whenever its request is `deferred`."""
    request = StopRequest()
    previous_handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        signal_numbers = [
            signal_number
            for signal_number in (signal.SIGINT, signal.SIGTERM)
            if signal.getsignal(signal_number) != signal.SIG_IGN
        ]
        previous_handlers = {
            signal_number: signal.signal(signal_number, request.on_signal) for signal_number in signal_numbers
        }
    _active_requests.append(request)
    try:
        yield request
    finally:
        _active_requests.remove(request)
        for signal_number, handler in previous_handlers.items():
            signal.signal(signal_number, handler)


_active_requests: list[StopRequest] = []


def get_stop_request() -> StopRequest:
    """That of the stage that runs now."""
    return _active_requests[-1] if _active_requests else StopRequest()
