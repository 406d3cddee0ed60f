"""Samples of policies: distinct answers of the start, and answers of later ones with their KL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from instructgpt.data.packing import TokenizedExample
from instructgpt.evaluate.configs import BestOfNConfig, StartSamplesConfig
from instructgpt.evaluate.inference import EvaluatedModel, generate_answers, sum_completion_logps, to_prompt
from instructgpt.records import Completion, PromptFields
from instructgpt.sampling.completions import generate

_T = TypeVar("_T")
_P = TypeVar("_P", str, PromptFields)
START = "start"
_PROMPTS_PER_BLOCK = 8


class DistinctAnswers(PromptFields):
    """Distinct answers to one prompt."""

    completions: list[str]
    finishes: list[str]

    def answers(self, label: str) -> list[Completion]:
        """Return them as answers of the model `label`."""
        return [
            build_answer(self, text, finish, label)
            for text, finish in zip(self.completions, self.finishes, strict=True)
        ]


def build_answer(prompt: PromptFields, text: str, finish: str, label: str) -> Completion:
    fields = {**prompt.prompt_columns(), "completion": text, "finish": finish, "model": label}
    return Completion.model_validate(fields)


def answer_key(answer: Completion) -> tuple[str, bool, str, str]:
    """Return what two answers share that get the same score: prompt, completion and finish."""
    return answer.prompt, answer.messages is None, answer.completion, answer.finish


def sample_blocks(
    model: EvaluatedModel, prompts: Sequence[_P], config: BestOfNConfig | StartSamplesConfig
) -> Iterator[tuple[Sequence[_P], list[Completion]]]:
    """Yield a few prompts at a time with `config.samples` answers to each, those of a prompt one after the other."""
    sampling = {"max_tokens": config.max_tokens, "temperature": 1.0, "per_prompt": config.samples}
    for first in range(0, len(prompts), _PROMPTS_PER_BLOCK):
        block = prompts[first : first + _PROMPTS_PER_BLOCK]
        yield block, generate_answers(model, block, seed=config.seed + first, **sampling)  # type: ignore[arg-type]


def split_by_prompt(values: Sequence[_T], size: int) -> list[list[_T]]:
    """Return the values of each prompt, of which every one has `size`."""
    return [list(values[first : first + size]) for first in range(0, len(values), size)]


def index_distinct(answers: Sequence[Completion]) -> tuple[list[tuple[str, str]], list[int]]:
    """Return the distinct answers as (text, finish), and which of them each answer is."""
    distinct: dict[tuple[str, str], int] = {}
    indices = [distinct.setdefault((answer.completion, answer.finish), len(distinct)) for answer in answers]
    return list(distinct), indices


def sample_policy(
    model: EvaluatedModel,
    start_lm: Any,
    prompts: Sequence[str | PromptFields],
    config: BestOfNConfig | StartSamplesConfig,
) -> tuple[list[Completion], list[TokenizedExample], list[float]]:
    """Sample `config.answers` answers to each prompt, other ones than best of n has.

    Returns:
        The answers, the same as tokens, and log pi - log pi_start of each in nats.
    """
    samples = generate(
        model.lm,
        model.tokenizer,
        [to_prompt(prompt) for prompt in prompts],
        max_tokens=config.max_tokens,
        seed=config.seed + 1,
        per_prompt=config.answers,
    )
    examples = [sample.example for sample in samples]
    logps, start_logps = (sum_completion_logps(lm, examples) for lm in (model.lm, start_lm))
    answers = [build_answer(s.prompt, s.text.strip(), s.finish, model.name) for s in samples]
    return answers, examples, [logp - start_logp for logp, start_logp in zip(logps, start_logps, strict=True)]
