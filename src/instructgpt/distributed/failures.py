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

from instructgpt.distributed.comm import named
from instructgpt.errors import BadInput, RunFailed

LAST_WORDS = 5.0
"""Seconds in which the other processes may still say that they are the cause of the first error."""
PULSE = 1.0
"""Seconds between two signs of life."""
GO_ON = "the same command goes on from the last checkpoint"
CAUSE, LESS = "instructgpt/cause", "instructgpt/less"
TOUCH = ("gloo", "nccl", "connection", "socket", "timed out", "timeout", "broken pipe")
"""Words of errors that a rank has because of another."""


class Place(NamedTuple):
    """Where a rank stands: its number, how many there are, its number on its own machine, and how many seconds it waits for another."""

    rank: int
    ranks: int
    local: int
    patience: float


class Signs:
    """One rank's signs of life, and how it reads those of the others.

    Args:
        store: that all ranks read; place: of this rank.
        anew: how this rank begins anew, where all of them do that when one runs out of memory; it does not return.
    """

    def __init__(self, store: Store, place: Place, anew: Callable[[str], None] | None = None) -> None:
        self.store, self.place, self.anew = store, place, anew
        self._end = threading.Event()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._end.wait(PULSE):
            try:
                self.store.add(f"instructgpt/pulse/{self.place.rank}", 1)
                if self.anew and self.store.check([LESS]):
                    self.anew(self.store.get(LESS).decode())
            except RuntimeError:  # the store has ended, and this rank will hear why
                return

    def begin_anew(self, less: str) -> None:
        """Say that memory has run out, so that all ranks begin anew, and do so. What the first of several says counts."""
        if self.anew:
            self.anew(self.store.compare_set(LESS, "", less).decode())

    def stop(self) -> None:
        """No more signs."""
        self._end.set()

    def explained(self, error: Exception) -> BaseException:
        """What a rank that has met an error ends with: the error, or, where another rank is the cause, what that one said."""
        try:
            if not lost_touch(error):
                return error if self._first_to_say(f"{self._me}: {error}") else SystemExit(2 if isinstance(error, BadInput) else 1)
            return self._because_of_another()
        except RuntimeError:  # no store: who held it is gone
            return RunFailed(f"who started the ranks does not answer; {GO_ON}")

    @property
    def _me(self) -> str:
        return f"rank {self.place.rank} on {socket.gethostname()}"

    def _first_to_say(self, words: str) -> bool:
        return self.store.compare_set(CAUSE, "", words).decode() == words

    def _because_of_another(self) -> BaseException:
        before = self._pulses()
        limit = time.monotonic() + LAST_WORDS
        while time.monotonic() < limit:
            if self.store.check([CAUSE]):
                said = self.store.get(CAUSE).decode()
                here = said.startswith(tuple(f"rank {rank} on {socket.gethostname()}:" for rank in range(self.place.ranks)))
                return SystemExit(1) if here or self.place.local else RunFailed(said)
            time.sleep(0.05)
        after = self._pulses()
        still = [rank for rank in range(self.place.ranks) if after[rank] == before[rank] and rank != self.place.rank]
        who = f"{named(still)} died or hangs" if still else "the ranks wait for one another"
        said = f"{who}, after {self.place.patience:.0f} s without an answer or a lost connection; {GO_ON}"
        return RunFailed(said) if self._first_to_say(f"{self._me}: {said}") else SystemExit(1)

    def _pulses(self) -> list[int]:
        return [self.store.add(f"instructgpt/pulse/{rank}", 0) for rank in range(self.place.ranks)]


def lost_touch(error: Exception) -> bool:
    """Whether an error says only that another rank is not there any more."""
    if isinstance(error, BadInput | RunFailed | torch.OutOfMemoryError | MemoryError) or not isinstance(error, RuntimeError | OSError):
        return False
    said = str(error).lower()
    return any(word in said for word in TOUCH) and not isinstance(error, FileNotFoundError | PermissionError)
