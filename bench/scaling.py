"""How the stages would scale from 1 to 64 GPUs, calculated by `instructgpt plan`: GPT-3's shapes of 1.3B and 6B, the
paper's batches.

    python bench/scaling.py                              # tables, and the figure in docs/
    python bench/scaling.py "reward 6B" --ranks 1 8      # some of it, no figure

Nothing is measured here. Every assumption is an option of `plan` below, or stands in docs/guides/cluster.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from sides import ROOT

from instructgpt import cli
from instructgpt.formatting import format_seconds, format_si
from instructgpt.plan.cli import fit_to_memory, machine_with_links, resolve_machine
from instructgpt.plan.configs import PlanConfig
from instructgpt.plan.context import PlanContext
from instructgpt.plan.hardware import Machine
from instructgpt.plan.roofline import Plan

HEAD = "| GPUs | memory of each | each sends a step | a step | the run | times as fast | of ideal |"
RANKS = (1, 2, 4, 8, 16, 32, 64)
SHAPES = {"1.3B": (2048, 24, 32), "6B": (4096, 32, 32)}
"""Width, layers and heads of GPT-3 XL and of GPT-3 6.7B, which the paper calls 6B."""
DEVICE = (
    "--device cuda --matmul 790000 --bandwidth 4300 --capacity 141 --link 450 --network 400 --host 8 --memory "
    "bf16 checkpointing"
)
"""An H200: reachable rates of bf16 products and of copies, its memory; NVLink in one direction;
eight cards of 400 Gbit/s a host.
"""
EPISODES = "--prompts prompts.jsonl --prompt-tokens 166 --completion-tokens 128 --max-tokens 1024"
TEXT = "--pretraining corpus.jsonl"
STAGES = {
    "SFT 1.3B": "sft --base 1.3B --data d.jsonl --batch 32 --prompt-tokens 408 --completion-tokens 44 --records 12725",
    "SFT 6B": "sft --base 6B --data d.jsonl --batch 32 --prompt-tokens 408 --completion-tokens 44 --records 12725",
    "reward 6B": "reward --base 6B --data r.jsonl --batch 64 --prompt-tokens 199 --completion-tokens 128 --records "
    "33207",
    "PPO 1.3B": f"ppo --policy 1.3B --reward 6B {EPISODES}",
    "PPO 6B": f"ppo --policy 6B --reward 6B {EPISODES}",
    "PPO-ptx 1.3B": f"ppo --policy 1.3B --reward 6B {EPISODES} {TEXT}",
    "PPO-ptx 6B": f"ppo --policy 6B --reward 6B {EPISODES} {TEXT}",
}
"""The paper's batches and mean lengths (tables 6, 9 and 11);
rated completions and those of PPO are assumed to be 128 tokens long.
"""


def make_configurations(folder: Path) -> None:
    """Directories that hold a configuration and no weights."""
    for name, (width, layers, heads) in SHAPES.items():
        shape = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_positions": 2048, "vocab_size": 50_257}
        (folder / name).mkdir()
        words = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu"}
        (folder / name / "config.json").write_text(json.dumps(words | shape))


def planned(stage: str, ranks: int) -> tuple[Plan, Machine]:
    """The plan of a stage on some GPUs, and what each of them does."""
    _, config = cli.parse(["plan", *STAGES[stage].split(), *DEVICE.split()])
    assert isinstance(config, PlanConfig)
    assert config.planned is not None
    assert config.capacity is not None
    device, machine = resolve_machine(config, config.planned)
    told = PlanContext(
        device, config.prompt_tokens, config.completion_tokens, config.records, ranks, capacity=1e9 * config.capacity
    )
    return fit_to_memory(config.planned, told), machine_with_links(machine, ranks, config)


def row(plan: Plan, machine: Machine, alone: float) -> tuple[str, float]:
    """A line of the table, and by how much it is faster than one GPU."""
    seconds = plan.expected_seconds(machine, "cuda")
    faster = alone / seconds
    memory = (
        format_si(plan.peak_bytes, "B") if plan.microbatch_tokens else f"{format_si(plan.fixed_bytes, 'B')}, no room"
    )
    cells = (
        memory,
        format_si(plan.bytes_sent, "B"),
        format_seconds(seconds),
        format_seconds(plan.steps * seconds),
        f"{faster:.1f}",
        f"{faster / plan.ranks:.0%}",
    )
    return f"| {plan.ranks} | {' | '.join(cells)} |", faster


def draw(curves: dict[str, dict[int, float]], file: Path) -> None:
    """Times faster than one GPU, for each stage."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "instructgpt", "font.size": 9}):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="GPUs", ylabel="times as fast as one")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.plot(RANKS, RANKS, color="gray", dashes=(4, 3), linewidth=1, label="ideal")
        for name, curve in curves.items():
            axes.plot(list(curve), list(curve.values()), marker="o", markersize=3, linewidth=1.4, label=name)
        axes.set_xticks(RANKS, [str(ranks) for ranks in RANKS])
        axes.set_yticks(RANKS, [str(ranks) for ranks in RANKS])
        axes.grid(linewidth=0.4)
        axes.legend(frameon=False)
        figure.savefig(file, metadata={"Date": None, "Creator": None})
    file.write_text("\n".join(line.rstrip() for line in file.read_text().splitlines()) + "\n")


def main() -> None:
    """A table for each stage, and one figure of all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="*", choices=(*STAGES, []), help="all where none is named")
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS, help="numbers of GPUs, the fewest first")
    asked = parser.parse_args()
    curves: dict[str, dict[int, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        make_configurations(Path(name))
        os.chdir(name)
        for stage in asked.stages or STAGES:
            print(f"\n{stage}\n{HEAD}\n{'|---' * (HEAD.count('|') - 1)}|")
            alone = 0.0
            for ranks in asked.ranks:
                plan, machine = planned(stage, ranks)
                alone = alone or plan.expected_seconds(machine, "cuda") * plan.ranks
                line, faster = row(plan, machine, alone)
                curves.setdefault(stage, {})[ranks] = faster
                print(line, flush=True)
    if not asked.stages:
        draw(curves, ROOT / "docs" / "figures" / "scaling.svg")


if __name__ == "__main__":
    main()
