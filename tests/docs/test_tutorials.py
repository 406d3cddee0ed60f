"""The tutorials, run as they stand at a small size: files, commands and Python in their order.

pytest tests/docs/test_tutorials.py
"""

from __future__ import annotations

import json
import linecache
import os
import shutil
from pathlib import Path

import pytest
import yaml
from support.browser import free_port
from support.commands import make_kit, write
from support.pages import DOCS, ROOT
from support.tutorials import Tutorial, served

from instructgpt import cli, functional
from instructgpt.label.simulation.server import SiteServer
from instructgpt.records import Completion, Ranking, read_records, write_records
from instructgpt.world import SimulatedLabelers, World

PPO = ("--episodes", "8", "--batch", "8", "--minibatch", "4", "--max-tokens", "8")
SAMPLE = ("--max-tokens", "8")
REWARD = ("--batch", "8")
RECIPE = {
    "start": {"batch": 8},
    "reward": {"batch": 8},
    "ppo_ptx": {"episodes": 16, "batch": 8, "minibatch": 4, "max_tokens": 6, "save_every": 1},
}


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A base model and a reward model of the smallest size with room for the world's prompts."""
    return make_kit(tmp_path_factory.mktemp("tutorials"), "--context", 256)


@pytest.fixture
def folder(kit, tmp_path):
    """A reader's folder: three files of conversations, prompts, and the recipes at a small size."""
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(kit.corpus, data / "text.jsonl")
    talks = [[{"role": "user", "content": f"colour of thing {number}"}] for number in range(40)]
    write(data / "demonstrations.jsonl", [{"messages": talk, "completion": "blue"} for talk in talks])
    write(
        data / "rankings.jsonl", [{"messages": talk, "completions": ["blue", "it"], "ranks": [1, 2]} for talk in talks]
    )
    for name in ("prompts", "demonstrations", "rankings"):
        shutil.copy(getattr(kit, name), tmp_path / f"{name}.jsonl")
    recipe = yaml.safe_load((ROOT / "recipes" / "chat-model.yaml").read_text(encoding="utf-8"))
    for section, sizes in RECIPE.items():
        recipe[section] |= sizes
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "chat-model.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return tmp_path


def test_align_your_own_chat_model(kit, folder, monkeypatch):
    tutorial = Tutorial("chat-model", {"MODEL": str(kit.base), "FOLDER": str(folder / "data")})
    tutorial.run(monkeypatch, folder)
    assert tutorial.ran == ["data stats", "plan run", "run", "watch", "doctor", "report"]
    assert (folder / "runs" / "chat" / "report.html").exists()
    assert len(list((folder / "runs" / "chat" / "ppo_ptx" / "policies").iterdir())) == 2


def test_from_trl(kit, folder, monkeypatch):
    (folder / "demonstrations").mkdir()
    shutil.copy(kit.demonstrations, folder / "demonstrations" / "train.jsonl")
    sizes = {"reward": REWARD, "ppo": PPO, "sft": ("--lora", "2")}
    tutorial = Tutorial("from-trl", {"MODEL": str(kit.base)}, sizes)
    tutorial.run(monkeypatch, folder)
    assert tutorial.ran == ["from-trl", "sft", "reward", "ppo"]
    config = json.loads((folder / "runs" / "sft" / "run.json").read_text())["config"]
    assert (config["lr"], config["batch"], config["epochs"], config["dropout"]) == (2e-4, 8, 1, 0.0)


def test_your_first_labeling_round(kit, folder, monkeypatch):
    def simulate(argv, _):
        with SiteServer(Path("site")) as server:
            filled = [{"ADDRESS": server.base_url, "KEY": server.key}.get(word, word) for word in argv]
            assert cli.run_command(filled) == 0

    sizes = {"sample": SAMPLE, "reward": REWARD}
    tutorial = Tutorial("labeling-round", {"MODEL": str(kit.base)}, sizes, {"label simulate": simulate})
    tutorial.run(monkeypatch, folder)
    assert tutorial.ran[-4:] == ["label simulate", "label export", "data stats", "reward"]
    rankings = read_records(Ranking, folder / "exports" / "rankings.jsonl")
    assert len({ranking.prompt for ranking in rankings}) >= 10
    assert len({ranking.labeler for ranking in rankings}) == 3
    assert (folder / "runs" / "reward" / "model.safetensors").exists()


