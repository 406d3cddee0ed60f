"""Stages killed with SIGKILL at random moments, again and again, that go on: do they end with the bytes of a run that
nobody killed?

    python bench/kills.py
    python bench/kills.py --only sft ppo --kills 5

Each command is run once undisturbed in a process of its own. The others are forked from one that has imported the
libraries and computed nothing, so that the time goes into moments and not into imports. They write a checkpoint after
every step, and keep a note of what they are doing, which outlives them. A kill comes at a random moment; one in three
waits from there until something is written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SAMPLING = ("sampling", "score", "reference", "values", "parity")
WRITING, CHECKPOINT, RESULT = "writing ", "writing step-", "writing into "
PLACES = ("sampling", "updating", "writing a checkpoint", "writing other things", "elsewhere")
COMPUTING = PLACES[:2]
AIMED = 1 / 3
"""The share of kills that wait for something to be written: a checkpoint, the result, or anything."""
EARLY = 0.1
"""The share of kills that may come while models are still loaded;
the clock of the others starts when something is computed.
"""
A_RUN = {"run": 8}
"""A kill comes within this part of the time that the undisturbed run took; a fourth where nothing is said."""
PATIENCE = 120.0
WITHIN = 0.006
"""Seconds in which such a kill falls after that."""
VARYING = ("seconds", "phases", "time", "spent")
"""Names of what a clock has measured."""
BASE = "--vocabulary 270 --width 16 --heads 2 --layers 1 --context 48 --window 16 --batch 4 --tokens 1280"
STAGES = {
    "sft": "--base {kit}/base --data {kit}/demonstrations.jsonl --epochs 8 --batch 4 --lr 1e-3",
    "reward": "--base {kit}/base --data {kit}/rankings.jsonl --demonstrations {kit}/demonstrations.jsonl --batch 4 "
    "--epochs 8 --lr 1e-3",
    "ppo": "--policy {kit}/base --reward {kit}/reward --prompts {kit}/prompts.jsonl --pretraining {kit}/corpus.jsonl "
    "--ptx-coef 0.5"
    " --ptx-ratio 0.5 --episodes 192 --batch 8 --minibatch 4 --max-tokens 12 --lr 1e-4",
    "run": "--preset smoke --config {kit}/run.yaml",
}
RUN = """
run: {words: 20_000, demonstration_prompts: 30, ranking_prompts: 30, ppo_prompts: 30}
pretrain: {width: 16, layers: 1, tokens: 16_000}
start: {epochs: 1}
sft: {epochs: 1}
ppo: {episodes: 48, batch: 16, minibatch: 8, max_tokens: 12}
ppo_ptx: {episodes: 48, batch: 16, minibatch: 8, max_tokens: 12}
exam: {prompts: 10, toxicity_prompts: 4, exercises: 4, documents: 4, max_tokens: 12}
"""


@dataclass
class Found:
    """What became of a command's runs."""

    runs: int = 0
    half: int = 0  # kills that left something half written
    places: Counter[str] = field(default_factory=Counter)  # where kills fell
    wrong: dict[str, set[str]] = field(
        default_factory=lambda: {"weights": set(), "metrics": set(), "other files": set()}
    )

    @property
    def kills(self) -> int:
        """All of them."""
        return sum(self.places.values())

    @property
    def ok(self) -> bool:
        """Whether every run ended as if nobody had killed it."""
        return not any(self.wrong.values())


# --- the side that is killed -----------------------------------------------------------------------------------------


def prepare(note: Path) -> Callable[[str], str]:
    """Import what stages need, and have them write checkpoints often and note what they do.

    Returns what writes the note.
    """
    from instructgpt import io

    slate, last = os.open(note, os.O_RDWR | os.O_CREAT), [""]
    writing = io.translate_write_errors

    def put(text: str) -> str:
        os.pwrite(slate, f"{text:<80}"[:80].encode(), 0)
        before, last[0] = last[0], text
        return before

    @contextmanager
    def noted(text: str) -> Iterator[None]:
        before = put(text)
        try:
            yield
        finally:
            put(before)

    @contextmanager
    def noted_writing(place: Path) -> Iterator[None]:
        with noted((RESULT if place.is_dir() else WRITING) + place.name), writing(place):
            yield

    io.translate_write_errors = noted_writing  # before others import it
    from instructgpt.run import timing

    phase = timing.PhaseTimer.__call__

    @contextmanager
    def noted_phase(self: timing.PhaseTimer, name: str, tokens: int = 0) -> Iterator[None]:
        with noted(name), phase(self, name, tokens):
            yield

    timing.PhaseTimer.__call__ = noted_phase  # type: ignore[method-assign]
    from transformers.models.gpt2 import modeling_gpt2  # noqa: F401

    from instructgpt import pipeline  # noqa: F401
    from instructgpt.run import directory as run

    run.CHECKPOINT_INTERVAL_S = 0.0
    return put


