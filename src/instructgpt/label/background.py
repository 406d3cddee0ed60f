"""The background work of a running site: a check of the tasks' counters and the imports of its first reports."""

from __future__ import annotations

import gc
import importlib
import logging
import threading
from typing import Self

from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.tasks.assignments import find_counter_mismatches

_CHECK_INTERVAL_S = 3_600.0
_MAX_LOGGED_MISMATCHES = 20  # the audit log has the total
_WARM_UP_DELAY_S = 2.0
_REPORT_MODULES = ("agreement", "bradley_terry", "categorical_agreement", "labeler_bias", "win_rate")
_LOGGER = logging.getLogger(__name__)


def warm_up() -> None:
    """Import what reports need (0.3 s) and exempt all objects so far from garbage collection.

    Without this the first report waits for scipy, and a collection in the middle of a page visits the half million
    objects of the imported modules (0.1 s).
    """
    for name in _REPORT_MODULES:
        importlib.import_module(f"instructgpt.statistics.{name}")
    gc.collect()
    gc.freeze()


def schedule_warm_up() -> None:
    """Warm up in a thread, after the first pages were answered."""
    timer = threading.Timer(_WARM_UP_DELAY_S, warm_up)
    timer.daemon = True
    timer.start()


def check_counters(site: Site, previous: frozenset[str] = frozenset()) -> frozenset[str]:
    """Verify all counters, add mismatches that are not in `previous` to the audit log, and return all.

    Counters are not repaired: a mismatch is a defect to investigate, and the CHECK on the row still holds.
    """
    with site.database.read() as db:
        mismatches = frozenset(find_counter_mismatches(db))
    if new := sorted(mismatches - previous):
        with site.database.write() as db:
            logged = new[:_MAX_LOGGED_MISMATCHES]
            audit_log.append_entry(db, "site", "counters.differ", "task", count=len(new), differences=logged)
    return mismatches


class CounterCheckThread:
    """A thread that checks the counters at once and then every `interval_s` seconds."""

    def __init__(self, site: Site, interval_s: float = _CHECK_INTERVAL_S) -> None:
        self.site, self.interval_s = site, interval_s
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chores", daemon=True)

    def _run(self) -> None:
        mismatches: frozenset[str] = frozenset()
        while not self._stop_event.is_set():
            try:
                mismatches = check_counters(self.site, mismatches)
            except Exception:  # an unreachable database must not end the thread
                _LOGGER.exception("the counters could not be checked")
            self._stop_event.wait(self.interval_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_event.set()
        self._thread.join(10)
