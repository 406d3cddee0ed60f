"""Expert iteration: its rounds, and going on after a kill.

pytest tests/baselines/test_expert_iteration.py
"""

import json
from itertools import groupby

import pytest
from conftest import CPU, DEMONSTRATIONS, assert_same_tensors, weights_of
from support.signals import stop_at

from instructgpt.baselines import expert_iteration
from instructgpt.baselines.configs import ExpertIterationConfig
from instructgpt.config import make_config
from instructgpt.errors import InputError
from instructgpt.models.policy import load_policy

PROMPTS = [{"prompt": f"{row['prompt']} {number}"} for number in range(4) for row in DEMONSTRATIONS]


@pytest.fixture
def small_iteration(write, save, save_reward, tmp_path):
    def config(folder="expert", **options):
        models = {"policy": str(save()), "reward": str(save_reward())}
        sizes = {"rounds": 2, "n": 3, "max_tokens": 5, "batch": 4, "lr": 1e-2, "out": tmp_path / folder}
        prompts = {"prompts": (write("prompts.jsonl", PROMPTS),)}
        return make_config(ExpertIterationConfig, models, prompts, sizes, options)

    return config


def test_each_round_trains_on_the_best_of_new_prompts(small_iteration, rows_of):
    config = small_iteration()
    folder = expert_iteration.main(config)
    prompts_by_round = []
    for number, base in ((1, config.policy), (2, str(folder / "round-1" / "policy"))):
        part = folder / f"round-{number}"
        best = {row["prompt"]: row["score"] for row in rows_of(part / "best.jsonl")}
        scored = sorted(rows_of(part / "scored.jsonl"), key=lambda row: row["prompt"])
        for prompt, rows in groupby(scored, key=lambda row: row["prompt"]):
            scores = [row["score"] for row in rows]
            assert len(scores) == 3
            assert best[prompt] == max(scores)
        prompts_by_round.append(set(best))
        record = json.loads((part / "policy" / "run.json").read_text())
        assert record["parents"]["base"]["path"] == base
    assert prompts_by_round[0] | prompts_by_round[1] == {row["prompt"] for row in PROMPTS}
    assert not prompts_by_round[0] & prompts_by_round[1]
    load_policy(folder, CPU)
    assert_same_tensors(weights_of(folder), weights_of(folder / "round-2" / "policy"), 0)


def test_stopped_run_goes_on_to_the_same_policy(small_iteration, monkeypatch):
    undisturbed = expert_iteration.main(small_iteration("undisturbed"))
    config = small_iteration("stopped")
    with monkeypatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            expert_iteration.main(config)
    samples = (config.out / "round-1" / "completions.jsonl").stat().st_mtime_ns
    assert not (config.out / "round-2").exists()
    folder = expert_iteration.main(config)
    assert (config.out / "round-1" / "completions.jsonl").stat().st_mtime_ns == samples, "not sampled again"
    assert_same_tensors(weights_of(folder), weights_of(undisturbed), 0)


def test_too_few_prompts_are_refused(small_iteration, write):
    with pytest.raises(InputError, match="2 prompts for --rounds 3; every round needs new prompts"):
        expert_iteration.main(small_iteration(prompts=(write("few.jsonl", PROMPTS[:2]),), rounds=3))


def test_lines_that_are_left_out_are_reported(small_iteration, tmp_path, capsys):
    prompts = tmp_path / "mixed.jsonl"
    lines = [*map(json.dumps, PROMPTS), "{broken", json.dumps({"prompt": "too long " * 60})]
    prompts.write_text("\n".join(lines))
    folder = expert_iteration.main(small_iteration(prompts=(prompts,), skip_bad=True))
    record = json.loads((folder / "run.json").read_text())
    assert record["left_out"] == {"bad lines": 1, "longer than the context": 1}
    assert f"left out: 1 bad lines; the first: {prompts}:{len(PROMPTS) + 1}" in capsys.readouterr().out.replace(
        "\n", ""
    )
