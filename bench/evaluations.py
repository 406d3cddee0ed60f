"""Every evaluation of a small model on a folder of public data, at the documented limits: seconds of each, and of all.

    python bench/evaluations.py DATA --rankings RANKINGS      # files as docs/evaluate.md names them, and a folder of rankings
    python bench/evaluations.py DATA --model runs/mine/sft        # another model than the one that is made

Each evaluation is a command of its own, so its time includes starting. What is done is kept in --out, and the same command goes on
with the rest; one that was stopped in its middle starts afresh, because half of its time would say nothing. Models, scorer and judges
that are made for it are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sides import ROOT

from instructgpt.evaluate.data_files import source_of
from instructgpt.evaluate.tasks import EVALUATIONS
from instructgpt.evaluate.tasks.reading import rows_of

SHAPE = ("--vocabulary", 4096, "--width", 256, "--layers", 6, "--heads", 8, "--context", 1024, "--window", 256)
"""5.8 million parameters. It learns next to nothing: what it says is as long as it may be, which takes longest."""
TEXTS = {"squad_v2_dev_half.jsonl.gz": "context", "rte.jsonl.gz": "premise", "sst2_dev.jsonl.gz": "sentence"}
PAIRS = "pandalm.jsonl.gz"
"""The rankings by people of completions with models' names."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the evaluations' files")
    parser.add_argument("--rankings", type=Path, help="folder with rankings, for reward_model and preference")
    parser.add_argument("--model", type=Path, help="the model; without it, one of 5.8 M parameters is made")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "evaluations", help="what is made and done is kept here")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=int, help="questions of each evaluation in place of the documented ones, for a quick look")
    parser.add_argument("--only", nargs="*", help="evaluations; all without it")
    return parser.parse_args()


def run(*words: object) -> tuple[float, float]:
    """Run a command of the package. -> seconds on the clock, seconds of all its processes' work. Ends here where it fails."""
    line = [sys.executable, "-m", "instructgpt", *map(str, words)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(line, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    said = process.stderr.read().decode()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{said[-2000:]}")
    return time.perf_counter() - began, used.ru_utime + used.ru_stime


def made(folder: Path, *words: object) -> Path:
    """A directory that a command makes, unless it is there and finished."""
    if not (folder / "run.json").exists() or not json.loads((folder / "run.json").read_text()).get("finished"):
        print(f"making {folder.name}", flush=True)
        run(*words, "--out", folder)
    return folder


def prepared(told: argparse.Namespace) -> dict[str, Path]:
    """Everything that evaluations need beside their data: the model, a scorer, judges, a reward model."""
    out: Path = told.out
    out.mkdir(parents=True, exist_ok=True)
    corpus = out / "corpus.jsonl"
    texts = dict.fromkeys(row[column] for name, column in TEXTS.items() for row in rows_of(told.data / name))
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = told.model or made(out / "model", "pretrain", "--corpus", corpus, *SHAPE, "--tokens", 8192, "--batch", 8)
    found = {"model": model}
    found["scorer"] = made(out / "toxicity", "judge", "toxicity", "--data", told.data / "perspective_scored_texts.jsonl.gz")
    for kind in ("truth", "info"):
        answers = told.data / f"truthfulqa_judge_{kind}.jsonl.gz"
        made(out / "judges" / kind, "judge", kind, "--base", model, "--data", answers, "--questions", 20, "--epochs", 1, "--lr", 1e-3)
    found["judges"] = out / "judges"
    if told.rankings:
        few = out / "few.jsonl"
        few.write_text("".join(json.dumps(row) + "\n" for row in rows_of(told.rankings / PAIRS)[:96]))
        found["reward"] = made(out / "reward", "reward", "--base", model, "--data", few, "--batch", 8)
    return found


def commands(told: argparse.Namespace, have: dict[str, Path]) -> Iterator[tuple[str, list[object]]]:
    """(name, command) of every evaluation whose data is there."""
    for name, evaluation in EVALUATIONS.items():
        if source_of(evaluation, [told.data], {}, len(EVALUATIONS)):
            line: list[object] = [name, "--model", f"base={have['model']}", "--data", told.data]
            line += ["--scorer", have["scorer"]] if name.startswith("real_toxicity") else []
            line += ["--judges", have["judges"]] if name == "truthfulqa" else []
            yield name, line
    if "reward" in have:
        files = sorted(told.rankings.glob("*.jsonl.gz"))
        people = told.rankings / PAIRS
        models = [f"base={have['model']}", f"judge={have['judges'] / 'truth' / 'model'}"]
        yield "reward_model", ["reward_model", "--model", f"reward={have['reward']}", "--data", *files]
        yield "preference, people", ["preference", "--data", people]
        yield "preference, a reward model", ["preference", "--model", *models, "--data", people, "--judge", have["reward"]]


def asked(folder: Path) -> int:
    """How many replies, verdicts and scores were kept."""
    return sum('"key": ' in line for file in folder.rglob("*.jsonl") for line in file.open())


def measured(name: str, line: list[object], told: argparse.Namespace) -> tuple[float, float, int]:
    """Seconds on the clock, seconds of work, replies: of an evaluation that is made now or was made before."""
    folder = told.out / "done" / name.replace(", ", "-").replace(" ", "-")
    if not (folder / "took.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        limit = [] if told.limit is None else ["--limit", told.limit]
        clock, work = run("evaluate", *line, *limit, "--processes", told.processes, "--out", folder / "results.json")
        (folder / "took.json").write_text(json.dumps([clock, work, asked(folder)]))
    clock, work, replies = json.loads((folder / "took.json").read_text())
    return clock, work, replies


def main() -> None:
    """A line for each evaluation, and one for all."""
    told = arguments()
    have = prepared(told)
    print(f"\n{told.processes} processes" + (f", at most {told.limit} questions of each" if told.limit is not None else ""))
    print("| evaluation | replies | clock, s | work, s |\n|---|---:|---:|---:|", flush=True)
    rows = []
    for name, line in commands(told, have):
        if not told.only or name.partition(",")[0] in told.only:
            rows.append(measured(name, line, told))
            clock, work, replies = rows[-1]
            print(
                f"| `{name.partition(',')[0]}`{name[len(name.partition(',')[0]) :]} | {replies:,} | {clock:.0f} | {work:.0f} |", flush=True
            )
    clock, work, replies = (sum(column) for column in zip(*rows, strict=True))
    print(f"| together | {replies:,} | {clock:.0f} | {work:.0f} |\n\n{clock / 60:.1f} minutes")


if __name__ == "__main__":
    main()
