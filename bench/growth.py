"""How cost grows: K from 2 to 16, completions, model and vocabulary, for reward training, sampling and PPO, ours beside
the ideal.

    python bench/growth.py                         # all of it, tables and docs/figures/*.svg: some minutes of one core
    python bench/growth.py --only sampling --rounds 1 --figures figures

One size grows, the others stay: K = 4, completions of 24 tokens to prompts of 96, a Llama of 128 and four layers with
random weights, 1,024 tokens known. The ideal is the FLOPs that must be done, each token once, at the rate of a large
matrix product measured in the same minute. Beside it stands what is simple: for reward training all pairs, each of its
texts computed; for sampling transformers' `generate`, whose completions all end together here, so that no row of it
waits. CPU seconds of one thread, medians of turns.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
import transformers
from ppo import PAD, number_words, tokenizer_holder
from random_models import build, updates

from instructgpt.data.packing import TokenizedExample
from instructgpt.data.rankings import LabelerRanks, RankedPrompt
from instructgpt.models.flops import BACKWARD_FLOPS_FACTOR, SequenceShape, get_model_shape, ppo_update_flops
from instructgpt.models.policy import count_parameters
from instructgpt.models.reward_model import ScalarModel
from instructgpt.plan.hardware import benchmark_machine
from instructgpt.report.naming import MODEL_COLORS
from instructgpt.report.svg import MUTED_COLOR, Curve, render_line_panel, render_svg_file
from instructgpt.sampling.engine import sample_tokens
from instructgpt.train.reward import ranking_backward

PROMPT, RANKINGS, SAMPLED, EPISODES, MINIBATCH = 96, 8, 16, 32, 8
"""Tokens of a prompt; rankings in a step of ours (pairs are measured on one); prompts sampled from at once; episodes in
an update, and in a step of it."""
TOGETHER = 16
"""Texts of pairs computed at once: about as many tokens as ours, which is fastest."""
CPU = torch.device("cpu")
Work = tuple[int, Callable[[], float]]
"""How many rankings, prompts or episodes it does at once, and what does it.

