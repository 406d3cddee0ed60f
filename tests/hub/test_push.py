"""A finished model to a stand-in for the hub: what is sent, what stays, what the card says.

pytest tests/hub/test_push.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import transformers
from huggingface_hub import ModelCard
from support.commands import SRC, edit_json
from support.hub_server import accept_uploads

from instructgpt.hub.push import find_base_model
from instructgpt.results import ResultRow, write_result_rows

TOKEN = "hf_test"


@pytest.fixture(scope="module")
def finished(kit):
    """A run with a policy whose base has a hub name, and results beside it."""
    rows = [
        ResultRow("preference", "win_rate_vs_sft", "base", "heldout", 0.625, 0.5, 0.75, 40),
        ResultRow("preference", "win_rate_vs_sft", "sft", "heldout", 0.5, None, None, 40),
        ResultRow("difference", "a/b/c", "base", "sft", 0.1, 0.0, 0.2, 40),
    ]
    write_result_rows(kit.folder / "results.json", rows)
    (kit.base / "samples.jsonl").write_text('{"prompt": "a person wrote this"}\n')
    return kit


def push(*words, endpoint="http://127.0.0.1:9", token=TOKEN):
    environment = {**os.environ, "PYTHONPATH": str(SRC), "HF_ENDPOINT": endpoint, "HF_TOKEN": token}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "instructgpt", "push", *map(str, words)], env=environment, capture_output=True, text=True
    )


def test_a_model_is_pushed_with_its_card_and_loads(finished, tmp_path):
    options = ("--repo", "people/model", "--license", "apache-2.0", "--base-model", "org/base", "--private")
    with accept_uploads(tmp_path, TOKEN) as hub:
        for _ in range(2):  # the repository exists the second time
            done = push(finished.base, *options, endpoint=hub.url)
            assert done.returncode == 0, done.stderr
        assert hub.repositories == {"people/model": "private"}
        refused = push(finished.base, *options, endpoint=hub.url, token="hf_wrong")
    assert refused.returncode == 1
    assert "hf auth login" in refused.stderr
    assert refused.stderr.count("\n") == 1
    folder = tmp_path / "people" / "model"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    original = transformers.AutoModelForCausalLM.from_pretrained(finished.base)
    assert all((ours == theirs).all() for ours, theirs in zip(model.parameters(), original.parameters(), strict=True))
    assert transformers.AutoTokenizer.from_pretrained(folder).chat_template
    sent = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= sent
    assert not {name for name in sent if "jsonl" in name or "checkpoint" in name or name == "run.json"}


def test_card_has_license_base_model_and_metrics(finished, capsys):
    from instructgpt import cli

    argv = [
        "push",
        str(finished.base),
        "--repo",
        "people/model",
        "--license",
        "mit",
        "--base-model",
        "org/b",
        "--dry-run",
    ]
    assert cli.run_command(argv) == 0
    text = capsys.readouterr().out
    card = ModelCard(text[text.index("---\n") :])
    assert (card.data.license, card.data.base_model) == ("mit", "org/b")
    (measure,) = card.data.eval_results
    assert (measure.metric_type, measure.metric_value, measure.dataset_config) == ("win_rate_vs_sft", 0.625, "heldout")
    assert "| preference | win_rate_vs_sft | heldout | 0.625 | 0.5 to 0.75 | 40 |" in card.text
    assert str(finished.folder) not in text.partition("---\n")[2]  # no paths of this machine


def test_base_model_is_found_through_the_chain_of_stages(tmp_path):
    """PPO from an SFT model from a hub model, whose name is recorded with its own hash; then one that was local."""
    from hashlib import sha256

    for name, parent, path in (("start", "base", "org/base@main"), ("ppo", "policy", str(tmp_path / "start"))):
        (tmp_path / name).mkdir()
        digest = sha256(path.encode()).hexdigest() if name == "start" else 64 * "0"
        record = {"stage": name, "finished": True, "parents": {parent: {"path": path, "sha256": digest}}, "config": {}}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    record = json.loads((tmp_path / "ppo" / "run.json").read_text())
    assert find_base_model(tmp_path / "ppo", record) == "org/base"
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "start").rename(tmp_path / "elsewhere" / "start")
    assert find_base_model(tmp_path / "elsewhere" / "ppo", record) == "org/base"
    edit_json(moved / "run.json", lambda content: content["parents"]["base"].update(sha256=64 * "1"))
    assert find_base_model(tmp_path / "elsewhere" / "ppo", record) is None


def test_mistakes_are_one_line(finished, command, tmp_path):
    for words, message in (
        ((tmp_path,), "holds no run"),
        ((finished.base, "--results", finished.folder / "none.json"), "none.json"),
    ):
        assert message in command("push", *words, "--repo", "a/b", "--license", "mit").error_line(2)
    assert "expected ORG/NAME" in command("push", finished.base, "--repo", "a", "--license", "mit").error_line(2)