def obey(put: Callable[[str], str], command: Sequence[str]) -> int:
    """Carry out a command. Returns its exit code."""
    from instructgpt import cli

    put("ready")
    return cli.run_command(list(command))


def forked(put: Callable[[str], str], command: Sequence[str], said: Path) -> int:
    """Start a command in a process, and a group, of its own. Returns its number."""
    put("")
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        code = obey(put, command)
    finally:
        os._exit(code)


# --- the side that kills ---------------------------------------------------------------------------------------------


def noted(note: Path) -> str:
    """What the command is doing, or was when it was killed."""
    return note.read_text().strip()


def place(doing: str) -> str:
    """Which of PLACES a note means."""
    if doing.startswith(WRITING):
        return "writing a checkpoint" if doing.startswith(CHECKPOINT) else "writing other things"
    return "sampling" if doing in SAMPLING else "elsewhere" if doing in ("", "ready", "validation") else "updating"


def ended(child: int, until: float, ready: Callable[[], bool] = lambda: False) -> int | None:
    """Wait for a process until a moment, or until something is so.

    Returns its exit code, or None where it still runs.
    """
    while time.monotonic() < until and not ready():
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.0002)
    return None


def one_run(start: Callable[[], int], note: Path, out: Path, within: float, rng: Random, found: Found) -> int:
    """Start a command, kill it within so many seconds, start it again, until it ends by itself.

    Returns its exit code.
    """
    while True:
        child = start()
        code = None
        if rng.random() > EARLY:
            code = ended(child, time.monotonic() + PATIENCE, lambda: place(noted(note)) in COMPUTING)
        if code is None:
            code = ended(child, time.monotonic() + rng.uniform(0, within))
        if code is None and rng.random() < AIMED:
            aim = rng.choice((CHECKPOINT, CHECKPOINT, RESULT, WRITING))
            code = ended(child, time.monotonic() + PATIENCE, lambda: noted(note).startswith(aim))  # noqa: B023
            code = ended(child, time.monotonic() + rng.uniform(0, WITHIN)) if code is None else code
        if code is None:
            os.killpg(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code != -signal.SIGKILL:
            return code
        found.places[place(noted(note))] += 1
        found.half += any(out.rglob("*.part"))


def fingerprint(out: Path) -> dict[str, str]:
    """Every file below a directory with a hash of what is in it, less what a clock has measured."""
    prints = {}
    for file in sorted(out.rglob("*")):
        content = b"" if file.is_dir() else file.read_bytes()
        if file.name in ("run.json", "metrics.jsonl", "log.jsonl"):
            rows = (
                [json.loads(content)]
                if file.name == "run.json"
                else [json.loads(line) for line in content.decode().splitlines()]
            )
            kept = (
                []
                if file.name == "log.jsonl"
                else [{name: row[name] for name in row if name not in VARYING} for row in rows]
            )
            content = json.dumps(
                kept
            ).encode()  # of a log only that all of it can be read: what was said twice stays there
        if file.name == "state.json":
            saved = json.loads(content)
            saved["state"] = {name: value for name, value in saved["state"].items() if name not in VARYING}
            content = json.dumps(saved).encode()
        if file.name == "manifest":  # the hashes of state.json and of the lines depend on the clock
            content = b"".join(line for line in content.splitlines() if b".safetensors" in line)
        if file.name == "README.md":
            content = b"".join(line for line in content.splitlines() if not line.strip().startswith(b'"seconds"'))
        if file.name == "report.html":  # it says how long each stage took
            content = re.sub(rb"\d[\d.,]* (s|min|h)\b", b"", content)
        prints[str(file.relative_to(out))] = hashlib.sha256(content).hexdigest()
    return prints


def compare(before: dict[str, str], after: dict[str, str], found: Found) -> None:
    """Note which files are not as they were in the undisturbed run, are missing, or are left over."""
    for name in before.keys() | after.keys():
        if before.get(name) != after.get(name):
            last = name.rpartition("/")[2]
            kind = (
                "weights"
                if last.endswith(".safetensors")
                else "metrics"
                if last in ("metrics.jsonl", "samples.jsonl")
                else "other files"
            )
            found.wrong[kind].add(name)


def besiege(name: str, kit: Path, put: Callable[[str], str], note: Path, kills: int, rng: Random) -> Found:
    """Run a command undisturbed, then with kills until there were enough of them."""
    out, said, found = kit / "out", kit / "said.txt", Found()
    command = [name, *STAGES[name].format(kit=kit).split(), "--out", str(out)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    put("")
    with said.open("w") as stream:  # a fresh process: its sets of texts have another order
        line = [sys.executable, __file__, "--obey", str(note), *command]
        alone = subprocess.Popen(line, stdout=stream, stderr=stream, env=variables)
        while place(noted(note)) not in COMPUTING and alone.poll() is None:
            time.sleep(0.001)
        began = time.monotonic()
        code = alone.wait()
    seconds = time.monotonic() - began
    put("")
    before = fingerprint(out)
    print(f"{name}: {seconds:.1f} s undisturbed, exit code {code}", flush=True)
    while code == 0 and found.kills < kills:
        shutil.rmtree(out)
        code = one_run(lambda: forked(put, command, said), note, out, seconds / A_RUN.get(name, 4), rng, found)
        found.runs += 1
        compare(before, fingerprint(out), found)
    if code:
        sys.exit(f"{name} ended with exit code {code}:\n{said.read_text()[-2000:]}")
    shutil.rmtree(out)
    return found


def make_kit(kit: Path, put: Callable[[str], str]) -> None:
    """Files, and the smallest models made from them."""
    colours = ("red", "blue", "green", "white", "black", "brown")
    asked = [f"colour of {thing} {number}" for thing in ("sky", "sea", "sand") for number in range(10)]
    rows: dict[str, list[dict[str, Any]]] = {
        "corpus": [
            {"text": f"the {one} sea is {one} and the {other} sky {other}"} for one in 20 * colours for other in colours
        ],
        "prompts": [{"prompt": prompt} for prompt in asked],
        "demonstrations": [
            {"prompt": prompt, "completion": colours[number % 6]} for number, prompt in enumerate(asked)
        ],
        "rankings": [{"prompt": prompt, "completions": ["blue", "red", "it"], "ranks": [1, 2, 2]} for prompt in asked],
    }
    for name, each in rows.items():
        (kit / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    (kit / "run.yaml").write_text(RUN)
    for line in (
        f"pretrain --corpus {kit}/corpus.jsonl --out {kit}/base {BASE}",
        f"reward --base {kit}/base --data {kit}/rankings.jsonl --out {kit}/reward",
    ):
        if os.waitpid(forked(put, line.split(), kit / "said.txt"), 0)[1]:
            sys.exit((kit / "said.txt").read_text()[-2000:])


def table(rows: dict[str, Found]) -> str:
    """The results as a table for docs/explanation/results.md."""
    lines = [
        f"| command | runs | kills | {' | '.join(PLACES)} | left something half written | weights | metrics | other "
        "files |"
    ]
    lines.append("|---|" + "---:|" * (len(PLACES) + 3) + "---|---|---|")
    for name, found in rows.items():
        counts = [found.runs, found.kills, *(found.places[where] for where in PLACES), found.half]
        verdicts = ["differ" if names else "the same" for names in found.wrong.values()]
        lines.append(f"| `{name}` | {' | '.join(map(str, counts))} | {' | '.join(verdicts)} |")
    return "\n".join(lines)


def main() -> None:
    """All commands, or some, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), help="which commands")
    parser.add_argument(
        "--kills", type=int, default=15, help="least number of kills of each command; `run` gets half as many"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    with tempfile.TemporaryDirectory() as folder:
        kit = Path(folder)
        note = kit / "note"
        put = prepare(note)
        make_kit(kit, put)
        rows: dict[str, Found] = {}
        for name in given.only:
            kills = -(-given.kills // 2) if name == "run" else given.kills
            rows[name] = besiege(name, kit, put, note, kills, Random(f"{given.seed} {name}"))
            print(f"{name}: {rows[name]}", flush=True)
    print(table(rows))
    print(f"{sum(found.kills for found in rows.values())} kills, each followed by the same command")
    for name, found in rows.items():
        for kind, files in found.wrong.items():
            print(f"{name}: {kind} that differ: {', '.join(sorted(files))}" if files else "", end="\n" if files else "")
    raise SystemExit(0 if all(found.ok for found in rows.values()) else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--obey"]:
        sys.exit(obey(prepare(Path(sys.argv[2])), sys.argv[3:]))
    main()
