"""What a running site does by itself now and then: compare the counters of tasks with what people did, and journal what differs."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.tasks.assignments import find_counter_mismatches

_CHECK_INTERVAL_S = 3_600.0
"""Seconds."""
_MAX_LOGGED_MISMATCHES = 20
"""Differences that the journal names; it counts the rest."""
_LOGGER = logging.getLogger(__name__)


def check_counters(site: Site, previous: frozenset[str] = frozenset()) -> frozenset[str]:
    """Recount everything; what differs, and is not `known` already, goes into the journal. -> all differences, in words.

    Nothing is mended: a counter that differs is a fault to be understood, and the CHECK on the row still holds.
    """
    with site.database.read() as db:
        mismatches = frozenset(find_counter_mismatches(db))
    if new := sorted(mismatches - previous):
        with site.database.write() as db:
            audit_log.append_entry(
                db, "site", "counters.differ", "task", count=len(new), differences=new[:_MAX_LOGGED_MISMATCHES]
            )
    return mismatches


class CounterCheckThread:
    """A thread that does the chores at once and then again and again, as long as the site runs.

    Args:
        every: seconds between two rounds.
    """

    def __init__(self, site: Site, interval_s: float = _CHECK_INTERVAL_S) -> None:
        self.site, self.interval_s = site, interval_s
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chores", daemon=True)

    def _run(self) -> None:
        mismatches: frozenset[str] = frozenset()
        while not self._stop_event.is_set():
            try:
                mismatches = check_counters(self.site, mismatches)
            except Exception:  # a database that is away for a moment must not end the chores for good
                _LOGGER.exception("the counters could not be checked")
            self._stop_event.wait(self.interval_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop_event.set()
        self._thread.join(10)
