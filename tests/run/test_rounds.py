"""`run --rounds`: directories, sources, prompts, lineage, the control, and what a second command does."""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from support.commands import SMALL_RUN, Outcome, run_in_process, start_forked, wait_for

from instructgpt import cli
from instructgpt.config import make_config
from instructgpt.evaluate.rounds import stage_flops, without_round_rows
from instructgpt.models.policy import pick_device
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Completion, Demonstration, Prompt, Ranking, read_records
from instructgpt.results import ResultRow
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import content_hash
from instructgpt.stage_configs import build_rounds
from instructgpt.world import World

ROUNDS = ("round-1", "round-2", "round-3")
CONTROL = "one-round-of-3"
STAGES = ("candidates", "rankings", "reward", "ppo", "ppo_ptx", "evaluation")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds, to which a third and the control were added."""
    folder = tmp_path_factory.mktemp("rounds")
    (folder / "small.yaml").write_text(SMALL_RUN)
    words = ["run", "--preset", "smoke", "--config", str(folder / "small.yaml"), "--out", str(folder / "run")]
    assert cli.run_command([*words, "--rounds", "2"]) == 0
    shutil.copy(folder / "run" / "results.json", folder / "results-of-two.json")
    before = times(folder / "run")
    assert cli.run_command([*words, "--rounds", "3", "--one-round-control"]) == 0
    made_again = {name for name, time in times(folder / "run").items() if before.get(name, time) != time}
    assert made_again <= {"run.json", "results.json", "report.html", "log.jsonl"} | {
        f"evaluation/rounds/{name}" for name in ("rankings.jsonl",)
    }
    return folder / "run"


@pytest.fixture
def command(capsys: Any) -> Callable[..., Outcome]:
    return run_in_process(capsys)


def times(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def parents(folder: Path) -> Iterator[tuple[str, Path, str]]:
    for name, parent in record(folder)["parents"].items():
        yield name, Path(parent["path"]), parent["sha256"]


def test_each_round_has_finished_stages_made_of_what_is_there(run):
    for name in (*ROUNDS, CONTROL):
        for stage in STAGES:
            assert record(run / name / stage)["finished"], (name, stage)
            for parent, path, sha256 in parents(run / name / stage):
                assert content_hash(path) == sha256, (name, stage, parent)
    assert not list(run.rglob("*.part"))


def test_a_round_begins_where_the_paper_says(run):
    rankings = [run / name / "rankings" / "rankings.jsonl" for name in ROUNDS]
    for number, name in enumerate(ROUNDS, 1):
        config = record(run / name / "reward")["config"]
        assert config["base"] == str(run / "start")
        assert config["data"] == [str(file) for file in rankings[:number]]
        for policy in ("ppo", "ppo_ptx"):
            config = record(run / name / policy)["config"]
            assert (config["policy"], config["reference"]) == (str(run / "start"), None)
            assert config["reward"] == [str(run / name / "reward")]
    assert record(run / "sft")["config"]["reward"] == str(run / "round-1" / "reward")


def test_candidates_come_from_the_stated_models_in_the_stated_shares(run):
    expected: dict[str, dict[str, float]] = {
        "round-1": {"start": 0.8, "prompted": 0.2},
        "round-2": {"policy@round-1": 0.5, "start": 0.3, "prompted": 0.2},
        "round-3": {"policy@round-2": 0.5, "policy@round-1": 0.2, "start": 0.1, "prompted": 0.2},
        CONTROL: {"start": 0.8, "prompted": 0.2},
    }
    for name, shares in expected.items():
        completions = read_records(Completion, run / name / "candidates" / "candidates.jsonl")
        counts = Counter(completion.model for completion in completions)
        assert counts.pop("stray") > 0
        assert counts.keys() == shares.keys()
        for model, share in shares.items():  # equal texts of a list are merged, so shares are not exact
            assert counts[model] / counts.total() == pytest.approx(share, abs=0.06), (name, model)
        ranked = read_records(Ranking, run / name / "rankings" / "rankings.jsonl")
        assert {model for ranking in ranked for model in ranking.models or ()} == {*shares, "stray"}


def test_prompts_are_new_and_validation_prompts_never_train(run):
    texts: dict[str, set[str]] = {}
    for split in ("reward", "ppo"):
        rows = [prompt for name in ROUNDS for prompt in read_records(Prompt, run / name / "prompts" / f"{split}.jsonl")]
        assert len({prompt.prompt for prompt in rows}) == len(rows)
        assert len({prompt.id for prompt in rows}) == len(rows)
        texts[split] = {prompt.prompt for prompt in rows}
    for name in ROUNDS:
        heldout = read_records(Ranking, run / name / "rankings" / "heldout_rankings.jsonl")
        assert {ranking.cohort for ranking in heldout} == {"training", "heldout"}
        assert {ranking.prompt for ranking in heldout}.isdisjoint(texts["reward"] | texts["ppo"])


def test_a_round_continues_the_pool_of_each_use_case():
    world = World(3)
    together = Counter((prompt.use_case, prompt.prompt) for prompt in world.prompts("reward", 300))
    in_turns = Counter(
        (prompt.use_case, prompt.prompt) for draw in range(3) for prompt in world.prompts("reward", 100, draw)
    )
    assert in_turns == together


def test_the_offset_is_measured_anew(run):
    demonstrations = read_records(Demonstration, run / "world" / "demonstrations.jsonl")
    offsets = set()
    for name in ROUNDS:
        model = load_reward_model(run / name / "reward", pick_device("cpu"))
        tokenizer = model.tokenizer
        examples = [tokenizer.encode_example(d, d.completion) for d in demonstrations]
        assert float(model.score(examples).mean()) == pytest.approx(0, abs=1e-5)
        offsets.add(model.offset)
    assert len(offsets) == len(ROUNDS)


def test_the_control_spends_the_same_rankings_on_completions_of_the_first_round(run):
    later = [
        prompt.prompt for name in ROUNDS[1:] for prompt in read_records(Prompt, run / name / "prompts" / "reward.jsonl")
    ]
    assert [prompt.prompt for prompt in read_records(Prompt, run / CONTROL / "prompts" / "reward.jsonl")] == later
    data = record(run / CONTROL / "reward")["config"]["data"]
    spent = sum(len(read_records(Ranking, Path(file))) for file in data)
    in_rounds = sum(len(read_records(Ranking, run / name / "rankings" / "rankings.jsonl")) for name in ROUNDS)
    assert spent == in_rounds == 3 * 60
    assert (
        record(run / CONTROL / "ppo_ptx")["config"]["prompts"]
        == record(run / "round-3" / "ppo_ptx")["config"]["prompts"]
    )


def test_fewer_rounds_and_another_layout_are_refused(run, command):
    words = ["run", "--preset", "smoke", "--config", run.parent / "small.yaml", "--out", run]
    assert "has 3 rounds already" in command(*words, "--rounds", "2").error_line(2)
    assert "was begun with --rounds 3" in command(*words).error_line(2)
    changed = command(*words, "--rounds", "3", "--round-policy", "continued").error_line(2)
    assert "--round-policy was start" in changed
    again = command(*words, "--rounds", "3")
    assert again.code == 0
    assert "already finished" in again.out


def test_doctor_and_watch_name_the_round(run, command):
    shown = command("watch", run, "--once").out
    assert all(f"{name}/{stage}" in shown for name in (*ROUNDS, CONTROL) for stage in STAGES)
    examined = command("doctor", run)
    assert f"{3 + 4 * len(STAGES)} stages examined" in examined.out
    assert "round-2/ppo" in examined.out


def result(run: Path, metric: str, model: str, condition: str = "") -> dict[str, Any]:
    (row,) = (
        row
        for row in json.loads((run / "results.json").read_text())
        if (row["evaluation"], row["metric"], row["model"], row["condition"]) == ("rounds", metric, model, condition)
    )
    return dict(row)


@pytest.mark.parametrize(("reward", "rankings"), [("round-1", "round-3"), (CONTROL, "round-2")])
def test_the_matrix_counts_pairs_that_a_reward_model_orders_as_labelers_did(run, reward, rankings):
    model = load_reward_model(run / reward / "reward", pick_device("cpu"))
    right: list[float] = []
    for ranking in read_records(Ranking, run / rankings / "rankings" / "heldout_rankings.jsonl"):
        if ranking.cohort != "heldout":
            continue
        finish = ranking.finish or ("stop",) * len(ranking.completions)
        examples = [
            model.tokenizer.encode_example(ranking, text, finished=how == "stop")
            for text, how in zip(ranking.completions, finish, strict=True)
        ]
        scores = [float(model.score([example])[0]) for example in examples]
        for i, j in itertools.combinations(range(len(scores)), 2):
            if ranking.ranks[i] != ranking.ranks[j]:
                right.append(float((scores[i] > scores[j]) == (ranking.ranks[i] < ranking.ranks[j])))
    row = result(run, "pair_accuracy", f"reward@{reward}", f"heldout/{rankings}")
    assert row["value"] == pytest.approx(sum(right) / len(right), abs=0.005)
    assert row["low"] < row["value"] < row["high"]


@pytest.mark.parametrize(
    ("metric", "model", "baseline"),
    [
        ("win_rate_vs_sft", "policy@round-1", "sft"),
        ("win_rate_vs_previous", "policy@round-3", "policy@round-2"),
        ("win_rate_vs_one_round", "policy@round-3", f"policy@{CONTROL}"),
    ],
)
def test_win_rates_count_ranks(run, metric, model, baseline):
    wins = []
    for ranking in read_records(Ranking, run / "evaluation" / "rounds" / "rankings.jsonl"):
        if ranking.cohort == "training" and ranking.models:
            ranks = dict(zip(ranking.models, zip(ranking.ranks, ranking.completions, strict=True), strict=True))
            (first, text), (second, other) = ranks[model], ranks[baseline]
            wins.append(0.5 if first == second or text == other else float(first < second))
    row = result(run, metric, model, "training")
    assert row["value"] == pytest.approx(sum(wins) / len(wins))
    if metric == "win_rate_vs_previous":
        per_thousand = result(run, "win_rate_gain_per_1000_rankings", model, "training")
        assert per_thousand["value"] == pytest.approx((row["value"] - 0.5) / 60 * 1000)
        assert per_thousand["high"] == pytest.approx((row["high"] - 0.5) / 60 * 1000)


def test_costs_and_shares_are_those_of_the_files(run):
    assert result(run, "total_rankings", "policy@round-3")["value"] == 180
    assert result(run, "rankings", f"policy@{CONTROL}")["value"] == 180
    phases = record(run / "round-2" / "reward")["phases"]
    passes = {"forward": 2, "backward": 4, "validation": 2}
    weights = record(run / "round-2" / "reward")["parameters"]
    by_hand = sum(factor * weights * phases[name]["tokens"] for name, factor in passes.items())
    assert stage_flops(run / "round-2" / "reward") == pytest.approx(by_hand)
    shares = [result(run, "completions_share", "policy@round-3", name)["value"] for name in ("start", "policy@round-2")]
    ranked = read_records(Ranking, run / "round-3" / "rankings" / "rankings.jsonl")
    counts = Counter(model for ranking in ranked for model in ranking.models or ())
    assert shares == pytest.approx([counts[name] / counts.total() for name in ("start", "policy@round-2")])


def test_rows_of_an_outdated_control_are_dropped():
    numbers = (0.5, 0.4, 0.6, 10)
    rows = [
        ResultRow(evaluation, metric, model, "training", *numbers)
        for evaluation, metric, model in (
            ("rounds", "win_rate_vs_sft", "policy@one-round-of-2"),
            ("difference", "rounds/pair_accuracy/training/round-2", "reward@one-round-of-2"),
            ("difference", "preference/rating/training", "ppo"),
            ("preference", "rating", "ppo"),
        )
    ]
    assert without_round_rows(rows) == rows[2:]


def test_a_directory_of_another_stage_is_named(run, command):
    words = ("run", "--preset", "smoke", "--rounds", "3", "--out", run / "round-1" / "reward")
    assert "holds a run of stage 'reward'" in command(*words).error_line(2)


def test_plan_reads_a_stage_of_a_round(run, command):
    planned = command("plan", run / "round-2" / "ppo", "--matmul", "20", "--bandwidth", "10")
    assert planned.code == 0
    assert "policy update" in planned.out


def test_the_report_shows_rounds_and_each_round_has_a_page(run, command, tmp_path):
    page = (run / "report.html").read_text()
    section = page[page.index('<section id="rounds">') :]
    for words in ("One round has as many rankings", "reward model of round 2", "policy of round 1", "one round"):
        assert words in section
    assert command("report", run / "round-2", "--out", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert 'id="rounds"' not in page
    assert "Score and truth" in page


def config(**options: Any) -> RunConfig:
    return make_config(RunConfig, {"out": Path("r"), "rounds": 3, **options})


@pytest.mark.parametrize("reward", ["newest", "continued"])
def test_other_ways_to_train_the_reward_model(reward):
    last = build_rounds(config(round_reward=reward))[2].reward
    assert last.data == (Path("r/round-3/rankings/rankings.jsonl"),)
    assert last.base == ("r/start" if reward == "newest" else "r/round-2/reward")


def test_continued_policies_keep_the_reference_and_the_control_trains_as_long():
    options = {"ppo": {"episodes": 1024}, "ppo_ptx": {"episodes": 512}}
    first, second, _, control = build_rounds(config(round_policy="continued", one_round_control=True, stages=options))
    assert first.policies["ppo"].reference is None
    for name in ("ppo", "ppo_ptx"):
        assert second.policies[name].policy == f"r/round-1/{name}"
        assert second.policies[name].reference == "r/start"
        assert control.policies[name].episodes == 3 * options[name]["episodes"]
        assert len(control.policies[name].prompts) == 3
        assert control.policies[name].policy == "r/start"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--round-policy", "continued"], "--round-policy has no effect without --rounds 2 or more"),
        (["--one-round-control"], "--one-round-control has no effect without --rounds 2 or more"),
        (["--rounds", "0"], "--rounds 0"),
    ],
)
def test_options_without_effect_are_one_line(words, message, command, tmp_path):
    assert message in command("run", "--preset", "smoke", "--out", tmp_path / "run", *words).error_line(2)


@pytest.mark.parametrize("rounds", [2, 3])
def test_shares_above_one_are_one_line(rounds, command, tmp_path):
    (tmp_path / "shares.yaml").write_text(f"candidates: {{base_share: 0.9}}\nrun: {{rounds: {rounds}}}\n")
    words = ("run", "--preset", "smoke", "--config", tmp_path / "shares.yaml", "--out", tmp_path / "run")
    assert "is 1.2, more than 1" in command(*words).error_line(2)


@pytest.mark.slow
def test_rounds_through_the_site_use_its_exports(tmp_path, command):
    sizes = "run: {demonstration_prompts: 60, ranking_prompts: 60,"
    assert sizes in SMALL_RUN
    (tmp_path / "small.yaml").write_text(
        SMALL_RUN.replace(sizes, sizes.replace("60", "20"))
    )  # each is a task of people
    out = tmp_path / "run"
    words = ("run", "--preset", "smoke", "--config", tmp_path / "small.yaml", "--rounds", "2", "--through-site")
    assert command(*words, "--out", out).code == 0
    with closing(sqlite3.connect(out / "site" / "site.db")) as site:
        batches = dict(site.execute("SELECT name, count(*) FROM batch GROUP BY name").fetchall())
        people = site.execute("SELECT count(*) FROM person WHERE role = 'labeler'").fetchone()[0]
        (submissions,) = site.execute("SELECT count(*) FROM submission").fetchone()
    for name in ROUNDS[:2]:
        rankings = read_records(Ranking, out / name / "rankings" / "rankings.jsonl")
        assert {ranking.source for ranking in rankings} == {"site"}
        assert {ranking.cohort for ranking in rankings} == {"training"}
        assert sum(batch.startswith(f"{name} rank training") for batch in batches) == 2  # to train on, to measure
        assert sum(batch.startswith(f"{name} rank heldout") for batch in batches) == 1
    second = read_records(Ranking, out / "round-2" / "rankings" / "rankings.jsonl")
    assert "policy@round-1" in {model for ranking in second for model in ranking.models or ()}
    files = [file for name in ROUNDS[:2] for file in (out / name / "rankings").glob("*rankings.jsonl")]
    demonstrations = len(read_records(Demonstration, out / "world" / "demonstrations.jsonl"))
    assert submissions == sum(len(read_records(Ranking, file)) for file in files) + demonstrations
    assert people == 2 * 6  # the same of each cohort in both rounds


@pytest.mark.slow
def test_a_killed_run_gives_the_results_of_one_that_was_not(run, tmp_path):
    words = ["run", "--preset", "smoke", "--config", str(run.parent / "small.yaml"), "--out", str(tmp_path / "run")]
    words += ["--rounds", "2"]
    moments = ("round-1/candidates/run.json", "round-2/reward/metrics.jsonl", "round-2/evaluation/ppo.jsonl")
    for moment in moments:
        process = start_forked(words, preload=("instructgpt.pipeline",))
        wait_for(lambda moment=moment: (tmp_path / "run" / moment).exists())  # type: ignore[misc]
        process.kill()
        process.join()
        assert not record(tmp_path / "run")["finished"]
    process = start_forked(words, tmp_path / "status")
    process.join()
    assert (tmp_path / "status").read_text() == "0"
    assert (tmp_path / "run" / "results.json").read_bytes() == (run.parent / "results-of-two.json").read_bytes()
    for name in ROUNDS[:2]:
        for stage in STAGES[2:5]:
            assert content_hash(tmp_path / "run" / name / stage) == content_hash(run / name / stage)
