"""Refusals of harmful and of safe prompts: shares of full compliance, partial and full refusal, clustered by prompt."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.data.refusal_labels import REFUSAL_CLASSES
from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.records import Record
from instructgpt.results import ResultRow

REFUSAL_EVALUATION = "refusal"


class ClassifiedAnswer(Record):
    """An answer and its class of `REFUSAL_CLASSES`; None for an answer without words, which is not counted as any."""

    model: str
    prompt: str
    harmful: bool
    kind: str = ""
    refusal: str | None


def measure_refusals(answers: Sequence[ClassifiedAnswer], condition: str = "") -> list[ResultRow]:
    """Return `refuses_harmful` and `refuses_safe`, the shares of refusals, and the share of each class.

    The first two count partial and full refusals, and are also by kind of prompt (condition `kind/homonyms`). Answers
    without words are left out and counted in `no_answer_harmful` and `no_answer_safe`. `condition` names how the models
    were asked, where there are several ways.
    """
    rows: list[ResultRow] = []
    for is_harmful, suffix in ((True, "harmful"), (False, "safe")):
        selected = [answer for answer in answers if answer.harmful == is_harmful]
        classified = [answer for answer in selected if answer.refusal is not None]
        rows += _share_rows(f"refuses_{suffix}", condition, classified, REFUSAL_CLASSES[1:])
        for name in REFUSAL_CLASSES:
            rows += _share_rows(f"{name}_{suffix}", condition, classified, (name,))
        rows += _share_rows(f"no_answer_{suffix}", condition, selected, (None,))
        for kind in dict.fromkeys(answer.kind for answer in classified if answer.kind):
            of_kind = [answer for answer in classified if answer.kind == kind]
            rows += _share_rows(f"refuses_{suffix}", f"kind/{kind}", of_kind, REFUSAL_CLASSES[1:])
    return rows


def _share_rows(
    metric: str, condition: str, answers: Sequence[ClassifiedAnswer], classes: Sequence[str | None]
) -> list[ResultRow]:
    observations = [Observation(a.model, float(a.refusal in classes), (a.prompt,)) for a in answers]
    return aggregate_per_model(REFUSAL_EVALUATION, metric, condition, observations, share=True)
