"""Options of the commands `data import | clean | mix | split | stats`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from instructgpt.config import CommandConfig
from instructgpt.data.importing.conversions import ConversionTarget
from instructgpt.data.importing.registry import DatasetFormat
from instructgpt.data.pii import PII_DETECTORS


class _DataConfig(CommandConfig):
    data: tuple[Path, ...] = Field(description="JSON lines (.gz too), a JSON list, Parquet, or a Hugging Face data set")
    split: str | None = Field(None, description="the split to read of data sets that have splits; train if not set")
    skip_bad: bool = Field(
        False, description="leave out lines that cannot be read, and count them, where the first one would be an error"
    )

    def ineffective_options(self) -> Iterator[str]:
        """Yield a line for each option that is set but has no effect."""
        yield from ()


class ImportConfig(_DataConfig):
    stage: ClassVar[str] = "data import"

    out: Path = Field(
        description="the file to write, .jsonl or .jsonl.gz; NAME.report.json beside it says what was dropped, "
        "NAME.TYPE.jsonl holds a second type of records"
    )
    format: DatasetFormat = Field(
        "auto", description="the format of the data; auto tells it by the columns of most of the first 1000 rows"
    )
    to: ConversionTarget = Field(
        "auto",
        description="what to make: auto keeps to what the format holds; pairs (TRL) and nemo are for other libraries",
    )
    source: str | None = Field(None, description="written into the column 'source' where there is none")
    keep_empty: bool = Field(False, description="keep demonstrations whose completion is empty")
    transcripts: Literal["messages", "text"] = Field(
        "messages", description="make messages of prompts written as Human: … Assistant: …, or keep them as text"
    )
    shots: int | None = Field(
        None, ge=2, description="few-shot templates: examples in one subset; all of them when not given"
    )
    subsets: int = Field(1, ge=1, description="few-shot templates: subsets drawn from one template")
    seed: int = Field(0, description="few-shot templates: which subsets are drawn")

    def ineffective_options(self) -> Iterator[str]:
        """Report subset options without shots, or without few-shot templates."""
        subset_flags = [f"--{name}" for name in ("subsets", "seed") if name in self.model_fields_set]
        if subset_flags and self.shots is None:
            yield f"{subset_flags[0]} does nothing without --shots: all examples of a template are one subset"
        if self.shots is not None and self.format not in ("auto", "few_shot"):
            yield f"--shots does nothing with --format {self.format}; only few_shot templates have examples"


class CleanConfig(_DataConfig):
    stage: ClassVar[str] = "data clean"

    out: Path = Field(
        description="the file to write, .jsonl or .jsonl.gz; NAME.report.json beside it says what was dropped"
    )
    prefix: int | None = Field(
        None,
        ge=0,
        description="drop a prompt that shares so many first characters with one before; 0 is off; 200 for prompts, "
        "else off",
    )
    cap: int | None = Field(
        None, ge=0, description="most prompts of one user or organization; 0 is off; 200 for prompts, else off"
    )
    group: str = Field(
        "auto", description="the column the cap goes by; auto takes organization where there is one, else user"
    )
    personal: Literal["training", "all", "off"] = Field(
        "training", description="drop prompts with personal data: those not in validation or test, all, or none"
    )
    detectors: str = Field(
        ",".join(PII_DETECTORS), description="kinds of personal data to look for, separated by commas"
    )
    max_characters: int | None = Field(None, ge=1, description="drop prompts that are longer")
    use_cases: bool = Field(
        False, description="fill missing use cases by a heuristic (see the docs; a guess, marked as one)"
    )

    def ineffective_options(self) -> Iterator[str]:
        """Report a grouping without a cap, and detectors without a search."""
        if self.cap == 0 and "group" in self.model_fields_set:
            yield "--group does nothing with --cap 0"
        if self.personal == "off" and "detectors" in self.model_fields_set:
            yield "--detectors does nothing with --personal off"


class MixConfig(_DataConfig):
    stage: ClassVar[str] = "data mix"

    add: tuple[Path, ...] = Field(description="records of the same kind to mix in, such as refusals")
    out: Path = Field(
        description="the file to write, .jsonl or .jsonl.gz; NAME.report.json beside it counts what was not drawn"
    )
    share: float = Field(0.1, gt=0, lt=1, description="share of the output that --add makes up; all of --data stays")
    forbidden: Path | None = Field(
        None, description="text file with a list of forbidden uses; it becomes the system turn of each added record"
    )
    forbidden_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of --data that gets the same system turn, so that the list alone decides nothing",
    )
    seed: int = Field(0, description="which records are drawn, and their order")

    def ineffective_options(self) -> Iterator[str]:
        """Report a share of records with a list that is not there."""
        if self.forbidden is None and "forbidden_share" in self.model_fields_set:
            yield "--forbidden-share does nothing without --forbidden"


class SplitConfig(_DataConfig):
    stage: ClassVar[str] = "data split"

    out: Path = Field(
        description="the directory to write NAME.train.jsonl, NAME.validation.jsonl and NAME.test.jsonl into"
    )
    validation: float = Field(0.1, ge=0, le=1, description="share of users (and of prompts of nobody) in validation")
    test: float = Field(0.1, ge=0, le=1, description="share of users (and of prompts of nobody) in test")
    group: str = Field(
        "auto", description="the column that must not cross; auto takes organization where there is one, else user"
    )
    salt: str = Field("", description="any text; another one gives another split")


class StatsConfig(_DataConfig):
    stage: ClassVar[str] = "data stats"

    out: Path | None = Field(None, description="also write the tables to this JSON file")
    tokenizer: Path | None = Field(None, description="also measure in tokens, with the tokenizer in this directory")
