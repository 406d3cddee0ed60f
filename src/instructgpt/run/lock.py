"""One command at a time makes a directory: two would write into each other's files.

The claim is a lock of the operating system's on the directory itself. It leaves nothing on the disk and ends with the process,
however that ends. Disks that know no such locks (some network disks) take every claim.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from instructgpt.errors import BadInput

PARTING = 3.0
"""Seconds in which a process that was killed has ended, with those that help it."""

_claims: dict[Path, int] = {}


def claim(directory: Path) -> None:
    """Claim a directory for this process, until it is given up or the process ends. Claimed again it is the same claim.

    Raises:
        BadInput: another process has it.
    """
    held = _claims.get(directory.resolve())
    if held is not None and os.path.samestat(os.fstat(held), directory.stat()):
        return
    give_up(directory)
    place = os.open(directory, os.O_RDONLY)
    until = time.monotonic() + PARTING
    while True:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.1)
                continue
            os.close(place)
            raise BadInput(f"--out {directory}: another command is at work there; let it end, or choose another --out") from None
        except OSError:  # a disk without locks
            pass
        _claims[directory.resolve()] = place
        return


def give_up(directory: Path) -> None:
    """Give up this process's claim of a directory, if it has one."""
    place = _claims.pop(directory.resolve(), None)
    if place is not None:
        os.close(place)
