"""What the tests of faults share: the command in this process and in one of its own, and models made with it, as small as they get."""

from __future__ import annotations

import json
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
"""The command, but with a checkpoint after every step."""
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
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    def complaint(self, code: int) -> str:
        """The one line on stderr, where it ended as it should."""
        assert self.code == code, self
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("instructgpt: "), self.err
        assert "Traceback" not in self.err
        assert "unexpectedly" not in self.err
        return self.err.removeprefix("instructgpt: ").strip()


def words(*arguments: object) -> list[str]:
    """Arguments as the shell would give them; a list is several."""
    flat: list[str] = []
    for argument in arguments:
        flat += map(str, argument) if isinstance(argument, list | tuple) else [str(argument)]
    return flat


def the_last_of_each(argv: list[str]) -> list[str]:
    """A command line in which a flag stands once, with what was said last."""
    starts = [place for place, word in enumerate(argv) if not place or word.startswith("--")]
    said = [argv[start:end] for start, end in zip(starts, [*starts[1:], len(argv)], strict=True)]
    return [word for group in {group[0]: group for group in said}.values() for word in group]


def options(values: dict[str, object]) -> list[str]:
    """Options as flags."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def here(capsys: Any) -> Callable[..., Outcome]:
    """The command in this process."""

    def command(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = cli.run_command(words(*arguments))
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return command


def hear_ctrl_c() -> None:
    """Tests that were started in the background are deaf to Ctrl-C; what they start must not be."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Started:
    """A command in a process, and a group, of its own."""

    def __init__(self, *arguments: object, program: Sequence[str] = ("-c", EAGER)) -> None:
        environment = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *program, *words(*arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
            preexec_fn=hear_ctrl_c,
        )

    def when(self, ready: Callable[[], bool]) -> Started:
        """Wait until something has happened while it runs."""
        wait_for(lambda: ready() or self.process.poll() is not None)
        assert self.process.poll() is None, f"ended before it was interrupted: {self.end()}"
        return self

    def send(self, number: signal.Signals, *, group: bool = False) -> Started:
        """Send a signal to the process, or to all of its group, as a terminal does."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        return self

    def end(self) -> Outcome:
        """Wait for the end."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return Outcome(self.process.returncode, out, err)

    @property
    def nobody_left(self) -> bool:
        """Whether every process of its group has ended."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False


def wait_for(condition: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait until something is so. Fails when patience ends."""
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.005)


def logged(directory: Path, lines: int) -> Callable[[], bool]:
    """Whether a run has logged so many steps."""
    file = directory / "metrics.jsonl"
    return lambda: file.exists() and file.read_bytes().count(b"\n") >= lines


def write(path: Path, rows: Sequence[dict[str, Any] | str]) -> Path:
    """A file of JSON lines; text goes in as it is."""
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Every file below a directory, with its time and size: what must not have changed."""
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
        return the_last_of_each(words("pretrain", "--corpus", self.corpus, "--out", out, options(BASE_SIZE), more))

    def sft(self, out: Path, *more: object) -> list[str]:
        """A fine-tuning command of one epoch."""
        return the_last_of_each(
            words("sft", "--base", self.base, "--data", self.demonstrations, "--epochs", 1, "--out", out, more)
        )

    def train_reward(self, out: Path, *more: object) -> list[str]:
        """A reward-model command of a few steps."""
        return the_last_of_each(
            words("reward", "--base", self.base, "--data", self.rankings, "--batch", 8, "--out", out, more)
        )

    def ppo(self, out: Path, *more: object) -> list[str]:
        """A PPO command of four updates."""
        models = ("--policy", self.base, "--reward", self.reward)
        return the_last_of_each(words("ppo", models, "--prompts", self.prompts, "--out", out, options(PPO_SIZE), more))


def make_kit(folder: Path, *more: object) -> Kit:
    """Write the files, and make the models with the command itself. `more` is said when the base is made."""
    colours = ("red", "blue", "green", "white", "black", "brown")
    asked = [f"colour of {thing} {number}" for thing in ("sky", "sea", "sand") for number in range(10)]
    kit = Kit(
        folder=folder,
        corpus=write(
            folder / "corpus.jsonl",
            [{"text": f"the {c} sea is {c} and the {d} sky {d}"} for c in 20 * colours for d in colours],
        ),
        prompts=write(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in asked]),
        demonstrations=write(
            folder / "demonstrations.jsonl", [{"prompt": p, "completion": colours[i % 6]} for i, p in enumerate(asked)]
        ),
        rankings=write(
            folder / "rankings.jsonl",
            [{"prompt": p, "completions": ["blue", "red", "it"], "ranks": [1, 2, 2]} for p in asked],
        ),
        base=folder / "base",
        reward=folder / "reward",
    )
    for command in (kit.pretrain(kit.base, *more), kit.train_reward(kit.reward)):
        assert cli.run_command(command) == 0
    return kit


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Input files and finished stages, made once for the tests of a file."""
    return make_kit(tmp_path_factory.mktemp("kit"))


@pytest.fixture
def command(capsys: Any) -> Callable[..., Outcome]:
    """The command in this process."""
    return here(capsys)


SMALL_RUN = """
run: {demonstration_prompts: 60, ranking_prompts: 60, ppo_prompts: 20, labelers: 1}
pretrain: {width: 16, layers: 1, tokens: 20_000}
ppo: &ppo {episodes: 16, batch: 8, minibatch: 8, max_tokens: 8}
ppo_ptx: {<<: *ppo, ptx_ratio: 0.25}
candidates: {max_tokens: 8}
exam: {prompts: 10, toxicity_prompts: 3, exercises: 3, documents: 3, max_tokens: 8}
"""
