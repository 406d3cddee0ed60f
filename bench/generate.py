"""Sampling, ours beside transformers' `generate` and `generate_batch`: same weights, same prompts, one thread, taking
turns.

    python bench/generate.py                 # 64 and 256 prompts, two sizes

The models are random Llamas whose end-of-text token was made likelier until completions have a mean of 24 tokens of at
most 64; what ends a completion is therefore the model, on every side. First all take the likeliest tokens, which must
agree token for token. What is timed is sampling at temperature 1 from the whole distribution, as PPO does; everybody
draws their own random numbers, so that rates, tokens that belong to a completion over CPU seconds, are compared.
We keep each token's log-probability; the others are not asked for it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
import transformers

from instructgpt.models.packed_attention import use_packed_attention
from instructgpt.sampling.engine import sample_tokens

Side = Callable[[list[list[int]], float], list[list[int]]]
"""Prompts and a temperature to completions."""
EOS, MEAN, MOST, PROMPT = 2, 24, 64, 64
SIZES = {"5.8 M": (256, 6, 8, 688, 4096), "0.9 M": (128, 4, 4, 344, 1024)}
"""Width, layers, heads, inner width, vocabulary."""


def llama(width: int, layers: int, heads: int, inner: int, vocabulary: int) -> Any:
    """A random Llama with tied embeddings, whose likeliest continuations do not repeat themselves."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
    }
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS}
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,
        **sizes,
        **special,
    )
    return transformers.LlamaForCausalLM(config).eval()


def make_prompts(count: int, vocabulary: int, length: int = PROMPT) -> list[list[int]]:
    """Prompts of random tokens."""
    return torch.randint(3, vocabulary, (count, length), generator=torch.Generator().manual_seed(1)).tolist()


def end_after(model: Any, prompts: list[list[int]], mean: float, most: int, temperature: float) -> None:
    """Scale the end-of-text's embedding, which is its output row too,
    until our completions have about this mean length.
    """
    row = model.get_input_embeddings().weight.data
    several = prompts * (4 if temperature else 1)  # lengths that are drawn scatter
    base, low, high = row[EOS].clone(), 1.0, 5.0
    for _ in range(8):
        row[EOS] = base * (low + high) / 2
        lengths = [
            len(one.tokens)
            for one in sample_tokens(
                model, several, stop_tokens=(EOS,), max_tokens=most, seed=5, temperature=temperature
            )
        ]
        low, high = (low, (low + high) / 2) if statistics.mean(lengths) < mean else ((low + high) / 2, high)


# --- the sides -------------------------------------------------------------------------------------------------------


def ours(model: Any) -> Side:
    """The engine, as PPO calls it."""
    seeds = iter(range(2**32))

    def side(prompts: list[list[int]], temperature: float) -> list[list[int]]:
        return [
            one.tokens
            for one in sample_tokens(
                model, prompts, stop_tokens=(EOS,), max_tokens=MOST, seed=next(seeds), temperature=temperature
            )
        ]

    return side


def with_generate(model: Any, batch: int) -> Side:
    """`generate`, so many prompts at a time, with its dynamic cache, which is the fastest of its caches on a CPU."""

    @torch.inference_mode()
    def side(prompts: list[list[int]], temperature: float) -> list[list[int]]:
        how = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
        rows: list[list[int]] = []
        for start in range(0, len(prompts), batch):
            tokens = torch.tensor(prompts[start : start + batch])
            given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "max_new_tokens": MOST}
            rows += model.generate(**given, eos_token_id=EOS, pad_token_id=0, **how)[:, tokens.shape[1] :].tolist()
        return [row[: row.index(EOS) + 1] if EOS in row else row for row in rows]

    return side


def with_generate_batch(model: Any) -> Side:
    """`generate_batch`, continuous batching over a paged cache sized for these prompts."""

    def side(prompts: list[list[int]], temperature: float) -> list[list[int]]:
        how = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
        config = transformers.GenerationConfig(max_new_tokens=MOST, eos_token_id=EOS, pad_token_id=0, **how)
        blocks = transformers.generation.configuration_utils.ContinuousBatchingConfig(
            page_size=32, num_blocks=len(prompts) * (PROMPT + MOST) // 32 + 8, max_batch_tokens=1024
        )
        outputs = model.generate_batch(prompts, generation_config=config, continuous_batching_config=blocks)
        by_number = sorted(outputs.items(), key=lambda item: int(item[0].rsplit("_", 1)[-1]))
        return [list(one.generated_tokens) for _, one in by_number]

    return side


# --- comparing -------------------------------------------------------------------------------------------------------


def timed(side: Side, prompts: list[list[int]]) -> tuple[float, float]:
    """Tokens a CPU second, and the mean length of a completion."""
    started = time.process_time()
    rows = side(prompts, 1.0)
    seconds = time.process_time() - started
    tokens = sum(map(len, rows))
    return tokens / seconds, tokens / len(rows)


def compare(size: str, count: int, rounds: int, paged: bool) -> Iterator[str]:
    """Rows of the table: everybody's likeliest tokens must be ours, then rounds of turns."""
    model, stock = llama(*SIZES[size]), llama(*SIZES[size])
    use_packed_attention(model)
    prompts = make_prompts(count, SIZES[size][-1])
    mine = ours(model)
    peers = {f"generate, {batch} at a time": with_generate(stock, batch) for batch in sorted({64, count})}
    if paged:
        peers["generate_batch"] = with_generate_batch(stock)
    for temperature in (0.0, 1.0):
        end_after(model, prompts[:64], MEAN, MOST, temperature)
        stock.load_state_dict(model.state_dict())
        if temperature == 0:
            agreed = mine(prompts, 0.0)
            for name in list(peers):
                try:
                    found = peers[name](prompts, 0.0)
                except Exception as error:  # what a peer raises where it cannot do this
                    yield f"{size}, {count} prompts: {name} does not run here: {' '.join(str(error).split())[:120]}"
                    del peers[name]
                    continue
                if found != agreed:
                    same = sum(a == b for a, b in zip(found, agreed, strict=True))
                    sys.exit(f"{size}: {name} has the same likeliest tokens for {same} of {count} prompts only")
    turns = [
        (timed(mine, prompts), {name: timed(peer, prompts) for name, peer in peers.items()}) for _ in range(rounds + 1)
    ][1:]
    rate, length = (statistics.median(turn[0][part] for turn in turns) for part in (0, 1))
    yield f"| {size} | {count} | ours | {rate:,.0f} | {length:.1f} | 1 |"
    for name in peers:
        rate, length = (statistics.median(turn[1][name][part] for turn in turns) for part in (0, 1))
        ratio = statistics.median(turn[0][0] / turn[1][name][0] for turn in turns)
        yield f"| {size} | {count} | {name} | {rate:,.0f} | {length:.1f} | {ratio:.2f} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--size", choices=SIZES, nargs="*", default=list(SIZES))
    parser.add_argument("--prompts", type=int, nargs="*", default=[64, 256])
    parser.add_argument("--no-paged", action="store_true", help="without generate_batch, which waits a lot on a CPU")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    print("| size | prompts | by | tokens a second | mean length | ours is faster by |", flush=True)
    for size in options.size:
        for count in options.prompts:
            for row in compare(size, count, options.rounds, not options.no_paged):
                print(row, flush=True)


if __name__ == "__main__":
    main()
