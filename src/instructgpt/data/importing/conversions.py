"""From one kind of record to another, and out to the formats of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from instructgpt.records import Asked, Demonstration, Pair, Prompt, Ranking, Record

Target = Literal["auto", "prompts", "demonstrations", "rankings", "pairs", "nemo"]
"""What can be made; auto is what the format holds: prompts, demonstrations or rankings."""

KINDS: dict[type[Record], Target] = {Prompt: "prompts", Demonstration: "demonstrations", Ranking: "rankings"}

_CARRIED = ("id", "user", "organization", "source", "use_case", "split", "labeler", "cohort")


def _about(record: Record) -> dict[str, str]:
    """Where a record comes from and who made it, as columns for what is made of it."""
    return {name: value for name in _CARRIED if (value := getattr(record, name, None)) is not None}


def _same(record: Record) -> list[Record]:
    return [record]


def prompt_of(record: Record) -> list[Record]:
    """The prompt alone, without what was answered. A ranking's conversation comes back as messages where they were kept."""
    if isinstance(record, Asked):
        asked = {"prompt": record.prompt} if record.prompt is not None else {"messages": record.messages}
    else:
        turns = getattr(record, "messages", None)
        asked = {"messages": turns} if turns else {"prompt": getattr(record, "prompt", None)}
    about = {name: value for name, value in _about(record).items() if name not in ("labeler", "cohort")}
    return [Prompt.model_validate(about | asked)]


def best_of(ranking: Record) -> list[Record]:
    """The completion that was ranked best (the first of several) as a demonstration."""
    assert isinstance(ranking, Ranking)
    best = ranking.completions[ranking.ranks.index(min(ranking.ranks))]
    turns = getattr(ranking, "messages", None)
    asked = {"messages": turns} if turns else {"prompt": ranking.prompt}
    return [Demonstration.model_validate(_about(ranking) | asked | {"completion": best})]


def pairs_of(ranking: Record) -> list[Record]:
    """Every decided pair, in TRL's columns. A ranking that is all ties gives none."""
    assert isinstance(ranking, Ranking)
    texts, about = ranking.completions, _about(ranking)
    return [
        Pair.model_validate(about | {"prompt": ranking.prompt, "chosen": texts[better], "rejected": texts[worse]})
        for better, worse in ranking.pairs()
    ]


def nemo_of(ranking: Record) -> list[Record]:
    """The ranking in NeMo RL's columns, whose ranks start at 0. Nothing is lost but ratings, labels and names of models."""
    assert isinstance(ranking, Ranking)
    context = getattr(ranking, "messages", None) or [{"role": "user", "content": ranking.prompt}]
    completions = [
        {"rank": rank - 1, "completion": [{"role": "assistant", "content": completion}]}
        for completion, rank in zip(ranking.completions, ranking.ranks, strict=True)
    ]
    return [Record.model_validate(_about(ranking) | {"context": context, "completions": completions})]


CONVERSIONS: dict[tuple[type[Record], Target], Callable[[Record], list[Record]]] = {
    (Prompt, "prompts"): _same,
    (Demonstration, "demonstrations"): _same,
    (Demonstration, "prompts"): prompt_of,
    (Ranking, "rankings"): _same,
    (Ranking, "prompts"): prompt_of,
    (Ranking, "demonstrations"): best_of,
    (Ranking, "pairs"): pairs_of,
    (Ranking, "nemo"): nemo_of,
}
"""Which kind can become which. Nobody can make a ranking of a prompt."""
