"""Heartbeats between ranks, used to report the error of the rank that failed first.

When one rank fails, the others follow with closed connections or timeouts. A rank with an error of its own claims the
root-error key of the rendezvous store; a rank that only lost a peer reads that key first. A rank that was killed or
hangs claims nothing: its heartbeat counter stops.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.distributed import Store  # type: ignore[attr-defined]

from instructgpt.distributed.comm import format_ranks
from instructgpt.errors import InputError, RunError

ERROR_GRACE_S = 5.0
"""Seconds in which another process may still claim to be the cause of an error. Longer than a heartbeat interval."""
_HEARTBEAT_INTERVAL_S = 1.0
_BARRIER_POLL_S = 0.02
_RESUME_HINT = "run the same command to resume from the last checkpoint"
_ROOT_ERROR_KEY, _RESTART_KEY = "instructgpt/cause", "instructgpt/less"
_PEER_ERROR_MARKERS = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "broken pipe")


class LaunchedRank(NamedTuple):
    """A started rank; `local_rank` counts on its own machine, `timeout_s` is how long it waits for a peer."""

    rank: int
    world_size: int
    local_rank: int
    timeout_s: float


class RankMonitor:
    """One rank's heartbeat thread, error attribution and restart signal, over the rendezvous store.

    `restart` replaces the process (it does not return) where all ranks restart after one ran out of memory.
    """

    def __init__(self, store: Store, info: LaunchedRank, restart: Callable[[str], None] | None = None) -> None:
        self.store, self.info, self.restart = store, info, restart
        self._stopped = threading.Event()
        self._num_barriers = 0
        threading.Thread(target=self._heartbeat, daemon=True).start()

    def _heartbeat(self) -> None:
        while not self._stopped.wait(_HEARTBEAT_INTERVAL_S):
            try:
                self.store.add(f"instructgpt/pulse/{self.info.rank}", 1)
                if self.restart and self.store.check([_RESTART_KEY]):
                    self.restart(self.store.get(_RESTART_KEY).decode())
            except RuntimeError:  # the store has closed; the main thread meets the error
                return

    def wait_for_ranks(self) -> None:
        """Wait until all ranks have called this. Unlike a collective it has no time limit while heartbeats go on.

        Raises:
            RuntimeError: a rank failed, or has been silent for `timeout_s`; `resolve_error` finds the cause.
        """
        self._num_barriers += 1
        key = f"instructgpt/barrier/{self._num_barriers}"
        self.store.add(key, 1)
        counts, last_change = self._heartbeats(), [time.monotonic()] * self.info.world_size
        while self.store.add(key, 0) < self.info.world_size:
            time.sleep(_BARRIER_POLL_S)
            if self.store.check([_ROOT_ERROR_KEY]):
                raise RuntimeError("lost the connection to a rank that failed")
            now, new_counts = time.monotonic(), self._heartbeats()
            last_change = [
                now if new != old else changed
                for new, old, changed in zip(new_counts, counts, last_change, strict=True)
            ]
            counts = new_counts
            if now - min(last_change) > self.info.timeout_s:
                raise RuntimeError("timed out waiting for a rank")

    def restart_all(self, microbatch_tokens: str) -> None:
        """Restart all ranks with fewer microbatch tokens; if several ranks ask, the first one's number counts."""
        if self.restart:  # the others see the key in their heartbeat threads, even while they wait in a collective
            self.restart(self.store.compare_set(_RESTART_KEY, "", microbatch_tokens).decode())

    def stop(self) -> None:
        self._stopped.set()

    def resolve_error(self, error: Exception) -> BaseException:
        """Return the exception this rank should end with: `error` if it came first, else a silent exit or the cause."""
        try:
            if _is_peer_failure(error):
                return self._peer_error()
            if self._claim_root_error(f"{self._label}: {error}"):
                return error
            return SystemExit(2 if isinstance(error, InputError) else 1)
        except RuntimeError:  # no store: the process that held it is gone
            return RunError(f"the process that started the ranks does not answer; {_RESUME_HINT}")

    @property
    def _label(self) -> str:
        return f"rank {self.info.rank} on {socket.gethostname()}"

    def _claim_root_error(self, message: str) -> bool:
        # Atomic: only the first rank's message is stored, and every rank gets it back.
        return self.store.compare_set(_ROOT_ERROR_KEY, "", message).decode() == message

    def _peer_error(self) -> BaseException:
        earlier = self._heartbeats()
        deadline = time.monotonic() + ERROR_GRACE_S
        while time.monotonic() < deadline:
            if self.store.check([_ROOT_ERROR_KEY]):
                message = self.store.get(_ROOT_ERROR_KEY).decode()
                # Printed once per machine: by the failed rank on its own, elsewhere by local rank 0.
                is_local = message.partition(": ")[0].endswith(f" on {socket.gethostname()}")
                return SystemExit(1) if is_local or self.info.local_rank else RunError(message)
            time.sleep(0.05)
        # Nobody claimed the error in the grace period: the ranks whose heartbeats stopped were killed or hang.
        counts = zip(earlier, self._heartbeats(), strict=True)
        silent = [rank for rank, (before, after) in enumerate(counts) if before == after and rank != self.info.rank]
        culprit = f"{format_ranks(silent)} died or hangs" if silent else "the ranks wait for one another"
        timeout = f"{self.info.timeout_s:.0f} s"
        message = f"{culprit}: no answer for {timeout}, or a lost connection; {_RESUME_HINT}"
        return RunError(message) if self._claim_root_error(f"{self._label}: {message}") else SystemExit(1)

    def _heartbeats(self) -> list[int]:
        return [self.store.add(f"instructgpt/pulse/{rank}", 0) for rank in range(self.info.world_size)]


def _is_peer_failure(error: Exception) -> bool:
    """Return whether an error only says that another rank is gone."""
    causes = InputError | RunError | torch.OutOfMemoryError | MemoryError | FileNotFoundError | PermissionError
    if isinstance(error, causes) or not isinstance(error, RuntimeError | OSError):
        return False
    message = str(error).lower()
    return any(marker in message for marker in _PEER_ERROR_MARKERS)
