"""`run --baselines` on your own files: halves of the rankings, the judge, the frontier and its report.

pytest tests/run/test_file_baselines.py
"""

from __future__ import annotations

import json
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml
from support.commands import run_in_process

from instructgpt import cli
from instructgpt.data.splits import is_heldout
from instructgpt.evaluate.frontier import SampledPrompt
from instructgpt.models.reward_model import load_reward_model
from instructgpt.records import Prompt, Ranking, read_records
from instructgpt.results import read_result_rows

TRAINED = ("start", "reward", "ppo", "dpo", "expert_iteration", "best_of_n", "judge")
OPTIONS: dict[str, dict[str, Any]] = {
    "run": {"processes": 1},
    "start": {"batch": 32, "epochs": 1},
    "reward": {"batch": 16, "lr": 1e-2},
    "ppo": {"episodes": 8, "batch": 4, "minibatch": 4, "max_tokens": 5, "lr": 1e-3},
    "dpo": {"batch": 8, "lr": 1e-2},
    "expert_iteration": {"rounds": 1, "n": 2, "batch": 8},
    "best_of_n": {"samples": 6, "prompts": 7, "validation_prompts": 4, "answers": 3},
}


def prompt_columns(number: int) -> dict[str, Any]:
    """Every third prompt is a conversation."""
    if number % 3:
        return {"prompt": f"the cat {number}"}
    turns = [("user", f"the cat {number}"), ("assistant", "the dog"), ("user", "and then")]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def ranking(columns: dict[str, Any], labeler: str, ranks: tuple[int, ...] = (1, 2, 2)) -> dict[str, Any]:
    return {**columns, "completions": ["the end", "a", "the dog"], "ranks": ranks, "labeler": labeler}


def write_files(folder: Path, num_ranked: int = 120, num_prompts: int = 200) -> list[str]:
    """Write files and a recipe, and return the command. Prompts that differ in case and space are ranked, too."""
    columns = [prompt_columns(number) for number in range(max(num_ranked, num_prompts))]
    rankings = [ranking(row, "ann") for row in columns[:num_ranked]]
    rankings += [ranking(row, "bo", (2, 1, 3)) for row in columns[: num_ranked // 2]]
    rankings += [ranking({"prompt": f"The  CAT {number} "}, "cy") for number in range(num_ranked) if number % 3 == 1]
    long = [{"prompt": f"{number} " + "the cat " * 300} for number in range(20)]  # no room for an answer
    files = {
        "demonstrations": [{**row, "completion": "the end"} for row in columns[:40]],
        "rankings": rankings,
        "prompts": columns[:num_prompts] + long,
    }
    words = ["run", "--config", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "--baselines"]
    for name, rows in files.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words += [f"--{name}", str(path)]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(OPTIONS))
    return words


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, save: Any) -> Path:
    folder = tmp_path_factory.mktemp("file_baselines")
    assert cli.run_command([*write_files(folder), "--base", str(save("llama", "chat"))]) == 0
    return folder / "run"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def inputs(folder: Path) -> set[str]:
    """Hashes of everything that a stage was made from."""
    return {parent["sha256"] for parent in json.loads((folder / "run.json").read_text())["parents"].values()}


def file_hash(path: Path) -> str:
    return sha256(path.name.encode() + path.read_bytes()).hexdigest()


def first_turn(row: dict[str, Any]) -> str:
    text = row["messages"][0]["content"] if "messages" in row else row["prompt"]
    return " ".join(text.lower().split())


def test_no_prompt_is_in_both_halves(run: Path) -> None:
    proxy, judge = (rows(run / "rankings" / f"{name}.jsonl") for name in ("proxy", "judge"))
    halves = [{first_turn(row) for row in half} for half in (proxy, judge)]
    assert halves[0] & halves[1] == set()
    assert len(halves[0] | halves[1]) == 120
    assert min(map(len, halves)) > 40
    everything = rows(run.parent / "rankings.jsonl")
    assert sorted(map(json.dumps, map(first_turn, proxy + judge))) == sorted(
        map(json.dumps, map(first_turn, everything))
    )


def test_only_the_judge_reads_the_second_half(run: Path) -> None:
    proxy, judge = (file_hash(run / "rankings" / f"{name}.jsonl") for name in ("proxy", "judge"))
    everything = file_hash(run.parent / "rankings.jsonl")
    read_by = {name: inputs(run / name) for name in TRAINED}
    assert [name for name in TRAINED if judge in read_by[name]] == ["judge"]
    assert [name for name in TRAINED if proxy in read_by[name]] == ["reward", "dpo"]
    assert not any(everything in read for read in read_by.values())
    configs = {name: json.loads((run / name / "run.json").read_text())["config"] for name in ("reward", "judge")}
    different = {key for key, value in configs["reward"].items() if configs["judge"][key] != value}
    assert different == {"data", "out"}


def test_nothing_is_measured_on_prompts_that_trained(run: Path) -> None:
    files = {
        name: read_records(Prompt, run / "prompts" / f"{name}.jsonl") for name in ("training", "validation", "test")
    }
    texts = {name: {prompt.prompt for prompt in prompts} for name, prompts in files.items()}
    assert len(texts["validation"]) == 4
    assert len(texts["test"]) == 7
    assert all(not first & second for first, second in combinations(texts.values(), 2))
    expert_iteration = json.loads((run / "expert_iteration" / "run.json").read_text())
    assert expert_iteration["left_out"]["longer than the context"] > 10
    assert all(map(is_heldout, texts["validation"] | texts["test"])), "reward models do not train on these either"
    assert any("messages" in row for row in rows(run / "evaluation" / "frontier" / "test.jsonl"))


