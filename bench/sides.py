"""Two programs beside each other: each side is a process of its own that holds its models, and they take turns.

A side answers requests, one JSON line each, with what it has computed and what that took: seconds on the clock, and
seconds of its own work. On a machine that does other things too, the second is what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
TORCH = "torch==2.13.0"
STACK = ("transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0")
Work = Callable[[Any], Any]


class Answer(NamedTuple):
    """What a side says to a request."""

    said: Any
    wall: float  # seconds
    cpu: float  # seconds of its own work


def environment(name: str, *packages: str) -> Path:
    """The Python of a peer's own virtual environment in this folder, which is made where it is missing."""
    folder = ROOT / name
    python, done = folder / "bin" / "python", folder / "installed"
    wanted = (TORCH, *packages, *STACK)
    if not done.exists() or done.read_text() != "\n".join(wanted):
        print(f"making {name} with {', '.join(wanted)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for some in ((TORCH,), wanted):  # torch first and alone, so that nothing else chooses its build
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *some], check=True)
        done.write_text("\n".join(wanted))
    return python


def serve(make: Callable[[Path], Work], folder: Path) -> None:
    """Be a side: make its work from a folder of models, then answer requests until there are no more."""
    import torch

    torch.set_num_threads(1)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes elsewhere
    work = make(folder)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        said = work(json.loads(line))
        print(json.dumps([said, time.perf_counter() - wall, time.process_time() - cpu]), file=out, flush=True)


def asked(parser: argparse.ArgumentParser, sides: Mapping[str, Callable[[Path], Work]]) -> argparse.Namespace:
    """The options of a bench.

    A process that `Side` has started is that side, until it is no longer needed, and ends here.
    """
    parser.add_argument("--serve", choices=tuple(sides), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(sides[options.serve], options.folder)
        sys.exit()
    return options


class Side:
    """A process that holds one side: the script that made it, called again with `--serve NAME --folder FOLDER`."""

    def __init__(self, python: Path | str, script: str, name: str, folder: Path, source: Path = ROOT) -> None:
        """Start it and wait until its models are loaded. Our package is that of the checkout `source`."""
        variables = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(source.resolve() / "src"),
        }
        command = [str(python), script, "--serve", name, "--folder", str(folder)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=variables
        )
        self._line()

    def _line(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            sys.exit(f"a side has ended:\n{self.errors.read()[-3000:]}")
        return line

    def ask(self, request: Any) -> Answer:
        """What it says to a request."""
        assert self.process.stdin
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return Answer(*json.loads(self._line()))

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
        self.errors.close()


def ratio(ours: Sequence[Answer], theirs: Sequence[Answer], which: str = "cpu") -> float:
    """How many times as long they take: the median over turns."""
    return statistics.median(
        getattr(their, which) / getattr(our, which) for our, their in zip(ours, theirs, strict=True)
    )


def median(answers: Sequence[Answer], which: str = "cpu") -> float:
    """Median seconds."""
    return statistics.median(getattr(answer, which) for answer in answers)
