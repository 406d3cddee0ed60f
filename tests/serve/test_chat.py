"""The command `chat` on a pseudo-terminal, as a person sees it."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from conftest import CPU
from support.commands import SRC
from support.serving import run_endpoint

from instructgpt.cli import run_command
from instructgpt.errors import InputError
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Demonstration, Message, Prompt, Ranking, read_records
from instructgpt.serve.chat_models import ChatSettings, connect

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A command on a pseudo-terminal of 100 columns."""

    def __init__(self, *words):
        self.controller, terminal = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(SRC), "COLUMNS": "100", "LINES": "40", "TERM": "xterm"}
        line = [sys.executable, "-m", "instructgpt", "chat", *map(str, words)]
        self.process = subprocess.Popen(
            line, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
        )
        os.close(terminal)
        self.text = ""

    def read_until(self, pattern, patience=300):
        """Read until a pattern shows; returns what came since the last call."""
        limit, fresh = time.monotonic() + patience, ""
        while not re.search(pattern, fresh):
            assert time.monotonic() < limit, f"no {pattern} in: {fresh}"
            if select.select([self.controller], [], [], 0.2)[0]:
                try:
                    part = os.read(self.controller, 65_536)
                except OSError:  # the other side is closed
                    break
                fresh = CONTROL.sub("", fresh + part.decode(errors="replace"))
        self.text += fresh
        return fresh

    def send(self, line, pattern=r"\n> $"):
        os.write(self.controller, line.encode() + b"\n")
        return self.read_until(pattern)

    def end(self):
        code = self.process.wait(timeout=120)
        os.close(self.controller)
        return code


def test_two_models_with_scores_and_records(save, save_reward, tmp_path):
    demonstrations, rankings = tmp_path / "demonstrations.jsonl", tmp_path / "rankings.jsonl"
    files = ["--demonstrations", demonstrations, "--rankings", rankings]
    models = ["--model", f"one={save('llama')}", f"two={save('gpt2')}", "--reward", save_reward("llama")]
    terminal = Terminal(*models, *files, "--max-tokens", 6, "--seed", 3, "--system", "Hi")
    assert "one, two" in terminal.read_until(r"\n> $")
    shown = terminal.send("sea?")
    scores = [float(x) for x in re.findall(r"score (-?\d+\.\d\d)", shown)]
    assert len(scores) == 2
    assert re.search(r"1 one, score .*2 two, score", shown), "side by side, on one line"
    assert "saved" in terminal.send("/rank 2 1")
    terminal.send("/edit 2 It is wide.")
    assert "saved" in terminal.send("/save")
    assert "goes on with answer 2" in terminal.send("/pick 2")
    terminal.send("And?")
    terminal.send("/regenerate")
    for line, complaint in (
        ("/rank 1", "a rank for each of the 2"), ("/rank 0 1", "ranks start at 1"), ("/pick 3", "1 to 2"),
        ("/sing", "no command /sing"),
        ("/set colour 3", "no setting 'colour'"), ("/set top_p 2", "expected"), ("/edit 1", "text is missing"),
    ):  # fmt: skip
        assert complaint in terminal.send(line)
    terminal.send("/new")
    assert "no answer yet" in terminal.send("/save")
    terminal.send("/quit", r"\Z")
    assert terminal.end() == 0
    (ranking,) = read_records(Ranking, rankings)
    assert (ranking.ranks, ranking.models) == ((2, 1), ("one", "two"))
    turns = (Message(role="system", content="Hi"), Message(role="user", content="sea?"))
    assert ranking.messages == turns
    (demonstration,) = read_records(Demonstration, demonstrations)
    assert (demonstration.messages, demonstration.completion) == (turns, "It is wide.")
    reward = load_reward_model(save_reward("llama"), CPU)
    examples = [
        reward.tokenizer.encode_example(Prompt(messages=turns), text, finished=finished)
        for text in ranking.completions
        for finished in (True, False)
    ]
    possible = [round(score, 2) for score in reward.score(examples).tolist()]
    assert scores[0] in possible[:2]
    assert scores[1] in possible[2:]


def test_an_endpoint(save):
    with run_endpoint({"policy": save("llama"), "sft": save("gpt2")}) as endpoint:
        terminal = Terminal("--url", endpoint.url, "--model", "sft", "policy", "--max-tokens", 5, "--temperature", 0)
        terminal.read_until(r"\n> $")
        shown = terminal.send("Where is Seoul?")
        assert re.search("1 sft.*2 policy", shown)
        expected = endpoint.chat("Where is Seoul?", max_tokens=5, temperature=0, model="sft")
        first = "".join(c for c in expected["choices"][0]["message"]["content"] if c.isascii() and c.isalnum())
        assert set(first) <= set(shown)
        os.write(terminal.controller, b"\x04")  # Ctrl-D
        terminal.read_until(r"\Z")
        assert terminal.end() == 0
        with pytest.raises(InputError, match="policy, sft"):
            connect(endpoint.url, ["gpt-9"], None)
    with pytest.raises(InputError, match="no OpenAI-compatible endpoint"):
        connect(endpoint.url, [], None)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # an import of them fails, as where they are not installed
from instructgpt.cli import main
main(sys.argv[1:])
"""


def test_an_endpoint_needs_no_torch_here(save):
    with run_endpoint({"policy": save("llama")}) as endpoint:
        answer = endpoint.chat("Where is Seoul?", max_tokens=5, temperature=0)
        line = [sys.executable, "-c", WITHOUT_TORCH, "chat", "--url", endpoint.url, "--max-tokens", "5"]
        done = subprocess.run(
            [*line, "--temperature", "0"],
            input="Where is Seoul?\n/quit\n",
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SRC)},
        )
    assert (done.returncode, done.stderr) == (0, "")
    expected = [c for c in answer["choices"][0]["message"]["content"] if c.isascii() and c.isalnum()]
    assert "1 policy" in done.stdout
    assert "PyTorch" not in done.stdout
    assert set(expected) <= set(done.stdout)


def test_settings():
    settings = ChatSettings().change("temperature", "0.5").change("seed", "7")
    assert (settings.temperature, settings.seed) == (0.5, 7)
    for name, value in (("temperature", "x"), ("max_tokens", "0"), ("top_p", "nan"), ("n", "2")):
        with pytest.raises(InputError):
            settings.change(name, value)


def test_bad_input(tmp_path, capsys):
    for words in ([], ["--model", str(tmp_path / "none")], ["--url", "http://127.0.0.1:9"], ["--url", "x"]):
        assert run_command(["chat", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1
