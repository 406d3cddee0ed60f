"""The hooks on the last layer (`models/last_layer_subset.py`), with and without: what they gain in CPU time.

    OMP_NUM_THREADS=1 python bench/clever.py                 # both sizes, about five minutes
    OMP_NUM_THREADS=1 python bench/clever.py --size demo --rounds 9

Both sides run in one process and take turns, with learning rates too small to change a weight and the same seed, so
that every turn computes the same. A ratio is the median over turns of CPU seconds without the hooks, divided by seconds
with them: above 1 they gain. They stay while an update or a reward step of the demo gains.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
import ppo
import torch

from instructgpt.data.packing import TokenizedExample
from instructgpt.data.rankings import LabelerRanks, RankedPrompt
from instructgpt.models import last_layer_subset
from instructgpt.models.policy import completion_logp, count_parameters, load_policy
from instructgpt.models.reward_model import load_reward_model, value_model_from_copy
from instructgpt.records import Prompt
from instructgpt.sampling.engine import sample_tokens
from instructgpt.train.configs import PPOConfig
from instructgpt.train.optim import build_optimizer, lm_loss, optimizer_step
from instructgpt.train.ppo import ppo_step
from instructgpt.train.reward import ranking_backward
from instructgpt.train.reward_functions import Reward
from instructgpt.train.rollout import PPOModels, per_token_values

RANKED, LR = 5, 1e-30
"""Completions of a ranking; a learning rate that changes no weight."""
MIN_TURN_S = 0.5
"""Work is repeated until a turn takes about so many seconds."""


class Size(NamedTuple):
    """A model, and the lengths of its texts in tokens."""

    shape: dict[str, int]
    prompt: tuple[int, int]  # shortest and longest
    mean: int  # of completions
    longest: int
    episodes: int
    minibatch: int


DEMO = {"hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 256}
SIZES = {
    "demo": Size(DEMO | {"vocab_size": 1024}, (8, 24), mean=14, longest=32, episodes=256, minibatch=128),
    "21M": Size(ppo.SIZES["21M"], (32, 64), mean=24, longest=64, episodes=16, minibatch=16),
}


class Bench:
    """Models and data of one size, and the pieces of work that are timed."""

    def __init__(self, name: str, folder: Path) -> None:
        self.size, device = SIZES[name], torch.device("cpu")
        ppo.SIZES[name], ppo.MEAN, ppo.NEW = self.size.shape, self.size.mean, self.size.longest
        ppo.make_models(name, folder)
        policy, tokenizer = load_policy(folder / "policy", device)
        reference = load_policy(folder / "reference", device)[0].requires_grad_(False)
        value, reward = value_model_from_copy(load_reward_model(folder / "reward", device))
        ema = copy.deepcopy(policy).requires_grad_(False)
        self.models = PPOModels(policy, reference, value, Reward.from_model(reward, tokenizer), ema, tokenizer)
        trained = {"policy": policy, "value": self.models.value.model}
        self.optimizers = {name: build_optimizer(model, eps=1e-5) for name, model in trained.items()}
        episodes, longest = self.size.episodes, self.size.longest
        sizes = {
            "batch": episodes,
            "minibatch": self.size.minibatch,
            "max_tokens": longest,
            "episodes": 10**6 * episodes,
        }
        files = {"policy": str(folder / "policy"), "reward": folder / "reward", "prompts": (folder,)}
        self.config = PPOConfig(out=folder, lr=LR, value_lr=LR, **files, **sizes)
        self.random = random.Random(0)
        self.prompts = [self.tokens(*self.size.prompt) for _ in range(episodes)]
        samples = sample_tokens(policy, self.prompts, stop_tokens=(ppo.EOS,), max_tokens=longest, seed=1)
        pairs = zip(self.prompts, samples, strict=True)
        self.examples = [TokenizedExample(prompt, sample.tokens) for prompt, sample in pairs]
        lengths = torch.tensor([len(sample.tokens) for sample in samples])
        self.mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ranks = (LabelerRanks(tuple(range(RANKED)), None, "training"),)
        rankings = [[TokenizedExample(p, self.tokens(4, longest)) for _ in range(RANKED)] for p in self.prompts[:8]]
        self.ranked = [RankedPrompt(examples, ranks, "") for examples in rankings]

    def tokens(self, shortest: int, longest: int) -> list[int]:
        """Draw random tokens."""
        length = self.random.randint(shortest, longest)
        return [self.random.randrange(3, self.size.shape["vocab_size"]) for _ in range(length)]

    def ppo_update(self) -> None:
        """Run a whole update. Number 1 samples the same each time and skips the parity probe."""
        prompts = [Prompt(prompt=" ".join(map(str, row))) for row in self.prompts]
        ppo_step(self.models, self.optimizers, None, prompts, 1, self.config)

    def reward_step(self) -> None:
        """Train on eight rankings."""
        ranking_backward(self.models.value, self.ranked)
        optimizer_step(self.optimizers["value"], LR)

    def sft_step(self) -> None:
        """Train on sixteen demonstrations."""
        lm_loss(self.models.policy, self.examples[:16])
        optimizer_step(self.optimizers["policy"], LR)

    def scores(self) -> None:
        """Score all episodes."""
        self.models.value.score(self.examples)

    def reference(self) -> None:
        """Compute the reference's logp of all episodes."""
        model = self.models.reference
        with torch.no_grad():
            per_token_values(model, self.examples, self.mask, lambda batch: completion_logp(model, batch))


def cpu_seconds(work: Callable[[], None], share: float, repeats: int = 1) -> float:
    """Time work; a share of 0 means that no batch has a subset, and the whole last layer is computed."""
    last_layer_subset.MAX_SUBSET_SHARE = share
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


def measure(name: str, rounds: int, folder: Path) -> None:
    """Print a row for each piece of work of one size."""
    bench, share = Bench(name, folder), last_layer_subset.MAX_SUBSET_SHARE
    read = sum(len(example.completion_ids) for example in bench.examples) / sum(map(len, bench.examples))
    print(f"{name}: {count_parameters(bench.models.policy) / 1e6:.2f} M parameters, {read:.0%} of tokens are read")
    for work in (bench.ppo_update, bench.reward_step, bench.sft_step, bench.scores, bench.reference):
        repeats = max(1, round(MIN_TURN_S / max(cpu_seconds(work, side) for side in (0.0, share))))
        seconds: dict[float, list[float]] = {share: [], 0.0: []}
        for turn in range(rounds):
            for side in (share, 0.0) if turn % 2 else (0.0, share):
                seconds[side].append(cpu_seconds(work, side, repeats))
        ratios = sorted(without / with_ for with_, without in zip(seconds[share], seconds[0.0], strict=True))
        medians = " | ".join(f"{statistics.median(seconds[side]):.4f}" for side in (share, 0.0))
        spread = f"{ratios[len(ratios) // 4]:.3f} to {ratios[-1 - len(ratios) // 4]:.3f}"
        print(f"| {name} | {work.__name__} | {medians} | {statistics.median(ratios):.3f} | {spread} |", flush=True)
    last_layer_subset.MAX_SUBSET_SHARE = share


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns that count")
    parser.add_argument("--size", choices=tuple(SIZES), nargs="*", default=tuple(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| size | work | CPU s with | CPU s without | ratio | middle half of the turns |", flush=True)
    for name in options.size:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, options.rounds, Path(folder))


if __name__ == "__main__":
    main()
