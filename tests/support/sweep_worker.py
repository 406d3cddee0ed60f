"""A machine of a sweep that makes trivial items: `python -m support.sweep_worker FOLDER ITEMS SECONDS_AN_ITEM JOBS`.

Each item writes its result by an exclusive link, and holds a lock of its own, so that items made twice or by two
processes at the same time show up in `faults.txt`, whatever the claims say.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from functools import partial
from pathlib import Path
from random import Random

from instructgpt.sweep.claims import ClaimFolder
from instructgpt.sweep.scheduler import Item, Scheduler


def append(file: Path, line: str) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def make(folder: Path, name: str, seconds: float) -> dict[str, int]:
    append(folder / "starts.txt", name)
    with (folder / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            append(folder / "faults.txt", f"two processes at once: {name}")
        time.sleep(seconds * Random(f"{name} {os.getpid()}").random())
        temporary = folder / f".{name}.{os.getpid()}"
        temporary.write_text(str(os.getpid()))
        try:
            os.link(temporary, folder / f"{name}.result")
        except FileExistsError:
            # A process that was killed after its result and before its outcome; the sweep repeats items of that kind.
            append(folder / "repeats.txt", name)
        temporary.unlink()
    return {"pid": os.getpid()}


def main() -> None:
    folder, count, seconds, jobs = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
    names = [f"item-{number:03d}" for number in range(count)]
    half = count // 2  # the second half needs items of the first
    items = [
        Item(name, partial(make, folder, name, seconds), (names[position - half],) if position >= half else ())
        for position, name in enumerate(names)
    ]
    Random(os.getpid()).shuffle(items)
    Scheduler(items, ClaimFolder(folder / "claims", attempts=1000), jobs=jobs).run()


if __name__ == "__main__":
    main()
