"""Signs of life: how the ranks of a stage know which of them failed, so that its error is the one that is shown.

When one rank fails, the others fail after it, with connections closed or waiting in vain. Whoever has an error of its own
says so in the store of addresses that all can read; whoever has only lost another looks there first. A rank that died or
hangs says nothing: it is known by its pulse, which stands still.
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
"""Seconds in which the other processes may still say that they are the cause of the first error."""
_HEARTBEAT_INTERVAL_S = 1.0
"""Seconds between two signs of life."""
_RESUME_HINT = "the same command goes on from the last checkpoint"
_ROOT_ERROR_KEY, _RESTART_KEY = "instructgpt/cause", "instructgpt/less"
_PEER_ERROR_MARKERS = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "broken pipe")
"""Words of errors that a rank has because of another."""


class LaunchedRank(NamedTuple):
    """Where a rank stands: its number, how many there are, its number on its own machine, and how many seconds it waits for another."""

    rank: int
    world_size: int
    local_rank: int
    timeout_s: float


class RankMonitor:
    """One rank's signs of life, and how it reads those of the others.

    Args:
        store: that all ranks read; place: of this rank.
        anew: how this rank begins anew, where all of them do that when one runs out of memory; it does not return.
    """

    def __init__(self, store: Store, launched_rank: LaunchedRank, restart: Callable[[str], None] | None = None) -> None:
        self.store, self.launched_rank, self.restart = store, launched_rank, restart
        self._stopped = threading.Event()
        threading.Thread(target=self._heartbeat, daemon=True).start()

    def _heartbeat(self) -> None:
        while not self._stopped.wait(_HEARTBEAT_INTERVAL_S):
            try:
                self.store.add(f"instructgpt/pulse/{self.launched_rank.rank}", 1)
                if self.restart and self.store.check([_RESTART_KEY]):
                    self.restart(self.store.get(_RESTART_KEY).decode())
            except RuntimeError:  # the store has ended, and this rank will hear why
                return

    def restart_all(self, microbatch_tokens: str) -> None:
        """Say that memory has run out, so that all ranks begin anew, and do so. What the first of several says counts."""
        if self.restart:
            self.restart(self.store.compare_set(_RESTART_KEY, "", microbatch_tokens).decode())

    def stop(self) -> None:
        """No more signs."""
        self._stopped.set()

    def resolve_error(self, error: Exception) -> BaseException:
        """What a rank that has met an error ends with: the error, or, where another rank is the cause, what that one said."""
        try:
            if not _is_peer_failure(error):
                return (
                    error
                    if self._claim_root_error(f"{self._label}: {error}")
                    else SystemExit(2 if isinstance(error, InputError) else 1)
                )
            return self._peer_error()
        except RuntimeError:  # no store: who held it is gone
            return RunError(f"who started the ranks does not answer; {_RESUME_HINT}")

    @property
    def _label(self) -> str:
        return f"rank {self.launched_rank.rank} on {socket.gethostname()}"

    def _claim_root_error(self, message: str) -> bool:
        return self.store.compare_set(_ROOT_ERROR_KEY, "", message).decode() == message

    def _peer_error(self) -> BaseException:
        earlier_heartbeats = self._heartbeats()
        deadline = time.monotonic() + ERROR_GRACE_S
        while time.monotonic() < deadline:
            if self.store.check([_ROOT_ERROR_KEY]):
                message = self.store.get(_ROOT_ERROR_KEY).decode()
                is_local = message.startswith(
                    tuple(f"rank {rank} on {socket.gethostname()}:" for rank in range(self.launched_rank.world_size))
                )
                return SystemExit(1) if is_local or self.launched_rank.local_rank else RunError(message)
            time.sleep(0.05)
        later_heartbeats = self._heartbeats()
        silent_ranks = [
            rank
            for rank in range(self.launched_rank.world_size)
            if later_heartbeats[rank] == earlier_heartbeats[rank] and rank != self.launched_rank.rank
        ]
        culprit = f"{format_ranks(silent_ranks)} died or hangs" if silent_ranks else "the ranks wait for one another"
        message = f"{culprit}, after {self.launched_rank.timeout_s:.0f} s without an answer or a lost connection; {_RESUME_HINT}"
        return RunError(message) if self._claim_root_error(f"{self._label}: {message}") else SystemExit(1)

    def _heartbeats(self) -> list[int]:
        return [self.store.add(f"instructgpt/pulse/{rank}", 0) for rank in range(self.launched_rank.world_size)]


def _is_peer_failure(error: Exception) -> bool:
    """Whether an error says only that another rank is not there any more."""
    if isinstance(error, InputError | RunError | torch.OutOfMemoryError | MemoryError) or not isinstance(
        error, RuntimeError | OSError
    ):
        return False
    message = str(error).lower()
    return any(marker in message for marker in _PEER_ERROR_MARKERS) and not isinstance(
        error, FileNotFoundError | PermissionError
    )
