"""The commands `data import | clean | split | stats`.

    instructgpt data import --data hh.jsonl.gz --out rankings.jsonl.gz
    instructgpt data clean  --data prompts.jsonl --out clean.jsonl
    instructgpt data split  --data clean.jsonl --out split/
    instructgpt data stats  --data split/clean.train.jsonl

Everything is read and computed before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from instructgpt.data.configs import CleanConfig, ImportConfig, SplitConfig, StatsConfig
from instructgpt.data.dedup import (
    get_prompt_group,
    near_duplicate_reasons,
    prompt_text_without_system,
    user_cap_reasons,
)
from instructgpt.data.drop_report import DropReport, LocatedItem, drop_report_path
from instructgpt.data.importing.conversions import TARGET_BY_RECORD_TYPE
from instructgpt.data.importing.registry import convert_records, import_file
from instructgpt.data.pii import parse_detector_names, pii_drop_reason
from instructgpt.data.splits import SPLIT_NAMES, TRAINING_SPLITS, Split, assign_splits, check_users_in_single_split
from instructgpt.data.stats import LengthFunction, build_stats_tables, lengths_in_characters, lengths_in_words
from instructgpt.data.use_cases import guess_use_case
from instructgpt.errors import InputError, one_line
from instructgpt.io import SkippedLines, iter_rows, skip_or_raise, write_text_atomic
from instructgpt.records import (
    Demonstration,
    Document,
    Prompt,
    PromptFields,
    Ranking,
    Record,
    read_records,
    validate_record,
    write_records,
)

_DEFAULT_PREFIX_CHARACTERS, _DEFAULT_USER_CAP = 200, 200
"""Characters of a shared prefix (the paper gives no number), and prompts per user or organization (section 3.2)."""


# ---------------------------------------------------------------- import


def import_datasets(config: ImportConfig) -> None:
    """Convert data sets of any known format to our records, pairs, or NeMo rankings. Raises InputError."""
    _check_out(config.out)
    report, skipped = DropReport("import"), SkippedLines(config.skip_bad)
    few_shot = {} if config.shots is None else {"shots": config.shots, "subsets": config.subsets, "seed": config.seed}
    records: list[LocatedItem[Record]] = []
    for path in config.data:
        records += import_file(path, config.format, report, skipped, keep_empty=config.keep_empty, few_shot=few_shot)
    if config.source is not None:
        records = [
            (location, record if getattr(record, "source", None) else _copy_with(record, source=config.source))
            for location, record in records
        ]
    report.add_skipped_lines(skipped)
    _write_output(report, config.out, convert_records(records, config.to, report))


def _check_out(out: Path) -> None:
    """Raise InputError for a file name of another format."""
    if not out.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        raise InputError(f"--out {out}: the output is JSON lines; name it .jsonl or .jsonl.gz")


def _copy_with(record: Record, **columns: Any) -> Record:
    return record.model_copy(update=columns)


def _write_output(report: DropReport, out: Path, records: Sequence[Record]) -> None:
    """Write one output and its report beside it, and print the report.

    Raises InputError if nothing is left to write.
    """
    console = Console()
    if not records:
        report.print(console)
        raise InputError(f"{out}: not written, because nothing is left of what was read; the reasons stand above")
    report.written[str(out)] = write_records(out, records)
    report.save(drop_report_path(out))
    report.print(console)


# ---------------------------------------------------------------- clean


def _read_native_records(paths: Sequence[Path], report: DropReport, skipped: SkippedLines) -> list[LocatedItem[Record]]:
    """Read prompts, demonstrations or rankings with all columns; rows with an empty prompt are dropped and counted.

    Raises:
        InputError: a file cannot be read, a row is not such a record, or nothing is left.
    """
    records: list[LocatedItem[Record]] = []
    for path in paths:
        for location, row in iter_rows(path, skipped):
            report.read += 1
            if _has_empty_prompt(row):
                report.drop("empty prompt", location)
                continue
            try:
                records.append((location, validate_record(_detect_record_type(row), row)))
            except ValueError as error:
                skip_or_raise(location, error, skipped)
    if not records:
        raise InputError(f"{', '.join(map(str, paths))}: nothing in it")
    return records


def _has_empty_prompt(row: Mapping[str, Any]) -> bool:
    prompt = row.get("prompt")
    return row.get("messages") is None and isinstance(prompt, str) and not prompt.strip()


def _detect_record_type(row: Mapping[str, Any]) -> type[Record]:
    """Return the record type of a row. Raises ValueError if there is none."""
    if "ranks" in row:
        return Ranking
    if ("prompt" in row or "messages" in row) and not row.keys() & {"chosen", "completions"}:
        return Demonstration if "completion" in row else Prompt
    raise ValueError(
        f"neither a prompt, a demonstration nor a ranking (columns found: {', '.join(row)}); 'data import' reads other "
        "formats"
    )


def clean_datasets(config: CleanConfig) -> None:
    """Drop records that should not be trained on and report why (paper, section 3.2 and appendix A.2).

    Raises InputError.
    """
    _check_out(config.out)
    detectors = parse_detector_names(config.detectors)
    report, skipped = DropReport("clean"), SkippedLines(config.skip_bad)
    items = _read_native_records(config.data, report, skipped)
    record_types = {type(record) for _, record in items}
    if len(record_types) > 1:
        type_names = " and ".join(sorted(TARGET_BY_RECORD_TYPE[record_type] for record_type in record_types))
        raise InputError(f"the files hold {type_names}: clean them one by one")
    is_labeled = record_types != {Prompt}
    prefix, cap = (
        (0 if is_labeled else default) if value is None else value
        for value, default in ((config.prefix, _DEFAULT_PREFIX_CHARACTERS), (config.cap, _DEFAULT_USER_CAP))
    )
    if config.max_characters is not None:
        limit = config.max_characters
        reason = f"longer than {limit} characters"
        items = report.filter(
            items, [reason if len(_full_prompt_text(record)) > limit else None for _, record in items]
        )
    if config.personal != "off":
        is_checked = [
            config.personal == "all" or getattr(record, "split", None) in TRAINING_SPLITS for _, record in items
        ]
        reasons = [
            pii_drop_reason(_full_prompt_text(record), detectors) if check else None
            for check, (_, record) in zip(is_checked, items, strict=True)
        ]
        items = report.filter(items, reasons)
    if prefix:
        items = report.filter(
            items,
            near_duplicate_reasons([prompt_text_without_system(record) for _, record in items], prefix, is_labeled),
        )
    if cap:
        items = report.filter(
            items, user_cap_reasons([get_prompt_group(record, config.group) for _, record in items], cap)
        )
    if config.use_cases:
        items = [(location, _with_use_case(record, location, report)) for location, record in items]
    report.add_skipped_lines(skipped)
    _write_output(report, config.out, [record for _, record in items])


def _full_prompt_text(record: Record) -> str:
    """Return all text of a prompt, system turns included."""
    return record.prompt if isinstance(record, PromptFields) else prompt_text_without_system(record)


def _with_use_case(record: Record, location: str, report: DropReport) -> Record:
    """Return the record with its use case, or with a guess marked as such."""
    if getattr(record, "use_case", None):
        return record
    turns = record.messages if isinstance(record, PromptFields) and record.messages else ()
    guess = guess_use_case(prompt_text_without_system(record), len([turn for turn in turns if turn.role != "system"]))
    report.notice(f"use case guessed: {guess}", location)
    return _copy_with(record, use_case=guess, use_case_by="heuristic")


# ---------------------------------------------------------------- split


def split_datasets(config: SplitConfig) -> None:
    """Split files together, so that no user and no prompt crosses splits in any of them. Raises InputError."""
    if config.validation + config.test > 1:
        raise InputError(
            f"--validation {config.validation} and --test {config.test} leave nothing to train on; together at most 1"
        )
    names = [path.name.removesuffix(".gz").removesuffix(".jsonl") for path in config.data]
    if len(set(names)) < len(names):
        raise InputError("two of the files have the same name, so their splits would overwrite each other; rename one")
    report, skipped = DropReport("split"), SkippedLines(config.skip_bad)
    files = [_read_native_records([path], report, skipped) for path in config.data]
    records = [record for items in files for _, record in items]
    groups = [get_prompt_group(record, config.group) for record in records]
    splits = assign_splits(
        groups, [_full_prompt_text(record) for record in records], config.validation, config.test, config.salt
    )
    check_users_in_single_split(records, splits, config.group)
    outputs: dict[Path, list[Record]] = {}
    split_iter = iter(splits)
    split_names = [name for name in SPLIT_NAMES if name == "train" or getattr(config, name) > 0]
    for path, name, items in zip(config.data, names, files, strict=True):
        suffix = ".jsonl.gz" if path.suffix == ".gz" else ".jsonl"
        records_by_split: dict[Split, list[Record]] = {split_name: [] for split_name in split_names}
        for location, record in items:
            split_name = next(split_iter)
            if split_name is None:
                report.drop("the same prompt is in another split, from another user", location)
            else:
                if getattr(record, "split", None) not in (None, split_name):
                    report.notice(f"was in another split, now in {split_name}", location)
                records_by_split[split_name].append(_copy_with(record, split=split_name))
        outputs |= {
            config.out / f"{name}.{split_name}{suffix}": split_records
            for split_name, split_records in records_by_split.items()
        }
    report.add_skipped_lines(skipped)
    for path_out, split_records in outputs.items():
        report.written[str(path_out)] = write_records(path_out, split_records)
        if not split_records:
            report.notice("nothing fell into this split", str(path_out))
    report.save(config.out / "split.report.json")
    report.print(Console())


# ---------------------------------------------------------------- stats


def print_dataset_stats(config: StatsConfig) -> None:
    """Print the paper's data tables, one set a record type. Raises InputError."""
    length_functions: dict[str, LengthFunction] = {"characters": lengths_in_characters, "words": lengths_in_words}
    if config.tokenizer is not None:
        length_functions["tokens"] = _make_token_counter(config.tokenizer)
    report, skipped = DropReport("stats"), SkippedLines(config.skip_bad)
    records_by_kind: dict[str, list[Record]] = {}
    for path in config.data:
        for record in _read_any_records(path, report, skipped):
            records_by_kind.setdefault(type(record).__name__.lower(), []).append(record)
    console = Console()
    tables_by_kind = {kind: build_stats_tables(records, length_functions) for kind, records in records_by_kind.items()}
    for kind_tables in tables_by_kind.values():
        for table in kind_tables:
            table.print(console)
    report.add_skipped_lines(skipped)
    report.print(console)
    if config.out is not None:
        output = {
            kind: {table.title: table.to_dicts() for table in kind_tables}
            for kind, kind_tables in tables_by_kind.items()
        }
        write_text_atomic(config.out, json.dumps(output, ensure_ascii=False, indent=2) + "\n")


def _read_any_records(path: Path, report: DropReport, skipped: SkippedLines) -> list[Record]:
    _, first_row = next(
        iter_rows(path, SkippedLines(skipped.allowed)), ("", {})
    )  # bad lines are counted by the reading that follows
    if "text" in first_row and not first_row.keys() & {"prompt", "messages", "instruction", "conversations"}:
        documents = read_records(Document, path, skipped)
        report.read += len(documents)
        return list(documents)
    return [record for _, record in import_file(path, "auto", report, skipped, keep_empty=True)]


def _make_token_counter(directory: Path) -> LengthFunction:
    """Return a function that counts tokens without special tokens.

    Raises InputError if the directory has no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--tokenizer {directory}: no tokenizer that loads ({one_line(error, 300)})") from error
    return lambda texts: [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]
