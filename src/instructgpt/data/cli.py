"""The commands `data import | clean | mix | split | stats`.

    instructgpt data import --data hh.jsonl.gz --out rankings.jsonl.gz
    instructgpt data clean  --data prompts.jsonl --out clean.jsonl
    instructgpt data mix    --data clean.jsonl --add refusals.jsonl --share 0.1 --forbidden uses.txt --out mixed.jsonl
    instructgpt data split  --data clean.jsonl --out split/
    instructgpt data stats  --data split/clean.train.jsonl

Everything is read and computed before anything is written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from instructgpt.console import OutputConsole
from instructgpt.data.configs import CleanConfig, ImportConfig, MixConfig, SplitConfig, StatsConfig
from instructgpt.data.dedup import (
    get_first_user_turn,
    get_prompt_group,
    near_duplicate_reasons,
    prompt_text_without_system,
    user_cap_reasons,
)
from instructgpt.data.drop_report import DropReport, LocatedItem, drop_report_path
from instructgpt.data.importing.conversions import TARGET_BY_RECORD_TYPE
from instructgpt.data.importing.reader import ImportOptions, convert_records, import_files
from instructgpt.data.importing.unpaired import is_unpaired
from instructgpt.data.mixing import add_system_text, add_system_text_to_share, mix_records
from instructgpt.data.pii import parse_detector_names, pii_drop_reason
from instructgpt.data.splits import SPLIT_NAMES, TRAINING_SPLITS, Split, assign_splits, check_users_in_single_split
from instructgpt.data.stats import LengthFunction, build_stats_tables, lengths_in_characters, lengths_in_words
from instructgpt.data.use_cases import guess_use_case
from instructgpt.errors import InputError, one_line
from instructgpt.io import SkippedLines, iter_rows, skip_or_raise, write_text_atomic
from instructgpt.records import (
    Demonstration,
    Prompt,
    PromptFields,
    Ranking,
    Record,
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
    options = ImportOptions(
        config.format, config.split, config.keep_empty, config.transcripts == "messages", few_shot=few_shot
    )
    records = import_files(config.data, options, report, skipped, config.to)
    if config.source is not None:
        records = [
            (location, record if getattr(record, "source", None) else _copy_with(record, source=config.source))
            for location, record in records
        ]
    report.add_skipped_lines(skipped)
    records_by_type = convert_records(records, config.to, report)
    main_type = next(iter(records_by_type), None)
    _write_output(
        report,
        {
            config.out if name == main_type else _second_output(config.out, name): items
            for name, items in records_by_type.items()
        },
    )


def _second_output(out: Path, type_name: str) -> Path:
    """Return where the second type of records goes: `chats.rankings.jsonl.gz` beside `chats.jsonl.gz`."""
    stem, suffix = out.name.removesuffix(".gz"), ".gz" if out.name.endswith(".gz") else ""
    path = Path(stem)
    return out.with_name(f"{path.stem}.{type_name}{path.suffix}{suffix}")


def _check_out(out: Path) -> None:
    """Raise InputError for a file name of another format."""
    if not out.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        raise InputError(f"--out {out}: the output is JSON lines; name it .jsonl or .jsonl.gz")


def _copy_with(record: Record, **columns: Any) -> Record:
    return record.model_copy(update=columns)


def _write_output(report: DropReport, records_by_path: Mapping[Path, Sequence[Record]]) -> None:
    """Write the outputs and the report beside the first one, and print the report.

    Raises InputError if nothing is left to write.
    """
    console = OutputConsole()
    if not any(records_by_path.values()):
        report.print(console)
        raise InputError("nothing was written, because nothing is left of what was read; the reasons stand above")
    for path, records in records_by_path.items():
        report.written[str(path)] = write_records(path, records)
    report.save(drop_report_path(next(iter(records_by_path))))
    report.print(console)


# ---------------------------------------------------------------- clean


def _read_native_records(
    paths: Sequence[Path], split: str | None, report: DropReport, skipped: SkippedLines
) -> list[LocatedItem[Record]]:
    """Read prompts, demonstrations or rankings with all columns; rows with an empty prompt are dropped and counted.

    Raises:
        InputError: a file cannot be read, a row is not such a record, or nothing is left.
    """
    records: list[LocatedItem[Record]] = []
    for path in paths:
        for location, row in iter_rows(path, skipped, split):
            if _has_empty_prompt(row):
                report.read += 1
                report.drop("empty prompt", location)
                continue
            try:
                records.append((location, validate_record(_detect_record_type(row), row)))
            except ValueError as error:
                skip_or_raise(location, error, skipped)
            else:
                report.read += 1
    if not records:
        reason = f"; the first bad line: {skipped.reasons[0]}" if skipped.reasons else ""
        raise InputError(f"{', '.join(map(str, paths))}: nothing in it that can be used{reason}")
    return records


def _select_main_type(
    items: list[LocatedItem[Record]], report: DropReport, skipped: SkippedLines
) -> tuple[list[LocatedItem[Record]], type[Record]]:
    """Return the records of the most frequent type, and the type. Others are bad lines.

    Raises InputError if there are others and bad lines may not be skipped.
    """
    counts = Counter(type(record) for _, record in items)
    main_type = counts.most_common(1)[0][0]
    if len(counts) > 1 and not skipped.allowed:
        type_names = " and ".join(sorted(TARGET_BY_RECORD_TYPE[record_type] for record_type in counts))
        raise InputError(f"the files hold {type_names}: give files of one kind (--skip-bad keeps the most frequent)")
    main_name = TARGET_BY_RECORD_TYPE[main_type]
    selected = []
    for location, record in items:
        if isinstance(record, main_type):
            selected.append((location, record))
        else:
            name = TARGET_BY_RECORD_TYPE[type(record)]
            skip_or_raise(location, ValueError(f"one of the {name} among {main_name}"), skipped)
    report.read -= len(items) - len(selected)  # bad lines are counted with all others
    return selected, main_type


def _has_empty_prompt(row: Mapping[str, Any]) -> bool:
    prompt = row.get("prompt")
    return row.get("messages") is None and isinstance(prompt, str) and not prompt.strip()


def _detect_record_type(row: dict[str, Any]) -> type[Record]:
    """Return the record type of a row. Raises ValueError if there is none."""
    columns = row.keys()
    if "ranks" in columns:
        return Ranking
    if is_unpaired(row):
        raise ValueError("an unpaired preference (column 'label'), which 'data import' reads")
    if columns & {"prompt", "messages"} and not columns & {"chosen", "rejected", "completions"}:
        messages = row.get("messages")
        is_answered = "completion" in columns or (
            isinstance(messages, list)
            and bool(messages)
            and isinstance(messages[-1], dict)
            and messages[-1].get("role") == "assistant"
        )
        return Demonstration if is_answered else Prompt
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
    items = _read_native_records(config.data, config.split, report, skipped)
    items, record_type = _select_main_type(items, report, skipped)
    is_labeled = record_type is not Prompt
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
        for location, record in items:
            for reason in _pii_in_completions(record, detectors):
                report.notice(f"{reason} in a completion, which is kept", location)
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
    _write_output(report, {config.out: [record for _, record in items]})


def _full_prompt_text(record: Record) -> str:
    """Return all text of a prompt, every turn."""
    assert isinstance(record, PromptFields)
    return record.prompt


def _pii_in_completions(record: Record, detectors: Sequence[str]) -> set[str]:
    """Return the kinds of personal data in completions, which the paper does not search."""
    completions: Sequence[str] = ()
    if isinstance(record, Ranking):
        completions = record.completions
    elif isinstance(record, Demonstration):
        completions = (record.completion,)
    return {reason for text in completions if (reason := pii_drop_reason(text, detectors)) is not None}


def _with_use_case(record: Record, location: str, report: DropReport) -> Record:
    """Return the record with its use case, or with a guess marked as such."""
    if getattr(record, "use_case", None):
        return record
    turns = record.messages if isinstance(record, PromptFields) and record.messages else ()
    guess = guess_use_case(prompt_text_without_system(record), len([turn for turn in turns if turn.role != "system"]))
    report.notice(f"use case guessed: {guess}", location)
    return _copy_with(record, use_case=guess, use_case_by="heuristic")


# ---------------------------------------------------------------- mix


def mix_datasets(config: MixConfig) -> None:
    """Mix records into others by share, those and a share of the others with a system text. Raises InputError."""
    _check_out(config.out)
    forbidden_uses = _read_forbidden_uses(config.forbidden)
    report, skipped = DropReport("mix"), SkippedLines(config.skip_bad)
    files = (config.data, config.add)
    items = [_read_native_records(paths, config.split, report, skipped) for paths in files]
    ordinary, added = (_select_main_type(of_files, report, skipped) for of_files in items)
    if ordinary[1] is not added[1]:
        names = [TARGET_BY_RECORD_TYPE[record_type] for record_type in (ordinary[1], added[1])]
        raise InputError(f"--data holds {names[0]}, --add {names[1]}; mix files of one kind")
    rng = Random(f"mix {config.seed}")
    records, extra = mix_records(ordinary[0], added[0], config.share, rng, report)
    added_share = len(extra) / (len(records) + len(extra))
    console = OutputConsole()
    if forbidden_uses is not None:
        records = add_system_text_to_share(records, forbidden_uses, config.forbidden_share, rng)
        extra = [add_system_text(record, forbidden_uses) for record in extra]
    mixed = [*records, *extra]
    rng.shuffle(mixed)
    report.add_skipped_lines(skipped)
    _write_output(report, {config.out: mixed})
    shortfall = "" if abs(added_share - config.share) < 0.005 else f"; --add has too few for {config.share:.1%}"
    console.print(f"{len(extra):,} of {len(mixed):,} records are added ones: {added_share:.1%}{shortfall}")


def _read_forbidden_uses(path: Path | None) -> str | None:
    """Return the text of a file. Raises InputError where it cannot be read or is empty."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--forbidden {path}: cannot be read as UTF-8 text ({one_line(error, 200)})") from error
    if not text:
        raise InputError(f"--forbidden {path}: the file is empty; write the forbidden uses into it")
    return text


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
    files = [_read_native_records([path], config.split, report, skipped) for path in config.data]
    records = [record for items in files for _, record in items]
    groups = [get_prompt_group(record, config.group) for record in records]
    splits = assign_splits(
        groups,
        [_full_prompt_text(record) for record in records],
        config.validation,
        config.test,
        config.salt,
        [get_first_user_turn(record) for record in records],
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
    report.print(OutputConsole())


# ---------------------------------------------------------------- stats


def print_dataset_stats(config: StatsConfig) -> None:
    """Print the paper's data tables, one set a record type. Raises InputError."""
    length_functions: dict[str, LengthFunction] = {"characters": lengths_in_characters, "words": lengths_in_words}
    if config.tokenizer is not None:
        length_functions["tokens"] = _make_token_counter(config.tokenizer)
    report, skipped = DropReport("stats"), SkippedLines(config.skip_bad)
    options = ImportOptions(split=config.split, keep_empty=True, read_documents=True)
    records_by_kind: dict[str, list[Record]] = {}
    for _, record in import_files(config.data, options, report, skipped):
        records_by_kind.setdefault(type(record).__name__.lower(), []).append(record)
    console = OutputConsole()
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
