"""Several runs on one page: groups by seed, means with intervals, options that differ; the opening of one run; print.

pytest tests/report/test_report_comparison.py
"""

from __future__ import annotations

import json
import math
import re

import pytest
from support.browser import browser  # noqa: F401
from support.example_run import make

from instructgpt.cli import run_command as command
from instructgpt.errors import InputError
from instructgpt.report.comparison import combine_rows, list_differing_options, read_groups
from instructgpt.report.cost import read_report_cost
from instructgpt.report.inputs import read_run
from instructgpt.report.opening import build_opening
from instructgpt.report.page import write_report, write_results_page
from instructgpt.results import ResultRow, write_result_rows

T_2 = 4.302652729911275
"""Student's t at 97.5 % for two degrees of freedom, from a table."""


def row(value, metric="heldout_loss", evaluation="tax", model="ppo", condition=""):
    return ResultRow(evaluation, metric, model, condition, value, value - 0.01, value + 0.01, 80)


def write_stage(folder, name, stage, metrics=(), **record):
    """A finished stage whose data lie in the run directory, as `run` writes it."""
    directory = folder / name
    directory.mkdir(parents=True, exist_ok=True)
    config = {"out": str(directory), "resume": True} | record.pop("config", {})
    parents = record.pop("parents", {})
    info = {"stage": stage, "finished": True, "seconds": 60.0, "seed": config.get("seed", 0), "config": config}
    (directory / "run.json").write_text(json.dumps(info | {"parents": parents} | record))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))


def write_run(folder, seed, loss, **config):
    config = {"seed": seed, "policy": str(folder / "start"), "batch": 512, "schedule": {"warm_up": 10}} | config
    write_stage(folder, "ppo", "ppo", [{"step": 3, "objective/kl": loss}], config=config)
    write_result_rows(folder / "results.json", [row(loss), row(0.5 + loss / 10, "win_rate_vs_sft", "preference")])
    return folder


@pytest.fixture
def runs(tmp_path):
    """Three seeds of one configuration, and one run of another."""
    low = [write_run(tmp_path / f"lr-0.1-seed{10 + seed}", seed, loss, lr=0.1) for seed, loss in enumerate((1, 2, 3))]
    return [*low, write_run(tmp_path / "lr-0.2-seed0", 0, 5.0, lr=0.2)]


def test_runs_that_differ_in_the_seed_are_a_group(runs):
    groups = read_groups(runs)
    assert [(group.name, len(group.runs)) for group in groups] == [("lr-0.1", 3), ("lr-0.2-seed0", 1)]
    assert list_differing_options(groups) == {"ppo.lr": ["0.1", "0.2"]}


def test_a_group_has_the_mean_over_its_runs(runs):
    rows = {(line.metric, line.model): line for line in combine_rows(read_groups(runs))}
    mean = rows["heldout_loss", "ppo (lr-0.1)"]
    half = T_2 * 1.0 / math.sqrt(3)  # the standard deviation of 1, 2, 3 is 1
    assert (mean.value, mean.low, mean.high) == pytest.approx((2, 2 - half, 2 + half))
    assert mean.n == 3
    single = rows["heldout_loss", "ppo (lr-0.2-seed0)"]
    assert (single.value, single.low, single.high, single.n) == (5.0, 4.99, 5.01, 80)
    share = rows["win_rate_vs_sft", "ppo (lr-0.1)"]
    assert share.value == pytest.approx(0.7)
    assert 0 < share.low < 0.7 < share.high < 1  # a share's interval stays a share


