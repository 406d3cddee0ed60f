"""What a running site does by itself now and then: compare the counters of tasks with what people did, and journal what differs."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.tasks.assignments import recount

HOURLY = 3_600.0
"""Seconds."""
NAMED = 20
"""Differences that the journal names; it counts the rest."""
LOG = logging.getLogger(__name__)


def check_counters(site: Site, known: frozenset[str] = frozenset()) -> frozenset[str]:
    """Recount everything; what differs, and is not `known` already, goes into the journal. -> all differences, in words.

    Nothing is mended: a counter that differs is a fault to be understood, and the CHECK on the row still holds.
    """
    with site.database.read() as db:
        found = frozenset(recount(db))
    if new := sorted(found - known):
        with site.database.write() as db:
            audit_log.note(db, "site", "counters.differ", "task", count=len(new), differences=new[:NAMED])
    return found


class Chores:
    """A thread that does the chores at once and then again and again, as long as the site runs.

    Args:
        every: seconds between two rounds.
    """

    def __init__(self, site: Site, every: float = HOURLY) -> None:
        self.site, self.every = site, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="chores", daemon=True)

    def _work(self) -> None:
        known: frozenset[str] = frozenset()
        while not self._over.is_set():
            try:
                known = check_counters(self.site, known)
            except Exception:  # a database that is away for a moment must not end the chores for good
                LOG.exception("the counters could not be checked")
            self._over.wait(self.every)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(10)
