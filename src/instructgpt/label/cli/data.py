"""The commands `label import`, `label export` and `label backup`.

instructgpt label import --site site/ --data completions.jsonl --name first --policy '{"overlap": 2}'
instructgpt label import --site site/ --requests store/
instructgpt label export --site site/ --out exported/
instructgpt label backup --site site/ --out site-monday.db
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt.errors import InputError
from instructgpt.io import SkippedLines
from instructgpt.label.configs import LabelBackupConfig, LabelExportConfig, LabelImportConfig
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.backup import back_up_database
from instructgpt.label.db.models import Person
from instructgpt.label.db.staging import write_in_portions
from instructgpt.label.exchange.archive import read_archive, write_archive
from instructgpt.label.exchange.export_files import format_card_body, write_export
from instructgpt.label.exchange.export_rows import EXPORT_FILES
from instructgpt.label.exchange.external_submissions import ExternalSubmissionImporter
from instructgpt.label.exchange.imports import (
    WORK_RECORD_TYPES,
    ImportReport,
    LocatedRecord,
    import_prompt_records,
    read_import_file,
)
from instructgpt.label.exchange.selection import ExportFilter
from instructgpt.label.exchange.third_party import ThirdPartyReader, read_labeling_config
from instructgpt.label.playground.intake import import_request_log
from instructgpt.label.playground.user_rankings import measure_user_agreement
from instructgpt.label.site_folder import open_site
from instructgpt.label.tasks import batches
from instructgpt.records import Completion, Prompt, format_validation_error


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
            file_names = tuple(name for name in EXPORT_FILES if name in config.files)
            if unknown_names := set(config.files) - set(EXPORT_FILES):
                raise InputError(f"--files: no file '{sorted(unknown_names)[0]}'; there are: {', '.join(EXPORT_FILES)}")
            _check_labelers(site, config.labeler)
            export_filter = ExportFilter(
                use=config.use,
                batches=config.batch,
                labelers=config.labeler,
                since=config.since,
                until=config.until,
                user_feedback=config.user_feedback,
            )
            if config.user_feedback:
                _print_user_agreement(site)
            card = format_card_body(site.database, export_filter) if config.format == "datasets" else ""
            manifest = write_export(site.database, config.out, export_filter, config.format, file_names, card)
            exported, row_count = config.use, sum(entry["rows"] for entry in manifest["files"].values())
            for name, entry in manifest["files"].items():
                exclusions = ", ".join(f"{number} {why}" for why, number in entry["left_out"].items())
                print(f"  {name}: {entry['rows']:,} rows" + (f"; left out: {exclusions}" if exclusions else ""))
        with site.database.write() as db:
            audit_log.append_entry(db, "cli", "export.make", "", use=exported, rows=row_count)
    print(f"{row_count:,} rows in {config.out}")


def _print_user_agreement(site: Site) -> None:
    """Print how far users agree with labelers: whether their rankings should train is the reader's decision."""
    with site.database.read() as db:
        agreement = measure_user_agreement(db)
    if agreement is None:
        print("  users' agreement with labelers is unknown: no prompt was ranked by both")
        return
    shares = [100 * (value or 0) for value in (agreement.decided.value, agreement.decided.low, agreement.decided.high)]
    print(
        f"  users agree with labelers on {shares[0]:.1f} % ({shares[1]:.1f} to {shares[2]:.1f}) of {agreement.pairs:,} "
        f"pairs, {agreement.prompts:,} prompts, {agreement.users:,} users"
    )


def _check_labelers(site: Site, pseudonyms: Sequence[str]) -> None:
    """Raise InputError for a pseudonym that nobody has."""
    with site.database.read() as db:
        known_pseudonyms = set(db.scalars(select(Person.pseudonym).where(Person.pseudonym.in_(pseudonyms))))
    if missing := [name for name in pseudonyms if name not in known_pseudonyms]:
        raise InputError(f"--labeler: nobody has the pseudonym '{missing[0]}'; people's pages show it")


def backup_site(config: LabelBackupConfig) -> None:
    """Copy the database of a running site and verify the copy. Raises InputError, RunError."""
    with _site_context(config.site) as site:
        row_counts = back_up_database(site.database, config.out)
        with site.database.write() as db:
            audit_log.append_entry(db, "cli", "backup.make")
    print(f"{config.out}: verified, {sum(row_counts.values()):,} rows, {row_counts['submission']:,} submissions")


def import_into_site(config: LabelImportConfig) -> None:
    """Import files, beside running work, or an archive. Raises InputError and imports nothing."""
    with _site_context(config.site) as site:
        if config.archive is not None:
            manifest = read_archive(site.database, config.archive)
            print(f"{sum(entry['rows'] for entry in manifest['tables'].values()):,} rows from {config.archive}")
            return
        skipped = SkippedLines(config.skip_bad)
        if config.requests is not None:
            intake = import_request_log(site, config.requests, skipped)
            intake.left_out["bad lines"] += len(skipped.reasons)
            print("\n".join([*(f"  {reason}" for reason in skipped.reasons), intake.format_summary()]))
            return
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

    def import_all(db: Session) -> None:
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

    write_in_portions(site.database, import_all)
    report.counts = +report.counts
    return report


def _parse_policy(text: str) -> batches.OverlapPolicy:
    try:
        return batches.OverlapPolicy.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"--policy {text}: {format_validation_error(error)}") from error
