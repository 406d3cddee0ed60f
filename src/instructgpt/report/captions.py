"""Parts of captions that depend on what a figure shows: marks, intervals, lines, metrics."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from instructgpt.report.language import translate
from instructgpt.report.naming import group_by_family, metric_name
from instructgpt.report.results import Results
from instructgpt.results import ResultRow


def join_sentences(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def is_drawn_over_size(rows: Iterable[ResultRow]) -> bool:
    """Return whether figures show these models as curves over their number of parameters, rather than as bars."""
    return bool(group_by_family(row.model for row in rows))


def has_means(results: Results) -> bool:
    """Return whether some rows are means over several runs."""
    return any(map(_is_mean, results.rows_by_key.values()))


def _is_mean(row: ResultRow) -> bool:
    return row.caution == translate("comparison.mean_over_runs")


def describe_intervals(rows: Sequence[ResultRow], clusters: str, mark: str = "bar") -> str:
    """Describe the intervals of a figure; empty if it has none.

    Args:
        clusters: what they are clustered by, a key below `clusters`. Means over several runs have theirs over runs.
        mark: what stands for a number, a key below `marks`: `bar`, or `point` where the axis does not start at 0.
    """
    rows = [row for row in rows if row.low is not None and row.high is not None]
    if not rows:
        return ""
    names = [translate(f"clusters.{clusters}")] if not all(map(_is_mean, rows)) else []
    names += [translate("clusters.runs")] if any(map(_is_mean, rows)) else []
    cluster_names = translate("clusters.or").join(names)
    if is_drawn_over_size(rows):
        return translate("captions.intervals_over_size", clusters=cluster_names)
    return translate("captions.intervals", mark=translate(f"marks.{mark}"), clusters=cluster_names)


def list_metrics(rows: Iterable[ResultRow]) -> str:
    """Return the metrics of these rows in words: "accuracy, F1 or BLEU"."""
    names = list(dict.fromkeys(metric_name(row.metric) for row in rows))
    text = translate("list.or").join(filter(None, (", ".join(names[:-1]), names[-1] if names else "")))
    return text[:1].upper() + text[1:]
