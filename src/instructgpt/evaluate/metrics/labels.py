"""How often labelers say yes to the questions of Table 3 (paper, Figures 4 and 30)."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.evaluate.aggregate import Observation, ResultRow, aggregate_per_model, make_row
from instructgpt.evaluate.metrics.preference import ranking_clusters, require_ranking_models
from instructgpt.records import LABELS, Ranking
from instructgpt.statistics import intervals

_LABELS_EVALUATION = "labels"


def measure_labels(rankings: Sequence[Ranking], baselines: Sequence[str] = ("base",)) -> list[ResultRow]:
    """One metric a label: the share of yes among the completions to which the question applies.

    Args:
        rankings: completions of several models with `models` and `labels`; rankings without labels are passed over.
        against: models that are subtracted from the others, paired by prompt and labeler.

    Returns:
        One row a label and model, clustered by prompt and labeler; a question that never applied gives None.

    Raises:
        BadInput: a ranking does not name its models.
    """
    labeled_rankings = [ranking for ranking in rankings if ranking.labels is not None]
    models = list(dict.fromkeys(model for ranking in labeled_rankings for model in require_ranking_models(ranking)))
    rows: list[ResultRow] = []
    for label in dict.fromkeys(
        (*LABELS, *(name for ranking in labeled_rankings for answers in ranking.labels or () for name in answers))
    ):
        observations = _label_observations(labeled_rankings, label)
        rows += aggregate_per_model(_LABELS_EVALUATION, label, "", observations, share=True, baselines=baselines)
        models_with_answers = {observation.model for observation in observations}
        rows += [
            make_row(_LABELS_EVALUATION, label, model, "", intervals.NO_ESTIMATE)
            for model in models
            if model not in models_with_answers
        ]
    return rows


def _label_observations(rankings: Sequence[Ranking], label: str) -> list[Observation]:
    """1 for every yes, 0 for every no; what does not apply is left out."""
    return [
        Observation(model, float(answer), ranking_clusters(ranking))
        for ranking in rankings
        for model, answers in zip(require_ranking_models(ranking), ranking.labels or (), strict=True)
        if (answer := answers.get(label)) is not None
    ]
