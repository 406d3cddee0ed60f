"""The commands `data import | clean | split | stats`: files in, files and an account of what was dropped out.

    instructgpt data import --data hh.jsonl.gz --out rankings.jsonl.gz
    instructgpt data clean  --data prompts.jsonl --out clean.jsonl
    instructgpt data split  --data clean.jsonl --out split/
    instructgpt data stats  --data split/clean.train.jsonl

Everything is read and computed before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from rich.console import Console

from instructgpt.config import Options
from instructgpt.data.dedup import cap_reasons, group_of, prefix_reasons, prompt_text
from instructgpt.data.drop_report import Placed, Report, report_path
from instructgpt.data.importing.conversions import KINDS, Target
from instructgpt.data.importing.registry import Format, convert, import_file
from instructgpt.data.pii import DETECTORS, chosen_detectors, personal_reason
from instructgpt.data.splits import SPLITS, TRAINING, Split, assign, check_users
from instructgpt.data.stats import Measure, characters, sheets, words
from instructgpt.data.use_cases import guess_use_case
from instructgpt.errors import BadInput, in_one_line
from instructgpt.io import Skipped, bad_line, read_rows, write_text
from instructgpt.records import Asked, Demonstration, Document, Prompt, Ranking, Record, as_record, read_records, write_records

DEFAULT_PREFIX, DEFAULT_CAP = 200, 200
"""Characters of a shared prefix (the paper gives no number), and prompts of one user or organization (section 3.2)."""


class DataConfig(Options):
    """What every data command can be told."""

    data: tuple[Path, ...] = Field(description="JSON lines (.gz too), a JSON list, Parquet, or a Hugging Face data set")
    skip_bad: bool = Field(False, description="leave out lines that cannot be read, and count them, where the first one would be an error")

    def inert(self) -> Iterator[str]:
        """One line for each option that was set but would do nothing."""
        yield from ()


class ImportConfig(DataConfig):
    """Other people's data sets as our records, or our rankings as other people's."""

    stage: ClassVar[str] = "data import"

    out: Path = Field(description="the file to write, .jsonl or .jsonl.gz; NAME.report.json beside it says what was dropped")
    format: Format = Field("auto", description="the format of the data; auto tells it by the columns of the first row")
    to: Target = Field(
        "auto", description="what to make: auto keeps to what the format holds; pairs (TRL) and nemo are for other libraries"
    )
    source: str | None = Field(None, description="written into the column 'source' where there is none")
    keep_empty: bool = Field(False, description="keep demonstrations whose completion is empty")
    shots: int | None = Field(None, ge=2, description="few-shot templates: examples in one subset; all of them when not given")
    subsets: int = Field(1, ge=1, description="few-shot templates: subsets drawn from one template")
    seed: int = Field(0, description="few-shot templates: which subsets are drawn")

    def inert(self) -> Iterator[str]:
        """Subsets are only drawn where shots say how large they are, and only from templates."""
        drawn = [f"--{name}" for name in ("subsets", "seed") if name in self.model_fields_set]
        if drawn and self.shots is None:
            yield f"{drawn[0]} does nothing without --shots: all examples of a template are one subset"
        if self.shots is not None and self.format not in ("auto", "few_shot"):
            yield f"--shots does nothing with --format {self.format}; only few_shot templates have examples"


class CleanConfig(DataConfig):
    """The paper's hygiene: no near-copies, few prompts of one user, no personal data in training."""

    stage: ClassVar[str] = "data clean"

    out: Path = Field(description="the file to write, .jsonl or .jsonl.gz; NAME.report.json beside it says what was dropped")
    prefix: int | None = Field(
        None, ge=0, description="drop a prompt that shares so many first characters with one before; 0 is off; 200 for prompts, else off"
    )
    cap: int | None = Field(None, ge=0, description="most prompts of one user or organization; 0 is off; 200 for prompts, else off")
    group: str = Field("auto", description="the column the cap goes by; auto takes organization where there is one, else user")
    personal: Literal["training", "all", "off"] = Field(
        "training", description="drop prompts with personal data: those not in validation or test, all, or none"
    )
    detectors: str = Field(",".join(DETECTORS), description="kinds of personal data to look for, separated by commas")
    max_characters: int | None = Field(None, ge=1, description="drop prompts that are longer")
    use_cases: bool = Field(False, description="fill missing use cases by a heuristic (see the docs; a guess, marked as one)")

    def inert(self) -> Iterator[str]:
        """A grouping without a cap, or detectors without a search, change nothing."""
        if self.cap == 0 and "group" in self.model_fields_set:
            yield "--group does nothing with --cap 0"
        if self.personal == "off" and "detectors" in self.model_fields_set:
            yield "--detectors does nothing with --personal off"


