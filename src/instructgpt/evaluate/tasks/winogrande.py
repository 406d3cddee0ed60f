"""WinoGrande: which of two nouns does a sentence mean? (Sakaguchi et al. 2020; not among the paper's evaluations: accuracy)

Each noun is put in its place; the one after which the rest of the sentence is likelier is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import BadInput
from instructgpt.evaluate.aggregate import Observation, Row, per_model
from instructgpt.evaluate.tasks.base import Asked, Evaluation, Question, Told
from instructgpt.evaluate.tasks.few_shot import conditions, in_front, picked, split_off
from instructgpt.evaluate.tasks.loading import rows_of

NAME = "winogrande"


def parts(row: dict[str, Any]) -> tuple[list[str], str, Any]:
    """The beginnings with either noun, the rest, the right one's place: `contexts`, `continuation`, `gold`, or the hub's own columns."""
    if "sentence" in row:
        before, _, rest = str(row["sentence"]).partition("_")
        right = {"1": 0, "2": 1}.get(str(row.get("answer")))
        return [f"{before}{row['option1']}", f"{before}{row['option2']}"], rest.strip(), right
    return list(row["contexts"]), str(row["continuation"]).strip(), row.get("gold")


def told_whole(row: dict[str, Any]) -> str:
    """A sentence with the right noun."""
    beginnings, rest, right = parts(row)
    return f"{beginnings[int(right)]} {rest}"


def read(file: Path, told: Told) -> list[Question]:
    """Every sentence twice, once with each noun; after examples where `--shots` asks for some.

    Raises:
        BadInput: a row does not tell which noun is right.
    """
    rows = rows_of(file)
    for number, row in enumerate(rows, 1):
        try:
            beginnings, rest, right = parts(row)
        except KeyError as error:
            raise BadInput(f"{file}: row {number} has no {error} (columns found: {', '.join(map(str, row))})") from error
        if str(right) not in ("0", "1") or len(beginnings) != 2 or not rest:
            raise BadInput(
                f"{file}: row {number} has {len(beginnings)} beginnings and {right!r} as the right one; expected two, and 0 or 1"
            )
    asked, training = split_off(rows)
    return [
        Question(
            f"{number}/{place}",
            condition,
            in_front(examples, told_whole) + beginning,
            (f" {parts(row)[1]}",),
            truth={"right": int(parts(row)[2]), "place": place, "sentence": number},
        )
        for number, condition, row, examples in conditions(asked, told, training, shots=0)
        for place, beginning in enumerate(parts(row)[0])
    ]


def measure(asked: Sequence[Asked], told: Told) -> list[Row]:  # noqa: ARG001
    """`accuracy` by condition and model; equally likely is wrong."""
    logp: dict[tuple[str, str, int], list[float]] = {}
    right: dict[int, int] = {}
    for question, reply in asked:
        sentence = question.truth["sentence"]
        logp.setdefault((question.condition, reply.model, sentence), [0.0, 0.0])[question.truth["place"]] = reply.logp[0]
        right[sentence] = question.truth["right"]
    return [
        row
        for condition in dict.fromkeys(condition for condition, _, _ in logp)
        for row in per_model(
            NAME,
            "accuracy",
            condition,
            [
                Observation(model, float(picked(both, [1, 1]) == right[sentence]), (f"{sentence}",))
                for (where, model, sentence), both in logp.items()
                if where == condition
            ],
            share=True,
        )
    ]


EVALUATION = Evaluation(NAME, "which of two nouns a sentence means", "winogrande.jsonl", read, measure)
