"""Make the items of a sweep in worker processes until none is left.

Any number of schedulers may work on one folder, on one machine or several. A worker claims one item after the other, so
that it loads PyTorch once. Where a worker dies, its claim becomes stale, and the item goes to another one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from instructgpt.errors import InputError, RunError, one_line
from instructgpt.sweep.claims import HEARTBEAT_INTERVAL_S, Claim, ClaimFolder, ItemStatus

_POLL_INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class Item:
    """Something to make once: its name, the items it needs, and the function that makes it, which may be repeated."""

    name: str
    make: Callable[[], dict[str, Any] | None]
    parents: tuple[str, ...] = ()


class Scheduler:
    """Makes items; see the module."""

    def __init__(
        self,
        items: Sequence[Item],
        claims: ClaimFolder,
        *,
        jobs: int = 1,
        retry: bool = False,
        report: Callable[[str], None] = print,
        heartbeat_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self.items, self.claims, self.jobs, self.report = list(items), claims, jobs, report
        self.heartbeat_s = heartbeat_s
        self.statuses: dict[str, ItemStatus] = {}
        self._workers: list[BaseProcess] = []
        self.refresh()
        failed = {name: status.attempt for name, status in self.statuses.items() if status.state == "failed"}
        self._retried = failed if retry else {}  # name -> attempt after which one more is made
        self._reported = set() if retry else set(failed)

    def run(self, on_change: Callable[[], None] = lambda: None) -> None:
        """Return when every item is done, has failed, or needs one that has failed; other machines' ones included."""
        finished_count = -1
        try:
            while True:
                self._remove_ended_workers()
                self.refresh()
                self._report_failures()
                finished = sum(status.state in ("done", "failed") for status in self.statuses.values())
                if finished > finished_count:
                    finished_count = finished
                    on_change()
                ready = self._count_ready()
                if len(self._workers) < self.jobs and ready:
                    self._start_worker()
                elif not self._workers and not self._is_unfinished():
                    return
                time.sleep(_POLL_INTERVAL_S)
        except KeyboardInterrupt:
            self._interrupt()
            raise

    def refresh(self) -> None:
        """Read the claims of all items that are not done."""
        for item in self.items:
            if self.statuses.get(item.name, ItemStatus("open")).state != "done":
                self.statuses[item.name] = self.claims.status(item.name)

    def make_ready_items(self) -> None:
        """Claim and make items in this process until none is ready."""
        while (item := next(filter(self.is_ready, self.items), None)) is not None:
            claim = self.claims.claim(item.name, retry=item.name in self._retried)
            if claim is not None:
                _make_item(item, claim, self.heartbeat_s)
            self.refresh()

    def is_ready(self, item: Item) -> bool:
        """Return whether an item can be made now."""
        return self._state(item.name) == "open" and all(self._state(parent) == "done" for parent in item.parents)

    def is_blocked(self, item: Item) -> bool:
        """Return whether an item needs one that has failed."""
        return any(self._has_failed(parent) for parent in item.parents)

    def _has_failed(self, name: str) -> bool:
        item = next((item for item in self.items if item.name == name), None)
        return self._state(name) == "failed" or (item is not None and self.is_blocked(item))

    def _state(self, name: str) -> str:
        status = self.statuses[name]
        is_retried = status.state == "failed" and self._retried.get(name) == status.attempt
        return "open" if is_retried else status.state

    def _count_ready(self) -> int:
        return sum(map(self.is_ready, self.items))

    def _is_unfinished(self) -> bool:
        """Return whether another machine makes something, or may leave something to do."""
        return any(self._state(item.name) in ("open", "running") and not self.is_blocked(item) for item in self.items)

    def _start_worker(self) -> None:
        # A fork takes milliseconds and is safe while this process has neither threads nor a GPU.
        context: Any = multiprocessing.get_context("spawn" if "torch" in sys.modules else "fork")
        workers, self._workers = self._workers, []  # processes cannot be sent to a spawned one
        report, self.report = self.report, print
        worker = context.Process(target=_work, args=(self,))
        worker.start()
        self._workers, self.report = [*workers, worker], report

    def _remove_ended_workers(self) -> None:
        for worker in [worker for worker in self._workers if not worker.is_alive()]:
            worker.join()
            self._workers.remove(worker)
            if worker.exitcode and worker.exitcode < 0:
                self.report(f"a worker was killed by {signal.Signals(-worker.exitcode).name}; another takes over")

    def _report_failures(self) -> None:
        for name, status in self.statuses.items():
            if self._state(name) == "failed" and name not in self._reported:
                self._reported.add(name)
                self.report(f"{name}: failed: {(status.outcome or {}).get('error')}")

    def _interrupt(self) -> None:
        """Let the workers write their checkpoints and end."""
        for worker in self._workers:
            if worker.is_alive():
                worker.terminate()  # SIGTERM, which they handle as Ctrl-C
        for worker in self._workers:
            worker.join()


def _work(scheduler: Scheduler) -> None:
    """Make items in a worker process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        scheduler.make_ready_items()


def _make_item(item: Item, claim: Claim, heartbeat_s: float) -> None:
    """Make a claimed item in this process."""
    try:
        with claim.heartbeat(heartbeat_s):
            start = time.monotonic()
            summary = item.make() or {}
            claim.complete({"seconds": round(time.monotonic() - start, 1)} | summary)
    except KeyboardInterrupt:
        claim.release()
        raise
    except (InputError, RunError) as error:
        claim.fail(one_line(error))
    except BaseException as error:
        (claim.folder / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        claim.fail(f"{type(error).__name__}: {one_line(error)} (traceback in {claim.folder}/traceback.txt)")
