"""How often guards looked, flagged, blocked and failed: a line for each day, guard, side and use case. No texts.

{"day": "2026-11-30", "guard": "insults", "reads": "prompt", "use_case": "chat", "checked": 120, "flagged": 3, …}
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from instructgpt.errors import InputError, one_line
from instructgpt.io import format_json_line, write_text_atomic

_log = logging.getLogger("instructgpt.serve")

GuardEvent = Literal["checked", "flagged", "blocked", "failed"]
GUARD_EVENTS: tuple[GuardEvent, ...] = ("checked", "flagged", "blocked", "failed")
POLICY_GUARD = "policy"
"""The name under which requests that the policy refuses are counted."""
_FLUSH_DELAY_S = 1.0
_CountKey = tuple[str, str, str, str]
"""Day, guard, side, use case."""


class GuardCounts:
    """Counts of one server, added to a file that several servers may share."""

    def __init__(self, path: Path) -> None:
        """Read the file once. Raises InputError where it is no file of counts, or cannot be written."""
        self.path = path
        read_guard_counts(path)
        try:
            with self._locked():
                pass
        except OSError as error:
            raise InputError(f"{path}: counts cannot be written there ({one_line(error, 150)})") from error
        self._pending: Counter[tuple[_CountKey, GuardEvent]] = Counter()
        self._pending_lock = threading.Lock()
        self._task: asyncio.Task[None] | None = None

    def add(self, guard: str, side: str, use_case: str, *events: GuardEvent) -> None:
        """Count events of now; they are in the file within about a second."""
        key = (datetime.now(UTC).date().isoformat(), guard, side, use_case)
        with self._pending_lock:
            self._pending.update((key, event) for event in events)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._flush_soon())

    async def _flush_soon(self) -> None:
        await asyncio.sleep(_FLUSH_DELAY_S)
        await asyncio.to_thread(self.flush)

    def flush(self) -> None:
        """Add what was counted to the file. A disk that is full fails no answer; it is logged, and tried again."""
        with self._pending_lock:
            pending, self._pending = self._pending, Counter()
        if not pending:
            return
        try:
            with self._locked():
                total = Counter(dict(_read(self.path))) + pending
                write_text_atomic(self.path, map(format_json_line, _rows(total)))
        except (OSError, InputError):
            _log.exception("the guards' counts could not be written")
            with self._pending_lock:
                self._pending += pending

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self.path.with_name(f".{self.path.name}.lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def read_guard_counts(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of counts, by day; none where there is no file. Raises InputError for a bad line."""
    return _rows(Counter(dict(_read(path))))


def _read(path: Path) -> Iterator[tuple[tuple[_CountKey, GuardEvent], int]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            key = (row["day"], row["guard"], row["reads"], row["use_case"])
            for event in GUARD_EVENTS:
                yield (key, event), int(row[event])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: not a row of counts ({one_line(error, 150)})") from error


def _rows(counts: Counter[tuple[_CountKey, GuardEvent]]) -> list[dict[str, Any]]:
    names = ("day", "guard", "reads", "use_case")
    return [
        dict(zip(names, key, strict=True)) | {event: counts[key, event] for event in GUARD_EVENTS}
        for key in sorted({key for key, _ in counts})
    ]
