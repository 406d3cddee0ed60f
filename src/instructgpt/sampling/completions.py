"""Prompts in, completions as text out: the engine between two renderings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from instructgpt.data.packing import Example
from instructgpt.data.tokenization import Renderer
from instructgpt.records import Asked
from instructgpt.sampling.distributed import sample_on_ranks
from instructgpt.sampling.engine import Sample, sample


@dataclass(frozen=True, slots=True)
class Generated:
    """One completion: its prompt, its text, both as the model's tokens, and whether the model ended it by itself."""

    prompt: Asked
    text: str
    example: Example
    finished: bool


def generate(
    model: Any,
    render: Renderer,
    prompts: Sequence[Asked],
    *,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    per_prompt: int = 1,
) -> list[Generated]:
    """Completions of rendered prompts, `per_prompt` in a row for each. Raises BadInput where a prompt does not fit."""
    rendered = [render.prompt(prompt) for prompt in prompts for _ in range(per_prompt)]
    samples = sample_on_ranks(model, rendered, eos=render.eos, max_tokens=max_tokens, seed=seed, temperature=temperature, top_p=top_p)
    asked = [prompt for prompt in prompts for _ in range(per_prompt)]
    return as_generated(render, asked, rendered, samples)


def as_generated(render: Renderer, asked: Sequence[Asked], rendered: Sequence[list[int]], samples: Sequence[Sample]) -> list[Generated]:
    """Samples as completions of what was asked."""
    return [
        Generated(prompt, render.text(one.tokens), Example(tokens, one.tokens), one.finished)
        for prompt, tokens, one in zip(asked, rendered, samples, strict=True)
    ]


def read_by(reader: Renderer, writer: Renderer, answers: Sequence[Generated]) -> list[Example]:
    """Completions as another model reads them: the very tokens where both share a tokenizer, else rendered again from text."""
    if reader.same_tokens(writer):
        return [answer.example for answer in answers]
    return [reader.example(answer.prompt, answer.text, finished=answer.finished) for answer in answers]


def continue_text(
    model: Any,
    render: Renderer,
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
    rendered = [render.plain(text) for text in texts]
    samples = sample(model, rendered, eos=render.eos, max_tokens=max_tokens, seed=seed, temperature=temperature, top_p=top_p)
    continued = []
    for one in samples:
        text = render.text(one.tokens)
        before, found, _ = text.partition(stop) if stop else (text, "", "")
        continued.append((before, bool(found) or one.finished))
    return continued
