"""Being asked to end, by Ctrl-C or SIGTERM, while a stage trains: the step is finished and kept, then the run stops.

Asked a second time it stops at once. What is deaf to a signal, as under nohup, stays so.
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
"""Seconds in which signals are one and the same wish: a terminal tells every process, and torchrun tells its ranks once more."""


class Wish:
    """Whether somebody wants this process to end. While it is not heeded, it ends at once."""

    def __init__(self) -> None:
        self.heeded = False
        self.since: float | None = None

    def hear(self, _: int, __: FrameType | None) -> None:
        """The handler of both signals."""
        now = time.monotonic()
        if not self.heeded or (self.since is not None and now - self.since > SAME):
            raise KeyboardInterrupt
        self.since = self.since or now


@contextmanager
def heard() -> Iterator[Wish]:
    """While a stage runs, its wish to end is noted instead of ending it, whenever `heeded` says that somebody looks."""
    wish = Wish()
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        listening = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, wish.hear) for number in listening}
    _wishes.append(wish)
    try:
        yield wish
    finally:
        _wishes.remove(wish)
        for number, handler in before.items():
            signal.signal(number, handler)


_wishes: list[Wish] = []


def current() -> Wish:
    """The wish of the stage that runs now."""
    return _wishes[-1] if _wishes else Wish()