Ours gives the FLOPs that had to be done.
"""


@dataclass(frozen=True, slots=True)
class Case:
    """What grows."""

    k: int = 4
    length: int = 24
    size: tuple[int, int] = (128, 4)  # width and layers
    vocabulary: int = 1024

    def model(self, *, scalar: bool = False) -> Any:
        """A random model of this size."""
        width, layers = self.size
        shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": max(1, width // 32)}
        return build(shape | {"intermediate_size": width * 43 // 16, "vocab_size": self.vocabulary}, CPU, scalar=scalar)

    def texts(self, count: int) -> list[tuple[list[int], list[list[int]]]]:
        """Prompts with K completions each, of random tokens."""
        draw = random.Random(0)
        tokens = lambda length: [draw.randrange(3, self.vocabulary) for _ in range(length)]  # noqa: E731
        return [(tokens(PROMPT), [tokens(self.length) for _ in range(self.k)]) for _ in range(count)]

    def shared(self) -> list[SequenceShape]:
        """A prompt, once, and its completions after it."""
        return [SequenceShape(PROMPT), *([SequenceShape(self.length, PROMPT)] * self.k)]


Grows = tuple[str, list[Case], Callable[[Case], float]]
"""What grows, how far, and the number of it."""
K: Grows = ("completions, K", [Case(k=k) for k in (2, 3, 4, 6, 9, 12, 16)], lambda case: case.k)
LENGTH: Grows = (
    "tokens of a completion",
    [Case(length=n) for n in (8, 16, 32, 64, 128, 256)],
    lambda case: case.length,
)
SIZE: Grows = (
    "million parameters",
    [Case(size=size) for size in ((32, 2), (64, 3), (128, 4), (256, 6))],
    lambda case: round(count_parameters(case.model()) / 1e6, 2),
)
VOCABULARY: Grows = (
    "vocabulary",
    [Case(vocabulary=v) for v in (1024, 4096, 16_384, 50_257)],
    lambda case: case.vocabulary,
)

# --- what is measured: ours first, then what is simple, where there is such a thing ----------------------------------


def reward(case: Case) -> dict[str, Work]:
    """A step of reward training, forward and backward."""
    model = ScalarModel(case.model(scalar=True), tokenizer_holder(number_words(8)))
    stock = case.model(scalar=True)
    stock.set_attn_implementation("sdpa")
    rankings = case.texts(RANKINGS)
    order = LabelerRanks(tuple(range(1, case.k + 1)), None, "training")
    ranked = [
        RankedPrompt([TokenizedExample(prompt, one) for one in completions], (order,), "")
        for prompt, completions in rankings
    ]
    flops = (1 + BACKWARD_FLOPS_FACTOR) * get_model_shape(model.model).forward_flops(case.shared())

    def ours(ranked: list[RankedPrompt] = ranked) -> float:
        loss, _ = ranking_backward(model, ranked)
        model.model.zero_grad(set_to_none=True)
        return loss

    def pairs() -> float:
        loss = loss_of_pairs(stock, *rankings[0])
        stock.zero_grad(set_to_none=True)
        return loss

    if abs(ours(ranked[:1]) - pairs()) > 1e-4:
        sys.exit(f"{case}: our loss is {ours(ranked[:1])}, that of pairs {pairs()}")

    def whole() -> float:
        ours()
        return RANKINGS * flops

    return {"ours": (RANKINGS, whole), "pairs": (1, pairs)}


def loss_of_pairs(model: Any, prompt: list[int], completions: list[list[int]]) -> float:
    """Equation 1 as a trainer of pairs has it: both texts of every pair are computed, forward and backward."""
    rows = [prompt + one for pair in itertools.combinations(completions, 2) for one in pair]
    total = 0.0
    for start in range(0, len(rows), TOGETHER):
        tokens = torch.tensor(rows[start : start + TOGETHER])
        scores = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, 0]
        loss = -torch.nn.functional.logsigmoid(scores[::2] - scores[1::2]).sum() / (len(rows) // 2)
        loss.backward()
        total += float(loss.detach())
    return total


def sampling(case: Case) -> dict[str, Work]:
    """K completions of every prompt, at temperature 1; none ends by itself."""
    model, stock = case.model(), case.model()
    stock.set_attn_implementation("sdpa")
    stock.generation_config.eos_token_id = None
    prompts = [prompt for prompt, _ in case.texts(SAMPLED) for _ in range(case.k)]
    shape, seeds = get_model_shape(model), itertools.count()
    read = [
        text if not text.past_tokens else SequenceShape(text.tokens - 1, text.past_tokens) for text in case.shared()
    ]  # nobody reads the last token
    flops = SAMPLED * shape.forward_flops(read, case.k * case.length)

    def ours() -> float:
        sample_tokens(model, prompts, stop_tokens=(), max_tokens=case.length, seed=next(seeds))
        return flops

    @torch.inference_mode()
    def generate() -> float:
        tokens = torch.tensor(prompts)
        how = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": case.length, "pad_token_id": PAD}
        assert (
            stock.generate(input_ids=tokens, attention_mask=torch.ones_like(tokens), **how).shape[1]
            == PROMPT + case.length
        )
        return flops

    return {"ours": (SAMPLED, ours), "generate": (SAMPLED, generate)}


def ppo(case: Case) -> dict[str, Work]:
    """An update: an episode of every prompt, scored by all models, learned from once. Hardly one ends by itself."""
    policy = case.model()
    render = tokenizer_holder(number_words(case.vocabulary))
    judge, value = (ScalarModel(case.model(scalar=True), render) for _ in range(2))
    update = updates(policy, judge, value, [prompt for prompt, _ in case.texts(EPISODES)], case.length, MINIBATCH)
    shapes = [get_model_shape(model) for model in (policy, value.model, judge.model)]
    return {"ours": (EPISODES, lambda: sum(ppo_update_flops(*shapes, update().examples).values()))}


STAGES: dict[str, tuple[Callable[[Case], dict[str, Work]], str, tuple[Grows, ...]]] = {
    "reward": (reward, "a ranking", (K, LENGTH, SIZE, VOCABULARY)),
    "sampling": (sampling, "a prompt with K completions", (K, LENGTH, SIZE, VOCABULARY)),
    "ppo": (ppo, "an episode", (LENGTH, SIZE, VOCABULARY)),
}

# --- turns, tables, figures ------------------------------------------------------------------------------------------


def turns(sides: dict[str, Work], rounds: int) -> dict[str, float]:
    """CPU milliseconds each side and the ideal take for one, medians of turns after one that warms up."""
    taken: dict[str, list[float]] = {name: [] for name in (*sides, "ideal")}
    for number in range(rounds + 1):
        for name, (count, work) in sides.items():
            start = time.process_time()
            flops = work()
            seconds = time.process_time() - start
            if number:
                taken[name].append(1000 * seconds / count)
                taken["ideal"] += [1000 * flops / benchmark_machine(CPU).matmul / count] if name == "ours" else []
    return {name: statistics.median(times) for name, times in taken.items()}


def row(axis: str, grown: float, cost: dict[str, float]) -> str:
    """A row of a table: milliseconds, the share of the ideal, and how many times as long the simple way takes."""
    cells = [axis, f"{grown:,}", f"{cost['ours']:,.1f}", f"{cost['ideal']:,.1f}", f"{cost['ideal'] / cost['ours']:.0%}"]
    for name in simple(cost):
        cells += [f"{cost[name]:,.1f}", f"{cost[name] / cost['ours']:.1f}"]
    return f"| {' | '.join(cells)} |"


def simple(cost: dict[str, float]) -> list[str]:
    """The name of the simple way, where there is one."""
    return [name for name in cost if name not in ("ours", "ideal")]


def grow(stage: str, rounds: int, most: int | None, figures: Path) -> Iterator[str]:
    """The table of a stage, line by line; its figure comes last."""
    make, unit, growing = STAGES[stage]
    known: dict[Case, dict[str, float]] = {}  # one case stands under everything that grows
    panels, legend = [], [("ours", MODEL_COLORS["ppo"], False), ("ideal", MUTED_COLOR, True)]
    for axis, cases, number in growing:
        drawn = []
        for case in cases[:most]:
            if case not in known:
                known[case] = turns(make(case), rounds)
            if len(known) == 1 and not panels:
                legend += [(name, MODEL_COLORS["sft"], False) for name in simple(known[case])]
                head = [
                    "what grows",
                    "to",
                    "ours, ms",
                    "ideal",
                    "reached",
                    *(f"{name} | beside ours" for name in simple(known[case])),
                ]
                top = f"| {' | '.join(head)} |"
                yield top + "\n" + "|---" * (top.count("|") - 1) + "|"
            drawn.append((number(case), known[case]))
            yield row(axis, *drawn[-1])
        x = [grown for grown, _ in drawn]
        curves = [
            Curve(name, shade, x, [cost[name] for _, cost in drawn], dashed=dashed, show_markers=True)
            for name, shade, dashed in legend
        ]
        panels.append(render_line_panel(axis[:1].upper() + axis[1:], curves, "", sizes=x, log_scale_y=True))
    figures.mkdir(parents=True, exist_ok=True)
    (figures / f"growth-{stage}.svg").write_text(
        render_svg_file(f"CPU milliseconds {unit}", panels, legend), encoding="utf-8"
    )


def main() -> None:
    """Print the tables and draw the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns that count")
    parser.add_argument("--only", choices=tuple(STAGES), nargs="*", default=tuple(STAGES))
    parser.add_argument("--points", type=int, help="only so many of what grows, from the smallest")
    parser.add_argument(
        "--figures", type=Path, default=Path(__file__).parent.parent / "docs" / "figures", help="folder of the figures"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    for stage in options.only:
        print(f"\n{stage}, CPU milliseconds {STAGES[stage][1]}", flush=True)
        for line in grow(stage, options.rounds, options.points, options.figures):
            print(line, flush=True)


if __name__ == "__main__":
    main()