class SplitConfig(DataConfig):
    """Training, validation and test sets that no user and no prompt crosses."""

    stage: ClassVar[str] = "data split"

    out: Path = Field(description="the directory to write NAME.train.jsonl, NAME.validation.jsonl and NAME.test.jsonl into")
    validation: float = Field(0.1, ge=0, le=1, description="share of users (and of prompts of nobody) in validation")
    test: float = Field(0.1, ge=0, le=1, description="share of users (and of prompts of nobody) in test")
    group: str = Field("auto", description="the column that must not cross; auto takes organization where there is one, else user")
    salt: str = Field("", description="any text; another one gives another split")


class StatsConfig(DataConfig):
    """The paper's tables about data, for any file."""

    stage: ClassVar[str] = "data stats"

    out: Path | None = Field(None, description="also write the tables to this JSON file")
    tokenizer: Path | None = Field(None, description="also measure in tokens, with the tokenizer in this directory")


# ---------------------------------------------------------------- import


def import_data(config: ImportConfig) -> None:
    """Read data sets in any known format and write our records (or pairs, or NeMo's rankings). Raises BadInput."""
    _check_out(config.out)
    report, skipped = Report("import"), Skipped(config.skip_bad)
    few_shot = {} if config.shots is None else {"shots": config.shots, "subsets": config.subsets, "seed": config.seed}
    imported: list[Placed[Record]] = []
    for path in config.data:
        imported += import_file(path, config.format, report, skipped, keep_empty=config.keep_empty, few_shot=few_shot)
    if config.source is not None:
        imported = [
            (place, record if getattr(record, "source", None) else _with(record, source=config.source)) for place, record in imported
        ]
    report.skip(skipped)
    _write(report, config.out, convert(imported, config.to, report))


def _check_out(out: Path) -> None:
    """Raises BadInput for a name that promises another format."""
    if not out.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        raise BadInput(f"--out {out}: the output is JSON lines; name it .jsonl or .jsonl.gz")


def _with(record: Record, **columns: Any) -> Record:
    """The record with some columns changed."""
    return record.model_copy(update=columns)


def _write(report: Report, out: Path, records: Sequence[Record]) -> None:
    """Write one output with its report beside it, and print the report. Raises BadInput where nothing is left to write."""
    console = Console()
    if not records:
        report.show(console)
        raise BadInput(f"{out}: not written, because nothing is left of what was read; the reasons stand above")
    report.written[str(out)] = write_records(out, records)
    report.save(report_path(out))
    report.show(console)


# ---------------------------------------------------------------- clean


def read_ours(paths: Sequence[Path], report: Report, skipped: Skipped) -> list[Placed[Record]]:
    """Prompts, demonstrations or rankings with all their columns; rows whose prompt is empty are dropped and counted.

    Raises:
        BadInput: a file cannot be read, a row is no such record, or nothing is left.
    """
    found: list[Placed[Record]] = []
    for path in paths:
        for place, row in read_rows(path, skipped):
            report.read += 1
            if _asks_nothing(row):
                report.drop("empty prompt", place)
                continue
            try:
                found.append((place, as_record(_kind(row), row)))
            except ValueError as error:
                bad_line(place, error, skipped)
    if not found:
        raise BadInput(f"{', '.join(map(str, paths))}: nothing in it")
    return found


def _asks_nothing(row: Mapping[str, Any]) -> bool:
    """Whether there is a prompt, and only white space in it."""
    prompt = row.get("prompt")
    return row.get("messages") is None and isinstance(prompt, str) and not prompt.strip()


def _kind(row: Mapping[str, Any]) -> type[Record]:
    """What kind of our records a row is. Raises ValueError if it is none."""
    if "ranks" in row:
        return Ranking
    if ("prompt" in row or "messages" in row) and not row.keys() & {"chosen", "completions"}:
        return Demonstration if "completion" in row else Prompt
    raise ValueError(
        f"neither a prompt, a demonstration nor a ranking (columns found: {', '.join(row)}); 'data import' reads other formats"
    )


def clean(config: CleanConfig) -> None:
    """Drop what should not be trained on, and say what and why (paper, section 3.2 and appendix A.2). Raises BadInput."""
    _check_out(config.out)
    detectors = chosen_detectors(config.detectors)
    report, skipped = Report("clean"), Skipped(config.skip_bad)
    items = read_ours(config.data, report, skipped)
    kinds = {type(record) for _, record in items}
    if len(kinds) > 1:
        raise BadInput(f"the files hold {' and '.join(sorted(KINDS[kind] for kind in kinds))}: clean them one by one")
    labeled = kinds != {Prompt}
    prefix, cap = (
        (0 if labeled else default) if given is None else given
        for given, default in ((config.prefix, DEFAULT_PREFIX), (config.cap, DEFAULT_CAP))
    )
    if config.max_characters is not None:
        limit = config.max_characters
        long = f"longer than {limit} characters"
        items = report.sift(items, [long if len(_whole(record)) > limit else None for _, record in items])
    if config.personal != "off":
        looked_at = [config.personal == "all" or getattr(record, "split", None) in TRAINING for _, record in items]
        reasons = [personal_reason(_whole(record), detectors) if look else None for look, (_, record) in zip(looked_at, items, strict=True)]
        items = report.sift(items, reasons)
    if prefix:
        items = report.sift(items, prefix_reasons([prompt_text(record) for _, record in items], prefix, labeled))
    if cap:
        items = report.sift(items, cap_reasons([group_of(record, config.group) for _, record in items], cap))
    if config.use_cases:
        items = [(place, _tagged(record, place, report)) for place, record in items]
    report.skip(skipped)
    _write(report, config.out, [record for _, record in items])