def test_one_configuration_with_several_seeds_keeps_the_names_of_its_models(runs, tmp_path):
    groups = read_groups(runs[:3])
    assert {line.model for line in combine_rows(groups)} == {"ppo"}
    text = write_results_page(runs[:3], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "3 runs of one configuration" in text
    assert "over runs (seeds)" in text
    assert 'id="options"' not in text


def test_page_of_a_comparison(runs, tmp_path):
    assert command(["report", *map(str, runs)]) == 0
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "4 runs in 2 groups, by their options: lr-0.1 (3), lr-0.2-seed0 (1)." in text
    options = text.split('id="options"')[1].split("</section>")[0]
    assert re.findall(r"<td>([^<]*)</td>", options) == ["ppo.lr", "0.1", "0.2"]
    table = text.split('id="runs"')[1].split("</section>")[0]
    assert all(f"<td>{run.name}</td>" in table for run in runs)
    last = text.split('id="last-values"')[1].split("</section>")[0]
    assert "PPO: objective/kl" in last
    assert "2.00 [" in last


def test_repeated_seeds_are_named_and_unlike_names_become_letters(tmp_path):
    twice = [write_run(tmp_path / name, 0, loss) for name, loss in (("morning", 1.0), ("evening", 2.0))]
    groups = read_groups(twice)
    assert [group.name for group in groups] == ["A"]
    text = write_results_page(twice, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "A: two runs have the same seed" in text


def test_files_of_results_are_groups_of_their_own(runs, tmp_path):
    file = tmp_path / "published.json"
    write_result_rows(file, [row(4.0)])
    groups = read_groups([*runs[:3], file])
    assert [group.name for group in groups] == ["lr-0.1", "published"]
    text = write_results_page([*runs[:3], file], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Files of results state no options: published." in text


def test_nothing_to_compare_is_one_line(tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(InputError, match="no results in it"):
        read_groups([tmp_path / "empty.json", tmp_path / "empty.json"])


# --- opening -------------------------------------------------------------------------------------------------------


def test_the_opening_says_what_was_trained_on_what(tmp_path):
    """Counts by hand: two files of rankings share the labeler kim; five decided pairs; 90 seconds of work."""
    world = tmp_path / "data"
    world.mkdir()
    files = {
        "demonstrations": [{"prompt": "p", "completion": "c", "labeler": "lee", "active_ms": 90_000}] * 2,
        "first": [{"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 2], "labeler": "kim"}],
        "second": [
            {"prompt": "p", "completions": ["a", "b", "c"], "ranks": [1, 2, 3], "labeler": name} for name in ("kim",)
        ],
    }
    for name, lines in files.items():
        (world / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    parents = {name: {"path": str(world / f"{name}.jsonl"), "sha256": "0" * 64} for name in files}
    run = tmp_path / "mine"
    write_stage(
        run,
        "sft",
        "sft",
        [{"step": 40}],
        parents={"data demonstrations.jsonl": parents["demonstrations"]},
        config={"base": "Qwen/Qwen3-0.6B", "lora": 16, "seed": 7},
        parameters=596_049_920,
        execution={"policy": {"family": "qwen3"}},
        flops=2.5e18,
    )
    write_stage(
        run,
        "reward",
        "reward",
        [{"step": 12}],
        parents={"data first.jsonl": parents["first"], "data second.jsonl": parents["second"]},
        config={"seed": 7},
        flops=0.5e18,
        gpu_seconds=7200,
    )
    write_stage(run, "ppo", "ppo", [{"step": 9}], config={"seed": 7}, episodes=4608, flops=7e18, finished=False)
    facts = {fact.name: fact.text for fact in build_opening(read_run(run), read_report_cost(run))}
    assert facts == {
        "Base model": "Qwen/Qwen3-0.6B, qwen3, 596,049,920 parameters, LoRA of rank 16",
        "Demonstrations": "2, 3 min of work",
        "Rankings": "2, with 5 decided pairs",
        "Labelers": "2",
        "Training": "SFT 40 steps, reward model 12 steps, PPO 9 updates with 4,608 episodes",
        "Time": "3 min, 2 GPU-hours, not finished: ppo",
        "Cost": "1e+19 FLOPs",
        "Made with": "seed 7",
    }
    text = write_report(run).read_text(encoding="utf-8")
    assert text.index("Qwen/Qwen3-0.6B, qwen3") < text.index("<main>")


# --- print -----------------------------------------------------------------------------------------------------------

A4_PX = {"portrait": round((210 - 26) / 25.4 * 96), "landscape": round((297 - 26) / 25.4 * 96)}
"""Width between the margins of the page's print style."""


@pytest.mark.parametrize("orientation", A4_PX)
def test_no_column_is_lost_in_print(tmp_path, browser, orientation):  # noqa: F811
    """Every cell of every table lies within the paper; tables of many columns take a page across."""
    path = write_report(make(tmp_path / "demo"))
    page = browser.new_page(viewport={"width": A4_PX[orientation], "height": 900})
    page.goto(path.as_uri())
    page.emulate_media(media="print")
    tables = page.evaluate(
        """() => [...document.querySelectorAll('table')].map(table => ({
            page: getComputedStyle(table.parentElement).page,
            right: Math.max(...[...table.querySelectorAll('th, td')].map(cell => cell.getBoundingClientRect().right)),
            height: table.getBoundingClientRect().height }))"""
    )
    page.close()
    chosen = [table for table in tables if (table["page"] == "wide") == (orientation == "landscape")]
    assert len(chosen) >= 3
    assert all(table["height"] > 0 for table in tables), "closed details are open on paper"
    assert max(table["right"] for table in chosen) <= A4_PX[orientation] + 1
