"""Conversions between record types, and to formats of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from instructgpt.records import Demonstration, Pair, Prompt, PromptFields, Ranking, Record

ConversionTarget = Literal["auto", "prompts", "demonstrations", "rankings", "pairs", "nemo"]
"""Target record type; auto is what the format holds: prompts, demonstrations or rankings."""

TARGET_BY_RECORD_TYPE: dict[type[Record], ConversionTarget] = {
    Prompt: "prompts",
    Demonstration: "demonstrations",
    Ranking: "rankings",
}

_PROVENANCE_COLUMNS = ("id", "user", "organization", "source", "use_case", "split", "labeler", "cohort")


def _get_provenance(record: Record) -> dict[str, str]:
    """Return the provenance columns that derived records keep; where they are free columns, numbers become text."""
    columns = {name: getattr(record, name, None) for name in _PROVENANCE_COLUMNS}
    return {name: str(value) for name, value in columns.items() if isinstance(value, str | int | float)}


def _identity(record: Record) -> list[Record]:
    return [record]


def _to_prompt(record: Record) -> list[Record]:
    assert isinstance(record, PromptFields)
    provenance = {name: value for name, value in _get_provenance(record).items() if name not in ("labeler", "cohort")}
    return [Prompt.model_validate(provenance | record.prompt_columns())]


def _to_demonstration(ranking: Record) -> list[Record]:
    """Return the first best-ranked completion as a demonstration."""
    assert isinstance(ranking, Ranking)
    best = ranking.completions[ranking.ranks.index(min(ranking.ranks))]
    return [Demonstration.model_validate(_get_provenance(ranking) | ranking.prompt_columns() | {"completion": best})]


def _to_pairs(ranking: Record) -> list[Record]:
    """Return every decided pair in TRL's columns; an all-tied ranking gives none."""
    assert isinstance(ranking, Ranking)
    texts, columns = ranking.completions, _get_provenance(ranking) | ranking.prompt_columns()
    return [
        Pair.model_validate(columns | {"chosen": texts[better], "rejected": texts[worse]})
        for better, worse in ranking.pairs()
    ]


def _to_nemo(ranking: Record) -> list[Record]:
    """Return the ranking in NeMo RL's columns, ranks from 0; ratings, labels and model names are lost."""
    assert isinstance(ranking, Ranking)
    context = [message.model_dump() for message in ranking.conversation]
    completions = [
        {"rank": rank - 1, "completion": [{"role": "assistant", "content": completion}]}
        for completion, rank in zip(ranking.completions, ranking.ranks, strict=True)
    ]
    return [Record.model_validate(_get_provenance(ranking) | {"context": context, "completions": completions})]


CONVERSIONS: dict[tuple[type[Record], ConversionTarget], Callable[[Record], list[Record]]] = {
    (Prompt, "prompts"): _identity,
    (Demonstration, "demonstrations"): _identity,
    (Demonstration, "prompts"): _to_prompt,
    (Ranking, "rankings"): _identity,
    (Ranking, "prompts"): _to_prompt,
    (Ranking, "demonstrations"): _to_demonstration,
    (Ranking, "pairs"): _to_pairs,
    (Ranking, "nemo"): _to_nemo,
}
"""(from, to) -> conversion. A prompt cannot become a ranking."""
