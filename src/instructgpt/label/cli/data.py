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

from instructgpt.config import Options
from instructgpt.errors import BadInput
from instructgpt.io import Skipped
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.backup import back_up
from instructgpt.label.exchange import export_files
from instructgpt.label.exchange.archive import read_archive, write_archive
from instructgpt.label.exchange.dataset_card import card_text
from instructgpt.label.exchange.export_rows import FILES
from instructgpt.label.exchange.external_submissions import Elsewhere
from instructgpt.label.exchange.imports import WORK, Come, FileFormat, Placed, read_file, take_prompts
from instructgpt.label.exchange.selection import Filter, Use
from instructgpt.label.exchange.third_party import MOST, Reading, read_labeling_config
from instructgpt.label.site_folder import open_site
from instructgpt.label.tasks import batches
from instructgpt.records import Cohort, Completion, Prompt, explain


class OpenedOptions(Options):
    """What every command on a site that is there is told."""

    site: Path = Field(description="the site's folder, made by 'label init'")


class LabelImportConfig(OpenedOptions):
    """Files into a site."""

    stage: ClassVar[str] = "label import"

    data: tuple[Path, ...] = Field((), description="prompts, completions, demonstrations or rankings: ours, Label Studio's or Argilla's")
    archive: Path | None = Field(None, description="a folder that 'label export --archive' wrote, into a new site")
    format: FileFormat = Field("auto", description="whose files they are; auto tells it by the columns of each row")
    name: str | None = Field(None, description="the batch of completions, or of work from elsewhere; the first file's name")
    kind: Literal["demonstrate", "review"] | None = Field(None, description="also make a batch of prompts: to be demonstrated or reviewed")
    purpose: Literal["training", "evaluation"] = Field("training", description="what the batch is for")
    cohort: Cohort = Field("training", description="of labelers from elsewhere whose lines name none")
    baseline: str | None = Field(None, description="evaluation: the model the others are compared with")
    policy: str = Field("{}", description="of the batch, as JSON: overlap, cohort_share, cohort_overlap, gold_share, repeat_share, k, seed")
    open: bool = Field(False, description="give the batch to labelers at once")
    prompt_field: str | None = Field(None, description="other tools: the field that holds the prompt")
    questions: str = Field("", description="other tools: read only these controls or questions, separated by commas")
    rating_max: int = Field(MOST, ge=2, description="other tools: their highest rating; other scales than 1 to 7 are stretched")
    labeling_config: Path | None = Field(None, description="Label Studio: the project's labeling interface, an XML file")
    skip_bad: bool = Field(False, description="leave bad lines out and count them")

    def inert(self) -> Iterator[str]:
        """An archive is everything; a batch's options need a batch."""
        if (self.archive is None) == (not self.data):
            yield "give either --data or --archive"
        if self.archive is not None:
            for name in sorted(self.model_fields_set - {"site", "archive"}):
                yield f"--{name.replace('_', '-')} does nothing with --archive"


class LabelExportConfig(OpenedOptions):
    """Work out of a site."""

    stage: ClassVar[str] = "label export"

    out: Path = Field(description="the folder to make")
    use: Use = Field("training", description="training: what SFT and reward models learn from; evaluation: what measures them")
    format: export_files.Format = Field("jsonl", description="jsonl, parquet, or datasets: a folder that load_dataset opens, with a card")
    files: str = Field(",".join(FILES), description="which files, separated by commas")
    batch: tuple[str, ...] = Field((), description="only these batches")
    since: int | None = Field(None, ge=0, description="only work handed in from then on, in milliseconds since 1970")
    until: int | None = Field(None, ge=0, description="only work handed in before, in milliseconds since 1970")
    archive: bool = Field(False, description="the whole site instead: every table, for 'label import --archive'")
    people: Literal["whole", "pseudonyms"] = Field("whole", description="of an archive: accounts as they are, or only pseudonyms")

    def inert(self) -> Iterator[str]:
        """An archive is not filtered."""
        for name in ("use", "format", "files", "batch", "since", "until") if self.archive else ("people",):
            if name in self.model_fields_set:
                yield f"--{name} does nothing {'with' if self.archive else 'without'} --archive"


class LabelBackupConfig(OpenedOptions):
    """A copy of a site's database."""

    stage: ClassVar[str] = "label backup"

    out: Path = Field(description="the file to make: a database for SQLite, an archive for pg_restore for PostgreSQL")


@contextmanager
def opened(folder: Path) -> Iterator[Site]:
    """A site for one command. Raises BadInput as `open_site` does."""
    site = open_site(folder)
    try:
        yield site
    finally:
        site.database.close()


