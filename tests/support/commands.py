"""Run the command in this process or in its own process, and build the smallest possible models with it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.process
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from instructgpt import cli

SRC = Path(__file__).parents[2] / "src"
EAGER = (
    "import instructgpt.run.directory as run; run.CHECKPOINT_INTERVAL_S = 0.0; from instructgpt.cli import main; main()"
)
"""The command with a checkpoint after every step."""
PATIENCE = 120.0
BASE_SIZE = {
    "vocabulary": 270,
    "width": 8,
    "heads": 1,
    "layers": 1,
    "context": 48,
    "window": 16,
    "batch": 4,
    "tokens": 768,
}
PPO_SIZE = {"episodes": 16, "batch": 4, "minibatch": 4, "max-tokens": 6, "lr": 1e-4}


@dataclass(frozen=True, slots=True)
class Outcome:
    code: int
    out: str
    err: str

    def error_line(self, code: int) -> str:
        """Return the only line of stderr, without the program's name."""
        assert self.code == code, self
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("instructgpt: "), self.err
        assert "Traceback" not in self.err
        assert "unexpectedly" not in self.err
        return self.err.removeprefix("instructgpt: ").strip()


def words(*arguments: object) -> list[str]:
    """Return arguments as strings, with lists flattened."""
    flat: list[str] = []
    for argument in arguments:
        flat += map(str, argument) if isinstance(argument, list | tuple) else [str(argument)]
    return flat


def keep_last_flag(argv: list[str]) -> list[str]:
    """Keep only the last occurrence of each flag."""
    starts = [place for place, word in enumerate(argv) if not place or word.startswith("--")]
    said = [argv[start:end] for start, end in zip(starts, [*starts[1:], len(argv)], strict=True)]
    return [word for group in {group[0]: group for group in said}.values() for word in group]


def options(values: dict[str, object]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def run_in_process(capsys: Any) -> Callable[..., Outcome]:
    """Return a function that runs the command in this process."""

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = cli.run_command(words(*arguments))
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return command


def restore_sigint() -> None:
    """Restore the handler of SIGINT, which background jobs inherit as ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class CommandProcess:
    """A command in its own process group."""

    def __init__(self, *arguments: object, program: Sequence[str] = ("-c", EAGER)) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *program, *words(*arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
            preexec_fn=restore_sigint,
        )

    def wait_until(self, ready: Callable[[], bool]) -> CommandProcess:
        """Wait for a condition while the command runs."""
        wait_for(lambda: ready() or self.process.poll() is not None)
        assert self.process.poll() is None, f"ended before it was interrupted: {self.end()}"
        return self

    def send(self, number: signal.Signals, *, group: bool = False) -> CommandProcess:
        """Send a signal to the process, or to its group as a terminal does."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        return self

    def end(self) -> Outcome:
        out, err = self.process.communicate(timeout=PATIENCE)
        return Outcome(self.process.returncode, out, err)

    @property
    def group_has_ended(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False


def wait_for(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit, "timed out"
        time.sleep(0.005)


def run_quietly(arguments: Sequence[str], status: Path | None = None) -> None:
    """Run a command without output, in a process that was forked for it; write its exit code to a file."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        code = cli.run_command(list(arguments))
    if status is not None:
        status.write_text(str(code))


def start_forked(
    arguments: Sequence[str], status: Path | None = None, preload: Sequence[str] = ()
) -> multiprocessing.process.BaseProcess:
    """Start a command in a process of its own that can be killed like any other.

    Each is a fork of one server that runs nothing else, with the modules of `preload` imported once for all of them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.commands", *preload])
    process = context.Process(target=run_quietly, args=(tuple(arguments), status))
    process.start()
    return process


def logged(directory: Path, lines: int) -> Callable[[], bool]:
    """Return a condition: the run has logged this many steps."""
    file = directory / "metrics.jsonl"
    return lambda: file.exists() and file.read_bytes().count(b"\n") >= lines


def write(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    """Write JSON lines; strings are written as they are."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Return time and size of every file below a directory, to compare later."""
    return {
        str(file): (file.stat().st_mtime_ns, file.stat().st_size)
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


@dataclass(frozen=True, slots=True)
class Kit:
    """Input files and finished stages of the smallest size."""

    folder: Path
    corpus: Path
    prompts: Path
    demonstrations: Path
    rankings: Path
    base: Path
    reward: Path

    def pretrain(self, out: Path, *more: object) -> list[str]:
        """A pretraining command of a dozen steps."""
        return keep_last_flag(words("pretrain", "--corpus", self.corpus, "--out", out, options(BASE_SIZE), more))

    def sft(self, out: Path, *more: object) -> list[str]:
        """A fine-tuning command of one epoch."""
        return keep_last_flag(
            words("sft", "--base", self.base, "--data", self.demonstrations, "--epochs", 1, "--out", out, more)
        )

    def train_reward(self, out: Path, *more: object) -> list[str]:
        """A reward-model command of a few steps."""
        return keep_last_flag(
            words("reward", "--base", self.base, "--data", self.rankings, "--batch", 8, "--out", out, more)
        )

    def ppo(self, out: Path, *more: object) -> list[str]:
        """A PPO command of four updates."""
        models = ("--policy", self.base, "--reward", self.reward)
        return keep_last_flag(words("ppo", models, "--prompts", self.prompts, "--out", out, options(PPO_SIZE), more))


def make_kit(folder: Path, *more: object) -> Kit:
    """Write the files and build the models with the command. `more` are extra arguments of the base model."""
    colours = ("red", "blue", "green", "white", "black", "brown")
    questions = [f"colour of {thing} {number}" for thing in ("sky", "sea", "sand") for number in range(10)]
    kit = Kit(
        folder=folder,
        corpus=write(
            folder / "corpus.jsonl",
            [{"text": f"the {c} sea is {c} and the {d} sky {d}"} for c in 20 * colours for d in colours],
        ),
        prompts=write(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in questions]),
        demonstrations=write(
            folder / "demonstrations.jsonl",
            [{"prompt": p, "completion": colours[i % 6]} for i, p in enumerate(questions)],
        ),
        rankings=write(
            folder / "rankings.jsonl",
            [{"prompt": p, "completions": ["blue", "red", "it"], "ranks": [1, 2, 2]} for p in questions],
        ),
        base=folder / "base",
        reward=folder / "reward",
    )
    for command in (kit.pretrain(kit.base, *more), kit.train_reward(kit.reward)):
        assert cli.run_command(command) == 0
    return kit


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return make_kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def command(capsys: Any) -> Callable[..., Outcome]:
    return run_in_process(capsys)


SMALL_RUN = """
run: {demonstration_prompts: 60, ranking_prompts: 60, ppo_prompts: 20, labelers: 1}
pretrain: {width: 16, layers: 1, tokens: 20_000}
ppo: &ppo {episodes: 16, batch: 8, minibatch: 8, max_tokens: 8}
ppo_ptx: {<<: *ppo, ptx_ratio: 0.25}
candidates: {max_tokens: 8}
exam: {prompts: 10, toxicity_prompts: 3, exercises: 3, documents: 3, max_tokens: 8}
"""
