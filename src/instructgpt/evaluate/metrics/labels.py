"""How often labelers say yes to the questions of Table 3 (paper, Figures 4 and 30)."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.evaluate.aggregate import Observation, Row, per_model, row
from instructgpt.evaluate.metrics.preference import clusters, models_of
from instructgpt.records import LABELS, Ranking
from instructgpt.statistics import intervals

EVALUATION = "labels"


def measure(rankings: Sequence[Ranking], against: Sequence[str] = ("base",)) -> list[Row]:
    """One metric a label: the share of yes among the completions to which the question applies.

    Args:
        rankings: completions of several models with `models` and `labels`; rankings without labels are passed over.
        against: models that are subtracted from the others, paired by prompt and labeler.

    Returns:
        One row a label and model, clustered by prompt and labeler; a question that never applied gives None.

    Raises:
        BadInput: a ranking does not name its models.
    """
    labelled = [ranking for ranking in rankings if ranking.labels is not None]
    models = list(dict.fromkeys(model for ranking in labelled for model in models_of(ranking)))
    rows: list[Row] = []
    for label in dict.fromkeys((*LABELS, *(name for ranking in labelled for answers in ranking.labels or () for name in answers))):
        seen = _answers(labelled, label)
        rows += per_model(EVALUATION, label, "", seen, share=True, against=against)
        applied = {observation.model for observation in seen}
        rows += [row(EVALUATION, label, model, "", intervals.NOTHING) for model in models if model not in applied]
    return rows


def _answers(rankings: Sequence[Ranking], label: str) -> list[Observation]:
    """1 for every yes, 0 for every no; what does not apply is left out."""
    return [
        Observation(model, float(answer), clusters(ranking))
        for ranking in rankings
        for model, answers in zip(models_of(ranking), ranking.labels or (), strict=True)
        if (answer := answers.get(label)) is not None
    ]
