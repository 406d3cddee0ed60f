"""Who works on which item: claims on a shared folder, which need neither a server nor locks.

    claims/ITEM/1/owner.json, heartbeat      the first attempt
    claims/ITEM/1/done.json | failed.json | released.json      how it ended
    claims/ITEM/2/…      the second attempt, after the first one died, was interrupted, or failed and --retry

An attempt is claimed by renaming a prepared folder to the next number, which exactly one process can do, because the
target is never empty. Numbers are never used again, so that a slow process cannot remove the claim of a newer one.
A process that works renews its heartbeat in a thread. Its claim is stale when the process has ended, which processes of
the same machine see at once, or when the heartbeat is old by the clock of the file server.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from instructgpt.io import write_text_atomic

HEARTBEAT_INTERVAL_S = 5.0
_PARENT_CHECK_INTERVAL_S = 0.5
_OUTCOMES = ("done", "failed", "released")

ItemState = Literal["open", "running", "done", "failed"]


@dataclass(frozen=True, slots=True)
class ItemStatus:
    """What is known of an item: its state, the number of its latest attempt, and what this one left."""

    state: ItemState
    attempt: int = 0
    outcome: Mapping[str, Any] | None = None
    deaths: int = 0  # attempts that ended without a word


class ClaimFolder:
    """The claims of a sweep."""

    def __init__(self, folder: Path, *, stale_s: float = 300.0, attempts: int = 5) -> None:
        self.folder, self.stale_s, self.attempts = folder, stale_s, attempts

    def status(self, item: str) -> ItemStatus:
        """Return the state of an item. One whose claim is stale is open, or failed after too many deaths."""
        numbers = self._attempt_numbers(item)
        if not numbers:
            return ItemStatus("open")
        latest = self.folder / item / str(numbers[-1])
        outcomes = {number: self._outcome_name(item, number) for number in numbers}
        deaths = sum(outcomes[number] is None for number in numbers[:-1])
        match outcomes[numbers[-1]]:
            case "done":
                return ItemStatus("done", numbers[-1], _read_json(latest / "done.json"), deaths)
            case "failed":
                return ItemStatus("failed", numbers[-1], _read_json(latest / "failed.json"), deaths)
            case "released":
                return ItemStatus("open", numbers[-1], None, deaths)
        if not self._is_stale(latest):
            return ItemStatus("running", numbers[-1], _read_json(latest / "owner.json"), deaths)
        if self._outcome_name(item, numbers[-1]) is not None:  # its process ended after the outcomes were read above
            return self.status(item)
        deaths += 1
        if deaths >= self.attempts:
            error = f"{deaths} processes died in it without an error; out of memory, or machines that were turned off"
            return ItemStatus("failed", numbers[-1], {"error": error}, deaths)
        return ItemStatus("open", numbers[-1], None, deaths)

    def claim(self, item: str, *, retry: bool = False) -> Claim | None:
        """Claim an item that is open, or with `retry` one that has failed. Return None if another process was first."""
        status = self.status(item)
        if status.state != "open" and not (retry and status.state == "failed"):
            return None
        folder = self.folder / item
        prepared = folder / f".claim-{uuid.uuid4().hex}"
        prepared.mkdir(parents=True)
        write_text_atomic(prepared / "owner.json", json.dumps(_identify_process()) + "\n")
        write_text_atomic(prepared / "heartbeat", "0\n")
        target = folder / str(status.attempt + 1)
        try:
            prepared.rename(target)
        except OSError:  # not empty: another process has just claimed this attempt
            shutil.rmtree(prepared, ignore_errors=True)
            return None
        return Claim(target)

    def _attempt_numbers(self, item: str) -> list[int]:
        try:
            return sorted(int(entry.name) for entry in os.scandir(self.folder / item) if entry.name.isdecimal())
        except FileNotFoundError:
            return []

    def _outcome_name(self, item: str, number: int) -> str | None:
        folder = self.folder / item / str(number)
        return next((name for name in _OUTCOMES if (folder / f"{name}.json").exists()), None)

    def _is_stale(self, attempt: Path) -> bool:
        """Return whether the owner of a claim has died."""
        owner = _read_json(attempt / "owner.json") or {}
        if owner.get("machine") == _identify_process()["machine"]:
            return bool(_process_start(owner["pid"]) != owner["start"])
        try:
            return self._server_time() - (attempt / "heartbeat").stat().st_mtime > self.stale_s
        except FileNotFoundError:
            return False  # renewed at this moment

    def _server_time(self) -> float:
        """Return the time of the disk that holds the claims: clocks of machines differ."""
        probe = self.folder / f".clock-{uuid.uuid4().hex}"
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


class Claim:
    """The right to work on an item, held by the process that made it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stop = threading.Event()

    @contextmanager
    def heartbeat(self, interval_s: float = HEARTBEAT_INTERVAL_S) -> Iterator[None]:
        """Renew the claim in a thread. The process ends where another one took over, or where its parent died."""
        thread = threading.Thread(target=self._renew, args=(interval_s, os.getppid()), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _renew(self, interval_s: float, parent: int) -> None:
        beats, last_beat = 0, time.time()
        while not self._stop.wait(min(interval_s, _PARENT_CHECK_INTERVAL_S)):
            if os.getppid() != parent:
                os._exit(1)
            if time.time() - last_beat < interval_s:
                continue
            if self.is_superseded:  # this process was suspended or cut off, and counted as dead
                os._exit(1)
            beats, last_beat = beats + 1, time.time()
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                (self.folder / "heartbeat").write_text(f"{beats}\n", encoding="utf-8")

    @property
    def is_superseded(self) -> bool:
        """Whether another process has claimed the item meanwhile."""
        return (self.folder.parent / str(int(self.folder.name) + 1)).exists()

    def complete(self, summary: Mapping[str, Any]) -> None:
        """Mark the item as done."""
        self._end("done", summary)

    def fail(self, error: str) -> None:
        """Mark the item as failed; it is not made again unless a user asks for it."""
        self._end("failed", {"error": error})

    def release(self) -> None:
        """Leave the item to whoever comes next."""
        self._end("released", {})

    def _end(self, outcome: str, contents: Mapping[str, Any]) -> None:
        if not self.is_superseded:
            write_text_atomic(self.folder / f"{outcome}.json", json.dumps(contents, ensure_ascii=False) + "\n")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return values


def _identify_process() -> dict[str, Any]:
    """Return this process: machine (host, boot and namespace of process ids), id, and start, as ids come back."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    machine = [socket.gethostname()]
    with contextlib.suppress(OSError):
        machine += [boot.read_text(encoding="ascii").strip(), str(namespace.readlink())]
    return {"machine": " ".join(machine), "pid": os.getpid(), "start": _process_start(os.getpid())}


def _process_start(pid: int) -> str | None:
    """Return when a process of this machine started, in the kernel's ticks; None when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
