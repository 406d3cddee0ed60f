"""Reading files of any format as records, and conversion to the type that is wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from instructgpt.data.drop_report import DropReport, LocatedItem
from instructgpt.data.importing.conversions import CONVERSIONS, TARGET_BY_RECORD_TYPE, ConversionTarget
from instructgpt.data.importing.few_shot import from_few_shot
from instructgpt.data.importing.fields import DatasetRow, RowContext, SkipRowError
from instructgpt.data.importing.registry import IMPORTERS, DatasetFormat, Importer, detect_import_format
from instructgpt.errors import InputError
from instructgpt.io import SkippedLines, iter_rows, list_splits, skip_or_raise
from instructgpt.records import (
    Demonstration,
    Document,
    PromptFields,
    Ranking,
    Record,
    format_validation_error,
    validate_record,
)

_DETECTION_ROWS = 1000
"""First rows of a file that are looked at to detect its format."""

LocatedRows = Iterator[LocatedItem[DatasetRow]]


@dataclass(frozen=True)
class ImportOptions:
    format: DatasetFormat = "auto"
    split: str | None = None  # of datasets; "train" if not set
    keep_empty: bool = False  # keep demonstrations with an empty completion
    split_transcripts: bool = True  # make messages of "Human: … Assistant: …"
    read_documents: bool = False  # make documents of rows with a `text` in a file of no known format
    few_shot: DatasetRow = field(default_factory=dict)  # options of `from_few_shot`


def _open_rows(
    path: Path, split: str | None, report: DropReport, skipped: SkippedLines | None
) -> tuple[list[LocatedItem[DatasetRow]], LocatedRows]:
    """Return the first rows of a file, and all of its rows. Splits that are not read are noticed.

    Raises InputError if the file cannot be read or is empty.
    """
    rows = iter_rows(path, skipped, split, keep_nulls=True)
    first_rows: list[LocatedItem[DatasetRow]] = []
    first_error: InputError | None = None
    try:
        first_rows.extend(islice(rows, _DETECTION_ROWS))
    except InputError as error:
        first_error = error  # raised after the rows before it, whose own errors come first
    if not first_rows:
        if first_error is not None:
            raise first_error
        if skipped is None or not any(reason.startswith(str(path)) for reason in skipped.reasons):
            raise InputError(f"{path}: there is nothing in it")
    unread = [name for name in list_splits(path) if name and name != (split or "train")]
    if unread:
        report.notice(f"splits that were not read: {', '.join(unread)} (--split NAME reads another)", str(path))

    def replay() -> LocatedRows:
        yield from first_rows
        if first_error is not None:
            raise first_error
        yield from rows

    return first_rows, replay()


def import_files(
    paths: Sequence[Path],
    options: ImportOptions,
    report: DropReport,
    skipped: SkippedLines | None,
    target: ConversionTarget = "auto",
) -> list[LocatedItem[Record]]:
    """Return the records of files. Formats whose records need several rows are joined over all files.

    Raises:
        InputError: a file cannot be read, its format is unknown, or a row violates it.
    """
    records: list[LocatedItem[Record]] = []
    pieces: dict[str, list[LocatedItem[Any]]] = {}
    for path in paths:
        first_rows, rows = _open_rows(path, options.split, report, skipped)
        name: str | None = options.format
        if name == "auto":
            name = detect_import_format(first_rows, report)
        if name is None and options.read_documents and any("text" in row for _, row in first_rows):
            records += _read_documents(rows, report, skipped)
        elif name is None and first_rows:
            location, row = first_rows[0]
            raise InputError(
                f"{location}: no known format has the columns {', '.join(row) or '(none)'}; name one with --format: "
                f"{', '.join(IMPORTERS)}"
            )
        elif name is not None:
            report.formats[str(path)] = name
            importer = _configure_importer(name, options.few_shot)
            imported = import_rows(importer, rows, options, report, skipped)
            if importer.assemble is None:
                records += _select_type(imported, importer, target, report)
            else:
                pieces.setdefault(name, []).extend(imported)
    for name, items in pieces.items():
        assemble = IMPORTERS[name].assemble
        assert assemble is not None
        assembled = _drop_empty(assemble(items, report), options, report)
        records += _select_type(assembled, IMPORTERS[name], target, report)
    return records


def _read_documents(rows: LocatedRows, report: DropReport, skipped: SkippedLines | None) -> list[LocatedItem[Record]]:
    documents: list[LocatedItem[Record]] = []
    for location, row in rows:
        try:
            documents.append((location, validate_record(Document, row)))
        except ValueError as error:
            skip_or_raise(location, error, skipped)
    report.read += len(documents)
    return documents


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


# ---------------------------------------------------------------- rows


def import_rows(
    importer: Importer, rows: LocatedRows, options: ImportOptions, report: DropReport, skipped: SkippedLines | None
) -> list[LocatedItem[Any]]:
    """Return what the rows give; each row is read, dropped with a reason, or a bad line.

    Raises InputError for the first bad line that may not be skipped.
    """
    items: list[LocatedItem[Any]] = []
    for location, row in rows:
        try:
            converted = _convert_row(importer, row, location, options, report)
        except SkipRowError as skip_error:
            report.drop(str(skip_error), location)
        except ValueError as error:
            skip_or_raise(location, error, skipped)
            continue
        else:
            if importer.assemble is None:
                report.count_records(rows=1, records=len(converted))
                items += _drop_empty(converted, options, report)
            else:
                items += converted
        report.read += 1
    return items


def _convert_row(
    importer: Importer, row: DatasetRow, location: str, options: ImportOptions, report: DropReport
) -> list[LocatedItem[Any]]:
    """Return the items of one row. Raises SkipRowError, ValueError."""
    extra = importer.carried_columns(row)
    left_out = [name for name in row.keys() - extra.keys() - importer.columns if row[name] is not None]
    while True:
        context = RowContext(extra, options.split_transcripts)
        try:
            items = importer.convert(row, context)
            break
        except ValidationError as error:
            # A column of another data set may have a name of ours and other values: only the column is left out.
            names = {str(part["loc"][0]) for part in error.errors(include_url=False) if part["loc"]} & extra.keys()
            if importer.is_native or not names:
                raise ValueError(format_validation_error(error)) from error
            extra = {name: value for name, value in extra.items() if name not in names}
            left_out += names
    for name in left_out:
        report.notice(f"column '{name}' was not carried over", location)
    for note in dict.fromkeys(context.notes):
        report.notice(note, location)
    return [(location, item) for item in items]


def _drop_empty(
    records: Sequence[LocatedItem[Record]], options: ImportOptions, report: DropReport
) -> list[LocatedItem[Record]]:
    """Drop demonstrations without a completion, and notice what is odd about others."""
    remaining = []
    for location, record in records:
        if isinstance(record, Demonstration) and not record.completion.strip() and not options.keep_empty:
            report.drop("empty completion (--keep-empty keeps it)", location)
        else:
            remaining.append((location, record))
            for warning in _warnings_for(record):
                report.notice(warning, location)
    return remaining


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


# ---------------------------------------------------------------- types


def _select_type(
    records: list[LocatedItem[Record]], importer: Importer, target: ConversionTarget, report: DropReport
) -> list[LocatedItem[Record]]:
    """Return the records that the target is made of, where a format gives two types."""
    if importer.second_type is None or target == "auto":
        return records
    if target == "prompts":
        distinct: dict[PromptFields, LocatedItem[Record]] = {}
        for location, record in records:
            assert isinstance(record, PromptFields)
            distinct.setdefault(record.bare_prompt, (location, record))
        report.merged += len(records) - len(distinct)
        return list(distinct.values())
    record_type = Demonstration if target == "demonstrations" else Ranking
    is_selected = [isinstance(record, record_type) for _, record in records]
    names = [TARGET_BY_RECORD_TYPE[type(record)] for _, record in records]
    reasons = [
        None if selected else f"{name}, not written with --to {target}"
        for selected, name in zip(is_selected, names, strict=True)
    ]
    return report.filter(records, reasons)


def convert_records(
    records: Sequence[LocatedItem[Record]], target: ConversionTarget, report: DropReport
) -> dict[ConversionTarget, list[Record]]:
    """Convert records to another type; all-tied rankings are counted.

    Returns: records by type, the main type of the first file's format first; with a target that type only.

    Raises:
        InputError: the conversion does not exist, or (with "auto") files of different types are mixed.
    """
    main_types = dict.fromkeys(IMPORTERS[name].record_type for name in report.formats.values())
    if target == "auto" and len(main_types) > 1:
        type_names = " and ".join(sorted(TARGET_BY_RECORD_TYPE[record_type] for record_type in main_types))
        raise InputError(f"the files hold {type_names}: import them one by one, or choose one with --to")
    converted: dict[ConversionTarget, list[Record]] = {
        TARGET_BY_RECORD_TYPE[record_type]: [] for record_type in main_types if target == "auto"
    }
    for location, record in records:
        record_target = TARGET_BY_RECORD_TYPE[type(record)] if target == "auto" else target
        conversion = CONVERSIONS.get((type(record), record_target))
        if conversion is None:
            raise InputError(f"{location}: {TARGET_BY_RECORD_TYPE[type(record)]} cannot be made into {target}")
        new_records = conversion(record)
        if new_records:
            report.count_records(rows=1, records=len(new_records))
        else:
            report.drop("a ranking that is one single tie gives no pair", location)
        converted.setdefault(record_target, []).extend(new_records)
    return {name: items for name, items in converted.items() if items}
