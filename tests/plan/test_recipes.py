"""The recipes for chat models: their options are right, and the planner says what stands in their heads.

pytest tests/plan/test_recipes.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from instructgpt import cli
from instructgpt.errors import InputError
from instructgpt.pipeline_plan import plan_pipeline
from instructgpt.stage_configs import build_stage_configs

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import recipes

ROOT = Path(__file__).parents[2]
long = pytest.mark.skipif(not os.environ.get("INSTRUCTGPT_TEST_LONG"), reason="minutes: part of `make test-long`")
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))


def test_every_recipe_for_a_chat_model_is_planned():
    assert set(recipes.PLANNED) == {name for name in NAMES if name.startswith("chat-")}


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_a_run(name):
    base = [] if name == "real-small" else ["--base", "org/model"]
    _, config = cli.parse(["run", "--config", str(ROOT / "recipes" / f"{name}.yaml"), *base, "--device", "cpu"])
    assert {"start", "reward", "ppo_ptx"} <= set(build_stage_configs(config))


@long
@pytest.mark.parametrize("name", recipes.PLANNED)
def test_the_head_of_a_recipe_is_what_the_planner_says(name):
    text = (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    block = recipes.plan_block(name)
    assert block in text, "run: python bench/recipes.py --write"
    assert "does not fit" not in block


@long
def test_memory_of_adapters_by_hand(tmp_path):
    """SFT of 7 B in bf16 with LoRA of rank 16 holds frozen matrices in 2 bytes, the rest in 4; loading all in 4."""
    lengths = "--records 100 --prompt-tokens 64 --completion-tokens 64"
    (tmp_path / "config.json").write_text(
        recipes.json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | recipes.SHAPES["7B"])
    )
    recipe = ROOT / "recipes" / "chat-7b-lora.yaml"
    line = f"plan run --config {recipe} --base {tmp_path} --device cuda --matmul 6e5 --bandwidth 2800 {lengths}"
    _, config = cli.parse(line.split())
    plans = {entry.name: entry for entry in plan_pipeline(config, config.planned)}
    outside, matrices, norms = 2 * 32_000 * 4096, 32 * (4 * 4096**2 + 3 * 4096 * 11_008), (2 * 32 + 1) * 4096
    adapters = 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11_008))
    peaks = plans["start"].plan.memory_peaks
    assert peaks["updating"]["weights"] == 2 * matrices + 4 * (outside + norms + adapters)
    assert sum(peaks["loading"].values()) == 4 * (matrices + outside + norms + adapters)
    assert list(plans) == ["start", "reward", "ppo_ptx"]
    assert plans["start"].plan.steps == 2 * 4  # 90 or 100 demonstrations in batches of 32, two epochs


def test_a_run_that_pretrains_is_not_planned():
    _, config = cli.parse(["plan", "run", "--preset", "smoke", "--device", "cpu"])
    with pytest.raises(InputError, match="instructgpt plan pretrain"):
        plan_pipeline(config, config.planned)
