"""Parts of captions that depend on what a figure shows: marks, intervals, lines, metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from instructgpt.report.naming import group_by_family, metric_name
from instructgpt.results import ResultRow


def join_sentences(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def is_drawn_over_size(rows: Iterable[ResultRow]) -> bool:
    """Return whether figures show these models as curves over their number of parameters, rather than as bars."""
    return bool(group_by_family(row.model for row in rows))


def describe_intervals(rows: Sequence[ResultRow], clusters: str, mark: str = "bar") -> str:
    """Describe the intervals of a figure; empty if it has none.

    Args:
        clusters: what they are clustered by, in the plural.
        mark: what stands for a number: "bar", or "point" where the axis does not start at 0.
    """
    if not any(row.low is not None and row.high is not None for row in rows):
        return ""
    if is_drawn_over_size(rows):
        return f"Vertical lines are 95 % intervals over {clusters}; models of one size stand side by side."
    return f"The thin line on each {mark} is its 95 % interval over {clusters}."


def list_metrics(rows: Iterable[ResultRow]) -> str:
    """Return the metrics of these rows in words: "accuracy, F1 or BLEU"."""
    names = list(dict.fromkeys(metric_name(row.metric) for row in rows))
    text = " or ".join(filter(None, (", ".join(names[:-1]), names[-1] if names else "")))
    return text[:1].upper() + text[1:]
