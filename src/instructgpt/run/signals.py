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

SAME = 2.0
"""Seconds in which signals are one and the same request: a terminal tells every process, and torchrun tells its ranks once more."""


class StopRequest:
    """Whether somebody wants this process to end, and since when.

    While `deferred`, a signal is noted and answered at the end of the step; otherwise it ends the process at once.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.since: float | None = None

    def hear(self, _: int, __: FrameType | None) -> None:
        """The handler of both signals."""
        now = time.monotonic()
        if not self.deferred or (self.since is not None and now - self.since > SAME):
            raise KeyboardInterrupt
        self.since = self.since or now


@contextmanager
def deferring_stops() -> Iterator[StopRequest]:
    """While a stage runs, signals are noted instead of ending it, whenever its request is `deferred`."""
    request = StopRequest()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        listening = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, request.hear) for number in listening}
    _requests.append(request)
    try:
        yield request
    finally:
        _requests.remove(request)
        for number, handler in before.items():
            signal.signal(number, handler)


_requests: list[StopRequest] = []


def current_request() -> StopRequest:
    """That of the stage that runs now."""
    return _requests[-1] if _requests else StopRequest()
