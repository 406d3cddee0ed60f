"""One command at a time makes a directory: two would write into each other's files.

The claim is a lock of the operating system's on the directory itself. It leaves nothing on the disk and ends with the process,
however that ends. Disks that know no such locks (some network disks) take every claim.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from instructgpt.errors import InputError

LOCK_TIMEOUT_S = 3.0
"""Seconds in which a process that was killed has ended, with those that help it."""

_lock_descriptors: dict[Path, int] = {}


def acquire_directory_lock(directory: Path) -> None:
    """Claim a directory for this process, until it is given up or the process ends. Claimed again it is the same claim.

    Raises:
        BadInput: another process has it.
    """
    held_descriptor = _lock_descriptors.get(directory.resolve())
    if held_descriptor is not None and os.path.samestat(os.fstat(held_descriptor), directory.stat()):
        return
    release_directory_lock(directory)
    descriptor = os.open(directory, os.O_RDONLY)
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < deadline:
                time.sleep(0.1)
                continue
            os.close(descriptor)
            raise InputError(
                f"--out {directory}: another command is at work there; let it end, or choose another --out"
            ) from None
        except OSError:  # a disk without locks
            pass
        _lock_descriptors[directory.resolve()] = descriptor
        return


def release_directory_lock(directory: Path) -> None:
    """Give up this process's claim of a directory, if it has one."""
    descriptor = _lock_descriptors.pop(directory.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)
