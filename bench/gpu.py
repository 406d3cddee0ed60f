"""What a GPU reaches with a random Llama of 1 B parameters in bf16, in at most four minutes.

    python bench/gpu.py                      # CUDA; the table grows in bench-gpu.md and on the terminal
    python bench/gpu.py --tiny --out FILE    # the same with a toy model on a CPU: shows that it runs, no more

Steps: sampling with and without CUDA graphs (the tokens must be equal), parity of sampling and training, forward pass
with one kernel for all texts and with blocks, update, and the chain sft, reward, ppo-ptx as the commands run it. Every
step writes its lines as soon as it has them, a step that fails says so, and stages for which no time is left are named.
MFU is the FLOPs that the mathematics needs, over seconds, over the rate of a large bf16 product on this device.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ppo
import torch
from random_models import build

from instructgpt.config import make_config
from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.models import packed_attention
from instructgpt.models.execution import enable_cuda_graphs, execution_path
from instructgpt.models.flops import get_model_shape
from instructgpt.models.policy import completion_logp, count_parameters
from instructgpt.models.precision import apply_memory_options, cached_bf16_weights
from instructgpt.plan.hardware import benchmark_machine
from instructgpt.plan.roofline import count_predicted_tokens, sequence_shapes
from instructgpt.sampling.engine import SampledTokens, sample_tokens
from instructgpt.train import ppo as ppo_stage
from instructgpt.train import reward as reward_stage
from instructgpt.train import sft as sft_stage
from instructgpt.train.configs import PPOConfig, RewardConfig, SFTConfig
from instructgpt.train.optim import build_optimizer, optimizer_step

ONE_B = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "intermediate_size": 8192,
    "vocab_size": 32_768,
}
MINUTES = 3.0
"""A stage that begins by then is done within another minute (calculated for an H200)."""


@dataclass
class Bench:
    """The device, the model, the clock and the table."""

    device: torch.device
    shape: dict[str, int]
    rows: int
    length: int  # tokens of a prompt, and of a completion
    out: Path
    deadline: float
    peak_flops: float = 0.0
    lines: list[str] = field(default_factory=list)

    def write(self, line: str) -> None:
        """Print a line and add it to the file."""
        print(line, flush=True)
        with self.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def row(self, step: str, seconds: float, tokens: int, flops: float, note: str = "") -> None:
        """Write a line of the table."""
        mfu = f"{flops / seconds / self.peak_flops:.1%}" if flops else "–"
        memory = "–"
        if self.device.type == "cuda":
            memory = f"{torch.cuda.max_memory_allocated(self.device) / 1e9:.1f}"
            torch.cuda.reset_peak_memory_stats(self.device)
        self.write(f"| {step} | {seconds:.2f} | {tokens / seconds:,.0f} | {mfu} | {memory} | {note} |")

    def time(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds of the second call, everything finished, and its result."""
        for _ in range(2):
            start = time.perf_counter()
            result = work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
        return seconds, result


def measure_model(bench: Bench) -> Iterator[str]:
    """Sample with and without graphs, compare, and compute forward passes and updates of one model."""
    model = build(bench.shape, bench.device)
    apply_memory_options(model, ("bf16",))
    shape, prompts = get_model_shape(model), [[3 + row % 50] * bench.length for row in range(bench.rows)]
    yield f"{count_parameters(model) / 1e9:.3f} B parameters; {execution_path(model)}"

    def sample() -> list[SampledTokens]:
        with cached_bf16_weights(model):
            return sample_tokens(model, prompts, stop_tokens=(), max_tokens=bench.length, seed=0)

    samples: dict[bool, list[SampledTokens]] = {}
    for has_graphs in (True, False):
        enable_cuda_graphs(has_graphs)
        seconds, samples[has_graphs] = bench.time(sample)
        texts = sequence_shapes([TokenizedExample(prompt, []) for prompt in prompts])
        whole = [text._replace(tokens=2 * bench.length - 1) for text in texts]
        flops = shape.forward_flops(whole, bench.rows * bench.length)
        note = str(execution_path(model)).partition("sampling ")[2].partition(";")[0]
        bench.row("sampling", seconds, bench.rows * bench.length, flops, note)
    enable_cuda_graphs(True)
    same = sum(a.tokens == b.tokens for a, b in zip(samples[True], samples[False], strict=True))
    yield f"with and without graphs: {same} of {bench.rows} completions have equal tokens"

    pairs = list(zip(prompts, samples[False], strict=True))
    examples = [TokenizedExample(prompt, sample.tokens) for prompt, sample in pairs]
    batch, predicted = collate(examples, bench.device), count_predicted_tokens(examples)
    flops, tokens = shape.forward_flops(sequence_shapes(examples), predicted), sum(map(len, examples))
    has_varlen = packed_attention.has_varlen_attention
    for name, choice in (("one kernel", has_varlen), ("blocks", lambda _: False)):
        packed_attention.has_varlen_attention = choice  # type: ignore[assignment]
        batch.cache.clear()
        with torch.no_grad():
            seconds, logp = bench.time(lambda: completion_logp(model, batch))
        used = packed_attention.get_attention_layout(batch).varlen is not None
        bench.row("forward", seconds, tokens, flops, name if used else "blocks")
        sampled = torch.tensor([value for _, sample in pairs for value in sample.logp])
        difference = (logp.float().cpu() - sampled).abs()
        rms = difference.square().mean().sqrt()
        yield f"parity ({name if used else 'blocks'}): largest {difference.max():.2e}, root mean square {rms:.2e}"
    packed_attention.has_varlen_attention = has_varlen
    batch.cache.clear()
    optimizer = build_optimizer(model)

    def update() -> None:
        (-completion_logp(model, batch).mean()).backward()  # type: ignore[no-untyped-call]
        optimizer_step(optimizer, 0.0)

    seconds, _ = bench.time(update)
    bench.row("update", seconds, tokens, flops + shape.backward_flops(sequence_shapes(examples), predicted))


