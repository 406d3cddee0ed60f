"""Format detection, and conversion of files to records with a drop report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from instructgpt.data.drop_report import DropReport, LocatedItem
from instructgpt.data.importing import demonstrations, rankings
from instructgpt.data.importing.conversions import CONVERSIONS, TARGET_BY_RECORD_TYPE, ConversionTarget
from instructgpt.data.importing.few_shot import from_few_shot
from instructgpt.data.importing.fields import ASSISTANT_MARKER, DatasetRow, SkipRowError
from instructgpt.errors import InputError
from instructgpt.io import SkippedLines, iter_rows, skip_or_raise
from instructgpt.records import Demonstration, Prompt, Ranking, Record, format_validation_error

DatasetFormat = Literal[
    "auto",
    "rankings",
    "nemo",
    "ultrafeedback",
    "oasst",
    "hh",
    "pairs",
    "helpsteer3",
    "shp",
    "webgpt",
    "tldr",
    "few_shot",
    "alpaca",
    "sharegpt",
    "demonstrations",
    "messages",
    "prompts",
]


@dataclass(frozen=True)
class Importer:
    """Detection and conversion of one format."""

    record_type: type[Record]  # what its rows become
    columns: frozenset[str]  # the columns it reads; others are carried over where they can be
    matches: Callable[[DatasetRow], bool]
    convert: Callable[[DatasetRow, DatasetRow], list[Record]]

    def carried_columns(self, row: DatasetRow) -> DatasetRow:
        """Return the columns to carry over: all of our formats, texts, numbers and booleans of others."""
        extra = {name: value for name, value in row.items() if name not in self.columns}
        if self.convert in _NATIVE_CONVERTERS:
            return extra
        return {
            name: value
            for name, value in extra.items()
            if name not in _RESERVED_COLUMNS and isinstance(value, str | int | float | bool)
        }


_NATIVE_CONVERTERS = (rankings.from_rankings, demonstrations.from_demonstrations, demonstrations.from_prompts)
_RESERVED_COLUMNS = frozenset(
    [
        "prompt",
        "messages",
        "completion",
        "completions",
        "ranks",
        "models",
        "ratings",
        "labels",
        "context",
        "chosen",
        "rejected",
    ]
)
"""Columns with another meaning in our records."""


def _has_columns(row: DatasetRow, *columns: str) -> bool:
    return all(row.get(column) is not None for column in columns)


def _has_entries(row: DatasetRow, column: str, name: str) -> bool:
    entries = row.get(column)
    return isinstance(entries, list) and bool(entries) and isinstance(entries[0], dict) and name in entries[0]


def _is_hh(row: DatasetRow) -> bool:
    sides = (row.get("chosen"), row.get("rejected"))
    return row.get("prompt") is None and all(isinstance(side, str) and ASSISTANT_MARKER in side for side in sides)


def _ends_with_assistant(row: DatasetRow) -> bool:
    turns = row.get("messages")
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and turn.get("role") == "assistant" for turn in turns[-1:]
    )


def _make_importer(
    record_type: type[Record],
    columns: str,
    matches: Callable[[DatasetRow], bool],
    convert: Callable[[DatasetRow, DatasetRow], list[Record]],
) -> Importer:
    return Importer(record_type, frozenset(columns.split()), matches, convert)


IMPORTERS: dict[str, Importer] = {
    "rankings": _make_importer(
        Ranking,
        "prompt messages completions ranks models ratings labels",
        lambda r: (
            _has_columns(r, "completions", "ranks") and (_has_columns(r, "prompt") or _has_columns(r, "messages"))
        ),
        rankings.from_rankings,
    ),
    "nemo": _make_importer(
        Ranking,
        "context completions",
        lambda r: _has_columns(r, "context") and _has_entries(r, "completions", "rank"),
        rankings.from_nemo,
    ),
    "ultrafeedback": _make_importer(
        Ranking,
        "instruction completions models",
        lambda r: _has_columns(r, "instruction") and _has_entries(r, "completions", "response"),
        rankings.from_ultrafeedback,
    ),
    "oasst": _make_importer(
        Ranking,
        "prompt",
        lambda r: _has_columns(r, "message_tree_id") and isinstance(r.get("prompt"), dict),
        rankings.from_oasst,
    ),
    "hh": _make_importer(Ranking, "chosen rejected", _is_hh, rankings.from_hh),
    "pairs": _make_importer(
        Ranking, "prompt chosen rejected messages", lambda r: _has_columns(r, "chosen", "rejected"), rankings.from_pairs
    ),
    "helpsteer3": _make_importer(
        Ranking,
        "context response1 response2",
        lambda r: _has_columns(r, "context", "response1", "response2", "overall_preference"),
        rankings.from_helpsteer3,
    ),
    "shp": _make_importer(
        Ranking,
        "history human_ref_A human_ref_B labels",
        lambda r: _has_columns(r, "history", "human_ref_A", "human_ref_B"),
        rankings.from_shp,
    ),
    "webgpt": _make_importer(
        Ranking,
        "question answer_0 answer_1 score_0 score_1",
        lambda r: _has_columns(r, "question", "answer_0", "answer_1"),
        rankings.from_webgpt,
    ),
    "tldr": _make_importer(
        Ranking,
        "info summaries choice worker",
        lambda r: _has_columns(r, "info", "summaries", "choice"),
        rankings.from_tldr,
    ),
    "few_shot": _make_importer(
        Demonstration,
        "instruction examples names",
        lambda r: _has_columns(r, "instruction") and isinstance(r.get("examples"), list),
        from_few_shot,
    ),
    "alpaca": _make_importer(
        Demonstration,
        "instruction input output context response",
        lambda r: _has_columns(r, "instruction") and (_has_columns(r, "output") or _has_columns(r, "response")),
        demonstrations.from_alpaca,
    ),
    "sharegpt": _make_importer(
        Demonstration, "conversations system", lambda r: _has_columns(r, "conversations"), demonstrations.from_sharegpt
    ),
    "demonstrations": _make_importer(
        Demonstration,
        "prompt messages completion",
        lambda r: _has_columns(r, "completion") and (_has_columns(r, "prompt") or _has_columns(r, "messages")),
        demonstrations.from_demonstrations,
    ),
    "messages": _make_importer(Demonstration, "messages", _ends_with_assistant, demonstrations.from_messages),
    "prompts": _make_importer(
        Prompt,
        "prompt messages",
        lambda r: _has_columns(r, "prompt") or _has_columns(r, "messages"),
        demonstrations.from_prompts,
    ),
}
"""Every format; the first match wins. Ours are `rankings`, `demonstrations`, `prompts` and `few_shot`."""


def detect_import_format(row: DatasetRow, location: str) -> str:
    """Return the format of a row. Raises InputError if it is unknown."""
    for name, importer in IMPORTERS.items():
        if importer.matches(row):
            return name
    raise InputError(
        f"{location}: no known format has the columns {', '.join(row) or '(none)'}; name one with --format: "
        f"{', '.join(IMPORTERS)}"
    )


def _import_row(
    importer: Importer, row: DatasetRow, location: str, report: DropReport, keep_empty: bool
) -> list[LocatedItem[Record]]:
    """Return the records of one row; drops and warnings go into the report. Raises ValueError."""
    extra = importer.carried_columns(row)
    for name in row.keys() - extra.keys() - importer.columns:
        if row[name] is not None:
            report.notice(f"column '{name}' was not carried over", location)
    try:
        records = importer.convert(row, extra)
    except SkipRowError as skip_error:
        report.drop(str(skip_error), location)
        return []
    except ValidationError as error:
        raise ValueError(format_validation_error(error)) from error
    located_records = []
    for record in records:
        if isinstance(record, Demonstration) and not record.completion.strip() and not keep_empty:
            report.drop("empty completion (--keep-empty keeps it)", location)
        else:
            located_records.append((location, record))
            for warning in _warnings_for(record):
                report.notice(warning, location)
    return located_records


def _warnings_for(record: Record) -> list[str]:
    """Return warnings about a record that is kept."""
    if isinstance(record, Ranking):
        conditions = {
            "a ranking with an empty completion": not all(completion.strip() for completion in record.completions),
            "identical completions in a ranking, kept as a tie": len(set(record.completions)) < len(record.completions),
            "a ranking that is one single tie, so it gives no pair": not record.pairs(),
        }
        return [warning for warning, is_present in conditions.items() if is_present]
    is_empty = isinstance(record, Demonstration) and not record.completion.strip()
    return ["empty completion"] if is_empty else []


def import_file(
    path: Path,
    format_name: str,
    report: DropReport,
    skipped: SkippedLines | None,
    *,
    keep_empty: bool = False,
    few_shot: DatasetRow | None = None,
) -> list[LocatedItem[Record]]:
    """Return the records of one file, all of one type.

    Args:
        path: whatever `io.iter_rows` reads.
        format_name: a name of IMPORTERS, or "auto" to detect it from the first row.
        keep_empty: keep demonstrations with an empty completion.
        few_shot: options of `from_few_shot`.

    Raises:
        InputError: the file cannot be read, its format is unknown, or a row violates it.
    """
    records: list[LocatedItem[Record]] = []
    importer: Importer | None = None
    for location, row in iter_rows(path, skipped):
        if importer is None:
            name = detect_import_format(row, location) if format_name == "auto" else format_name
            importer = _configure_importer(name, few_shot or {})
            report.formats[str(path)] = name
        report.read += 1
        try:
            records += _import_row(importer, row, location, report, keep_empty)
        except ValueError as error:
            skip_or_raise(location, error, skipped)
    if importer is None:
        raise InputError(f"{path}: there is nothing in it")
    return records


def _configure_importer(name: str, few_shot: DatasetRow) -> Importer:
    """Return an importer with its options. Raises InputError for options it does not have."""
    importer = IMPORTERS[name]
    if name == "few_shot":
        return replace(importer, convert=partial(from_few_shot, **few_shot))
    if few_shot:
        raise InputError(
            f"--{', --'.join(few_shot)}: only few-shot templates have subsets; this file is in the format '{name}'"
        )
    return importer


def convert_records(
    records: Sequence[LocatedItem[Record]], target: ConversionTarget, report: DropReport
) -> list[Record]:
    """Convert records to another type; all-tied rankings are counted.

    Raises:
        InputError: the conversion does not exist, or (with "auto") record types are mixed.
    """
    record_types = {type(record) for _, record in records}
    if target == "auto" and len(record_types) > 1:
        type_names = " and ".join(sorted(TARGET_BY_RECORD_TYPE[record_type] for record_type in record_types))
        raise InputError(f"the files hold {type_names}: import them one by one, or choose one with --to")
    converted: list[Record] = []
    for location, record in records:
        conversion = CONVERSIONS.get(
            (type(record), TARGET_BY_RECORD_TYPE[type(record)] if target == "auto" else target)
        )
        if conversion is None:
            raise InputError(f"{location}: {TARGET_BY_RECORD_TYPE[type(record)]} cannot be made into {target}")
        new_records = conversion(record)
        if not new_records:
            report.drop("a ranking that is one single tie gives no pair", location)
        converted += new_records
    return converted
