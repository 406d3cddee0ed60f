"""Shell completion, asked of the real shells."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from instructgpt import cli
from instructgpt.commands import COMMANDS
from instructgpt.completion import format_bash, format_fish, format_zsh

ASK_BASH = """
complete() { :; }
compopt() { :; }
eval "$SCRIPT"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_instructgpt
printf '%s\\n' "${COMPREPLY[@]}"
"""


def bash(folder, *words: str) -> list[str]:
    """Return what bash offers for the last word of a line."""
    argv = ["bash", "--norc", "-c", ASK_BASH, "bash", "instructgpt", *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=True, cwd=folder, env={"SCRIPT": format_bash(COMMANDS)}
    )
    assert done.stderr == ""
    return done.stdout.split("\n")[:-1] if done.stdout.strip() else []


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "my prompts.jsonl").touch()
    (tmp_path / "models").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["la"], ["label"]),
        (["label", "se"], ["serve"]),
        (["data", ""], ["import", "clean", "mix", "split", "stats"]),
        (["ppo", "--kl"], ["--kl-alarm", "--kl-coef"]),
        (["label", "serve", "--po"], ["--port"]),
        (["ppo", "--ptx-reduction", ""], ["token", "sequence"]),
        (["ppo", "--ptx-reduction", "=", "s"], ["sequence"]),
        (["sft", "--memory", "bf16", "off"], ["offload"]),
        (["ppo", "--prompts", "a.jsonl", "m"], ["my prompts.jsonl", "models"]),
        (["sft", "--base", "mo"], ["models"]),
        (["ppo", "--lr", ""], []),
        (["sft", "--preset", ""], ["demo", "demo-refusal", "smoke"]),
        (["plan", "p"], ["pretrain", "ppo"]),
        (["plan", "ppo", "--kl"], ["--kl-alarm", "--kl-coef"]),
        (["plan", "ppo", "--ran"], ["--ranks"]),
        (["evaluate", "truth"], ["truthfulqa"]),
        (["serve", "k"], ["keys"]),
        (["serve", "--up"], ["--upstream"]),
        (["serve", "--model", "mo"], ["models"]),
        (["serve", "keys", ""], ["add", "approve", "revoke", "list"]),
        (["serve", "keys", "add", "--a"], ["--allow-store", "--approved-by"]),
        (["serve", "log", "--s"], ["--store"]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["xyzzy", ""], []),
    ],
    ids=lambda value: " ".join(value),
)
def test_bash_offers(words, offered, folder):
    assert sorted(bash(folder, *words)) == sorted(offered)


def test_bash_offers_every_command_and_option(folder):
    assert set(bash(folder, "")) == {command.name.partition(" ")[0] for command in COMMANDS}
    for name in ("ppo", "label batch"):
        command = next(command for command in COMMANDS if command.name == name)
        flags = {f"--{field.replace('_', '-')}" for field in command.config_class.model_fields}
        assert flags <= set(bash(folder, *name.split(), "--"))


def test_after_a_single_value_bash_offers_options(folder):
    assert "--reward" in bash(folder, "ppo", "--policy", "models", "")


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_offers(folder):
    script = folder / "c.fish"
    script.write_text(format_fish(COMMANDS), encoding="utf-8")

    def offered(line: str) -> list[str]:
        argv = ["fish", "--no-config", "-c", f"source '{script}'; complete -C '{line}'"]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=folder)
        assert done.stderr == ""
        return [answer.partition("\t")[0] for answer in done.stdout.splitlines()]

    assert offered("instructgpt label se") == ["serve"]
    assert offered("instructgpt plan ppo --kl") == ["--kl-alarm", "--kl-coef"]
    assert sorted(offered("instructgpt ppo --ptx-reduction ")) == ["sequence", "token"]
    assert offered("instructgpt sft --base mo") == ["models/"]
    assert offered("instructgpt serve ke") == ["keys"]
    assert offered("instructgpt serve keys --a") == ["--allow-store", "--approved-by"]
    assert offered("instructgpt serve --up") == ["--upstream"]
    assert offered("instructgpt serve keys --up") == []


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_reads_the_script():
    script = "autoload -Uz compinit; compinit -D\n" + format_zsh(COMMANDS) + "\nprint $_comps[instructgpt]"
    done = subprocess.run(["zsh", "-f"], input=script, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("_instructgpt\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_prints_a_script(shell, capsys):
    assert cli.run_command(["completion", shell]) == 0
    assert "--ptx-coef" in capsys.readouterr().out or shell == "fish"


def test_an_unknown_shell_is_refused(capsys):
    assert cli.run_command(["completion", "csh"]) == 2
    assert "'bash', 'zsh' or 'fish'" in capsys.readouterr().err