def run_chain(bench: Bench) -> Iterator[str]:
    """Run sft, reward and ppo-ptx as the commands do, on random words."""
    draw, rows, length = random.Random(0), bench.rows, bench.length
    last = bench.shape["vocab_size"] - 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build(bench.shape, bench.device).to(torch.bfloat16)  # saved in bf16, as models on the hub are
        model.config.max_position_embeddings = 4 * length  # a row of pretraining text is as long, less one token
        model.save_pretrained(folder / "policy")
        ppo.number_words(bench.shape["vocab_size"]).save_pretrained(folder / "policy")
        del model

        def words(count: int) -> str:
            return " ".join(str(draw.randint(3, last)) for _ in range(count))

        def write(file: str, records: list[dict[str, Any]]) -> tuple[Path, ...]:
            (folder / file).write_text("".join(json.dumps(record) + "\n" for record in records))
            return (folder / file,)

        demonstrations = [{"prompt": words(length), "completion": words(length)} for _ in range(3 * rows)]
        rankings = [
            {"prompt": words(length), "completions": [words(length) for _ in range(4)], "ranks": [1, 2, 3, 4]}
            for _ in range(2 * rows)
        ]
        text = [{"text": words(4 * length)} for _ in range(rows)]
        common = {"device": str(bench.device), "memory": ("bf16",), "batch": rows}
        stages: list[tuple[Any, Any, dict[str, Any]]] = [
            (sft_stage, SFTConfig, {"base": folder / "policy", "data": write("d.jsonl", demonstrations), "epochs": 1}),
            (
                reward_stage,
                RewardConfig,
                {
                    "base": folder / "policy",
                    "data": write("r.jsonl", rankings[rows // 4 :]),
                    "validation": write("v.jsonl", rankings[: rows // 4]),
                },
            ),
            (
                ppo_stage,
                PPOConfig,
                {
                    "policy": folder / "sft",
                    "reward": folder / "reward-model",
                    "prompts": write("p.jsonl", [{"prompt": words(length)} for _ in range(2 * rows)]),
                    "pretraining": write("c.jsonl", text),
                    "ptx_ratio": 1,
                    "episodes": 3 * rows,
                    "minibatch": max(1, rows // 2),
                    "max_tokens": length,
                },
            ),
        ]
        for stage, config_class, options in stages:
            if time.monotonic() > bench.deadline:
                yield f"{config_class.stage}: not begun, no time is left"
                break
            out = folder / {"sft": "sft", "reward": "reward-model", "ppo": "ppo"}[config_class.stage]
            config = make_config(config_class, {**common, **{k: _as_text(v) for k, v in options.items()}, "out": out})
            start = time.perf_counter()
            stage.main(config)
            seconds = time.perf_counter() - start
            record = json.loads((out / "run.json").read_text())
            phases = record["phases"]
            tokens = sum(int(phase.get("tokens", 0)) for phase in phases.values())
            bench.row(f"`{config_class.stage}`", seconds, tokens, 0.0, "the whole command, loading and saving too")
            if config_class is PPOConfig:
                first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
                numbers = (f"{name} {first[name]:.2e}" for name in ("val/parity", "val/first_ratio_rms"))
                yield f"ppo: {', '.join(numbers)}"


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def main() -> None:
    """Run the steps until the time is over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="a toy model on a CPU; its numbers mean nothing")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no stage of the chain begins after this time")
    parser.add_argument("--rows", type=int, default=64, help="texts at once")
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt, and of a completion")
    parser.add_argument("--out", type=Path, default=Path("bench-gpu.md"), help="file of the table")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device here; --tiny runs the same steps with a toy model on the CPU")
    device, deadline = torch.device("cpu" if options.tiny else "cuda"), time.monotonic() + 60 * options.minutes
    shape, rows, length = (ppo.SIZES["toy"], 4, 12) if options.tiny else (ONE_B, options.rows, options.length)
    options.out.write_text("")
    bench = Bench(device, dict(shape), rows, length, options.out, deadline)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "toy model on a CPU: no measurement of anything"
    machine = benchmark_machine(device, torch.float32 if options.tiny else torch.bfloat16)
    bench.peak_flops = machine.matmul
    bench.write(f"{name}; torch {torch.__version__}; {machine.matmul / 1e12:.2f} TFLOP/s in a large product, ")
    bench.write(f"{machine.bandwidth / 1e9:.0f} GB/s; {rows} texts of {length} + {length} tokens\n")
    bench.write("| step | seconds | tokens/s | MFU | peak memory, GB | note |\n|---|---|---|---|---|---|")
    notes: list[str] = []
    for step, run in {"model": measure_model, "chain": run_chain}.items():
        try:
            notes += run(bench)
        except Exception as error:  # the other steps still tell something
            traceback.print_exc()
            notes.append(f"{step}: failed, {type(error).__name__}: {str(error)[:300]}")
        if device.type == "cuda":
            torch.cuda.empty_cache()
    bench.write("\n" + "\n".join(f"- {note}" for note in notes))
    if any(": failed, " in note for note in notes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
