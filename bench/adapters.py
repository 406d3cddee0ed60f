"""Bytes that PPO holds in weights, gradients and optimizers, with all weights trained and with adapters.

    # a Llama of 5.8 million parameters as policy, another as reward model
    python bench/adapters.py
    python bench/adapters.py --ranks 8 --memory bf16      # frozen weights in bf16; with 4bit in 4 bits
    python bench/adapters.py --width 768 --layers 12 --vocabulary 50257 --ranks 0 16 64

The models are random and saved in a temporary directory; the stage's own `load_models` and one optimizer step of each
trained model on one line of tokens come after that, then every tensor that is still held is counted once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from instructgpt.config import make_config
from instructgpt.data.packing import TokenizedExample, collate
from instructgpt.data.pretraining_text import train_tokenizer
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.models.policy import completion_logp, load_policy, save_policy
from instructgpt.models.reward_model import new_reward_model, save_reward_model
from instructgpt.run.directory import RunDirectory
from instructgpt.train import ppo
from instructgpt.train.optim import build_optimizer, optimizer_step

CPU = torch.device("cpu")
WORDS = ("What does a frog say? A frog says croak.", "How many legs has a spider? A spider has eight legs.")


def make_models(folder: Path, width: int, layers: int, vocabulary: int) -> None:
    """Save a random Llama as `policy`, and a reward model over such a trunk as `reward`."""
    tokenizer = train_tokenizer(list(WORDS), 257)
    shape = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )
    save_policy(transformers.LlamaForCausalLM(shape), PromptTokenizer(tokenizer), folder / "policy")
    reward = new_reward_model(folder / "policy", CPU, 0)
    (folder / "reward").mkdir()
    save_reward_model(reward, folder / "reward")


def bytes_of(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the storages behind tensors, shared ones once."""
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t is not None}.values()
    )


def states_of(optimizers: Iterable[torch.optim.Optimizer]) -> Iterator[torch.Tensor]:
    """Every tensor that optimizers keep."""
    for optimizer in optimizers:
        for state in optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def held_by_ppo(folder: Path, rank: int, words: tuple[str, ...]) -> dict[str, int]:
    """Bytes held after one step of policy and value model: weights, gradients, optimizers."""
    files = {"policy": str(folder / "policy"), "reward": folder / "reward", "prompts": ("prompts.jsonl",)}
    config = make_config(ppo.PPOConfig, {**files, "out": folder / "out", "lora": rank, "memory": words})
    models = ppo.load_models(config, RunDirectory(config, {}))
    networks: list[Any] = [models.policy, models.value.model]
    optimizers = [build_optimizer(network, memory=words) for network in networks]
    batch = collate([TokenizedExample([1, 2, 3], [4, 5, 6])])
    completion_logp(models.policy, batch).sum().backward()
    models.value.token_outputs(batch).sum().backward()
    gradients = bytes_of(p.grad for network in networks for p in network.parameters())
    for optimizer in optimizers:
        optimizer_step(optimizer, 1e-4)
    (reward,) = models.reward.models()
    everything = (models.policy, models.reference, models.value.model, reward.scorer.model, models.ema)
    weights = bytes_of(
        tensor for model in everything for tensors in (model.parameters(), model.buffers()) for tensor in tensors
    )
    return {"weights": weights, "gradients": gradients, "optimizers": bytes_of(states_of(optimizers))}


def main() -> None:
    """Print a table, a row for each rank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, size in (("width", 256), ("layers", 6), ("vocabulary", 4096)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 8, 64])
    parser.add_argument("--memory", nargs="*", default=[])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder, asked.width, asked.layers, asked.vocabulary)
        one = sum(p.numel() for p in load_policy(folder / "policy", CPU)[0].parameters())
        print(
            f"policy of {one:,} parameters; MiB held\n| | weights | gradients | optimizers | together "
            "|\n|---|---|---|---|---|"
        )
        for rank in asked.ranks:
            held = held_by_ppo(folder, rank, tuple(asked.memory))
            numbers = [f"{part / 2**20:.1f}" for part in (*held.values(), sum(held.values()))]
            print(f"| {f'`--lora {rank}`' if rank else 'all weights'} | {' | '.join(numbers)} |")


if __name__ == "__main__":
    main()
