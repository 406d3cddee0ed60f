"""Shares of yes to the labelers' questions of Table 3 (paper, Figures 4 and 30)."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.evaluate.aggregate import Observation, aggregate_per_model, make_row
from instructgpt.evaluate.metrics.preference import ranking_clusters, require_ranking_models
from instructgpt.records import LABELS, Ranking
from instructgpt.results import ResultRow
from instructgpt.statistics import intervals

_LABELS_EVALUATION = "labels"


def measure_labels(rankings: Sequence[Ranking], baselines: Sequence[str] = ("base",)) -> list[ResultRow]:
    """Return one row per label and model: the share of yes among the completions the label applies to.

    Clustered by prompt and labeler, `baselines` subtracted with the same pairing. Rankings without labels are skipped;
    a label that never applied has no estimate.
    """
    labeled_rankings = [ranking for ranking in rankings if ranking.labels is not None]
    models = list(dict.fromkeys(model for ranking in labeled_rankings for model in require_ranking_models(ranking)))
    rows: list[ResultRow] = []
    extra_labels = (name for ranking in labeled_rankings for answers in ranking.labels or () for name in answers)
    for label in dict.fromkeys((*LABELS, *extra_labels)):
        observations = _label_observations(labeled_rankings, label)
        rows += aggregate_per_model(_LABELS_EVALUATION, label, "", observations, share=True, baselines=baselines)
        unlabeled = [model for model in models if model not in {observation.model for observation in observations}]
        rows += [make_row(_LABELS_EVALUATION, label, model, "", intervals.NO_ESTIMATE) for model in unlabeled]
    return rows


def _label_observations(rankings: Sequence[Ranking], label: str) -> list[Observation]:
    return [
        Observation(model, float(answer), ranking_clusters(ranking))
        for ranking in rankings
        for model, answers in zip(require_ranking_models(ranking), ranking.labels or (), strict=True)
        if (answer := answers.get(label)) is not None
    ]
