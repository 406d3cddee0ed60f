"""A sweep of `--overoptimization`, from pretraining to the fits, at the smallest size."""

from __future__ import annotations

import json

import pytest

from instructgpt.cli import run_command

RECIPE = """
sweep: {recipe: smoke, fresh_seeds: 0, vary: [reward_pretrain.width=16, "run.overoptimization=best_of_n,ppo"]}
run: {overoptimization: best_of_n, labeler_noise: 0, labelers: 1}
reward_pretrain: {}
reward: {max_prompts: 20, max_completions: 3}
start_samples: {prompts: 12, samples: 16, answers: 2}
ppo: {kl_coef: 0, value_init: policy, lr: 1.e-3, min_entropy: 0}
"""


@pytest.mark.slow
def test_reward_models_of_a_sweep_share_samples_and_are_fitted(tmp_path, capsys):
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "sweep"
    recipe.write_text(RECIPE)
    assert run_command(["sweep", "--config", str(recipe), "--out", str(out)]) == 0
    shared = sorted(path.name.rpartition("-")[0] for path in (out / "shared").iterdir())
    assert shared == ["candidates", "pretrain", "reward", "reward_pretrain", "start", "start_samples", "world"]
    rows = {
        row["method"]: row
        for row in (json.loads(file.read_text()) for file in out.glob("cells/*/evaluation/overoptimization.json"))
    }
    assert rows.keys() == {"best_of_n", "ppo"}
    for row in rows.values():
        assert row["labels"]["prompts"] == row["labels"]["rankings"] == 20
        assert row["labels"]["completions"] == 60
        assert (row["labeler_noise"], row["reward_max_completions"]) == (0, 3)
        assert row["reward_parameters_without_embeddings"] < row["policy_parameters"]
    points = rows["best_of_n"]["points"]
    assert [point["n"] for point in points] == [2, 4, 8, 16]
    proxy = [sum(point["proxy"]) for point in points]
    assert proxy == sorted(proxy), "the proxy rises with n"
    assert points[-1]["kl_estimate"] > points[0]["kl_estimate"] > 0
    assert all("policy" in point for point in rows["ppo"]["points"])
    assert not any(out.glob("cells/*/sft")), "no model is trained beside the method"
    capsys.readouterr()
    assert run_command(["scaling-laws", str(out), "--out", str(tmp_path / "fits")]) == 0
    assert "best of n, noise 0" in capsys.readouterr().out
