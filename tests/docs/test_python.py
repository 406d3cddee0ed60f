"""The Python of docs/guides/python.md, run as it stands, in its order.

pytest tests/docs/test_python.py
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from support.commands import make_kit
from support.pages import FENCE, read_page

from instructgpt import functional
from instructgpt.train import ppo


def last_row(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder in which the page was run, and the names it made."""
    folder = tmp_path_factory.mktemp("python")
    kit = make_kit(folder)
    shutil.copytree(kit.base, folder / "runs" / "mine" / "base")
    page = read_page("python")
    names: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as here:
        here.chdir(folder)
        for _, language, block in FENCE.findall(page):
            assert language == "python"
            exec(compile(block, "python.md", "exec"), names)
    return folder, names


def test_table_has_a_row_for_every_update_of_every_run(ran):
    _, names = ran
    assert [tuple(row) for row in names["table"][["kl_coef", "seed", "step"]].to_numpy()] == [
        (kl_coef, seed, step) for kl_coef in (0.0, 0.2) for seed in (0, 1) for step in (1, 2)
    ]
    assert names["estimate"].low < names["estimate"].value < names["estimate"].high


def test_scores_are_stock_scores_minus_the_offset(ran):
    folder, names = ran
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(folder / names["judge"]).eval()
    prompt_ids = names["tokenizer"].encode_prompt("Name a colour.")
    assert all(answer.example.prompt_ids == prompt_ids for answer in names["answers"])
    with torch.no_grad():
        rows = [torch.tensor([prompt_ids + answer.example.completion_ids]) for answer in names["answers"]]
        numbers = [stock.score(stock.model(row).last_hidden_state)[0, -1, 0].item() for row in rows]
    assert names["scores"].tolist() == pytest.approx(
        [number - stock.config.score_offset for number in numbers], abs=1e-5
    )


def test_replacements_are_used_and_undone(ran):
    folder, _ = ran
    plain = last_row(folder / "runs" / "kl" / "0.0-0")
    for name in ("centered", "fixed"):
        assert last_row(folder / "runs" / "vary" / name)["loss/policy_avg"] != plain["loss/policy_avg"]
    first = [
        json.loads(line) for line in (folder / "runs" / "vary" / "fixed" / "samples.jsonl").read_text().splitlines()
    ]
    assert all(row["score"] == -1 for row in first if row["finish"] == "length")
    assert functional.whiten(torch.tensor([0.0, 2.0])).tolist() == pytest.approx([-1, 1])
    assert ppo.collect_rollout.__module__ == "instructgpt.train.rollout"


def test_the_other_ranking_loss_by_hand(ran):
    """Scores 1, 0, 0; the first two tie: half of log(1 + e) and of log(1 + 1/e); then log(1 + 1/e) and log 2.

    Another prompt has log 2.
    """
    _, names = ran
    losses = names["every_pair"](
        torch.tensor([1.0, 0.0, 0.0, 5.0, 5.0]), torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1, 1, 2, 2, 1])
    )
    assert losses.tolist() == pytest.approx([0.5 * 1.3132617 + 0.5 * 0.3132617 + 0.3132617 + 0.6931472, 0.6931472])