def test_serve_it(kit, folder, monkeypatch, capsys):
    shutil.copytree(kit.base, folder / "runs" / "chat" / "ppo_ptx")
    port = free_port()

    def serve(argv, open_things):
        open_things.enter_context(served(argv, port))

    tutorial = Tutorial("serve-it", {"8001": str(port)}, hooks={"serve": serve})
    tutorial.run(monkeypatch, folder)
    assert tutorial.ran == ["serve", "push"]
    assert tutorial.names["answer"]["choices"][0]["message"]["role"] == "assistant"
    assert "license: apache-2.0" in capsys.readouterr().out


def test_round_two(kit, folder, monkeypatch):
    """People are the small world's labelers, who rank what the page's commands have sampled."""
    for name in ("start", "ppo_ptx"):
        shutil.copytree(kit.base, folder / "runs" / "chat" / name)

    def export(_argv, _):
        rows = [*read_records(Completion, Path("new.jsonl")), *read_records(Completion, Path("old.jsonl"))]
        prompts = dict.fromkeys(row.prompt for row in rows)
        rankings = SimulatedLabelers(World(0)).rank(
            [[row for row in rows if row.prompt == prompt] for prompt in prompts]
        )
        Path("exports").mkdir()
        write_records(Path("exports/rankings.jsonl"), rankings)

    sizes = {"sample": SAMPLE, "reward": REWARD, "ppo": PPO, "evaluate": ("--max-tokens", "8")}
    assert cli.run_command(["label", "init", "--site", str(folder / "site")]) == 0
    write_records(folder / "prompts.jsonl", World(0).prompts("reward", 12))
    tutorial = Tutorial("round-two", {"FOLDER": str(folder / "data")}, sizes, {"label export": export})
    tutorial.run(monkeypatch, folder)
    assert tutorial.ran == ["sample", "sample", "label batch", "label export", "reward", "ppo", "evaluate"]
    rows = json.loads((folder / "runs" / "round-2" / "results.json").read_text())
    assert any(row["model"] == "round-2" and row["metric"] == "win_rate_vs_round-1" for row in rows)


@pytest.mark.skipif(not os.environ.get("INSTRUCTGPT_TEST_LONG"), reason="minutes: part of `make test-long`")
def test_a_figure_of_the_paper(folder, monkeypatch, capsys):
    tutorial = Tutorial("paper-figure")
    tutorial.run(monkeypatch, folder)
    assert tutorial.ran == ["sweep", "sweep"]
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if "cell " in line]) >= 7
    assert (folder / "runs" / "figure-34-smoke" / "sweep.svg").exists()


def test_vary_one_detail(kit, folder, monkeypatch, capsys):
    smoke = folder / "runs" / "smoke"
    shutil.copytree(kit.base, smoke / "start")
    shutil.copytree(kit.reward, smoke / "reward")
    (smoke / "world").mkdir()
    shutil.copy(kit.prompts, smoke / "world" / "ppo.jsonl")
    before = functional.whiten
    notebook = json.loads((DOCS / "tutorials" / "vary-one-detail.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(code) == 4
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for number, source in enumerate(code):
        small = source.replace('"episodes": 64', '"episodes": 48').replace('"max_tokens": 16', '"max_tokens": 6')
        cell = f"<cell {number}>"
        linecache.cache[cell] = (len(small), None, small.splitlines(keepends=True), cell)  # as Jupyter does
        exec(compile(small, cell, "exec"), names)
    assert functional.whiten is before
    assert len(names["pairs"]) == 3
    assert any(names["pairs"])
    printed = capsys.readouterr().out
    assert "def center(advantages)" in json.dumps(names["record"]["patches"])
    assert "objective/entropy " in printed