def _whole(record: Record) -> str:
    """All that stands in a prompt, system turns too."""
    return record.text if isinstance(record, Asked) else prompt_text(record)


def _tagged(record: Record, place: str, report: Report) -> Record:
    """The record with a use case: the one it has, or a guess that is marked as one."""
    if getattr(record, "use_case", None):
        return record
    turns = record.messages if isinstance(record, Asked) and record.messages else ()
    guess = guess_use_case(prompt_text(record), len([turn for turn in turns if turn.role != "system"]))
    report.notice(f"use case guessed: {guess}", place)
    return _with(record, use_case=guess, use_case_by="heuristic")


# ---------------------------------------------------------------- split


def split(config: SplitConfig) -> None:
    """Split files together, so that neither a user nor a prompt crosses, in any of them. Raises BadInput."""
    if config.validation + config.test > 1:
        raise BadInput(f"--validation {config.validation} and --test {config.test} leave nothing to train on; together at most 1")
    names = [path.name.removesuffix(".gz").removesuffix(".jsonl") for path in config.data]
    if len(set(names)) < len(names):
        raise BadInput("two of the files have the same name, so their splits would overwrite each other; rename one")
    report, skipped = Report("split"), Skipped(config.skip_bad)
    files = [read_ours([path], report, skipped) for path in config.data]
    records = [record for items in files for _, record in items]
    groups = [group_of(record, config.group) for record in records]
    homes = assign(groups, [_whole(record) for record in records], config.validation, config.test, config.salt)
    check_users(records, homes, config.group)
    outputs: dict[Path, list[Record]] = {}
    home = iter(homes)
    wanted = [name for name in SPLITS if name == "train" or getattr(config, name) > 0]
    for path, name, items in zip(config.data, names, files, strict=True):
        suffix = ".jsonl.gz" if path.suffix == ".gz" else ".jsonl"
        parts: dict[Split, list[Record]] = {part: [] for part in wanted}
        for place, record in items:
            part = next(home)
            if part is None:
                report.drop("the same prompt is in another split, from another user", place)
            else:
                if getattr(record, "split", None) not in (None, part):
                    report.notice(f"was in another split, now in {part}", place)
                parts[part].append(_with(record, split=part))
        outputs |= {config.out / f"{name}.{part}{suffix}": found for part, found in parts.items()}
    report.skip(skipped)
    for out, found in outputs.items():
        report.written[str(out)] = write_records(out, found)
        if not found:
            report.notice("nothing fell into this split", str(out))
    report.save(config.out / "split.report.json")
    report.show(Console())


# ---------------------------------------------------------------- stats


def stats(config: StatsConfig) -> None:
    """Print the paper's tables about data for these files, one set for each kind of record in them. Raises BadInput."""
    measures: dict[str, Measure] = {"characters": characters, "words": words}
    if config.tokenizer is not None:
        measures["tokens"] = token_measure(config.tokenizer)
    report, skipped = Report("stats"), Skipped(config.skip_bad)
    by_kind: dict[str, list[Record]] = {}
    for path in config.data:
        for record in _any_records(path, report, skipped):
            by_kind.setdefault(type(record).__name__.lower(), []).append(record)
    console = Console()
    tables = {kind: sheets(records, measures) for kind, records in by_kind.items()}
    for made in tables.values():
        for sheet in made:
            sheet.show(console)
    report.skip(skipped)
    report.show(console)
    if config.out is not None:
        whole = {kind: {sheet.title: sheet.as_rows() for sheet in made} for kind, made in tables.items()}
        write_text(config.out, json.dumps(whole, ensure_ascii=False, indent=2) + "\n")


def _any_records(path: Path, report: Report, skipped: Skipped) -> list[Record]:
    """The records of a file in any format, or the documents of a corpus."""
    _, first = next(read_rows(path, Skipped(skipped.allowed)), ("", {}))  # bad lines are counted by the reading that follows
    if "text" in first and not first.keys() & {"prompt", "messages", "instruction", "conversations"}:
        documents = read_records(Document, path, skipped)
        report.read += len(documents)
        return list(documents)
    return [record for _, record in import_file(path, "auto", report, skipped, keep_empty=True)]


def token_measure(directory: Path) -> Measure:
    """Lengths in tokens of the tokenizer in a directory, without special tokens. Raises BadInput if there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"--tokenizer {directory}: no tokenizer that loads ({in_one_line(error, 300)})") from error
    return lambda texts: [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False).input_ids]
