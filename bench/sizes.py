"""What PPO needs for models of 1 B and 7 B parameters on GPUs of 80 GB, calculated by `instructgpt plan`.

    python bench/sizes.py                       # the table of docs/guides/plan.md
    python bench/sizes.py "1 B, LoRA, one GPU"  # one row

Nothing is measured here. Policy and reward model have the shape of Llama 3.2 1B or Llama 2 7B.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from instructgpt import cli
from instructgpt.formatting import format_seconds, format_si
from instructgpt.plan.cli import fit_to_memory, machine_with_links, resolve_machine
from instructgpt.plan.configs import PlanConfig
from instructgpt.plan.context import PlanContext

HEAD = "| run | memory of each GPU | memory of the host to load | an update of 512 episodes | fits 80 GB |"
SHAPES = {
    "1B": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128_256,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "intermediate_size": 11_008,
        "vocab_size": 32_000,
        "tie_word_embeddings": False,
    },
}
DEVICE = "--device cuda --matmul 600000 --bandwidth 2800 --capacity 80 --link 450 --network 400 --host 8"
"""An H100: reachable rates of bf16 products and of copies, its memory; NVLink in one direction."""
EPISODES = "--prompts prompts.jsonl --prompt-tokens 166 --completion-tokens 128 --max-tokens 256"
ROWS: dict[str, tuple[str, str, int]] = {
    "1 B, all weights, one GPU": ("1B", "", 1),
    "1 B, LoRA, one GPU": ("1B", "--lora 16", 1),
    "7 B, all weights, one GPU": ("7B", "", 1),
    "7 B, LoRA, one GPU": ("7B", "--lora 16", 1),
    "7 B, LoRA, 4 bits, one GPU": ("7B", "--lora 16 --memory bf16 checkpointing 4bit", 1),
    "7 B, all weights, 8 GPUs": ("7B", "", 8),
    "7 B, LoRA, 8 GPUs": ("7B", "--lora 16", 8),
}


def make_configurations(folder: Path) -> None:
    """Write directories that hold a configuration and no weights."""
    for name, shape in SHAPES.items():
        (folder / name).mkdir()
        words = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096}
        (folder / name / "config.json").write_text(json.dumps(words | shape))


def plan_row(name: str) -> str:
    """Return a line of the table; the configurations are in the current folder."""
    size, options, ranks = ROWS[name]
    line = f"plan ppo --policy {size} --reward {size} {options} {EPISODES} {DEVICE}"
    line += "" if "--memory" in options else " --memory bf16 checkpointing"
    _, config = cli.parse(line.split())
    assert isinstance(config, PlanConfig)
    assert config.planned is not None
    assert config.capacity is not None
    device, machine = resolve_machine(config, config.planned)
    context = PlanContext(
        device, config.prompt_tokens, config.completion_tokens, config.records, ranks, capacity=1e9 * config.capacity
    )
    plan = fit_to_memory(config.planned, context)
    machine, has_room = machine_with_links(machine, ranks, config), bool(plan.microbatch_tokens)
    shape = SHAPES[size]
    width, feed, kv = shape["hidden_size"], shape["intermediate_size"], shape["num_key_value_heads"]
    layer = 2 * width * (width + width * kv // shape["num_attention_heads"]) + 3 * width * feed + 2 * width
    whole = 4 * (shape["num_hidden_layers"] * layer + (2 - shape["tie_word_embeddings"]) * shape["vocab_size"] * width)
    cells = (
        format_si(plan.peak_bytes if has_room else plan.fixed_bytes, "B"),
        format_si(whole, "B"),
        format_seconds(plan.expected_seconds(machine, "cuda")) if has_room else "–",
        "yes" if has_room else "no",
    )
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", choices=(*ROWS, []), help="all where none is named")
    options = parser.parse_args()
    print(f"{HEAD}\n{'|---' * (HEAD.count('|') - 1)}|")
    with tempfile.TemporaryDirectory() as name:
        make_configurations(Path(name))
        os.chdir(name)
        for row in options.rows or ROWS:
            print(plan_row(row), flush=True)


if __name__ == "__main__":
    main()
