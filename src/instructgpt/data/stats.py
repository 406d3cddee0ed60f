"""What is in a file, in the tables of the paper (1, 2 and 6 to 11): counts, use cases, users, lengths, rankings, agreement."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from instructgpt.data.dedup import group_of, prompt_text
from instructgpt.records import Asked, Demonstration, Document, Ranking, Record
from instructgpt.statistics.agreement import agreement

Cell = str | int | float | None
Measure = Callable[[Sequence[str]], list[int]]
"""The lengths of texts in some unit."""

DESCRIPTION = ("n", "mean", "sd", "min", "25 %", "50 %", "75 %", "max")
SHOWN = 24
"""Rows of a table that are printed; the JSON has all."""


@dataclass(frozen=True)
class Sheet:
    """One table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def as_rows(self) -> list[dict[str, Cell]]:
        """The table as JSON: one object a row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def show(self, console: Console) -> None:
        """Print the table."""
        console.print(f"[bold]{escape(self.title)}[/bold]", highlight=False)
        table = Table(*self.columns, box=None, pad_edge=False)
        for row in self.rows[:SHOWN]:
            table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) and abs(cell) < 10 else _shown(cell) for cell in row))
        console.print(table)
        if len(self.rows) > SHOWN:
            console.print(f"… and {len(self.rows) - SHOWN} more rows (--out FILE.json has them)", style="dim")
        console.print()


def _shown(cell: Cell) -> str:
    return "" if cell is None else f"{cell:.0f}" if isinstance(cell, float) else escape(str(cell))


def characters(texts: Sequence[str]) -> list[int]:
    """Lengths in characters (Unicode code points)."""
    return [len(text) for text in texts]


def words(texts: Sequence[str]) -> list[int]:
    """Lengths in words: what white space separates. Languages that are written without it count as few long words."""
    return [len(text.split()) for text in texts]


def describe(values: Sequence[float]) -> tuple[Cell, ...]:
    """n, mean, standard deviation (of a sample), minimum, quartiles (linear), maximum, as in the paper's Tables 9 to 11."""
    if not values:
        return (0, *[None] * 7)
    array = np.asarray(values, dtype=float)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    quartiles = [float(value) for value in np.percentile(array, (25, 50, 75))]
    return (len(array), float(array.mean()), sd, float(array.min()), *quartiles, float(array.max()))


def counted(title: str, name: str, values: Iterable[str | None]) -> Sheet:
    """How often each value occurs, the most frequent first. Tables 1 and 7."""
    counts = Counter("(none)" if value is None else str(value) for value in values)
    total = counts.total()
    return Sheet(title, (name, "count", "share"), tuple((value, n, n / total) for value, n in counts.most_common()))


# ---------------------------------------------------------------- prompts and completions


def per_user(records: Sequence[Record]) -> Sheet:
    """How many records a user has, by split. Table 8."""
    groups: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        if group := group_of(record):
            groups[getattr(record, "split", None) or "all"][group] += 1
    rows = [(split, len(users), users.total(), users.total() / len(users), max(users.values())) for split, users in sorted(groups.items())]
    return Sheet("prompts per user or organization", ("split", "users", "prompts", "mean", "most"), tuple(rows))


def parts(record: Record) -> Iterator[tuple[str, str]]:
    """The texts in a record, each with what it is."""
    if isinstance(record, Document):
        yield "document", record.text
    if isinstance(record, Asked):
        yield "prompt", record.text
    if isinstance(record, Demonstration):
        yield "completion", record.completion
    if isinstance(record, Ranking):
        yield "prompt", record.prompt
        yield from (("completion", completion) for completion in record.completions)


def lengths(title: str, records: Sequence[Record], measures: Mapping[str, Measure], group: Callable[[Record], str | None]) -> Sheet:
    """How long the texts are in each unit, by group (None for all in one). Tables 9, 10 and 11."""
    texts: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        for part, text in parts(record):
            texts[group(record) or "", part].append(text)
    rows = [
        (name, part, unit, *describe(measure(found)))
        for (name, part), found in sorted(texts.items(), key=lambda item: (-len(item[1]), item[0]))
        for unit, measure in measures.items()
    ]
    return Sheet(title, ("group", "part", "unit", *DESCRIPTION), tuple(rows))


# ---------------------------------------------------------------- rankings


def longer_wins(rankings: Iterable[Ranking]) -> float | None:
    """Of the decided pairs of unlike length, the share in which the longer completion (in characters) is the better."""
    won = [
        len(ranking.completions[better]) > len(ranking.completions[worse])
        for ranking in rankings
        for better, worse in ranking.pairs()
        if len(ranking.completions[better]) != len(ranking.completions[worse])
    ]
    return sum(won) / len(won) if won else None


