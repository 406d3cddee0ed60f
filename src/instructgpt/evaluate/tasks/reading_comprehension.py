"""Questions about a passage after earlier questions and answers, for SQuADv2, QuAC and DROP (appendix D)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from instructgpt.evaluate.tasks.base import (
    EvalQuestion,
    EvalSettings,
    ModelReply,
    QuestionReply,
    measure_by_condition,
    subsample,
)
from instructgpt.evaluate.tasks.few_shot import check_num_examples
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
    """A task's prompt. `separator` follows an answer; `max_history` limits the earlier questions shown."""

    instruction: str
    format_question: Callable[[str], str]
    separator: str
    shots: int
    max_history: int


def build_passage_questions(
    passages: Sequence[Passage], settings: EvalSettings, prompt_format: PromptFormat
) -> list[EvalQuestion]:
    """Build every question after its passage and up to `max_history` earlier ones, zero-shot and few-shot."""
    training_passages = [passage for passage in passages if passage.is_training]
    eval_passages = [passage for passage in passages if not passage.is_training] or training_passages
    example_passages = training_passages or eval_passages
    num_shots = prompt_format.shots if settings.shots is None else settings.shots
    if num_shots:  # a passage is no example for itself
        check_num_examples(num_shots, len(example_passages) - (example_passages is eval_passages), "passages")
    exchanges = [(passage, index) for passage in eval_passages for index in range(len(passage.exchanges))]
    questions = []
    for passage, index in subsample(exchanges, settings):
        exchange = passage.exchanges[index]
        history = _format_passage(passage, max(0, index - prompt_format.max_history), index, prompt_format)
        prefixes = {"zero_shot": ""}
        if num_shots:
            rng, size = Random(f"examples {settings.seed} {exchange.id}"), len(example_passages)
            indices = rng.sample(range(size), min(num_shots + 1, size))
            examples = [example_passages[i] for i in indices if example_passages[i] is not passage][:num_shots]
            formatted = (_format_passage(example, 0, _EXCHANGES_PER_EXAMPLE, prompt_format) for example in examples)
            prefixes["few_shot"] = "".join(f"{text}\n" for text in formatted)
        target = {"answers": exchange.references, "context": passage.text}
        for condition, prefix in prefixes.items():
            question = prompt_format.format_question(exchange.question)
            text = f"{prompt_format.instruction}\n\n{prefix}{history}{question}"
            questions.append(EvalQuestion(exchange.id, condition, text, max_tokens=_MAX_TOKENS, target=target))
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
    """Return rows by metric, condition and model, clustered by passage. A metric maps (reply, references) to 0..1."""

    def score(metric_fn: Callable[[str, list[Any]], float]) -> Callable[[EvalQuestion, ModelReply], float]:
        return lambda question, reply: metric_fn(reply.said or "", question.target["answers"])

    scores = {metric: score(metric_fn) for metric, metric_fn in metric_fns.items()}
    return measure_by_condition(evaluation, replies, scores, lambda question: question.target["context"])
