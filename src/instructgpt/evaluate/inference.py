"""Run models for evaluation: answers, continuations, and log-probabilities of texts and choices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instructgpt import functional
from instructgpt.data.packing import TokenizedExample, collate, microbatches_by_prompt, token_budget
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.models.policy import context_length, load_policy, per_token_outputs
from instructgpt.records import Completion, Prompt, PromptFields
from instructgpt.sampling.completions import continue_text, generate


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model under evaluation. `add_few_shot_prefix` turns a prompt into a few-shot text (the prompted base model)."""

    name: str
    lm: Any
    tokenizer: PromptTokenizer
    add_few_shot_prefix: Callable[[str], str] | None = None

    @classmethod
    def load(
        cls,
        name: str,
        folder: Path | str,
        device: torch.device,
        add_few_shot_prefix: Callable[[str], str] | None = None,
    ) -> EvaluatedModel:
        return cls(name, *load_policy(folder, device), add_few_shot_prefix)


@lru_cache(maxsize=1)
def load_cached_model(folder: str, device: str) -> EvaluatedModel:
    """Load a model and keep it until another one is requested, so that each process loads a model once."""
    return EvaluatedModel.load(Path(folder).name, Path(folder), torch.device(device))


def to_prompt(prompt: str | PromptFields) -> Prompt:
    """Return a prompt of text or of another record as a prompt record without other columns."""
    return Prompt(prompt=prompt) if isinstance(prompt, str) else Prompt.model_validate(prompt.prompt_columns())


def generate_answers(
    model: EvaluatedModel,
    prompts: Sequence[str | PromptFields],
    *,
    max_tokens: int,
    seed: int,
    temperature: float,
    per_prompt: int = 1,
) -> list[Completion]:
    """Complete instructions, `per_prompt` consecutive samples each. With a few-shot prefix each is one line."""
    sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    records = [to_prompt(prompt) for prompt in prompts]
    if model.add_few_shot_prefix is None:
        completions = generate(model.lm, model.tokenizer, records, per_prompt=per_prompt, **sampling)
        results = [(completion.text, completion.finish == "stop") for completion in completions]
    else:
        texts = [model.add_few_shot_prefix(record.prompt) for record in records]
        results = continue_text(model.lm, model.tokenizer, texts, per_text=per_prompt, **sampling)
    fields = {"model": model.name, "sampling": sampling}
    repeated = [record.prompt_columns() for record in records for _ in range(per_prompt)]
    return [
        Completion(**columns, completion=text.strip(), finish="stop" if finished else "length", **fields)
        for columns, (text, finished) in zip(repeated, results, strict=True)
    ]


def generate_continuations(
    model: EvaluatedModel, texts: Sequence[str], *, max_tokens: int, seed: int = 0, temperature: float = 0.0
) -> list[str]:
    """Continue plain texts up to the first newline (appendix D)."""
    sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    return [text.strip() for text, _ in continue_text(model.lm, model.tokenizer, texts, **sampling)]


def text_logps(model: EvaluatedModel, texts: Sequence[str]) -> list[tuple[float, int]]:
    """Return (summed log-probability in nats, number of tokens) of each text, as `choice_logps` scores them."""
    return choice_logps(model, [("", text) for text in texts])


def choice_logps(model: EvaluatedModel, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
    """Return (summed log-probability in nats, number of tokens) of each choice after its text.

    A text longer than the context loses its beginning. In front of a choice without a text stands the token that begins
    texts, or where the tokenizer adds none, the end-of-text token, so that the first token has a probability.
    """
    max_length = context_length(model.lm)
    examples: list[TokenizedExample] = []
    for text, choice in pairs:
        choice_ids = model.tokenizer.encode_completion(choice, finished=False)
        context_ids = model.tokenizer.encode_text(text) or [model.tokenizer.eos]
        examples.append(TokenizedExample(context_ids[-max(1, max_length - len(choice_ids)) :], choice_ids))
    logps = sum_completion_logps(model.lm, examples)
    return [(logp, len(example.completion_ids)) for logp, example in zip(logps, examples, strict=True)]


def sum_completion_logps(lm: Any, examples: Sequence[TokenizedExample]) -> list[float]:
    """Return the summed log-probability of each example's completion, in nats."""
    return [total for total, _ in completion_logps_and_greedy(lm, examples)]


@torch.no_grad()
def completion_logps_and_greedy(lm: Any, examples: Sequence[TokenizedExample]) -> list[tuple[float, bool]]:
    """Return, for each example, the completion's log-probability (nats) and whether it is the greedy completion.

    A prompt that several completions share is computed once.
    """
    device = lm.device
    results = [(0.0, True)] * len(examples)
    for rows in microbatches_by_prompt(examples, token_budget(device)):
        batch = collate([examples[row] for row in rows], device)
        logp, greedy = per_token_outputs(lm, batch, functional.token_logp, is_argmax)
        sizes = [len(examples[row].completion_ids) for row in rows]  # per-token outputs are flat, row after row
        parts = zip(rows, torch.split(logp.double(), sizes), torch.split(greedy, sizes), strict=True)
        for row, token_logps, is_greedy in parts:
            results[row] = (float(token_logps.sum()), bool(is_greedy.all()))
    return results


def is_argmax(logits: Tensor, targets: Tensor) -> Tensor:
    """Return whether each target is the most likely token. (N, V), (N,) -> (N,)."""
    return logits.argmax(-1) == targets
