"""What `instructgpt plan` says of memory, beside what the stages then need: peak resident memory of a process that runs
them.

    python bench/memory.py            # every configuration; a line each
    python bench/memory.py sft reward

Each configuration is planned, then run for a few steps in a process of its own, or in one for each of its ranks, of
which the fullest counts. Such a process first runs the same stage with a toy model, so that all code is loaded; what it
holds then is left out, and from there on the kernel watches its peak.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ppo import SIZES, make_models
from sides import ROOT


class Case(NamedTuple):
    """A configuration: a stage, the model's family and size, options, and how many ranks divide it."""

    stage: str
    family: str
    size: str
    options: dict[str, Any]
    ranks: int = 1


SFT, PPO = {"batch": 16, "epochs": 1}, {"batch": 32, "minibatch": 16, "episodes": 64, "max_tokens": 48}
PTX = {"ptx_ratio": 2, "pretraining": True}
CASES = {
    "pretrain": Case("pretrain", "llama", "21M", {"batch": 8, "window": 128, "tokens": 3 * 8 * 128}),
    "sft": Case("sft", "llama", "21M", SFT),
    "sft, dropout": Case("sft", "gpt2", "21M", {"batch": 16, "epochs": 1, "dropout": 0.2}),
    "sft, two epochs, pretraining text": Case(
        "sft", "llama", "5.8M", {"batch": 16, "epochs": 2, "mix": 0.2, "pretraining": True}
    ),
    "reward": Case("reward", "llama", "21M", {"batch": 8}),
    "reward, gpt2": Case("reward", "gpt2", "21M", {"batch": 4}),
    "ppo": Case("ppo", "llama", "21M", PPO),
    "ppo, small, wide batch": Case(
        "ppo", "llama", "5.8M", {"batch": 128, "minibatch": 64, "episodes": 128, "max_tokens": 48}
    ),
    "ppo_ptx": Case("ppo", "llama", "5.8M", {**PTX, "batch": 16, "minibatch": 8, "episodes": 32, "max_tokens": 32}),
    "sft, adapters": Case("sft", "llama", "21M", SFT | {"lora": 8}),
    "sft, checkpointing": Case("sft", "llama", "21M", SFT | {"memory": ["checkpointing"]}),
    "sft, adam8bit": Case("sft", "llama", "21M", SFT | {"memory": ["adam8bit"]}),
    "reward, adapters": Case("reward", "gpt2", "21M", {"batch": 4, "lora": 16}),
    "ppo, adapters, checkpointing": Case("ppo", "llama", "21M", PPO | {"lora": 8, "memory": ["checkpointing"]}),
    "sft, two ranks, each holds all": Case("sft", "llama", "21M", SFT, ranks=2),
    "sft, two ranks, divided": Case("sft", "llama", "40M", SFT, ranks=2),
    "ppo, two ranks, divided": Case("ppo", "llama", "40M", PPO, ranks=2),
}
COUNT, K = 40, 4


def make_files(case: Case, folder: Path) -> dict[str, Any]:
    """Models and data of a configuration. -> the options that name them."""
    make_models(case.size, folder, case.family)
    draw = random.Random(0)
    last = SIZES[case.size]["vocab_size"] - 1
    text = lambda low, high: " ".join(str(draw.randint(3, last)) for _ in range(draw.randint(low, high)))  # noqa: E731
    rows: dict[str, list[dict[str, Any]]] = {
        "demonstrations": [{"prompt": text(40, 80), "completion": text(30, 60)} for _ in range(COUNT)],
        "rankings": [
            {"prompt": text(80, 120), "completions": [text(30, 50) for _ in range(K)], "ranks": list(range(1, K + 1))}
            for _ in range(COUNT)
        ],
        "prompts": [{"prompt": text(32, 64)} for _ in range(COUNT)],
        "corpus": [{"text": text(300, 500)} for _ in range(COUNT * 3)],
    }
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    files = {
        "pretrain": {"corpus": ["corpus.jsonl"], "tokenizer": "policy"},
        "sft": {"base": "policy", "data": ["demonstrations.jsonl"]},
        "reward": {"base": "policy", "data": ["rankings.jsonl"]},
        "ppo": {"policy": "policy", "reward": "reward", "prompts": ["prompts.jsonl"]},
    }[case.stage]
    options = {
        k: [str(folder / f) for f in v] if isinstance(v, list) else str(folder / v) for k, v in files.items()
    } | case.options
    if options.get("pretraining"):
        options["pretraining"] = [str(folder / "corpus.jsonl")]
    if case.stage == "pretrain":
        shape = SIZES[case.size]
        options |= {
            "width": shape["hidden_size"],
            "layers": shape["num_hidden_layers"],
            "heads": shape["num_attention_heads"],
            "context": 256,
        }
    return options


def words(stage: str, options: dict[str, Any]) -> list[str]:
    """Options as a command line."""
    line = [stage]
    for name, value in options.items():
        line += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return line


RUNNER = """
import json, os, sys
from instructgpt import cli
def kilobytes(name):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name))
toy, real, ports = json.loads(sys.argv[1])
os.environ["MASTER_PORT"] = str(ports[0])
assert cli.run_command(toy) == 0
before = kilobytes("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
os.environ["MASTER_PORT"] = str(ports[1])
assert cli.run_command(real) == 0
print(json.dumps(1024 * (kilobytes("VmHWM") - before)))
"""


def planned(line: list[str], ranks: int, length: float | None = None) -> float:
    """What the plan says: bytes."""
    import torch

    from instructgpt import cli
    from instructgpt.plan.context import PlanContext
    from instructgpt.plan.stages import plan_stage

    _, config = cli.parse(["plan", *line])
    told = PlanContext(torch.device("cpu"), completion_tokens=None if length is None else round(length), ranks=ranks)
    return plan_stage(config.planned, told).peak_bytes


def free_ports() -> list[int]:
    """Two ports that nobody uses: ranks meet at one for the toy, at the other for what is measured."""
    with socket.socket() as one, socket.socket() as other:
        for some in (one, other):
            some.bind(("127.0.0.1", 0))
        return [one.getsockname()[1], other.getsockname()[1]]


def measured(toy: list[str], real: list[str], ranks: int) -> float:
    """What a process needs: bytes at its peak, less what it held before. Of several ranks the one that needs most."""
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", RUNNER, json.dumps([toy, real, free_ports()])]
    running = []
    for rank in range(ranks):
        own = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1",
            "TORCHELASTIC_RUN_ID": "memory",
        }
        variables = common | {name: str(value) for name, value in own.items() if ranks > 1}
        running.append(
            subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    said = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, said, strict=True):
        if process.returncode:
            sys.exit(errors[-2000:])
    return max(float(json.loads(out.splitlines()[-1])) for out, _ in said)


def compare(case: Case) -> tuple[float, float]:
    """Bytes planned and bytes measured."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "toy").mkdir()
        toy = words(case.stage, make_files(case._replace(size="toy"), folder / "toy") | {"out": folder / "toy" / "out"})
        real = words(case.stage, make_files(case, folder) | {"out": folder / "out"})
        length = 24.0 if case.stage == "ppo" else None
        return planned(real, case.ranks, length), measured(toy, real, case.ranks)


def main() -> None:
    """A line for each configuration."""
    print("| configuration | model | planned, MB | measured, MB | planned / measured |")
    for name in sys.argv[1:] or CASES:
        case = CASES[name]
        said, was = compare(case)
        print(
            f"| {name} | {case.family} {case.size} | {said / 1e6:.0f} | {was / 1e6:.0f} | {said / was:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
