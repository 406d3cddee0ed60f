"""Prompts in, completions as text out: the engine between two renderings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instructgpt.data.packing import TokenizedExample
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.records import PromptFields
from instructgpt.sampling.distributed import sample_on_ranks
from instructgpt.sampling.engine import SampledTokens, sample_tokens


@dataclass(frozen=True, slots=True)
class SampledCompletion:
    """One completion: its prompt, its text, both as the model's tokens, and whether the model ended it by itself."""

    prompt: PromptFields
    text: str
    example: TokenizedExample
    finished: bool


def generate(
    model: Any,
    tokenizer: PromptTokenizer,
    prompts: Sequence[PromptFields],
    *,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    per_prompt: int = 1,
) -> list[SampledCompletion]:
    """Completions of rendered prompts, `per_prompt` in a row for each. Raises BadInput where a prompt does not fit."""
    prompt_ids = [tokenizer.encode_prompt(prompt) for prompt in prompts for _ in range(per_prompt)]
    samples = sample_on_ranks(
        model, prompt_ids, eos=tokenizer.eos, max_tokens=max_tokens, seed=seed, temperature=temperature, top_p=top_p
    )
    repeated_prompts = [prompt for prompt in prompts for _ in range(per_prompt)]
    return decode_samples(tokenizer, repeated_prompts, prompt_ids, samples)


def decode_samples(
    tokenizer: PromptTokenizer,
    prompts: Sequence[PromptFields],
    prompt_ids: Sequence[list[int]],
    samples: Sequence[SampledTokens],
) -> list[SampledCompletion]:
    """Samples as completions of what was asked."""
    return [
        SampledCompletion(
            prompt, tokenizer.decode(tokens.tokens), TokenizedExample(ids, tokens.tokens), tokens.finished
        )
        for prompt, ids, tokens in zip(prompts, prompt_ids, samples, strict=True)
    ]


def retokenize_for(
    tokenizer: PromptTokenizer, source_tokenizer: PromptTokenizer, completions: Sequence[SampledCompletion]
) -> list[TokenizedExample]:
    """Completions as another model reads them: the very tokens where both share a tokenizer, else rendered again from text."""
    if tokenizer.is_compatible(source_tokenizer):
        return [completion.example for completion in completions]
    return [
        tokenizer.encode_example(completion.prompt, completion.text, finished=completion.finished)
        for completion in completions
    ]


def continue_text(
    model: Any,
    tokenizer: PromptTokenizer,
    texts: Sequence[str],
    *,
    max_tokens: int,
    seed: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    stop: str | None = "\n",
) -> list[tuple[str, bool]]:
    """Continuations of text as it stands, cut before `stop` (paper, appendix D: temperature 0, cut at the first newline), if any.

    Returns each continuation and whether it reached the stop or an end-of-text.
    """
    prompt_ids = [tokenizer.encode_text(text) for text in texts]
    samples = sample_tokens(
        model, prompt_ids, eos=tokenizer.eos, max_tokens=max_tokens, seed=seed, temperature=temperature, top_p=top_p
    )
    continuations = []
    for completion in samples:
        text = tokenizer.decode(completion.tokens)
        continuation, stop_found, _ = text.partition(stop) if stop else (text, "", "")
        continuations.append((continuation, bool(stop_found) or completion.finished))
    return continuations
