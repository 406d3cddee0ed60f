"""Korean: the pages have the commands of the English ones, and Korean text goes through labels, training and report.

pytest tests/docs/test_korean.py
"""

from __future__ import annotations

import gzip
import json
import re

import pytest
from support.pages import FENCE, ROOT, commands

from instructgpt.cli import run_command

SQUARE = ROOT.parent / "shared" / "data" / "rankings" / "square.jsonl.gz"
"""Korean rankings of the project's shared data."""
PAGES = sorted([*ROOT.glob("*.ko.md"), *(ROOT / "docs").rglob("*.ko.md")])
HANGUL = re.compile("[\uac00-\ud7a3]")
SMALL = {
    "pretrain": "--vocabulary 300 --width 16 --heads 2 --layers 1 --context 512 --window 64 --batch 4 --tokens 4096",
    "sft": "--epochs 1 --batch 8 --lr 1e-3",
    "reward": "--batch 8 --lr 1e-3",
}


def run(line: str) -> None:
    assert run_command(line.split()) == 0, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_korean_page_has_the_commands_of_the_english_one(page):
    korean, english = (
        page.read_text(encoding="utf-8"),
        page.with_suffix("").with_suffix(".md").read_text(encoding="utf-8"),
    )
    assert len(HANGUL.findall(korean)) > 500
    in_korean, in_english = list(commands(korean)), list(commands(english))
    assert in_english
    assert [line for line in in_korean if line not in in_english] in ([], [["report", "runs/demo", "--language", "ko"]])
    assert [line for line in in_english if line not in in_korean] == []
    python = [
        [block for _, language, block in FENCE.findall(text) if language == "python"] for text in (korean, english)
    ]
    assert python[0] == python[1]


@pytest.mark.skipif(not SQUARE.exists(), reason="the shared data lie beside the repository only where it is developed")
def test_korean_text_goes_through_labels_training_and_report(tmp_path, monkeypatch):
    """Rankings come back from a site as they went in, two models learn from them, and the report is Korean."""
    monkeypatch.chdir(tmp_path)
    with gzip.open(SQUARE, "rt", encoding="utf-8") as lines:
        records = [record for record in map(json.loads, lines) if record["source"] == "square:ko"]
    rankings = [
        {
            "prompt": record["prompt"],
            "completions": record["completions"],
            "ranks": record["ranks"],
            "labeler": "김지은",
        }
        for record in records
        if len(set(record["ranks"])) > 1 and len(record["prompt"]) < 60
    ][:24]
    best = [(line["prompt"], line["completions"][line["ranks"].index(1)]) for line in rankings]
    files = {
        "rankings": rankings,
        "demonstrations": [{"prompt": prompt, "completion": completion} for prompt, completion in best],
        "corpus": [{"text": f"{prompt}\n{completion}"} for prompt, completion in best],
    }
    for name, values in files.items():
        text = "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    run("label init --site site")
    run("label import --site site --data rankings.jsonl")
    run("label export --site site --out exports")
    exported = [json.loads(line) for line in (tmp_path / "exports/rankings.jsonl").read_text("utf-8").splitlines()]
    assert len(exported) == len(rankings) >= 12
    pairs = {
        (line["prompt"], text, rank)
        for line in rankings
        for text, rank in zip(line["completions"], line["ranks"], strict=True)
    }
    assert pairs == {
        (line["prompt"], text, rank)
        for line in exported
        for text, rank in zip(line["completions"], line["ranks"], strict=True)
    }
    run("data stats --data exports/rankings.jsonl")
    run(f"pretrain --corpus corpus.jsonl --out runs/base {SMALL['pretrain']}")
    run(f"sft --base runs/base --data demonstrations.jsonl --out runs/sft {SMALL['sft']}")
    run(f"reward --base runs/sft --data exports/rankings.jsonl --out runs/reward {SMALL['reward']}")
    run("report runs --language ko")
    page = (tmp_path / "runs" / "report.html").read_text(encoding="utf-8")
    assert f"{len(rankings)}건, 우열이 갈린 쌍" in page
    assert "시범 응답" in page
