"""One command at a time per run directory, held by an advisory lock on the directory itself.

The lock ends with the process, however it ends. File systems without locks (some network disks) accept every command.
`filelock` would leave a lock file in the directory that it protects.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from instructgpt.errors import InputError

LOCK_TIMEOUT_S = 3.0
"""Time for a killed process and its workers to end, when the same command is started again at once."""

_lock_descriptors: dict[Path, int] = {}


def acquire_directory_lock(directory: Path) -> None:
    """Lock a directory until release or exit; reentrant. Raise InputError if another process holds the lock."""
    descriptor = _lock_descriptors.get(directory.resolve())
    if descriptor is not None and os.path.samestat(os.fstat(descriptor), directory.stat()):
        return
    release_directory_lock(directory)  # of a directory of the same name that was deleted meanwhile
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
            message = f"--out {directory}: in use by another command; wait for it to end, or choose another --out"
            raise InputError(message) from None
        except OSError:  # this file system has no locks
            pass
        _lock_descriptors[directory.resolve()] = descriptor
        return


def is_directory_locked(directory: Path) -> bool | None:
    """Return whether a process of this machine works in a directory, or None where the file system has no locks."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def release_directory_lock(directory: Path) -> None:
    descriptor = _lock_descriptors.pop(directory.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)
