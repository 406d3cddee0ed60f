"""Host memory of loading PPO's models on several ranks: each rank reads all of them, or rank 0 one after the other.

    python bench/loading.py                          # four models of 85 M parameters (and the average) on two ranks
    python bench/loading.py --size toy --ranks 3

Both ways end with the same shards. The parent adds up the ranks' proportional set sizes (`Pss`, pages of files that two
ranks share counted once) every few milliseconds; the peak, less what the ranks held before they read, is the result.
The way of before (up to 071c578) is rebuilt here: all models whole on every rank, copies included, then sharded.
"""

from __future__ import annotations

import argparse
import copy
import json
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ppo

SHAPES = {
    "85M": {
        "hidden_size": 768,
        "num_hidden_layers": 10,
        "num_attention_heads": 12,
        "intermediate_size": 2560,
        "vocab_size": 4096,
    }
}
SAMPLING_INTERVAL_S = 0.005


def load_at_once(config: Any, device: Any) -> list[Any]:
    """Load as every rank did before: five whole models, then their shards."""
    from instructgpt.models.policy import load_policy
    from instructgpt.models.reward_model import load_reward_model
    from instructgpt.models.sharding import shard

    policy, _ = load_policy(config.policy, device)
    reward = load_reward_model(config.reward[0], device).model.requires_grad_(False)
    value = copy.deepcopy(reward).requires_grad_(True)
    reference, average = (copy.deepcopy(policy).requires_grad_(False) for _ in range(2))
    models = [policy, reference, value, reward, average]
    shard(*models)
    return models


def load_in_turn(config: Any, _: Any) -> list[Any]:
    """Load as `instructgpt ppo` does now."""
    from instructgpt.run.directory import RunDirectory
    from instructgpt.train.ppo_setup import load_models

    models = load_models(config, RunDirectory(config, {}))
    return [models.policy, models.reference, models.value, models.reward, models.ema]


WAYS: dict[str, Callable[[Any, Any], list[Any]]] = {"every rank reads": load_at_once, "rank 0 reads": load_in_turn}


def run_rank(rank: int, way: str, folder: str, ranks: int, port: int, start: Any, end: Any) -> None:
    """Import everything, wait for the parent, load, and wait until it has measured."""
    import torch
    import torch.distributed as dist

    from instructgpt.models.policy import load_policy
    from instructgpt.models.reward_model import load_reward_model
    from instructgpt.train.configs import PPOConfig

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    toy, device = Path(folder) / "toy", torch.device("cpu")
    load_policy(toy / "policy", device)  # so that all code is loaded
    load_reward_model(toy / "reward", device)
    config = PPOConfig(
        out=Path(folder) / "out",
        policy=f"{folder}/policy",
        reward=(f"{folder}/reward",),
        prompts=(Path("prompts.jsonl"),),
        device="cpu",
        episodes=512,
    )
    start.wait()
    models = WAYS[way](config, device)
    end.wait()
    assert models
    dist.destroy_process_group()


def resident_bytes(pid: int) -> int:
    """Return a process's proportional set size: its own pages, and its share of those it has in common."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no Pss of process {pid}")


def measure(way: str, folder: Path, ranks: int) -> dict[str, float]:
    """Load in processes of their own; return seconds, and the peak and final bytes of all ranks together."""
    import torch

    context = torch.multiprocessing.get_context("spawn")
    start, end = context.Barrier(ranks + 1), context.Barrier(ranks + 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=run_rank, args=(rank, way, str(folder), ranks, port, start, end))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    while start.n_waiting < ranks:
        time.sleep(0.05)
    held_before = total = sum(resident_bytes(process.pid or 0) for process in processes)
    peak, began = total, time.perf_counter()
    start.wait()
    while end.n_waiting < ranks:
        if any(process.exitcode for process in processes):
            raise SystemExit("a rank failed")
        total = sum(resident_bytes(process.pid or 0) for process in processes)
        peak = max(peak, total)
        time.sleep(SAMPLING_INTERVAL_S)
    seconds = time.perf_counter() - began
    end.wait()
    for process in processes:
        process.join()
    return {"peak_bytes": peak - held_before, "bytes_after_loading": total - held_before, "seconds": seconds}


def main() -> None:
    """Measure both ways and print their ratio."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=(*SHAPES, *ppo.SIZES), default="85M")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the measurements here too")
    options = parser.parse_args()
    ppo.SIZES.update(SHAPES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "toy").mkdir()
        ppo.make_models("toy", folder / "toy")
        ppo.make_models(options.size, folder)
        model_bytes = (folder / "policy" / "model.safetensors").stat().st_size
        print(f"models of {model_bytes / 4e6:.1f} M parameters, {model_bytes / 1e6:.0f} MB each; {options.ranks} ranks")
        print("| way | peak of all ranks, MB | in models | after loading, MB | seconds |\n|---|---|---|---|---|")
        results = {}
        for way in WAYS:
            result = results[way] = measure(way, folder, options.ranks)
            print(
                f"| {way} | {result['peak_bytes'] / 1e6:.0f} | {result['peak_bytes'] / model_bytes:.1f} | "
                f"{result['bytes_after_loading'] / 1e6:.0f} | {result['seconds']:.1f} |",
                flush=True,
            )
    before, after = (results[way]["peak_bytes"] for way in WAYS)
    print(f"peak before / after: {before / after:.2f}")
    if options.json:
        records = [{"way": way, "ranks": options.ranks, "model_bytes": model_bytes, **results[way]} for way in WAYS]
        options.json.write_text("[\n" + ",\n".join(f"  {json.dumps(record)}" for record in records) + "\n]\n")


if __name__ == "__main__":
    main()
