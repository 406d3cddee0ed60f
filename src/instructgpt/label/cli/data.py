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
from instructgpt.label.exchange import export_files
from instructgpt.label.exchange.archive import read_archive, write_archive
from instructgpt.label.exchange.dataset_card import format_card_body
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
    """What every command on a site that is there is told."""

    site: Path = Field(description="the site's folder, made by 'label init'")


class LabelImportConfig(ExistingSiteOptions):
    """Files into a site."""

    stage: ClassVar[str] = "label import"

    data: tuple[Path, ...] = Field(
        (), description="prompts, completions, demonstrations or rankings: ours, Label Studio's or Argilla's"
    )
    archive: Path | None = Field(None, description="a folder that 'label export --archive' wrote, into a new site")
    format: LabelImportFormat = Field(
        "auto", description="whose files they are; auto tells it by the columns of each row"
    )
    name: str | None = Field(
        None, description="the batch of completions, or of work from elsewhere; the first file's name"
    )
    kind: Literal["demonstrate", "review"] | None = Field(
        None, description="also make a batch of prompts: to be demonstrated or reviewed"
    )
    purpose: Literal["training", "evaluation"] = Field("training", description="what the batch is for")
    cohort: Cohort = Field("training", description="of labelers from elsewhere whose lines name none")
    baseline: str | None = Field(None, description="evaluation: the model the others are compared with")
    policy: str = Field(
        "{}",
        description="of the batch, as JSON: overlap, cohort_share, cohort_overlap, gold_share, repeat_share, k, seed",
    )
    open: bool = Field(False, description="give the batch to labelers at once")
    prompt_field: str | None = Field(None, description="other tools: the field that holds the prompt")
    questions: str = Field("", description="other tools: read only these controls or questions, separated by commas")
    rating_max: int = Field(
        MAX_RATING, ge=2, description="other tools: their highest rating; other scales than 1 to 7 are stretched"
    )
    labeling_config: Path | None = Field(
        None, description="Label Studio: the project's labeling interface, an XML file"
    )
    skip_bad: bool = Field(False, description="leave bad lines out and count them")

    def ineffective_options(self) -> Iterator[str]:
        """An archive is everything; a batch's options need a batch."""
        if (self.archive is None) == (not self.data):
            yield "give either --data or --archive"
        if self.archive is not None:
            for name in sorted(self.model_fields_set - {"site", "archive"}):
                yield f"--{name.replace('_', '-')} does nothing with --archive"


class LabelExportConfig(ExistingSiteOptions):
    """Work out of a site."""

    stage: ClassVar[str] = "label export"

    out: Path = Field(description="the folder to make")
    use: ExportUse = Field(
        "training", description="training: what SFT and reward models learn from; evaluation: what measures them"
    )
    format: export_files.ExportFormat = Field(
        "jsonl", description="jsonl, parquet, or datasets: a folder that load_dataset opens, with a card"
    )
    files: str = Field(",".join(EXPORT_FILES), description="which files, separated by commas")
    batch: tuple[str, ...] = Field((), description="only these batches")
    since: int | None = Field(None, ge=0, description="only work handed in from then on, in milliseconds since 1970")
    until: int | None = Field(None, ge=0, description="only work handed in before, in milliseconds since 1970")
    archive: bool = Field(False, description="the whole site instead: every table, for 'label import --archive'")
    people: Literal["whole", "pseudonyms"] = Field(
        "whole", description="of an archive: accounts as they are, or only pseudonyms"
    )

    def ineffective_options(self) -> Iterator[str]:
        """An archive is not filtered."""
        for name in ("use", "format", "files", "batch", "since", "until") if self.archive else ("people",):
            if name in self.model_fields_set:
                yield f"--{name} does nothing {'with' if self.archive else 'without'} --archive"


class LabelBackupConfig(ExistingSiteOptions):
    """A copy of a site's database."""

    stage: ClassVar[str] = "label backup"

    out: Path = Field(description="the file to make: a database for SQLite, an archive for pg_restore for PostgreSQL")


