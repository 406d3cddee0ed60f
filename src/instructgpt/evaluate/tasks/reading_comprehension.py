"""Questions about a passage with the earlier questions and answers in front: shared by SQuADv2, QuAC and DROP (appendix D)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from instructgpt.errors import InputError
from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.evaluate.tasks.base import EvalQuestion, EvalSettings, QuestionReply, subsample
from instructgpt.results import ResultRow

_EXCHANGES_PER_EXAMPLE = 4
_MAX_TOKENS = 30


@dataclass(frozen=True, slots=True)
class QAExchange:
    """A question, its references, and the answer shown to later questions."""

    id: str
    question: str
    references: list[Any]
    answer: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A text with its questions in order. Training passages only provide examples."""

    text: str
    is_training: bool = False
    exchanges: list[QAExchange] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """A task's prompt: instruction, question format, separator after an answer, default shots, earlier questions shown."""

    instruction: str
    format_question: Callable[[str], str]
    separator: str
    shots: int
    max_history: int


def build_passage_questions(
    passages: Sequence[Passage], settings: EvalSettings, prompt_format: PromptFormat
) -> list[EvalQuestion]:
    """Build every question after its passage and up to `max_history` earlier ones, zero-shot and with example passages."""
    training_passages = [passage for passage in passages if passage.is_training]
    eval_passages = [passage for passage in passages if not passage.is_training] or training_passages
    example_passages = (
        training_passages if training_passages and training_passages is not eval_passages else eval_passages
    )
    num_shots = prompt_format.shots if settings.shots is None else settings.shots
    if num_shots and num_shots > (num_available := len(example_passages) - (example_passages is eval_passages)):
        raise InputError(
            f"{num_shots} example passages are wanted, and there are {num_available} for them; give --shots {num_available}"
        )
    questions = []
    for passage, exchange_index in subsample(
        [(each, exchange_index) for each in eval_passages for exchange_index in range(len(each.exchanges))], settings
    ):
        exchange = passage.exchanges[exchange_index]
        passage_prompt = _format_passage(
            passage, max(0, exchange_index - prompt_format.max_history), exchange_index, prompt_format
        ) + prompt_format.format_question(exchange.question)
        target = {"answers": exchange.references, "context": passage.text}
        sampled_indices = (
            Random(f"examples {settings.seed} {exchange.id}").sample(
                range(len(example_passages)), min(num_shots + 1, len(example_passages))
            )
            if num_shots
            else []
        )
        examples_for_passage = [
            example_passages[passage_index]
            for passage_index in sampled_indices
            if example_passages[passage_index] is not passage
        ][:num_shots]
        prefixes = {"zero_shot": ""}
        if num_shots:
            prefixes["few_shot"] = "".join(
                _format_passage(example, 0, _EXCHANGES_PER_EXAMPLE, prompt_format) + "\n"
                for example in examples_for_passage
            )
        questions += [
            EvalQuestion(
                exchange.id,
                condition,
                f"{prompt_format.instruction}\n\n{prefix}{passage_prompt}",
                max_tokens=_MAX_TOKENS,
                target=target,
            )
            for condition, prefix in prefixes.items()
        ]
    return questions


def _format_passage(passage: Passage, start: int, end: int, prompt_format: PromptFormat) -> str:
    return passage.text + "".join(
        f"{prompt_format.format_question(exchange.question)} {exchange.answer}{prompt_format.separator}"
        for exchange in passage.exchanges[start:end]
    )


def group_by_passage(exchanges: Sequence[tuple[str, str, bool, QAExchange]]) -> list[Passage]:
    """Group exchanges of (dialogue, text before the questions, is_training, exchange) into passages, in order."""
    passages: dict[tuple[str, str, bool], Passage] = {}
    for dialogue, text, is_training, exchange in exchanges:
        passages.setdefault((dialogue, text, is_training), Passage(text, is_training)).exchanges.append(exchange)
    return list(passages.values())


def metric_rows_by_context(
    evaluation: str, replies: Sequence[QuestionReply], metric_fns: Mapping[str, Callable[[str, list[Any]], float]]
) -> list[ResultRow]:
    """Return a row for each metric, condition and model, clustered by passage. A metric maps (reply, references) to a number."""
    rows: list[ResultRow] = []
    for condition in dict.fromkeys(question.condition for question, _ in replies):
        for metric, metric_fn in metric_fns.items():
            observations = [
                Observation(
                    reply.model, metric_fn(reply.said or "", question.target["answers"]), (question.target["context"],)
                )
                for question, reply in replies
                if question.condition == condition
            ]
            rows += aggregate_per_model(evaluation, metric, condition, observations, share=True)
    return rows
