"""The command `label batch`: a batch on a site from files, or from models, whose completions it has made first.

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
    """A batch on a site."""

    stage: ClassVar[str] = "label batch"

    site: Path = Field(description="the site's folder, made by 'label init'")
    name: str = Field(description="the batch's name, unique on the site")
    prompts: tuple[Path, ...] = Field((), description="prompts; for rankings only with --models, or to leave some out")
    completions: tuple[Path, ...] = Field((), description="rankings: completions, as 'sample' writes them")
    models: tuple[str, ...] = Field(
        (), description="rankings: NAME=MODEL each, a directory or hub name; completions are made first"
    )
    n: int = Field(1, ge=1, le=MAX_COMPLETIONS, description="completions of each prompt and model")
    gold: tuple[Path, ...] = Field(
        (), description="known answers: a rankings file, or lines with 'prompt' and 'answer' for reviews"
    )
    kind: TaskKind = Field("rank", description="the work: rank, demonstrate or review")
    purpose: Literal["training", "evaluation"] = Field("training", description="what it is for")
    cohort: Cohort | None = Field(None, description="whose work it is; anybody's if not given")
    baseline: str | None = Field(None, description="evaluation: the model the others are compared with")
    priority: int = Field(0, ge=-1000, le=1000, description="the highest comes first")
    overlap: int = Field(1, ge=1, le=100, description="labelers for most tasks")
    cohort_share: float = Field(0.12, ge=0, le=1, description="share of tasks that more labelers get")
    cohort_overlap: int = Field(3, ge=1, le=100, description="labelers for those")
    gold_share: float = Field(0.05, ge=0, le=1, description="share of gold tasks among everybody's work")
    repeat_share: float = Field(0.02, ge=0, le=1, description="share of tasks that the same labeler is given once more")
    k_least: int | None = Field(None, ge=2, le=MAX_COMPLETIONS, description="fewest completions of a ranking")
    k_most: int | None = Field(None, ge=2, le=MAX_COMPLETIONS, description="most completions of a ranking")
    seed: int = Field(0, ge=0, lt=2**32, description="everything random follows from it")
    hourly: float | None = Field(None, gt=0, description="what an hour of work costs, for the count of the cost")
    open: bool = Field(False, description="give the batch to labelers at once")
    dry_run: bool = Field(False, description="only count the work, make nothing on the site")

    def ineffective_options(self) -> Iterator[str]:
        """Options that have no effect beside others."""
        if "n" in self.model_fields_set and not self.models:
            yield "--n has no effect without --models"
        if self.open and self.dry_run:
            yield "--open has no effect with --dry-run"


def main(config: BatchConfig) -> None:
    """Make the batch, and say what work it is. Raises BadInput, and nothing is made."""
    if config.models and not config.prompts:
        raise InputError("--models needs --prompts: what shall they answer?")
    if config.kind == "write":
        raise InputError("--kind write: prompts to be written are ordered on the page of new batches")
    batch_request = _batch_request(config)
    site = open_site(config.site)
    try:
        with tempfile.TemporaryDirectory() as folder:
            sampled_files = batch_requests.sample_in_subprocess(
                _parse_models(config), config.prompts, config.n, config.seed, Path(folder)
            )
            files = {
                "prompts": config.prompts,
                "completions": (*config.completions, *sampled_files),
                "gold": config.gold,
            }
            print("\n".join(_create_batch(config, site, batch_request, files)))
    finally:
        site.database.close()


def _create_batch(
    config: BatchConfig, site: Site, batch_request: BatchSpec, files: Mapping[str, Sequence[Path]]
) -> list[str]:
    """Make the batch, or only count its work. -> what was made."""
    with site.database.write() as db:
        batch = batch_requests.create_batch_from_spec(db, batch_request, files)
        workload = forecast.estimate_batch_workload(db, batch, config.hourly)
        summary = _format_summary(config, batch, workload)
        if config.dry_run:
            db.rollback()
            return summary
        audit_log.append_entry(
            db, "cli", "batch.made", batch.id, tasks=workload.tasks, kind=batch.kind, purpose=batch.purpose
        )
        if config.open:
            batches.mark_batch_open(db, batch)
            audit_log.append_entry(db, "cli", "batch.opened", batch.id)
    return summary


def _batch_request(config: BatchConfig) -> BatchSpec:
    """What the batch shall be. Raises BadInput where options contradict each other."""
    try:
        return BatchSpec(
            **{name: getattr(config, name) for name in BatchSpec.model_fields if name in BatchConfig.model_fields}
        )
    except ValidationError as error:
        raise InputError(format_validation_error(error)) from error


def _parse_models(config: BatchConfig) -> list[tuple[str, str]]:
    """(name, model) of each of --models. Raises BadInput for one without a name, or two with the same."""
    pairs = [tuple(argument.split("=", 1)) for argument in config.models]
    for argument, pair in zip(config.models, pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise InputError(f"--models {argument}: expected NAME=MODEL, such as ppo=runs/ppo")
    if len({pair[0] for pair in pairs}) < len(pairs):
        raise InputError("--models: two of them have the same name")
    return [(pair[0], pair[1]) for pair in pairs]


def _format_summary(config: BatchConfig, batch: Batch, workload: Workload) -> list[str]:
    """What was made, or would be."""
    speed_source = "measured here" if workload.speed.sample_count >= MIN_SPEED_SAMPLES else "a rule of thumb"
    cost_text = "" if workload.cost is None else f", cost {workload.cost:,.0f}"
    action = "would make" if config.dry_run else "made and opened" if config.open else "made"
    intake_summary = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in batch.intake.items() if count)
    lines = [
        f"{action} batch '{config.name}': {workload.tasks} tasks, {workload.assignments} assignments",
        f"about {workload.hours:,.1f} hours of work{cost_text} ({workload.speed.seconds:.0f} s apiece, {speed_source})",
        f"what came in: {intake_summary}",
    ]
    return lines if config.open or config.dry_run else [*lines, "labelers get it when it is opened on its page"]
