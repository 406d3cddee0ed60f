"""Every evaluation of a small model on a folder of public data, at the documented limits: seconds of each, and of all.

    # files as docs/reference/evaluate.md names them, and a folder of rankings
    python bench/evaluations.py DATA --rankings RANKINGS
    python bench/evaluations.py DATA --model runs/mine/sft        # another model than the one that is made

Each evaluation is a command of its own, so its time includes starting. What is done is kept in --out, and the same
command goes on
with the rest; one that was stopped in its middle starts afresh, because half of its time would say nothing. Models,
scorer and judges
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

from instructgpt.evaluate.datasets import find_data_source
from instructgpt.evaluate.tasks import EVAL_TASKS
from instructgpt.evaluate.tasks.loading import load_task_rows

SHAPE = ("--vocabulary", 4096, "--width", 256, "--layers", 6, "--heads", 8, "--context", 1024, "--window", 256)
"""5.8 million parameters. It learns next to nothing: what it says is as long as it may be, which takes longest."""
TEXTS = {"squad_v2_dev_half.jsonl.gz": "context", "rte.jsonl.gz": "premise", "sst2_dev.jsonl.gz": "sentence"}
PAIRS = "pandalm.jsonl.gz"
"""The rankings by people of completions with models' names."""
RANKED = 1000
"""Prompts whose rankings a reward model is measured on: the evaluation has no limit of its own."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with the evaluations' files")
    parser.add_argument("--rankings", type=Path, help="folder with rankings, for reward_model and preference")
    parser.add_argument("--model", type=Path, help="the model; without it, one of 5.8 M parameters is made")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "evaluations", help="what is made and done is kept here"
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--limit", type=int, help="questions of each evaluation in place of the documented ones, for a quick look"
    )
    parser.add_argument("--only", nargs="*", help="evaluations; all without it")
    return parser.parse_args()


def run(*words: object) -> tuple[float, float]:
    """Run a command of the package. -> seconds on the clock, seconds of all its processes' work.

    Ends here where it fails.
    """
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


def model_of(told: argparse.Namespace) -> Path:
    """The model that was named, or one that has seen a little text."""
    if told.model:
        return Path(told.model)
    corpus = told.out / "corpus.jsonl"
    texts = dict.fromkeys(row[column] for name, column in TEXTS.items() for row in load_task_rows(told.data / name))
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return made(told.out / "model", "pretrain", "--corpus", corpus, *SHAPE, "--tokens", 8192, "--batch", 8)


def judges_of(told: argparse.Namespace) -> Path:
    """Judges of answers, trained on a few questions."""
    for kind in ("truth", "info"):
        answers = told.data / f"truthfulqa_judge_{kind}.jsonl.gz"
        few = ("--questions", 20, "--epochs", 1, "--lr", 1e-3)
        made(told.out / "judges" / kind, "judge", kind, "--base", model_of(told), "--data", answers, *few)
    return Path(told.out) / "judges"


def reward_of(told: argparse.Namespace) -> Path:
    """A reward model, trained on a few rankings."""
    few = told.out / "few.jsonl"
    few.write_text("".join(json.dumps(row) + "\n" for row in load_task_rows(told.rankings / PAIRS)[:96]))
    return made(told.out / "reward", "reward", "--base", model_of(told), "--data", few, "--batch", 8)


def commands(told: argparse.Namespace) -> Iterator[tuple[str, list[object]]]:
    """(name, command) of every evaluation that is wanted and whose data is there."""
    wanted = [name for name in (*EVAL_TASKS, "reward_model", "preference") if not told.only or name in told.only]
    for name in wanted:
        if name in EVAL_TASKS and find_data_source(EVAL_TASKS[name], [told.data], {}, len(EVAL_TASKS)):
            line: list[object] = [name, "--model", f"base={model_of(told)}", "--data", told.data]
            if name.startswith("real_toxicity"):
                texts = told.data / "perspective_scored_texts.jsonl.gz"
                line += ["--scorer", made(told.out / "toxicity", "judge", "toxicity", "--data", texts)]
            yield name, line + (["--judges", judges_of(told)] if name == "truthfulqa" else [])
    if "reward_model" in wanted and told.rankings:
        files = sorted(told.rankings.glob("*.jsonl.gz"))
        few = () if told.limit is not None else ("--limit", RANKED)
        name = "reward_model" if told.limit is not None else f"reward_model, {RANKED:,} prompts"
        yield name, ["reward_model", "--model", f"reward={reward_of(told)}", "--data", *files, *few]
    if "preference" in wanted and told.rankings:
        people = told.rankings / PAIRS
        models = [f"base={model_of(told)}", f"judge={judges_of(told) / 'truth' / 'model'}"]
        yield "preference, people", ["preference", "--data", people]
        yield (
            "preference, a reward model",
            ["preference", "--model", *models, "--data", people, "--judge", reward_of(told)],
        )


def asked(folder: Path) -> int:
    """How many replies, verdicts and scores were kept."""
    return sum('"key": ' in line for file in folder.rglob("*.jsonl") for line in file.open())


def measured(name: str, line: list[object], told: argparse.Namespace) -> tuple[float, float, int]:
    """Seconds on the clock, seconds of work, replies: of an evaluation that is made now or was made before."""
    which = f"{'all' if told.limit is None else told.limit}-{told.processes}"
    folder = told.out / "done" / which / name.replace(", ", "-").replace(" ", "-")
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
    told.out.mkdir(parents=True, exist_ok=True)
    rows, lines = [], []
    for name, line in commands(told):
        print(f"asking: {name}", flush=True)
        rows.append(measured(name, line, told))
        clock, work, replies = rows[-1]
        plain, _, more = name.partition(",")
        lines.append(f"| `{plain}`{more and ','}{more} | {replies:,} | {clock:.0f} | {work:.0f} |")
        print(lines[-1], flush=True)
    if not rows:
        sys.exit(f"{told.data}: no file of an evaluation in it")
    clock, work, replies = (sum(column) for column in zip(*rows, strict=True))
    limits = "the documented limits" if told.limit is None else f"at most {told.limit} questions of each"
    print(
        f"\n{told.processes} processes, {limits}\n\n| evaluation | replies and verdicts | clock, s | work, s "
        "|\n|---|---:|---:|---:|"
    )
    print(
        "\n".join([*lines, f"| together | {replies:,} | {clock:.0f} | {work:.0f} |"]) + f"\n\n{clock / 60:.1f} minutes"
    )


if __name__ == "__main__":
    main()
