"""`run --baselines`: stages, exam, frontier and report of the methods that PPO is compared with.

pytest tests/run/test_baseline_methods.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from math import log, sqrt
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from support.commands import SMALL_RUN, Outcome, run_in_process

from instructgpt import cli
from instructgpt.evaluate.frontier import SampledPrompt
from instructgpt.records import read_records
from instructgpt.results import read_result_rows
from instructgpt.world import World

METHODS = ("public_tasks", "dpo", "expert_iteration", "best_of_n")
BASELINE_SECTIONS = """
dpo: {save_every: 1}
expert_iteration: {rounds: 2, n: 2}
best_of_n: {n: 2, samples: 8, prompts: 6, validation_prompts: 5, answers: 2}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baselines")
    (folder / "small.yaml").write_text(SMALL_RUN + BASELINE_SECTIONS)
    words = ["run", "--preset", "smoke", "--config", str(folder / "small.yaml"), "--out", str(folder / "run")]
    assert cli.run_command([*words, "--baselines"]) == 0
    return folder / "run"


@pytest.fixture
def command(capsys: Any) -> Callable[..., Outcome]:
    return run_in_process(capsys)


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def parents_of(folder: Path) -> dict[str, str]:
    """The hash of each input, files by their kind alone."""
    return {name.split()[0]: parent["sha256"] for name, parent in record(folder)["parents"].items()}