def test_win_rates_and_scores_are_those_of_the_saved_answers(run: Path) -> None:
    points = {point["label"]: point for point in rows(run / "evaluation" / "frontier.jsonl")}
    judge = load_reward_model(run / "judge", torch.device("cpu"))
    for split, count in (("validation", 4), ("test", 7)):
        lists = rows(run / "evaluation" / "frontier" / f"{split}.jsonl")
        assert len(lists) == 3 * count
        assert {tuple(row["models"]) for row in lists} == {tuple(points)}
        for label, point in points.items():
            wins, scores = [], []
            for row in lists:
                place, start = row["models"].index(label), row["models"].index("start")
                prompt = Prompt.model_validate({k: v for k, v in row.items() if k in ("prompt", "messages")})
                example = judge.tokenizer.encode_example(
                    prompt, row["completions"][place], finished=row["finish"][place] == "stop"
                )
                score = float(judge.score([example])[0])
                assert row["scores"][place] == pytest.approx(score, abs=1e-5)
                scores.append(score)
                other = row["scores"][start]
                wins.append(0.5 if row["scores"][place] == other else float(row["scores"][place] > other))
            assert point[f"win_rate_{split}_heldout"] == pytest.approx(fmean(wins))
            if split == "test" and "n" not in point:
                assert point["heldout"] == pytest.approx(fmean(scores), abs=1e-5)


def test_best_of_n_is_the_mean_over_all_subsets(run: Path) -> None:
    judge = load_reward_model(run / "judge", torch.device("cpu"))
    samples = read_records(SampledPrompt, run / "best_of_n" / "test.jsonl")
    point = next(p for p in rows(run / "evaluation" / "frontier.jsonl") if p.get("n") == 2)
    expected = []
    for prompt in samples:
        pairs = zip(prompt.completions, prompt.finishes, strict=True)
        examples = [judge.tokenizer.encode_example(prompt, text, finished=how == "stop") for text, how in pairs]
        worth = judge.score(examples).tolist()
        for subset in combinations(prompt.samples, 2):
            top = max(prompt.scores[i] for i in subset)
            expected.append(fmean(worth[i] for i in subset if prompt.scores[i] == top))
    assert point["heldout"] == pytest.approx(fmean(expected), abs=1e-5)


def test_points_have_no_truth(run: Path) -> None:
    points = rows(run / "evaluation" / "frontier.jsonl")
    methods = [point["method"] for point in points]
    assert set(methods) == {"start", "ppo", "dpo", "expert_iteration", "best_of_n"}
    assert methods.count("ppo") == 2  # two updates
    assert methods.count("dpo") > 1
    for point in points:
        assert {"kl", "score", "heldout", "win_rate_test_heldout", "training_flops"} <= point.keys()
        assert not [name for name in point if "utility" in name or "training_low" in name]


def test_accuracy_of_proxy_and_judge_is_on_rankings_that_neither_saw(run: Path) -> None:
    heldout = [r for r in read_records(Ranking, run.parent / "rankings.jsonl") if is_heldout(r.prompt)]
    accuracies = {row.model: row for row in read_result_rows(run / "results.json") if row.evaluation == "frontier"}
    assert set(accuracies) == {"reward", "judge"}
    for name, row in accuracies.items():
        model, right = load_reward_model(run / name, torch.device("cpu")), []
        for ranked in heldout:
            scores = model.score([model.tokenizer.encode_example(ranked, text) for text in ranked.completions]).tolist()
            right += [0.5 if scores[i] == scores[j] else float(scores[i] > scores[j]) for i, j in ranked.pairs()]
        assert row.n == len(right)
        assert row.value == pytest.approx(fmean(right))


def test_report_names_the_judge(run: Path) -> None:
    page = (run / "report.html").read_text()
    section = page[page.index('id="frontier"') :]
    assert "The judge is a reward model, not people" in section
    assert "Judge (solid) and proxy (dashed)" in section
    assert "Truth (solid)" not in section
    assert cli.run_command(["report", str(run), "--language", "ko", "--out", str(run.parent / "ko.html")]) == 0
    assert "심판은 사람이 아니라 보상 모델입니다" in (run.parent / "ko.html").read_text()


def test_what_cannot_work_is_refused_before_the_first_stage(
    tmp_path: Path, save: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    command, base = run_in_process(capsys), ["--base", str(save("llama", "chat"))]
    for ranked, prompts, problem in (
        (3, 130, "half of the rankings has too few prompts with a decided pair:"),
        (1, 130, "1 to train on, 0 to validate on; 2 of each are needed"),
        (120, 20, "of the prompts that PPO does not train on (a tenth, by hash) there are"),
    ):
        line = command(*write_files(tmp_path, ranked, prompts), *base).error_line(2)
        assert line.startswith("--baselines: "), line
        assert problem in line
    words = write_files(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(OPTIONS | {"public_tasks": {"epochs": 1}}))
    assert "section public_tasks needs 'data'" in command(*words, *base).error_line(2)
    assert not (tmp_path / "run").exists()


def test_a_reward_model_of_all_rankings_is_refused(
    run: Path, tmp_path: Path, save: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*write_files(run.parent), "--base", str(save("llama", "chat")), "--out", str(tmp_path / "run")]
    for name in ("run.json", "reward/run.json"):
        path = tmp_path / "run" / name
        path.parent.mkdir(exist_ok=True)
        record = json.loads((run / name).read_text())
        record["config"] |= {"baselines": False} if name == "run.json" else {}
        path.write_text(json.dumps(record | ({"finished": False} if name == "run.json" else {})))
    line = run_in_process(capsys)(*words).error_line(2)
    assert "its reward model was trained on all rankings" in line
