"""Data statistics in the paper's tables (1, 2 and 6 to 11): counts, use cases, users, lengths, rankings, agreement."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from instructgpt.data.dedup import get_prompt_group, prompt_text_without_system
from instructgpt.records import Demonstration, Document, PromptFields, Ranking, Record
from instructgpt.statistics.agreement import inter_labeler_agreement
from instructgpt.statistics.categorical_agreement import krippendorff_alpha
from instructgpt.statistics.group_preferences import MIN_GROUP_SIZE, differing_prompts, find_groups, group_agreement
from instructgpt.statistics.intervals import Estimate
from instructgpt.statistics.pair_judgments import LabelerRanking

_Cell = str | int | float | None
LengthFunction = Callable[[Sequence[str]], list[int]]
"""Texts -> lengths in some unit."""

_DESCRIBE_COLUMNS = ("n", "mean", "sd", "min", "25 %", "50 %", "75 %", "max")
_MAX_PRINTED_CHARACTERS = 80
"""Printed characters of a cell, such as a prompt; the JSON has all."""
_MAX_PRINTED_ROWS = 24
"""Printed rows of a table; the JSON has all."""


@dataclass(frozen=True)
class StatsTable:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[_Cell, ...], ...]

    def to_dicts(self) -> list[dict[str, _Cell]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def print(self, console: Console) -> None:
        console.print(f"[bold]{escape(self.title)}[/bold]", highlight=False)
        table = Table(*self.columns, box=None, pad_edge=False)
        for row in self.rows[:_MAX_PRINTED_ROWS]:
            table.add_row(
                *(f"{cell:.3g}" if isinstance(cell, float) and abs(cell) < 10 else _format_cell(cell) for cell in row)
            )
        console.print(table)
        if len(self.rows) > _MAX_PRINTED_ROWS:
            console.print(
                f"… and {len(self.rows) - _MAX_PRINTED_ROWS} more rows (--out FILE.json has them)", style="dim"
            )
        console.print()


def _format_cell(cell: _Cell) -> str:
    if cell is None or isinstance(cell, float):
        return "" if cell is None else f"{cell:.0f}"
    text = str(cell)
    if len(text) > _MAX_PRINTED_CHARACTERS:
        text = " ".join(text.split())[: _MAX_PRINTED_CHARACTERS - 1] + "…"
    return escape(text)


def lengths_in_characters(texts: Sequence[str]) -> list[int]:
    """Return lengths in Unicode code points."""
    return [len(text) for text in texts]


def lengths_in_words(texts: Sequence[str]) -> list[int]:
    """Return lengths in white-space-separated words; languages without spaces count few long words."""
    return [len(text.split()) for text in texts]


def describe(values: Sequence[float]) -> tuple[_Cell, ...]:
    """Return n, mean, sample standard deviation, minimum, quartiles (linear), maximum, as in Tables 9 to 11."""
    if not values:
        return (0, *[None] * 7)
    array = np.asarray(values, dtype=float)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    quartiles = [float(value) for value in np.percentile(array, (25, 50, 75))]
    return (len(array), float(array.mean()), sd, float(array.min()), *quartiles, float(array.max()))


def _value_counts_table(title: str, name: str, values: Iterable[str | None]) -> StatsTable:
    """Count values, most frequent first. Tables 1 and 7."""
    counts = Counter("(none)" if value is None else str(value) for value in values)
    total = counts.total()
    return StatsTable(
        title, (name, "count", "share"), tuple((value, count, count / total) for value, count in counts.most_common())
    )


# ---------------------------------------------------------------- prompts and completions


def _records_per_user_table(records: Sequence[Record]) -> StatsTable:
    """Count records per user, by split. Table 8."""
    groups: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        if group := get_prompt_group(record):
            groups[str(getattr(record, "split", None) or "all")][group] += 1
    rows = [
        (split, len(users), users.total(), users.total() / len(users), max(users.values()))
        for split, users in sorted(groups.items())
    ]
    return StatsTable("prompts per user or organization", ("split", "users", "prompts", "mean", "most"), tuple(rows))


def _iter_record_texts(record: Record) -> Iterator[tuple[str, str]]:
    if isinstance(record, Document):
        yield "document", record.text
    if isinstance(record, PromptFields):
        # Role names of a conversation are no text of it.
        yield "prompt", "\n\n".join(turn.content for turn in record.conversation)
    if isinstance(record, Demonstration):
        yield "completion", record.completion
    if isinstance(record, Ranking):
        yield from (("completion", completion) for completion in record.completions)


def length_table(
    title: str,
    records: Sequence[Record],
    length_functions: Mapping[str, LengthFunction],
    group_by: Callable[[Record], str | None],
) -> StatsTable:
    """Describe text lengths in each unit, by group (None: all in one). Tables 9, 10 and 11."""
    texts: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for record in records:
        for part, text in _iter_record_texts(record):
            texts[group_by(record) or "", part].append(text)
    rows = [
        (name, part, unit, *describe(length_function(group_texts)))
        for (name, part), group_texts in sorted(texts.items(), key=lambda item: (-len(item[1]), item[0]))
        for unit, length_function in length_functions.items()
    ]
    return StatsTable(title, ("group", "part", "unit", *_DESCRIBE_COLUMNS), tuple(rows))


def _conversation_tables(records: Sequence[Record], length_functions: Mapping[str, LengthFunction]) -> list[StatsTable]:
    """Describe the turns of conversations: how many a conversation has, and their lengths by role."""
    conversations = [record.messages for record in records if isinstance(record, PromptFields) and record.messages]
    if not conversations:
        return []
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for turn in chain.from_iterable(conversations):
        texts[turn.role].append(turn.content)
    lengths = [
        (role, unit, *describe(length_function(texts[role])))
        for role in sorted(texts)
        for unit, length_function in length_functions.items()
    ]
    counts = describe([len(messages) for messages in conversations])
    return [
        StatsTable("turns of a conversation, without the completion", _DESCRIBE_COLUMNS, (counts,)),
        StatsTable("lengths of turns", ("role", "unit", *_DESCRIBE_COLUMNS), tuple(lengths)),
    ]


# ---------------------------------------------------------------- rankings


def length_win_rate(rankings: Iterable[Ranking]) -> float | None:
    """Return the share of decided pairs of unequal length whose longer completion (in characters) is better."""
    longer_is_better = [
        len(ranking.completions[better]) > len(ranking.completions[worse])
        for ranking in rankings
        for better, worse in ranking.pairs()
        if len(ranking.completions[better]) != len(ranking.completions[worse])
    ]
    return sum(longer_is_better) / len(longer_is_better) if longer_is_better else None


def _ranking_tables(rankings: Sequence[Ranking]) -> list[StatsTable]:
    """Return K, pairs, ties, length and agreement, ratings and labels (Table 3) where present."""
    num_decided = sum(len(ranking.pairs()) for ranking in rankings)
    num_pairs = sum(len(ranking.ranks) * (len(ranking.ranks) - 1) // 2 for ranking in rankings)
    agreement_stats = inter_labeler_agreement(rankings)
    summary_rows: list[tuple[_Cell, ...]] = [
        ("rankings", len(rankings)),
        ("distinct prompts", len({ranking.prompt for ranking in rankings})),
        ("labelers", len({ranking.labeler for ranking in rankings} - {None})),
        ("decided pairs", num_decided),
        ("tied pairs", num_pairs - num_decided),
        ("rankings that are one tie", sum(not ranking.pairs() for ranking in rankings)),
        ("longer completion wins (share of decided pairs)", length_win_rate(rankings)),
        ("pairs two labelers order alike", agreement_stats.concordant),
        ("pairs two labelers order oppositely", agreement_stats.discordant),
        ("pairs one of two labelers calls a tie", agreement_stats.one_tied),
        ("pairs two labelers call a tie", agreement_stats.both_tied),
        ("labeler agreement (share of pairs both decide)", agreement_stats.decided.value),
        ("  lower end of its 95 % interval", agreement_stats.decided.low),
        ("  upper end", agreement_stats.decided.high),
        ("labeler agreement (three answers, ties count)", agreement_stats.three_way.value),
        ("labeler agreement (a tie beside a decision is one half)", agreement_stats.half_credit.value),
    ]
    size_counts = sorted(Counter(len(ranking.ranks) for ranking in rankings).items())
    tables = [
        StatsTable("rankings", ("what", "value"), tuple(summary_rows)),
        StatsTable("completions of a ranking (K)", ("K", "rankings"), tuple(size_counts)),
    ]
    ratings = [rating for ranking in rankings for rating in ranking.scaled_ratings or ()]
    if ratings:
        tables.append(StatsTable("ratings, 1 to 7", _DESCRIBE_COLUMNS, (describe(ratings),)))
    label_counts = Counter(
        (name, value)
        for ranking in rankings
        for completion_labels in ranking.labels or ()
        for name, value in completion_labels.items()
    )
    if label_counts:
        names = sorted({name for name, _ in label_counts})
        rows = tuple(
            (name, label_counts[name, True], label_counts[name, False], label_counts[name, None]) for name in names
        )
        tables.append(StatsTable("labels of completions", ("label", "yes", "no", "not applicable"), rows))
    return tables


def build_stats_tables(records: Sequence[Record], length_functions: Mapping[str, LengthFunction]) -> list[StatsTable]:
    """Return all non-empty tables for records of one kind."""

    def column_getter(name: str) -> Callable[[Record], str | None]:
        return lambda record: None if getattr(record, name, None) is None else str(getattr(record, name))

    record_kind = type(records[0]).__name__.lower()
    tables = [StatsTable("records", ("kind", "count"), ((record_kind, len(records)),))]
    for name, title in (("split", "splits"), ("source", "sources"), ("use_case", "use cases")):
        values = [column_getter(name)(record) for record in records]
        if any(value is not None for value in values):
            tables.append(_value_counts_table(title, name, values))
    if not isinstance(records[0], Document):
        distinct = len({prompt_text_without_system(record) for record in records})
        tables.append(
            StatsTable("prompts", ("what", "value"), (("records", len(records)), ("distinct prompts", distinct)))
        )
    users = _records_per_user_table(records)
    tables += [users] if users.rows else []
    tables += _boolean_column_tables(records)
    tables.append(length_table("lengths", records, length_functions, lambda _: None))
    for name in ("split", "use_case", "source"):
        if len({column_getter(name)(record) for record in records}) > 1:
            tables.append(length_table(f"lengths by {name}", records, length_functions, column_getter(name)))
    tables += _conversation_tables(records, length_functions)
    tables += _vote_tables(records)
    rankings = [record for record in records if isinstance(record, Ranking)]
    return tables + (_ranking_tables(rankings) + _group_tables(rankings) if rankings else [])


def _group_tables(rankings: Sequence[Ranking]) -> list[StatsTable]:
    """Return sizes of labelers' groups, agreement within and between them, and what they differ on; none if undeclared.

    Groups of fewer than five people are in no table.
    """
    if all(ranking.group is None for ranking in rankings):
        return []
    groups = find_groups(rankings)
    notes: list[tuple[_Cell, ...]] = [
        (f"people behind every number about a group, at least: {MIN_GROUP_SIZE}",),
        *([("smaller groups are left out",)] if groups.has_small_groups else []),
        *(
            [(f"labelers in several groups, who count in none: {groups.contradictory}",)]
            if groups.contradictory
            else []
        ),
        *(
            [(f"rankings with a group but no labeler, which count in none: {groups.anonymous}",)]
            if groups.anonymous
            else []
        ),
    ]
    result = group_agreement(rankings, groups)
    sizes = tuple(zip(groups.names, groups.sizes, strict=True))
    tables = [StatsTable("groups", ("note",), tuple(notes)), StatsTable("people in groups", ("group", "people"), sizes)]
    if not groups.names:
        return tables[:1]
    rows: list[tuple[_Cell, ...]] = [
        (pair.first, pair.second, *_estimate_cells(pair.agreement), "" if pair.agreement.n else "cannot tell")
        for pair in result.pairs
    ]
    rows += [
        ("the same group", "", *_estimate_cells(result.within_groups), ""),
        ("different groups", "", *_estimate_cells(result.between_groups), ""),
        ("same less different", "", *_estimate_cells(result.difference), result.verdict),
    ]
    columns = ("group", "other group", "pairs", "share", "low", "high", "verdict")
    tables.append(StatsTable("agreement of groups (pairs both decide)", columns, tuple(rows)))
    differences, compared = differing_prompts(rankings, groups)
    prompt_columns = ("prompt", "group", "people", "other group", "its people", "difference", "p", "verdict")
    prompt_rows = tuple(
        (
            str(item.prompt),
            item.first,
            item.people[0],
            item.second,
            item.people[1],
            item.difference,
            item.p_value,
            item.verdict,
        )
        for item in differences
    )
    title = f"prompts where groups differ most (of {compared} that five people of two groups judged)"
    return [*tables, StatsTable(title, prompt_columns, prompt_rows)]


def _estimate_cells(estimate: Estimate) -> tuple[_Cell, ...]:
    return (estimate.n, estimate.value, estimate.low, estimate.high)


def _boolean_column_tables(records: Sequence[Record]) -> list[StatsTable]:
    """Count yes and no of further boolean columns, such as labels of prompts. Table 7."""
    value_counts: Counter[tuple[str, bool]] = Counter()
    for record in records:
        extra: Mapping[str, Any] = record.model_extra or {}
        value_counts.update((name, value) for name, value in extra.items() if isinstance(value, bool))
    names = sorted({name for name, _ in value_counts})
    rows = tuple(
        (
            n,
            value_counts[n, True],
            value_counts[n, False],
            value_counts[n, True] / (value_counts[n, True] + value_counts[n, False]),
        )
        for n in names
    )
    return [StatsTable("annotations", ("column", "yes", "no", "share of yes"), rows)] if rows else []


def _iter_votes(records: Sequence[Record]) -> Iterator[tuple[str, int, str, str, bool]]:
    """Yield prompt, answer, question, labeler and answer of yes-or-no `votes`: `[{"labeler", QUESTION: true}]`."""
    for index, record in enumerate(records):
        entries = (record.model_extra or {}).get("votes")
        votes = [vote for vote in entries if isinstance(vote, dict)] if isinstance(entries, list) else []
        for vote in votes:
            labeler, prompt = str(vote.get("labeler") or ""), str(getattr(record, "prompt", index))
            answers = [(name, value) for name, value in vote.items() if isinstance(value, bool) and labeler]
            yield from ((prompt, index, question, labeler, value) for question, value in answers)


def _vote_tables(records: Sequence[Record]) -> list[StatsTable]:
    """Return agreement between people who voted yes or no on the same completions, by question."""
    questions: defaultdict[str, list[tuple[str, int, str, bool]]] = defaultdict(list)
    for prompt, answer, question, labeler, value in _iter_votes(records):
        questions[question].append((prompt, answer, labeler, value))
    rows: list[tuple[_Cell, ...]] = []
    for question, votes in questions.items():
        prompts, answers, labelers, values = (list(column) for column in zip(*votes, strict=True))
        # A vote orders "yes" and "no" of its completion, so that agreement has the interval of rankings.
        choices = [
            LabelerRanking(prompt, labeler, ((answer, True), (answer, False)), (1, 2) if value else (2, 1))
            for prompt, answer, labeler, value in votes
        ]
        agreement = inter_labeler_agreement(choices).decided
        alpha = krippendorff_alpha(answers, values, clusters=prompts, labelers=labelers)
        counts = (len(set(answers)), len(set(labelers)), len(votes), sum(values) / len(values))
        rows.append(
            (question, *counts, agreement.value, agreement.low, agreement.high, alpha.value, alpha.low, alpha.high)
        )
    columns = ("question", "completions", "people", "votes", "yes", "two agree", "low", "high")
    return [StatsTable("votes", (*columns, "alpha", "alpha low", "alpha high"), tuple(rows))] if rows else []
