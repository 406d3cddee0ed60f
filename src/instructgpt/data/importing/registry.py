"""Importing: which format a file is in, its rows as records, and an account of what was dropped and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from instructgpt.data.drop_report import Placed, Report
from instructgpt.data.importing import demonstrations, rankings
from instructgpt.data.importing.conversions import CONVERSIONS, KINDS, Target
from instructgpt.data.importing.few_shot import from_few_shot
from instructgpt.data.importing.fields import ANSWER, Dropped, Row
from instructgpt.errors import BadInput
from instructgpt.io import Skipped, bad_line, read_rows
from instructgpt.records import Demonstration, Prompt, Ranking, Record, explain

Format = Literal[
    "auto", "rankings", "nemo", "ultrafeedback", "oasst", "hh", "pairs", "helpsteer3", "shp", "webgpt", "tldr",
    "few_shot", "alpaca", "sharegpt", "demonstrations", "messages", "prompts",
]  # fmt: skip


@dataclass(frozen=True)
class Importer:
    """How one format is recognised and read."""

    kind: type[Record]  # what its rows become
    uses: frozenset[str]  # the columns it reads; others are carried over where they can be
    matches: Callable[[Row], bool]
    convert: Callable[[Row, Row], list[Record]]

    def carried(self, row: Row) -> Row:
        """The columns that go over as they are: of our own formats all, of others texts, numbers and truth values."""
        other = {name: value for name, value in row.items() if name not in self.uses}
        if self.convert in OURS:
            return other
        return {name: value for name, value in other.items() if name not in RESERVED and isinstance(value, str | int | float | bool)}


OURS = (rankings.from_rankings, demonstrations.from_demonstrations, demonstrations.from_prompts)
RESERVED = frozenset(
    ["prompt", "messages", "completion", "completions", "ranks", "models", "ratings", "labels", "context", "chosen", "rejected"]
)
"""Columns that would mean something else in our records than they meant where they come from."""


def _has(row: Row, *columns: str) -> bool:
    return all(row.get(column) is not None for column in columns)


def _has_entries(row: Row, column: str, name: str) -> bool:
    """Whether a column is a list of objects with that name in them."""
    entries = row.get(column)
    return isinstance(entries, list) and bool(entries) and isinstance(entries[0], dict) and name in entries[0]


def _is_hh(row: Row) -> bool:
    sides = (row.get("chosen"), row.get("rejected"))
    return row.get("prompt") is None and all(isinstance(side, str) and ANSWER in side for side in sides)


def _is_answered(row: Row) -> bool:
    turns = row.get("messages")
    return isinstance(turns, list) and any(isinstance(turn, dict) and turn.get("role") == "assistant" for turn in turns[-1:])


def _importer(kind: type[Record], uses: str, matches: Callable[[Row], bool], convert: Callable[[Row, Row], list[Record]]) -> Importer:
    return Importer(kind, frozenset(uses.split()), matches, convert)


IMPORTERS: dict[str, Importer] = {
    "rankings": _importer(
        Ranking, "prompt completions ranks models ratings labels", lambda r: _has(r, "prompt", "completions", "ranks"),
        rankings.from_rankings),
    "nemo": _importer(
        Ranking, "context completions", lambda r: _has(r, "context") and _has_entries(r, "completions", "rank"), rankings.from_nemo),
    "ultrafeedback": _importer(
        Ranking, "instruction completions models", lambda r: _has(r, "instruction") and _has_entries(r, "completions", "response"),
        rankings.from_ultrafeedback),
    "oasst": _importer(Ranking, "prompt", lambda r: _has(r, "message_tree_id") and isinstance(r.get("prompt"), dict), rankings.from_oasst),
    "hh": _importer(Ranking, "chosen rejected", _is_hh, rankings.from_hh),
    "pairs": _importer(Ranking, "prompt chosen rejected messages", lambda r: _has(r, "chosen", "rejected"), rankings.from_pairs),
    "helpsteer3": _importer(
        Ranking, "context response1 response2", lambda r: _has(r, "context", "response1", "response2", "overall_preference"),
        rankings.from_helpsteer3),
    "shp": _importer(
        Ranking, "history human_ref_A human_ref_B labels", lambda r: _has(r, "history", "human_ref_A", "human_ref_B"), rankings.from_shp),
    "webgpt": _importer(
        Ranking, "question answer_0 answer_1 score_0 score_1", lambda r: _has(r, "question", "answer_0", "answer_1"), rankings.from_webgpt),
    "tldr": _importer(Ranking, "info summaries choice worker", lambda r: _has(r, "info", "summaries", "choice"), rankings.from_tldr),
    "few_shot": _importer(
        Demonstration, "instruction examples names", lambda r: _has(r, "instruction") and isinstance(r.get("examples"), list),
        from_few_shot),
    "alpaca": _importer(
        Demonstration, "instruction input output context response",
        lambda r: _has(r, "instruction") and (_has(r, "output") or _has(r, "response")), demonstrations.from_alpaca),
    "sharegpt": _importer(Demonstration, "conversations system", lambda r: _has(r, "conversations"), demonstrations.from_sharegpt),
    "demonstrations": _importer(
        Demonstration, "prompt messages completion",
        lambda r: _has(r, "completion") and (_has(r, "prompt") or _has(r, "messages")), demonstrations.from_demonstrations),
    "messages": _importer(Demonstration, "messages", _is_answered, demonstrations.from_messages),
    "prompts": _importer(Prompt, "prompt messages", lambda r: _has(r, "prompt") or _has(r, "messages"), demonstrations.from_prompts),
}  # fmt: skip
"""Every format, the first that matches wins. Ours are `rankings`, `demonstrations`, `prompts` and `few_shot`."""


def detect(row: Row, where: str) -> str:
    """The name of the format a row is in. Raises BadInput if it is none that is known."""
    for name, importer in IMPORTERS.items():
        if importer.matches(row):
            return name
    raise BadInput(f"{where}: no known format has the columns {', '.join(row) or '(none)'}; name one with --format: {', '.join(IMPORTERS)}")


def import_row(importer: Importer, row: Row, place: str, report: Report, keep_empty: bool) -> list[Placed[Record]]:
    """The records in one row; what is dropped, left out or odd goes into the report. Raises ValueError."""
    extra = importer.carried(row)
    for name in row.keys() - extra.keys() - importer.uses:
        if row[name] is not None:
            report.notice(f"column '{name}' was not carried over", place)
    try:
        records = importer.convert(row, extra)
    except Dropped as dropped:
        report.drop(str(dropped), place)
        return []
    except ValidationError as error:
        raise ValueError(explain(error)) from error
    kept = []
    for record in records:
        if isinstance(record, Demonstration) and not record.completion.strip() and not keep_empty:
            report.drop("empty completion (--keep-empty keeps it)", place)
        else:
            kept.append((place, record))
            for remark in remarks(record):
                report.notice(remark, place)
    return kept


def remarks(record: Record) -> list[str]:
    """What is odd about a record, but no reason to drop it."""
    if isinstance(record, Ranking):
        odd = {
            "a ranking with an empty completion": not all(completion.strip() for completion in record.completions),
            "identical completions in a ranking, kept as a tie": len(set(record.completions)) < len(record.completions),
            "a ranking that is one single tie, so it gives no pair": not record.pairs(),
        }
        return [remark for remark, found in odd.items() if found]
    empty = isinstance(record, Demonstration) and not record.completion.strip()
    return ["empty completion"] if empty else []


def import_file(
    path: Path, format: str, report: Report, skipped: Skipped | None, *, keep_empty: bool = False, few_shot: Row | None = None
) -> list[Placed[Record]]:
    """The records of one file, all of one kind.

    Args:
        path: whatever `files.read_rows` reads.
        format: a name of IMPORTERS, or "auto" to tell it by the first row.
        report: gets the counts.
        skipped: as in `files.read_rows`.
        keep_empty: keep demonstrations whose completion is empty.
        few_shot: options for `from_few_shot`.

    Raises:
        BadInput: the file cannot be read, its format is not known, or a row is not in it.
    """
    imported: list[Placed[Record]] = []
    importer: Importer | None = None
    for place, row in read_rows(path, skipped):
        if importer is None:
            name = detect(row, place) if format == "auto" else format
            importer = _configured(name, few_shot or {})
            report.formats[str(path)] = name
        report.read += 1
        try:
            imported += import_row(importer, row, place, report, keep_empty)
        except ValueError as error:
            bad_line(place, error, skipped)
    if importer is None:
        raise BadInput(f"{path}: there is nothing in it")
    return imported


def _configured(name: str, few_shot: Row) -> Importer:
    """An importer with its options. Raises BadInput if options were set that it does not have."""
    importer = IMPORTERS[name]
    if name == "few_shot":
        return replace(importer, convert=partial(from_few_shot, **few_shot))
    if few_shot:
        raise BadInput(f"--{', --'.join(few_shot)}: only few-shot templates have subsets; this file is in the format '{name}'")
    return importer


def convert(records: Sequence[Placed[Record]], to: Target, report: Report) -> list[Record]:
    """The records as another kind; rankings that give nothing (all ties) are counted.

    Raises:
        BadInput: one kind cannot become the other, or (with "auto") the records are not all of one kind.
    """
    kinds = {type(record) for _, record in records}
    if to == "auto" and len(kinds) > 1:
        raise BadInput(
            f"the files hold {' and '.join(sorted(KINDS[kind] for kind in kinds))}: import them one by one, or choose one with --to"
        )
    made: list[Record] = []
    for place, record in records:
        conversion = CONVERSIONS.get((type(record), KINDS[type(record)] if to == "auto" else to))
        if conversion is None:
            raise BadInput(f"{place}: {KINDS[type(record)]} cannot be made into {to}")
        new = conversion(record)
        if not new:
            report.drop("a ranking that is one single tie gives no pair", place)
        made += new
    return made