def frontier(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evaluation" / "frontier.jsonl").read_text().splitlines()]


def test_methods_start_where_ppo_starts_and_have_its_data(run: Path) -> None:
    ppo, reward = parents_of(run / "ppo"), parents_of(run / "reward")
    parents = {name: parents_of(run / name) for name in METHODS}
    for name in ("dpo", "expert_iteration", "best_of_n"):
        assert parents[name]["policy"] == ppo["policy"]
    for name in ("expert_iteration", "best_of_n"):
        assert parents[name]["reward"] == ppo["reward"]
    assert parents["expert_iteration"]["prompts"] == ppo["prompts"]
    assert parents["dpo"]["data"] == reward["data"]
    sft, public = record(run / "sft"), record(run / "public_tasks")
    assert parents["public_tasks"]["base"] == parents_of(run / "sft")["base"]
    rows = (run / "world" / "public_tasks.jsonl").read_text().splitlines()
    demonstrations = (run / "world" / "demonstrations.jsonl").read_text().splitlines()
    assert len(rows) * public["config"]["epochs"] == len(demonstrations) * sft["config"]["epochs"]


def test_all_methods_take_the_exam(run: Path) -> None:
    rows = read_result_rows(run / "results.json")
    for evaluation, metric in (
        ("preference", "win_rate_vs_sft"),
        ("truthfulness", "truthful"),
        ("labels", "hallucination"),
    ):
        models = {row.model for row in rows if (row.evaluation, row.metric) == (evaluation, metric)}
        assert {*METHODS, "ppo", "ppo_ptx", "sft", "prompted"} <= models
    continued = {row.model for row in rows if row.evaluation == "toxicity"}
    assert {"dpo", "public_tasks"} <= continued
    assert "best_of_n" not in continued  # a reward model does not choose continuations of plain text


def test_best_of_n_is_the_mean_over_all_subsets(run: Path) -> None:
    world, samples = World(0), read_records(SampledPrompt, run / "best_of_n" / "test.jsonl")
    assert [prompt.prompt for prompt in samples] == [prompt.prompt for prompt in world.prompts("test", 6)]
    assert {len(prompt.samples) for prompt in samples} == {8}
    points = {point["n"]: point for point in frontier(run) if point["method"] == "best_of_n"}
    assert list(points) == [2, 4, 8]
    for n, point in points.items():
        assert point["kl_is_bound"]
        assert point["kl"] == pytest.approx(log(n) - (n - 1) / n)
        assert point["sqrt_kl"] == pytest.approx(sqrt(log(n) - (n - 1) / n))
        score, truth = [], []
        for prompt in samples:
            utilities = [
                world.utility(prompt.prompt, text, finish)
                for text, finish in zip(prompt.completions, prompt.finishes, strict=True)
            ]
            best = [max(prompt.scores[i] for i in subset) for subset in combinations(prompt.samples, n)]
            score.append(mean(best))
            # ties in the score are broken at random
            truth.append(
                mean(
                    mean(utilities[i] for i in subset if prompt.scores[i] == top)
                    for subset, top in zip(combinations(prompt.samples, n), best, strict=True)
                )
            )
        assert point["score"] == pytest.approx(mean(score))
        assert point["utility"] == pytest.approx(mean(truth))
        start = mean(mean(prompt.scores[i] for i in prompt.samples) for prompt in samples)
        assert point["score_gain"] == pytest.approx(mean(score) - start)
        assert point["score_low"] <= point["score_gain"] <= point["score_high"]


def test_points_along_the_runs_have_kl_costs_and_win_rates(run: Path) -> None:
    points = frontier(run)
    assert points[0]["method"] == "start"
    assert points[0]["kl"] == 0
    by_method = {name: [point for point in points if point["method"] == name] for name in ("ppo", "ppo_ptx", "dpo")}
    assert [point["label"] for point in by_method["ppo"]] == ["ppo@1", "ppo"]
    assert [point["label"] for point in points if point["method"] == "expert_iteration"] == [
        "expert_iteration@round-1",
        "expert_iteration@round-2",
    ]
    assert len(by_method["dpo"]) > 1
    for method, own in by_method.items():
        spent = [point["training_flops"] for point in own]
        assert spent == sorted(spent), method
        assert spent[0] > 0
        assert all(point["kl"] != 0 and not point["kl_is_bound"] for point in own)
    for point in points[1:]:
        for name in ("win_rate_validation_training", "win_rate_test_training", "win_rate_test_heldout"):
            assert 0 <= point[name] <= 1
    one, two = (next(point for point in points if point.get("n") == n) for n in (2, 4))
    assert two["answer_flops"] == pytest.approx(2 * one["answer_flops"])
    assert two["training_flops"] == one["training_flops"]  # the reward model's


def test_report_draws_the_frontier(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert 'id="frontier"' in page
    for text in ("expert iteration", "best of 8", "own best", "equal KL", "√KL from the start"):
        assert text in page


def test_a_second_command_trains_nothing_again(run: Path, command: Callable[..., Outcome]) -> None:
    times = {path: path.stat().st_mtime_ns for name in METHODS for path in (run / name).rglob("*.safetensors")}
    config = str(run.parent / "small.yaml")
    outcome = command("run", "--preset", "smoke", "--config", config, "--out", str(run), "--baselines")
    assert outcome.code == 0
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([], "section dpo has no effect without --baselines"),
        (["--baselines", "--rounds", "2"], "--baselines has no effect with --rounds 2 or more"),
    ],
)
def test_what_has_no_effect_is_named(
    words: list[str], problem: str, tmp_path: Path, command: Callable[..., Outcome]
) -> None:
    (tmp_path / "dpo.yaml").write_text("run: {words: 1000}\ndpo: {lr: 1.e-4}")
    outcome = command("run", "--config", str(tmp_path / "dpo.yaml"), "--out", str(tmp_path / "run"), *words)
    assert outcome.code == 2
    assert problem in outcome.err


def test_their_options_can_be_swept(tmp_path: Path, command: Callable[..., Outcome]) -> None:
    (tmp_path / "recipe.yaml").write_text("run: {words: 60000, baselines: true}")
    words = ["sweep", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "sweep"), "--dry-run"]
    outcome = command(*words, "--vary", "dpo.lr=1e-4,2e-4")
    assert outcome.code == 0
    assert "dpo.lr 2e-4, seed 0" in outcome.out
