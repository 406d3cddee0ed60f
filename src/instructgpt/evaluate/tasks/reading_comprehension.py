"""Questions about a passage, with the earlier ones and their answers before them: what SQuADv2, QuAC and DROP share (appendix D)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Observation, Row, per_model
from instructgpt.evaluate.tasks.base import Asked, Question, Told, some

SHOWN = 4
"""Questions and answers of one example passage."""
MAX_TOKENS = 30


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, its references, and the answer that is shown to those who come later."""

    id: str
    question: str
    references: list[Any]
    answer: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A text with questions in order. `training`: it gives examples and is not asked."""

    text: str
    training: bool = False
    exchanges: list[Exchange] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Form:
    """How a task looks: its instruction, what stands before a passage's questions, a question up to its answer, and after the answer."""

    instruction: str
    ask: Callable[[str], str]
    after: str
    shots: int
    earlier: int


def questions_about(passages: Sequence[Passage], told: Told, form: Form) -> list[Question]:
    """Every question after its passage and the `earlier` ones before it; then with example passages in front.

    Raises:
        BadInput: there are fewer passages to draw from than examples are wanted.
    """
    training = [passage for passage in passages if passage.training]
    asked = [passage for passage in passages if not passage.training] or training
    pool = training if training and training is not asked else asked
    wanted = form.shots if told.shots is None else told.shots
    if wanted and wanted > (there := len(pool) - (pool is asked)):
        raise BadInput(f"{wanted} example passages are wanted, and there are {there} for them; give --shots {there}")
    questions = []
    for passage, place in some([(each, place) for each in asked for place in range(len(each.exchanges))], told):
        exchange = passage.exchanges[place]
        text = shown(passage, max(0, place - form.earlier), place, form) + form.ask(exchange.question)
        truth = {"answers": exchange.references, "context": passage.text}
        drawn = Random(f"examples {told.seed} {exchange.id}").sample(range(len(pool)), min(wanted + 1, len(pool))) if wanted else []
        others = [pool[number] for number in drawn if pool[number] is not passage][:wanted]
        conditions = {"zero_shot": ""}
        if wanted:
            conditions["few_shot"] = "".join(shown(other, 0, SHOWN, form) + "\n" for other in others)
        questions += [
            Question(exchange.id, condition, f"{form.instruction}\n\n{examples}{text}", max_tokens=MAX_TOKENS, truth=truth)
            for condition, examples in conditions.items()
        ]
    return questions


def shown(passage: Passage, start: int, end: int, form: Form) -> str:
    """A passage with some of its questions and their answers."""
    return passage.text + "".join(f"{form.ask(each.question)} {each.answer}{form.after}" for each in passage.exchanges[start:end])


def passages_of(exchanges: Sequence[tuple[str, str, bool, Exchange]]) -> list[Passage]:
    """Exchanges by what they belong to, in order: (name of the dialogue, text before the questions, training, exchange)."""
    found: dict[tuple[str, str, bool], Passage] = {}
    for dialogue, text, training, exchange in exchanges:
        found.setdefault((dialogue, text, training), Passage(text, training)).exchanges.append(exchange)
    return list(found.values())


def rows_by_context(name: str, asked: Sequence[Asked], scores: Mapping[str, Callable[[str, list[Any]], float]]) -> list[Row]:
    """A row for each metric, condition and model, clustered by passage; a score sees what was said and the references."""
    rows: list[Row] = []
    for condition in dict.fromkeys(question.condition for question, _ in asked):
        for metric, score in scores.items():
            observations = [
                Observation(reply.model, score(reply.said or "", question.truth["answers"]), (question.truth["context"],))
                for question, reply in asked
                if question.condition == condition
            ]
            rows += per_model(name, metric, condition, observations, share=True)
    return rows
