"""Putting questions to models: what they answer, how they go on, and how likely they find a sentence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructgpt import functional
from instructgpt.data.packing import Example, by_prompt, collate, token_budget
from instructgpt.data.tokenization import Renderer
from instructgpt.models.policy import completion_numbers, context_length, load_policy
from instructgpt.records import Completion, Prompt
from instructgpt.sampling.completions import continue_text, generate


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under examination. `prime` puts a prompt behind a few-shot prefix: the prompted base model."""

    name: str
    model: Any
    render: Renderer
    prime: Callable[[str], str] | None = None

    @classmethod
    def load(cls, name: str, folder: Path, device: torch.device, prime: Callable[[str], str] | None = None) -> Subject:
        """A subject from a model directory."""
        model, render = load_policy(folder, device)
        return cls(name, model, render, prime)


@lru_cache(maxsize=1)
def subject_at(folder: str, device: str) -> Subject:
    """The model in a directory, kept until another one is asked: each process loads it when it first needs it."""
    return Subject.load(Path(folder).name, Path(folder), torch.device(device))


def answers(
    subject: Subject, prompts: Sequence[str], *, max_tokens: int, seed: int, temperature: float, per_prompt: int = 1
) -> list[Completion]:
    """Completions of instructions, `per_prompt` in a row for each. A primed model's ends at the first newline."""
    how = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    asked = [prompt for prompt in prompts for _ in range(per_prompt)]
    if subject.prime is None:
        made = generate(
            subject.model,
            subject.render,
            [Prompt(prompt=prompt) for prompt in asked],
            max_tokens=max_tokens,
            seed=seed,
            temperature=temperature,
        )
        ended = [(one.text, one.finished) for one in made]
    else:
        texts = [subject.prime(prompt) for prompt in asked]
        ended = continue_text(subject.model, subject.render, texts, max_tokens=max_tokens, seed=seed, temperature=temperature)
    return [
        Completion(prompt=prompt, completion=text.strip(), model=subject.name, finish="stop" if finished else "length", sampling=how)
        for prompt, (text, finished) in zip(asked, ended, strict=True)
    ]


def continuations(subject: Subject, texts: Sequence[str], *, max_tokens: int, seed: int = 0, temperature: float = 0.0) -> list[str]:
    """How the model goes on with text as it stands, up to the first newline (appendix D)."""
    return [
        text.strip()
        for text, _ in continue_text(subject.model, subject.render, texts, max_tokens=max_tokens, seed=seed, temperature=temperature)
    ]


def text_logp(subject: Subject, texts: Sequence[str]) -> list[tuple[float, int]]:
    """For each text the summed log-probability of its tokens after a start of text, in nats, and their number."""
    return choice_logp(subject, [("", text) for text in texts])


def choice_logp(subject: Subject, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
    """For each (text, choice) the summed log-probability of the choice's tokens after the text, in nats, and their number.

    A text too long for the context loses its beginning; an empty one is a start of text.
    """
    context = context_length(subject.model)
    examples: list[Example] = []
    for text, choice in pairs:
        wanted = subject.render.completion(choice, finished=False)
        before = subject.render.plain(text) if text else [subject.render.eos]
        examples.append(Example(before[-max(1, context - len(wanted)) :], wanted))
    return [(total, len(example.completion)) for total, example in zip(summed_logp(subject.model, examples), examples, strict=True)]


def summed_logp(model: Any, examples: Sequence[Example]) -> list[float]:
    """The log-probability of each example's whole completion, in nats."""
    return [total for total, _ in scored_completions(model, examples)]


@torch.no_grad()
def scored_completions(model: Any, examples: Sequence[Example]) -> list[tuple[float, bool]]:
    """For each example the log-probability of its whole completion (nats), and whether it is what the model itself would say.

    A prompt that several completions follow is computed once.
    """
    device = model.device
    found = [(0.0, True)] * len(examples)
    for rows in by_prompt(examples, token_budget(device)):
        batch = collate([examples[row] for row in rows], device)
        logp, greedy = completion_numbers(model, batch, functional.token_logp, likeliest)
        sizes = [len(examples[row].completion) for row in rows]
        for row, part, taken in zip(rows, torch.split(logp.double(), sizes), torch.split(greedy, sizes), strict=True):
            found[row] = (float(part.sum()), bool(taken.all()))
    return found


def likeliest(logits: Tensor, targets: Tensor) -> Tensor:
    """Whether each target is the likeliest token. (N, V), (N,) -> (N,)."""
    return logits.argmax(-1) == targets
