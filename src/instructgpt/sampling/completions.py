"""Completions as text: prompts are tokenized, sampled, and decoded."""

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
    """One completion as text and as tokens, and whether it ended with a stop token."""

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
    first_index: int = 0,
) -> list[SampledCompletion]:
    """Sample `per_prompt` completions of each prompt, in order. Raises InputError where a prompt is too long.

    Args:
        first_index: index of the first completion where these are a part of more; it fixes their random numbers.
    """
    repeated_prompts = [prompt for prompt in prompts for _ in range(per_prompt)]
    prompt_ids = [tokenizer.encode_prompt(prompt) for prompt in repeated_prompts]
    samples = sample_on_ranks(
        model,
        prompt_ids,
        stop_tokens=tokenizer.stop_tokens,
        max_tokens=max_tokens,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        first_index=first_index,
    )
    return decode_samples(tokenizer, repeated_prompts, prompt_ids, samples)


def decode_samples(
    tokenizer: PromptTokenizer,
    prompts: Sequence[PromptFields],
    prompt_ids: Sequence[list[int]],
    samples: Sequence[SampledTokens],
) -> list[SampledCompletion]:
    """Decode sampled tokens."""
    return [
        SampledCompletion(prompt, tokenizer.decode(x.tokens), TokenizedExample(ids, x.tokens), x.finished)
        for prompt, ids, x in zip(prompts, prompt_ids, samples, strict=True)
    ]


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first of the stop texts, and whether there is one."""
    positions = [position for text_of_stop in stop if (position := text.find(text_of_stop)) >= 0]
    return (text[: min(positions)], True) if positions else (text, False)


def retokenize_for(
    tokenizer: PromptTokenizer, source_tokenizer: PromptTokenizer, completions: Sequence[SampledCompletion]
) -> list[TokenizedExample]:
    """Return completions as tokens of another model: the same where both share a tokenizer, else encoded from text.

    A finished completion ends with the end of the turn, whichever stop token ended it.
    """
    if tokenizer.is_compatible(source_tokenizer):
        return [
            tokenizer.with_end_of_turn(completion.example) if completion.finished else completion.example
            for completion in completions
        ]
    return [tokenizer.encode_example(x.prompt, x.text, finished=x.finished) for x in completions]


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
    """Continue texts without a prompt template, up to `stop` (paper, appendix D: temperature 0, a newline).

    Returns each continuation, and whether it reached `stop` or a stop token.
    """
    prompt_ids = [tokenizer.encode_text(text) for text in texts]
    samples = sample_tokens(
        model,
        prompt_ids,
        stop_tokens=tokenizer.stop_tokens,
        max_tokens=max_tokens,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
    )
    continuations = []
    for completion in samples:
        text = tokenizer.decode(completion.tokens)
        continuation, stop_found, _ = text.partition(stop) if stop else (text, "", "")
        continuations.append((continuation, bool(stop_found) or completion.finished))
    return continuations
