"""The background work of the playground: retention, and removing what was erased from the database's files."""

from __future__ import annotations

import logging
import threading
from typing import Self

from instructgpt.label.context import Site
from instructgpt.label.db.models import current_time_ms
from instructgpt.label.playground.endpoint import ModelEndpoint
from instructgpt.label.playground.erasure import erase_expired_turns
from instructgpt.label.playground.rounds import resume_rounds

_INTERVAL_S, _RETRY_INTERVAL_S = 3_600.0, 5.0
_LOGGER = logging.getLogger(__name__)


class PlaygroundThread:
    """A thread that works at once, which ends what a killed server left, and then every `interval_s` seconds."""

    def __init__(self, site: Site, interval_s: float = _INTERVAL_S) -> None:
        self.site, self.interval_s = site, interval_s
        self._stop_event = threading.Event()
        self._thread = threading.Thread(target=self._run, name="playground", daemon=True)

    def work_once(self) -> bool:
        """Erase expired turns, finish rounds and purge the files; return False while a reader keeps old pages."""
        with self.site.database.write() as db:
            erase_expired_turns(db, self.site.settings.retention_days, current_time_ms())
        settings = self.site.settings
        if settings.endpoint is not None:
            resume_rounds(self.site, ModelEndpoint(settings.endpoint, settings.endpoint_key))
        return self.site.database.purge_deleted()

    def _run(self) -> None:
        while not self._stop_event.is_set():
            is_complete = False
            try:
                is_complete = self.work_once()
            except Exception as error:  # an unreachable database must not end the thread; no texts in the log
                _LOGGER.error("the playground's background work failed: %s", type(error).__name__)
            self._stop_event.wait(self.interval_s if is_complete else _RETRY_INTERVAL_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_event.set()
        self._thread.join(10)