def ranking_sheets(rankings: Sequence[Ranking]) -> list[Sheet]:
    """K, pairs, ties, length and agreement, and the labelers' ratings and labels (Table 3) where there are some."""
    decided = sum(len(ranking.pairs()) for ranking in rankings)
    possible = sum(len(ranking.ranks) * (len(ranking.ranks) - 1) // 2 for ranking in rankings)
    agreed = agreement(rankings)
    facts: list[tuple[Cell, ...]] = [
        ("rankings", len(rankings)),
        ("distinct prompts", len({ranking.prompt for ranking in rankings})),
        ("labelers", len({ranking.labeler for ranking in rankings} - {None})),
        ("decided pairs", decided),
        ("tied pairs", possible - decided),
        ("rankings that are one tie", sum(not ranking.pairs() for ranking in rankings)),
        ("longer completion wins (share of decided pairs)", longer_wins(rankings)),
        ("pairs two labelers order alike", agreed.alike),
        ("pairs two labelers order oppositely", agreed.opposite),
        ("pairs one of two labelers calls a tie", agreed.one_tied),
        ("pairs two labelers call a tie", agreed.both_tied),
        ("labeler agreement (share of pairs both decide)", agreed.decided.value),
        ("  lower end of its 95 % interval", agreed.decided.low),
        ("  upper end", agreed.decided.high),
        ("labeler agreement (three answers, ties count)", agreed.three_way.value),
        ("labeler agreement (a tie beside a decision is one half)", agreed.half_credit.value),
    ]
    sizes = sorted(Counter(len(ranking.ranks) for ranking in rankings).items())
    sheets = [Sheet("rankings", ("what", "value"), tuple(facts)), Sheet("completions of a ranking (K)", ("K", "rankings"), tuple(sizes))]
    ratings = [rating for ranking in rankings for rating in ranking.ratings or ()]
    if ratings:
        sheets.append(Sheet("ratings, 1 to 7", DESCRIPTION, (describe(ratings),)))
    answers = Counter((name, value) for ranking in rankings for given in ranking.labels or () for name, value in given.items())
    if answers:
        names = sorted({name for name, _ in answers})
        rows = tuple((name, answers[name, True], answers[name, False], answers[name, None]) for name in names)
        sheets.append(Sheet("labels of completions", ("label", "yes", "no", "not applicable"), rows))
    return sheets


def sheets(records: Sequence[Record], measures: Mapping[str, Measure]) -> list[Sheet]:
    """Every table there is something for, of records of one kind."""

    def column(name: str) -> Callable[[Record], str | None]:
        return lambda record: None if getattr(record, name, None) is None else str(getattr(record, name))

    kind = type(records[0]).__name__.lower()
    made = [Sheet("records", ("kind", "count"), ((kind, len(records)),))]
    for name, title in (("split", "splits"), ("source", "sources"), ("use_case", "use cases")):
        values = [column(name)(record) for record in records]
        if any(value is not None for value in values):
            made.append(counted(title, name, values))
    if not isinstance(records[0], Document):
        distinct = len({prompt_text(record) for record in records})
        made.append(Sheet("prompts", ("what", "value"), (("records", len(records)), ("distinct prompts", distinct))))
    users = per_user(records)
    made += [users] if users.rows else []
    made += truth_values(records)
    made.append(lengths("lengths", records, measures, lambda _: None))
    for name in ("split", "use_case", "source"):
        if len({column(name)(record) for record in records}) > 1:
            made.append(lengths(f"lengths by {name}", records, measures, column(name)))
    rankings = [record for record in records if isinstance(record, Ranking)]
    return made + (ranking_sheets(rankings) if rankings else [])


def truth_values(records: Sequence[Record]) -> list[Sheet]:
    """Yes and no of every further column that holds truth values, such as what labelers said of the prompts. Table 7."""
    answers: Counter[tuple[str, bool]] = Counter()
    for record in records:
        extra: Mapping[str, Any] = record.model_extra or {}
        answers.update((name, value) for name, value in extra.items() if isinstance(value, bool))
    names = sorted({name for name, _ in answers})
    rows = tuple((n, answers[n, True], answers[n, False], answers[n, True] / (answers[n, True] + answers[n, False])) for n in names)
    return [Sheet("annotations", ("column", "yes", "no", "share of yes"), rows)] if rows else []
