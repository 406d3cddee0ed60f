"""The alignment tax: tasks of the pretraining corpus before and after alignment (paper, 4.2; Figures 28 and 29)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from instructgpt.evaluate.aggregate import Observation, aggregate_per_model
from instructgpt.evaluate.metrics import text_metrics
from instructgpt.records import Record
from instructgpt.results import ResultRow

_TAX_EVALUATION = "tax"
_TAX_BASELINES = ("base", "sft", "ppo")


class Solution(Record):
    model: str
    task: str
    prompt: str
    completion: str
    references: tuple[str, ...] = Field(min_length=1)
    measure: Literal["exact_match", "word_f1"] = "exact_match"


class DocumentLoss(Record):
    """The language-model loss of a held-out document, summed over its tokens (nats)."""

    model: str
    document: str
    loss: float = Field(ge=0, allow_inf_nan=False)
    tokens: int = Field(ge=1)


def measure_tax(
    solutions: Sequence[Solution], losses: Sequence[DocumentLoss] = (), baselines: Sequence[str] = _TAX_BASELINES
) -> list[ResultRow]:
    """Return one metric per task (0 to 1, higher is better) and `heldout_loss` (nats per token, lower is better).

    Clustered by prompt; the loss is a ratio of sums clustered by document. `baselines` are subtracted, paired by
    cluster.
    """
    metric_fns = {"exact_match": text_metrics.exact_match, "word_f1": text_metrics.word_f1}
    rows: list[ResultRow] = []
    for task in dict.fromkeys(solution.task for solution in solutions):
        observations = [
            Observation(
                solution.model,
                max(metric_fns[solution.measure](solution.completion, reference) for reference in solution.references),
                (solution.prompt,),
            )
            for solution in solutions
            if solution.task == task
        ]
        rows += aggregate_per_model(_TAX_EVALUATION, task, "", observations, share=True, baselines=baselines)
    documents = [Observation(loss.model, loss.loss, (loss.document,), weight=loss.tokens) for loss in losses]
    return rows + aggregate_per_model(_TAX_EVALUATION, "heldout_loss", "", documents, baselines=baselines)
