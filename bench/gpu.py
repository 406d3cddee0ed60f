"""What of a GPU is reached: decoding beside its memory's rate, forward passes and updates beside its matrix rate, and
one PPO iteration.

    # GPT-2 124M and a Llama of 1.3B on CUDA, then DeepSpeed-Chat's protocol
    python bench/gpu.py
    python bench/gpu.py --device cpu --shape toy --rows 4 --length 8 --critic toy      # the same at toy size

Weights are random. The protocol: prompts of 256 and completions of 256 tokens, a policy of 1.3B, a critic (value and
reward model) of 350M; seconds an episode times its 264,292 samples stand beside the 11.7 hours that are published for
one A100-80G.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from ppo import EOS, PAD, SIZES, number_words, tokenizer_holder

from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.models.flops import BACKWARD_FLOPS_FACTOR, get_model_shape
from instructgpt.models.packed_attention import use_packed_attention
from instructgpt.models.policy import completion_logp
from instructgpt.models.reward_model import ScalarModel
from instructgpt.plan.hardware import Machine, benchmark_machine
from instructgpt.plan.roofline import count_predicted_tokens, sampling_phases, sequence_shapes
from instructgpt.records import Prompt
from instructgpt.sampling.engine import sample_tokens
from instructgpt.train.configs import PPOConfig
from instructgpt.train.optim import build_optimizer, optimizer_step
from instructgpt.train.ppo import ppo_step
from instructgpt.train.reward_functions import Reward
from instructgpt.train.rollout import PPOModels, Rollout

SAMPLES, PUBLISHED_HOURS = 264_292, 11.7
LARGE = {
    "350M": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 2736,
        "vocab_size": 50_272,
    },
    "1.3B": {
        "hidden_size": 2048,
        "num_hidden_layers": 24,
        "num_attention_heads": 32,
        "intermediate_size": 5504,
        "vocab_size": 50_272,
    },
}


def build(shape: str | dict[str, int], device: torch.device, *, scalar: bool = False) -> Any:
    """A random model: GPT-2's shape, or a Llama's of some size."""
    torch.manual_seed(0)
    if shape == "gpt2":
        config: Any = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    else:
        shape = (SIZES | LARGE)[shape] if isinstance(shape, str) else shape
        same = {
            "num_key_value_heads": shape["num_attention_heads"],
            "tie_word_embeddings": True,
            "max_position_embeddings": 2048,
        }
        config = transformers.LlamaConfig(**shape, **same, pad_token_id=PAD, eos_token_id=EOS)
    config.num_labels = 1
    kind = transformers.AutoModelForSequenceClassification if scalar else transformers.AutoModelForCausalLM
    with torch.device(device):
        model = kind.from_config(config, attn_implementation="sdpa").eval()
    use_packed_attention(model)
    return model


def taken(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the second call, everything finished."""
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds


def one_model(name: str, device: torch.device, machine: Machine, rows: int, length: int) -> list[str]:
    """Decode, forward and update of one model: seconds, the least there can be, and the share reached."""
    model = build(name, device)
    shape = get_model_shape(model)
    examples = [TokenizedExample([3 + row % 50] * length, [4 + row % 50] * length) for row in range(rows)]
    batch, texts, predicted = collate(examples, device), sequence_shapes(examples), count_predicted_tokens(examples)
    prompts = [example.prompt_ids for example in examples]
    optimizer = build_optimizer(model)

    def learn() -> None:
        (-completion_logp(model, batch).mean()).backward()
        optimizer_step(optimizer, 0.0)

    def look() -> None:
        with torch.no_grad():
            completion_logp(model, batch)

    least_sampling = sum(
        phase.roofline_seconds(machine) for phase in sampling_phases(shape, [length] * rows, [length] * rows, rows)
    )
    forward = machine.compute_seconds(shape.forward_flops(texts, predicted), shape.weight_bytes)
    work: dict[str, tuple[Callable[[], Any], float]] = {
        "sampling": (lambda: sample_tokens(model, prompts, stop_tokens=(), max_tokens=length, seed=0), least_sampling),
        "forward": (look, forward),
        "update": (learn, (1 + BACKWARD_FLOPS_FACTOR) * forward),
    }
    lines = []
    for what, (do, least) in work.items():
        seconds = taken(do, device)
        lines.append(
            f"| {name} | {what} | {rows} x ({length} + {length}) | {seconds:.3f} | {least:.3f} | {least / seconds:.0%} "
            "|"
        )
    return lines


def updates(
    policy: Any, reward: ScalarModel, value: ScalarModel, prompts: list[list[int]], length: int, minibatch: int
) -> Callable[[], Rollout]:
    """PPO with these models, whose words are numbers: each call is an update on an episode of every prompt."""
    tokenizer = reward.tokenizer
    whole_reward = Reward.from_model(reward, tokenizer)
    models = PPOModels(policy, copy.deepcopy(policy), value, whole_reward, copy.deepcopy(policy), tokenizer)
    for frozen in (models.reference, reward.model, models.ema):
        frozen.requires_grad_(False)
    optimizers = {"policy": build_optimizer(policy, eps=1e-5), "value": build_optimizer(value.model, eps=1e-5)}
    count = len(prompts)
    told: dict[str, Any] = {
        "out": Path("out"),
        "policy": "policy",
        "reward": "reward",
        "prompts": (Path("prompts"),),
    }
    config = PPOConfig(**told, batch=count, minibatch=minibatch, max_tokens=length, episodes=1000 * count)
    asked = [Prompt(prompt=" ".join(map(str, prompt))) for prompt in prompts]
    numbers = iter(range(1, 1000))
    return lambda: ppo_step(models, optimizers, None, asked, next(numbers), config)[0]


def iteration(policy_name: str, critic_name: str, device: torch.device, rows: int, length: int) -> str:
    """One PPO iteration in the protocol, and what it comes to for all its samples."""
    policy = build(policy_name, device)
    render = tokenizer_holder(number_words(policy.config.vocab_size))
    reward, value = (ScalarModel(build(critic_name, device, scalar=True), render) for _ in range(2))
    prompts = [[3 + row % 50] * length for row in range(rows)]
    seconds = taken(updates(policy, reward, value, prompts, length, rows), device)
    hours = seconds / rows * SAMPLES / 3600
    return (
        f"{rows} episodes of {length} + {length}: {seconds:.2f} s; {SAMPLES:,} samples: {hours:.2f} h, published: "
        f"{PUBLISHED_HOURS} h"
    )


def main() -> None:
    """All measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", choices=("gpt2", *SIZES, *LARGE), nargs="*", default=("gpt2", "1.3B"))
    parser.add_argument("--critic", choices=(*SIZES, *LARGE), default="350M")
    parser.add_argument("--rows", type=int, default=64, help="rows decoded and episodes learned from at once")
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt, and of a completion")
    options = parser.parse_args()
    device = torch.device(options.device)
    machine = benchmark_machine(device)
    print(f"{machine.matmul / 1e12:.2f} TFLOP/s in float32, {machine.bandwidth / 1e9:.0f} GB/s")
    print("| model | what | rows x (prompt + completion) | seconds | at least | reached |")
    for name in options.shape:
        print("\n".join(one_model(name, device, machine, options.rows, options.length)), flush=True)
    print(iteration(options.shape[-1], options.critic, device, options.rows, options.length))


if __name__ == "__main__":
    main()
