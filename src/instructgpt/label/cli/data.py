"""The commands `label import`, `label export` and `label backup`.

instructgpt label import --site site/ --data completions.jsonl --name first --policy '{"overlap": 2}'
instructgpt label export --site site/ --out exported/
instructgpt label backup --site site/ --out site-monday.db
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationError

from instructgpt.config import CommandConfig
from instructgpt.errors import InputError
from instructgpt.io import SkippedLines
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.backup import back_up_database
from instructgpt.label.exchange.archive import read_archive, write_archive
from instructgpt.label.exchange.export_files import ExportFormat, format_card_body, write_export
from instructgpt.label.exchange.export_rows import EXPORT_FILES
from instructgpt.label.exchange.external_submissions import ExternalSubmissionImporter
from instructgpt.label.exchange.imports import (
    WORK_RECORD_TYPES,
    ImportReport,
    LabelImportFormat,
    LocatedRecord,
    import_prompt_records,
    read_import_file,
)
from instructgpt.label.exchange.selection import ExportFilter, ExportUse
from instructgpt.label.exchange.third_party import MAX_RATING, ThirdPartyReader, read_labeling_config
from instructgpt.label.site_folder import open_site
from instructgpt.label.tasks import batches
from instructgpt.records import Cohort, Completion, Prompt, format_validation_error


class ExistingSiteOptions(CommandConfig):
    site: Path = Field(description="folder of the site, created by 'label init'")


class LabelImportConfig(ExistingSiteOptions):
    stage: ClassVar[str] = "label import"

    data: tuple[Path, ...] = Field(
        (), description="prompts, completions, demonstrations or rankings; also exports of Label Studio or Argilla"
    )
    archive: Path | None = Field(None, description="import an archive of 'label export --archive' into an empty site")
    format: LabelImportFormat = Field("auto", description="file format; auto detects it from the columns of each row")
    name: str | None = Field(None, description="name of the new batch; by default the name of the first file")
    kind: Literal["demonstrate", "review"] | None = Field(
        None, description="also create a batch of the prompts, to demonstrate or to review"
    )
    purpose: Literal["training", "evaluation"] = Field("training", description="purpose of the batch")
    cohort: Cohort = Field("training", description="cohort of external labelers whose lines name none")
    baseline: str | None = Field(None, description="evaluation: the model to compare the others with")
    policy: str = Field(
        "{}",
        description="overlap policy as JSON: overlap, cohort_share, cohort_overlap, gold_share, repeat_share, k, seed",
    )
    open: bool = Field(False, description="open the batch to labelers at once")
    prompt_field: str | None = Field(None, description="other tools: name of the prompt field")
    questions: str = Field("", description="other tools: controls or questions to import, separated by commas")
    rating_max: int = Field(MAX_RATING, ge=2, description="other tools: highest rating; ratings are rescaled to 1 to 7")
    labeling_config: Path | None = Field(None, description="Label Studio: XML file of the labeling interface")
    skip_bad: bool = Field(False, description="skip and count bad lines")

    def ineffective_options(self) -> Iterator[str]:
        if (self.archive is None) == (not self.data):
            yield "give either --data or --archive"
        if self.archive is not None:
            for name in sorted(self.model_fields_set - {"site", "archive"}):
                yield f"--{name.replace('_', '-')} has no effect with --archive"


class LabelExportConfig(ExistingSiteOptions):
    stage: ClassVar[str] = "label export"

    out: Path = Field(description="output folder; must not exist")
    use: ExportUse = Field("training", description="training: for SFT and reward models; evaluation: to measure them")
    format: ExportFormat = Field("jsonl", description="jsonl, parquet, or datasets (Parquet with a dataset card)")
    files: str = Field(",".join(EXPORT_FILES), description="files to write, separated by commas")
    batch: tuple[str, ...] = Field((), description="only these batches")
    since: int | None = Field(None, ge=0, description="only submissions from this time on, milliseconds since 1970 UTC")
    until: int | None = Field(None, ge=0, description="only submissions before this time, milliseconds since 1970 UTC")
    archive: bool = Field(False, description="export every table of the site, for 'label import --archive'")
    people: Literal["whole", "pseudonyms"] = Field("whole", description="with --archive: whole accounts or pseudonyms")

    def ineffective_options(self) -> Iterator[str]:
        for name in ("use", "format", "files", "batch", "since", "until") if self.archive else ("people",):
            if name in self.model_fields_set:
                yield f"--{name} has no effect {'with' if self.archive else 'without'} --archive"


class LabelBackupConfig(ExistingSiteOptions):
    stage: ClassVar[str] = "label backup"

    out: Path = Field(description="output file: an SQLite database, or a pg_restore archive of PostgreSQL")


@contextmanager
def _site_context(folder: Path) -> Iterator[Site]:
    site = open_site(folder)
    try:
        yield site
    finally:
        site.database.close()


def export_from_site(config: LabelExportConfig) -> None:
    with _site_context(config.site) as site:
        if config.archive:
            archive_manifest = write_archive(site.database, config.out, config.people)
            exported, row_count = "archive", sum(entry["rows"] for entry in archive_manifest["tables"].values())
        else:
            file_names = tuple(name for name in EXPORT_FILES if name in config.files.split(","))
            if unknown_names := set(config.files.split(",")) - set(EXPORT_FILES):
                raise InputError(f"--files: no file '{sorted(unknown_names)[0]}'; there are: {', '.join(EXPORT_FILES)}")
            export_filter = ExportFilter(use=config.use, batches=config.batch, since=config.since, until=config.until)
            card = format_card_body(site.database, export_filter) if config.format == "datasets" else ""
            manifest = write_export(site.database, config.out, export_filter, config.format, file_names, card)
            exported, row_count = config.use, sum(entry["rows"] for entry in manifest["files"].values())
            for name, entry in manifest["files"].items():
                exclusions = ", ".join(f"{number} {why}" for why, number in entry["left_out"].items())
                print(f"  {name}: {entry['rows']:,} rows" + (f"; left out: {exclusions}" if exclusions else ""))
        with site.database.write() as db:
            audit_log.append_entry(db, "cli", "export.make", "", use=exported, rows=row_count)
    print(f"{row_count:,} rows in {config.out}")


def backup_site(config: LabelBackupConfig) -> None:
    """Copy the database of a running site and verify the copy. Raises InputError, RunError."""
    with _site_context(config.site) as site:
        row_counts = back_up_database(site.database, config.out)
        with site.database.write() as db:
            audit_log.append_entry(db, "cli", "backup.make")
    print(f"{config.out}: verified, {sum(row_counts.values()):,} rows, {row_counts['submission']:,} submissions")


def import_into_site(config: LabelImportConfig) -> None:
    """Import files or an archive in one transaction. Raises InputError."""
    with _site_context(config.site) as site:
        if config.archive is not None:
            manifest = read_archive(site.database, config.archive)
            print(f"{sum(entry['rows'] for entry in manifest['tables'].values()):,} rows from {config.archive}")
            return
        skipped = SkippedLines(config.skip_bad)
        reader = ThirdPartyReader(
            prompt_field=config.prompt_field,
            questions=tuple(filter(None, config.questions.split(","))),
            rating_max=config.rating_max,
        )
        if config.labeling_config is not None:
            read_labeling_config(config.labeling_config, reader)
        records = [row for path in config.data for row in read_import_file(path, config.format, reader, skipped)]
        report = _import_records(site, config, records)
        report.left_out += reader.left_out
        if skipped.reasons:
            report.left_out["bad lines"] += len(skipped.reasons)
            print("\n".join(f"  {reason}" for reason in skipped.reasons))
    print(report.format_summary())


def _import_records(site: Site, config: LabelImportConfig, records: list[LocatedRecord]) -> ImportReport:
    report, batch_name = ImportReport(), config.name or config.data[0].name.split(".")[0]
    prompt_records = [row for row in records if type(row[1]) is Prompt]
    completions = [record for _, record in records if isinstance(record, Completion)]
    work_records = [row for row in records if isinstance(row[1], WORK_RECORD_TYPES)]
    policy = _parse_policy(config.policy)
    with site.database.write() as db:
        import_prompt_records(db, prompt_records, report)
        batch = None
        if completions:
            batch = batches.create_batch_with_tasks(
                db, batch_name, "rank", config.purpose, [], completions, policy, baseline=config.baseline
            )
        elif config.kind is not None:
            prompts = [record for _, record in prompt_records if isinstance(record, Prompt)]
            batch = batches.create_batch_with_tasks(db, batch_name, config.kind, config.purpose, prompts, [], policy)
        if batch is not None:
            report.counts[f"tasks in batch '{batch_name}'"] += int(batch.intake["tasks"])
            report.counts["completions"] += int(batch.intake["completions"])
            audit_log.append_entry(db, "cli", "batch.create", batch.id, kind=batch.kind, purpose=batch.purpose)
            if config.open:
                batches.mark_batch_open(db, batch)
                audit_log.append_entry(db, "cli", "batch.open", batch.id)
        elif config.open:
            raise InputError("--open has no effect: these files create no batch (--kind creates one of prompts)")
        # External submissions need a batch of their own; the suffix keeps its name unique.
        external_name = batch_name if batch is None else f"{batch_name} from elsewhere"
        ExternalSubmissionImporter(db, external_name, config.purpose, config.cohort, report).import_all(work_records)
        if prompt_records:
            audit_log.append_entry(db, "cli", "prompts.import", "", lines=len(prompt_records))
    report.counts = +report.counts
    return report


def _parse_policy(text: str) -> batches.OverlapPolicy:
    try:
        return batches.OverlapPolicy.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"--policy {text}: {format_validation_error(error)}") from error