@contextmanager
def _site_context(folder: Path) -> Iterator[Site]:
    """A site for one command. Raises BadInput as `open_site` does."""
    site = open_site(folder)
    try:
        yield site
    finally:
        site.database.close()


def export_from_site(config: LabelExportConfig) -> None:
    """Write an export or an archive. Raises BadInput."""
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
            manifest = export_files.write_export(
                site.database, config.out, export_filter, config.format, file_names, card
            )
            exported, row_count = config.use, sum(entry["rows"] for entry in manifest["files"].values())
            for name, entry in manifest["files"].items():
                exclusions = ", ".join(f"{number} {why}" for why, number in entry["left_out"].items())
                print(f"  {name}: {entry['rows']:,} rows" + (f"; left out: {exclusions}" if exclusions else ""))
        with site.database.write() as db:
            audit_log.append_entry(db, "cli", "export.make", "", use=exported, rows=row_count)
    print(f"{row_count:,} rows in {config.out}")


def backup_site(config: LabelBackupConfig) -> None:
    """Copy the database while the site runs, and look at the copy. Raises BadInput, RunFailed."""
    with _site_context(config.site) as site:
        row_counts = back_up_database(site.database, config.out)
        with site.database.write() as db:
            audit_log.append_entry(db, "cli", "backup.make")
    print(f"{config.out}: sound, {sum(row_counts.values()):,} rows, {row_counts['submission']:,} of them submissions")


def import_into_site(config: LabelImportConfig) -> None:
    """Read files or an archive into a site, all or nothing. Raises BadInput."""
    with _site_context(config.site) as site:
        if config.archive is not None:
            manifest = read_archive(site.database, config.archive)
            print(f"{sum(facts['rows'] for facts in manifest['tables'].values()):,} rows from {config.archive}")
            return
        skipped = SkippedLines(config.skip_bad)
        reader = ThirdPartyReader(
            prompt_field=config.prompt_field,
            questions=tuple(filter(None, config.questions.split(","))),
            rating_max=config.rating_max,
        )
        if config.labeling_config is not None:
            read_labeling_config(config.labeling_config, reader)
        located_records = [
            record for path in config.data for record in read_import_file(path, config.format, reader, skipped)
        ]
        report = _import_records(site, config, located_records)
        report.left_out += reader.left_out
        if skipped.reasons:
            report.left_out["bad lines"] += len(skipped.reasons)
            print("\n".join(f"  {reason}" for reason in skipped.reasons))
    print(report.format_summary())


def _import_records(site: Site, config: LabelImportConfig, located_records: list[LocatedRecord]) -> ImportReport:
    """Everything that was read, in one transaction."""
    report, batch_name = ImportReport(), config.name or config.data[0].name.split(".")[0]
    prompt_records = [(location, record) for location, record in located_records if type(record) is Prompt]
    completion_records = [(location, record) for location, record in located_records if type(record) is Completion]
    work_records = [(location, record) for location, record in located_records if isinstance(record, WORK_RECORD_TYPES)]
    policy = _parse_policy(config.policy)
    with site.database.write() as db:
        import_prompt_records(db, prompt_records, report)
        batch = None
        if completion_records:
            completions = [record for _, record in completion_records if isinstance(record, Completion)]
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
            raise InputError("--open does nothing: no batch is made of these files (--kind makes one of prompts)")
        ExternalSubmissionImporter(
            db, batch_name if batch is None else f"{batch_name} from elsewhere", config.purpose, config.cohort, report
        ).import_all(work_records)
        if prompt_records:
            audit_log.append_entry(db, "cli", "prompts.import", "", lines=len(prompt_records))
    report.counts = +report.counts
    return report


def _parse_policy(text: str) -> batches.OverlapPolicy:
    """A batch's policy from JSON. Raises BadInput."""
    try:
        return batches.OverlapPolicy.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"--policy {text}: {format_validation_error(error)}") from error
