"""The command `label batch`: create a batch from files, or from models after sampling their completions.

instructgpt label batch --site site/ --name round-1 --prompts prompts.jsonl --models sft=runs/sft ppo=runs/ppo --n 2
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationError

from instructgpt.config import CommandConfig
from instructgpt.errors import InputError
from instructgpt.label.analysis import forecast
from instructgpt.label.analysis.forecast import MIN_SPEED_SAMPLES, Workload
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Batch
from instructgpt.label.db.models.tasks import TaskKind
from instructgpt.label.site_folder import open_site
from instructgpt.label.tasks import batch_requests, batches
from instructgpt.label.tasks.batch_requests import BatchSpec
from instructgpt.label.tasks.ingest import MAX_COMPLETIONS
from instructgpt.records import Cohort, format_validation_error


class BatchConfig(CommandConfig):
    stage: ClassVar[str] = "label batch"

    site: Path = Field(description="folder of the site, created by 'label init'")
    name: str = Field(description="name of the batch, unique on the site")
    prompts: tuple[Path, ...] = Field((), description="prompt files; for rankings only with --models or as a filter")
    completions: tuple[Path, ...] = Field((), description="rankings: completion files, as 'sample' writes them")
    models: tuple[str, ...] = Field((), description="rankings: NAME=MODEL pairs (directory or hub name) to sample from")
    n: int = Field(1, ge=1, le=MAX_COMPLETIONS, description="completions per prompt and model")
    gold: tuple[Path, ...] = Field((), description="gold answers: rankings, or 'prompt' and 'answer' for reviews")
    kind: TaskKind = Field("rank", description="task kind: rank, demonstrate or review")
    purpose: Literal["training", "evaluation"] = Field("training", description="purpose of the batch")
    cohort: Cohort | None = Field(None, description="cohort that may work on the batch; any by default")
    baseline: str | None = Field(None, description="evaluation: the model to compare the others with")
    priority: int = Field(0, ge=-1000, le=1000, description="batches with higher priority come first")
    overlap: int = Field(1, ge=1, le=100, description="labelers per task")
    cohort_share: float = Field(0.12, ge=0, le=1, description="share of tasks with --cohort-overlap labelers")
    cohort_overlap: int = Field(3, ge=1, le=100, description="labelers per task of that share")
    gold_share: float = Field(0.05, ge=0, le=1, description="share of gold tasks in each labeler's work")
    repeat_share: float = Field(0.02, ge=0, le=1, description="share of tasks that the same labeler gets a second time")
    k_least: int | None = Field(None, ge=2, le=MAX_COMPLETIONS, description="minimum completions per ranking")
    k_most: int | None = Field(None, ge=2, le=MAX_COMPLETIONS, description="maximum completions per ranking")
    seed: int = Field(0, ge=0, lt=2**32, description="random seed")
    hourly: float | None = Field(None, gt=0, description="cost of an hour of work, for the cost estimate")
    open: bool = Field(False, description="open the batch to labelers at once")
    dry_run: bool = Field(False, description="only estimate the work; create nothing")

    def ineffective_options(self) -> Iterator[str]:
        if "n" in self.model_fields_set and not self.models:
            yield "--n has no effect without --models"
        if self.open and self.dry_run:
            yield "--open has no effect with --dry-run"


def main(config: BatchConfig) -> None:
    """Create the batch and print a summary of its work. Raises InputError and creates nothing."""
    if config.models and not config.prompts:
        raise InputError("--models needs --prompts, the prompts to sample completions for")
    if config.kind == "write":
        raise InputError("--kind write: create batches of prompts to write on the page of new batches")
    spec = _batch_spec(config)
    site = open_site(config.site)
    try:
        with tempfile.TemporaryDirectory() as folder:
            models, out = _parse_models(config), Path(folder)
            sampled = batch_requests.sample_in_subprocess(models, config.prompts, config.n, config.seed, out)
            completions = (*config.completions, *sampled)
            files = {"prompts": config.prompts, "completions": completions, "gold": config.gold}
            print("\n".join(_create_batch(config, site, spec, files)))
    finally:
        site.database.close()


def _create_batch(config: BatchConfig, site: Site, spec: BatchSpec, files: Mapping[str, Sequence[Path]]) -> list[str]:
    """Create the batch and return its summary; a dry run rolls the transaction back."""
    with site.database.write() as db:
        batch = batch_requests.create_batch_from_spec(db, spec, files)
        workload = forecast.estimate_batch_workload(db, batch, config.hourly)
        summary = _format_summary(config, batch, workload)
        if config.dry_run:
            db.rollback()
            return summary
        details = {"tasks": workload.tasks, "kind": batch.kind, "purpose": batch.purpose}
        audit_log.append_entry(db, "cli", "batch.made", batch.id, **details)
        if config.open:
            batches.mark_batch_open(db, batch)
            audit_log.append_entry(db, "cli", "batch.opened", batch.id)
    return summary


def _batch_spec(config: BatchConfig) -> BatchSpec:
    shared = BatchSpec.model_fields.keys() & BatchConfig.model_fields
    try:
        return BatchSpec(**{name: getattr(config, name) for name in shared})
    except ValidationError as error:
        raise InputError(format_validation_error(error)) from error


def _parse_models(config: BatchConfig) -> list[tuple[str, str]]:
    """Parse --models as (name, model) pairs with distinct names. Raises InputError."""
    pairs = [tuple(argument.split("=", 1)) for argument in config.models]
    for argument, pair in zip(config.models, pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise InputError(f"--models {argument}: expected NAME=MODEL, such as ppo=runs/ppo")
    if len({pair[0] for pair in pairs}) < len(pairs):
        raise InputError("--models: two models have the same name")
    return [(pair[0], pair[1]) for pair in pairs]


def _format_summary(config: BatchConfig, batch: Batch, workload: Workload) -> list[str]:
    speed_source = "measured here" if workload.speed.sample_count >= MIN_SPEED_SAMPLES else "a rule of thumb"
    cost_text = "" if workload.cost is None else f", cost {workload.cost:,.0f}"
    action = "would create" if config.dry_run else "created and opened" if config.open else "created"
    intake_summary = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in batch.intake.items() if count)
    lines = [
        f"{action} batch '{config.name}': {workload.tasks} tasks, {workload.assignments} assignments",
        f"about {workload.hours:,.1f} hours of work{cost_text} ({workload.speed.seconds:.0f} s each, {speed_source})",
        f"input: {intake_summary}",
    ]
    return lines if config.open or config.dry_run else [*lines, "open it on its page to make it available to labelers"]
