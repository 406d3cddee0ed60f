"""Every command the README shows does what it says, at smoke size, in the order in which a reader types them.

pytest tests/docs/test_readme.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from support.commands import make_kit
from support.pages import ROOT, commands

from instructgpt import cli

SMALL = {
    "sft": ["--epochs", "1", "--batch", "8", "--lr", "1e-3"],
    "reward": ["--batch", "8", "--lr", "1e-3"],
    "ppo": ["--episodes", "8", "--batch", "8", "--minibatch", "4", "--max-tokens", "8"],
    "sample": ["--max-tokens", "8"],
}
RECIPE = {
    "pretrain": {
        "vocabulary": 300,
        "width": 16,
        "layers": 1,
        "heads": 2,
        "context": 256,
        "window": 32,
        "tokens": 4096,
        "batch": 8,
    },
    "start": {"epochs": 1, "batch": 8},
    "reward": {"batch": 8},
    "ppo_ptx": {"episodes": 8, "batch": 8, "minibatch": 8, "max_tokens": 8, "ptx_ratio": 0.25},
}


def small_recipe(source: Path, target: Path, kit) -> None:
    """The recipe of the README on the kit's files, its stages at their smallest."""
    recipe = yaml.safe_load(source.read_text(encoding="utf-8"))
    recipe["run"] |= {
        "corpus": [kit.corpus.name],
        "demonstrations": [kit.demonstrations.name],
        "rankings": [kit.rankings.name],
        "processes": 1,
    }
    for section, values in RECIPE.items():
        assert section in recipe
        recipe[section] |= values
    target.parent.mkdir(parents=True)
    target.write_text(yaml.safe_dump(recipe), encoding="utf-8")


@pytest.mark.slow
def test_every_command_of_the_readme_runs(tmp_path, monkeypatch):
    (tmp_path / "kit").mkdir()
    kit = make_kit(tmp_path / "kit")
    for name in ("corpus", "prompts", "demonstrations", "rankings"):
        shutil.copy(getattr(kit, name), tmp_path / f"{name}.jsonl")
    monkeypatch.chdir(tmp_path)
    small_recipe(ROOT / "recipes" / "real-small.yaml", tmp_path / "recipes" / "real-small.yaml", kit)
    ran = []
    for line in commands((ROOT / "README.md").read_text(encoding="utf-8")):
        argv = [
            str(kit.base) if word == "MODEL" else str(kit.corpus.parent) if word == "FOLDER" else word for word in line
        ]
        if "smoke" in argv or argv[0] == "label":
            continue  # these run elsewhere: test_interrupts, test_simulate, test_site_serve, test_site_making
        assert cli.run_command([*argv, *SMALL.get(argv[0], [])]) == 0, argv
        ran.append(argv[0])
    assert set(ran) == {"sft", "sample", "reward", "ppo", "score", "report", "watch", "doctor", "run"}
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
    rows = json.loads((tmp_path / "runs" / "real-small" / "results.json").read_text())
    assert {row["model"] for row in rows if row["evaluation"] == "preference"} == {"base", "sft", "ppo_ptx"}
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert all(isinstance(row["score"], float) for row in scored)