def export_data(config: LabelExportConfig) -> None:
    """Write an export or an archive. Raises BadInput."""
    with opened(config.site) as site:
        if config.archive:
            about = write_archive(site.database, config.out, config.people)
            what, count = "archive", sum(facts["rows"] for facts in about["tables"].values())
        else:
            names = tuple(name for name in FILES if name in config.files.split(","))
            if unknown := set(config.files.split(",")) - set(FILES):
                raise BadInput(f"--files: no file '{sorted(unknown)[0]}'; there are: {', '.join(FILES)}")
            wanted = Filter(use=config.use, batches=config.batch, since=config.since, until=config.until)
            card = card_text(site.database, wanted) if config.format == "datasets" else ""
            manifest = export_files.export(site.database, config.out, wanted, config.format, names, card)
            what, count = config.use, sum(facts["rows"] for facts in manifest["files"].values())
            for name, facts in manifest["files"].items():
                left = ", ".join(f"{number} {why}" for why, number in facts["left_out"].items())
                print(f"  {name}: {facts['rows']:,} rows" + (f"; left out: {left}" if left else ""))
        with site.database.write() as db:
            audit_log.note(db, "cli", "export.make", "", use=what, rows=count)
    print(f"{count:,} rows in {config.out}")


def backup(config: LabelBackupConfig) -> None:
    """Copy the database while the site runs, and look at the copy. Raises BadInput, RunFailed."""
    with opened(config.site) as site:
        counts = back_up(site.database, config.out)
        with site.database.write() as db:
            audit_log.note(db, "cli", "backup.make")
    print(f"{config.out}: sound, {sum(counts.values()):,} rows, {counts['submission']:,} of them submissions")


def import_data(config: LabelImportConfig) -> None:
    """Read files or an archive into a site, all or nothing. Raises BadInput."""
    with opened(config.site) as site:
        if config.archive is not None:
            about = read_archive(site.database, config.archive)
            print(f"{sum(facts['rows'] for facts in about['tables'].values()):,} rows from {config.archive}")
            return
        skipped = Skipped(config.skip_bad)
        reading = Reading(
            prompt_field=config.prompt_field, questions=tuple(filter(None, config.questions.split(","))), rating_max=config.rating_max
        )  # fmt: skip
        if config.labeling_config is not None:
            read_labeling_config(config.labeling_config, reading)
        found = [placed for path in config.data for placed in read_file(path, config.format, reading, skipped)]
        come = _take(site, config, found)
        come.left_out += reading.left_out
        if skipped.reasons:
            come.left_out["bad lines"] += len(skipped.reasons)
            print("\n".join(f"  {reason}" for reason in skipped.reasons))
    print(come.in_words())


def _take(site: Site, config: LabelImportConfig, found: list[Placed]) -> Come:
    """Everything that was read, in one transaction."""
    come, name = Come(), config.name or config.data[0].name.split(".")[0]
    asked = [(place, record) for place, record in found if type(record) is Prompt]
    answered = [(place, record) for place, record in found if type(record) is Completion]
    done = [(place, record) for place, record in found if isinstance(record, WORK)]
    policy = _policy(config.policy)
    with site.database.write() as db:
        take_prompts(db, asked, come)
        made = None
        if answered:
            records = [record for _, record in answered if isinstance(record, Completion)]
            made = batches.make_batch(db, name, "rank", config.purpose, [], records, policy, baseline=config.baseline)
        elif config.kind is not None:
            prompts = [record for _, record in asked if isinstance(record, Prompt)]
            made = batches.make_batch(db, name, config.kind, config.purpose, prompts, [], policy)
        if made is not None:
            come.counts[f"tasks in batch '{name}'"] += int(made.intake["tasks"])
            come.counts["completions"] += int(made.intake["completions"])
            audit_log.note(db, "cli", "batch.create", made.id, kind=made.kind, purpose=made.purpose)
            if config.open:
                batches.open_batch(db, made)
                audit_log.note(db, "cli", "batch.open", made.id)
        elif config.open:
            raise BadInput("--open does nothing: no batch is made of these files (--kind makes one of prompts)")
        Elsewhere(db, name if made is None else f"{name} from elsewhere", config.purpose, config.cohort, come).take(done)
        if asked:
            audit_log.note(db, "cli", "prompts.import", "", lines=len(asked))
    come.counts = +come.counts
    return come


def _policy(text: str) -> batches.Policy:
    """A batch's policy from JSON. Raises BadInput."""
    try:
        return batches.Policy.model_validate_json(text)
    except ValidationError as error:
        raise BadInput(f"--policy {text}: {explain(error)}") from error
