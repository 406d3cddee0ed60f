"""Memory and time of the recipes for chat models, calculated by `instructgpt plan run`; nothing is measured.

    python bench/recipes.py            # print
    python bench/recipes.py --write    # into the head of each recipe

A model has the shape of a published one, the machine the rates that its data sheet makes reachable.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sizes import SHAPES

from instructgpt import cli
from instructgpt.pipeline_plan import format_stage_plans, plan_pipeline
from instructgpt.plan.configs import PlanConfig
from instructgpt.run.configs import RunConfig

RECIPES = Path(__file__).parents[1] / "recipes"
LENGTHS = {"records": 5000, "prompt-tokens": 256, "completion-tokens": 128}
_SMALL = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49_152,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates for `plan`, in words and as options."""

    text: str
    options: str


_LAPTOP = Machine("a CPU of 200 GFLOP/s and 30 GB/s", "--device cpu --matmul 200 --bandwidth 30 --capacity 16")
_SMALL_GPU = Machine(
    "a GPU of 24 GB (110 TFLOP/s in bf16 and 800 GB/s reached)",
    "--device cuda --matmul 110000 --bandwidth 800 --capacity 24",
)
_LARGE_GPU = Machine(
    "a GPU of 80 GB (600 TFLOP/s in bf16 and 2.8 TB/s reached)",
    "--device cuda --matmul 600000 --bandwidth 2800 --capacity 80",
)
_HOST = Machine(
    "eight GPUs of 80 GB (600 TFLOP/s in bf16, 2.8 TB/s and 450 GB/s between them reached)",
    f"{_LARGE_GPU.options} --link 450",
)
PLANNED = {
    "chat-model": ("0.135 B parameters, the shape of SmolLM2", _SMALL, _LAPTOP),
    "chat-1b": ("1.2 B parameters, the shape of Llama 3.2", SHAPES["1B"], _SMALL_GPU),
    "chat-7b-lora": ("6.7 B parameters, the shape of Llama 2", SHAPES["7B"], _LARGE_GPU),
    "chat-7b-8gpus": ("6.7 B parameters, the shape of Llama 2", SHAPES["7B"], _HOST),
}
"""Of each recipe: the model in words, its shape, and the machine."""
HEADING = "# Planned, not measured (bench/recipes.py):"
BLOCK = re.compile(rf"^{re.escape(HEADING)}\n(?:# .*\n)*", re.M)


def plan_block(name: str) -> str:
    """Return the comment of a recipe: what was planned, and a line a stage."""
    text, shape, machine = PLANNED[name]
    words = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(words | shape), encoding="utf-8")
        lengths = " ".join(f"--{option} {value}" for option, value in LENGTHS.items())
        line = f"plan run --config {RECIPES / name}.yaml --base {folder} {machine.options} {lengths}"
        _, config = cli.parse(line.split())
        assert isinstance(config, PlanConfig)
        assert isinstance(config.planned, RunConfig)
        rows = list(format_stage_plans(plan_pipeline(config, config.planned)))
    lines = [
        f"a model of {text},",
        f"{machine.text},",
        f"{LENGTHS['records']:,} demonstrations and as many rankings of 4, prompts of {LENGTHS['prompt-tokens']} and "
        f"completions of {LENGTHS['completion-tokens']} tokens.",
    ]
    return "".join(f"{line}\n" for line in (HEADING, *(f"# {line}" for line in lines), *(f"#   {row}" for row in rows)))


def main() -> None:
    """Print or write the plans."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write them into the recipes")
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    for name in PLANNED:
        block, path = plan_block(name), RECIPES / f"{name}.yaml"
        print(f"{name}\n{block}", flush=True)
        if options.write:
            recipe = path.read_text(encoding="utf-8")
            path.write_text(BLOCK.sub(lambda _, new=block: new, recipe), encoding="utf-8")


if __name__ == "__main__":
    main()
