"""The command `label batch`: a batch on a site from files, or from models, whose completions it has made first.

instructgpt label batch --site site/ --name round-1 --prompts prompts.jsonl --models sft=runs/sft ppo=runs/ppo --n 2
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, ValidationError

from instructgpt.config import Options
from instructgpt.errors import BadInput
from instructgpt.label.analysis import forecast
from instructgpt.label.analysis.forecast import MEASURED, Workload
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Batch
from instructgpt.label.db.models.tasks import Kind
from instructgpt.label.site_folder import open_site
from instructgpt.label.tasks import batch_requests, batches
from instructgpt.label.tasks.batch_requests import Wish
from instructgpt.label.tasks.ingest import MOST_COMPLETIONS
from instructgpt.records import Cohort, explain


class BatchConfig(Options):
    """A batch on a site."""

    stage: ClassVar[str] = "label batch"

    site: Path = Field(description="the site's folder, made by 'label init'")
    name: str = Field(description="the batch's name, unique on the site")
    prompts: tuple[Path, ...] = Field((), description="prompts; for rankings only with --models, or to leave some out")
    completions: tuple[Path, ...] = Field((), description="rankings: completions, as 'sample' writes them")
    models: tuple[str, ...] = Field((), description="rankings: NAME=MODEL each, a directory or hub name; completions are made first")
    n: int = Field(1, ge=1, le=MOST_COMPLETIONS, description="completions of each prompt and model")
    gold: tuple[Path, ...] = Field((), description="known answers: a rankings file, or lines with 'prompt' and 'answer' for reviews")
    kind: Kind = Field("rank", description="the work: rank, demonstrate or review")
    purpose: Literal["training", "evaluation"] = Field("training", description="what it is for")
    cohort: Cohort | None = Field(None, description="whose work it is; anybody's if not given")
    baseline: str | None = Field(None, description="evaluation: the model the others are compared with")
    priority: int = Field(0, ge=-1000, le=1000, description="the highest comes first")
    overlap: int = Field(1, ge=1, le=100, description="labelers for most tasks")
    cohort_share: float = Field(0.12, ge=0, le=1, description="share of tasks that more labelers get")
    cohort_overlap: int = Field(3, ge=1, le=100, description="labelers for those")
    gold_share: float = Field(0.05, ge=0, le=1, description="share of gold tasks among everybody's work")
    repeat_share: float = Field(0.02, ge=0, le=1, description="share of tasks that the same labeler is given once more")
    k_least: int | None = Field(None, ge=2, le=MOST_COMPLETIONS, description="fewest completions of a ranking")
    k_most: int | None = Field(None, ge=2, le=MOST_COMPLETIONS, description="most completions of a ranking")
    seed: int = Field(0, ge=0, lt=2**32, description="everything random follows from it")
    hourly: float | None = Field(None, gt=0, description="what an hour of work costs, for the count of the cost")
    open: bool = Field(False, description="give the batch to labelers at once")
    dry_run: bool = Field(False, description="only count the work, make nothing on the site")

    def inert(self) -> Iterator[str]:
        """Options that have no effect beside others."""
        if "n" in self.model_fields_set and not self.models:
            yield "--n has no effect without --models"
        if self.open and self.dry_run:
            yield "--open has no effect with --dry-run"


def main(config: BatchConfig) -> None:
    """Make the batch, and say what work it is. Raises BadInput, and nothing is made."""
    if config.models and not config.prompts:
        raise BadInput("--models needs --prompts: what shall they answer?")
    if config.kind == "write":
        raise BadInput("--kind write: prompts to be written are ordered on the page of new batches")
    wish = _wish(config)
    site = open_site(config.site)
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = batch_requests.sample(_models(config), config.prompts, config.n, config.seed, Path(folder))
            files = {"prompts": config.prompts, "completions": (*config.completions, *made), "gold": config.gold}
            print("\n".join(_make(config, site, wish, files)))
    finally:
        site.database.close()


def _make(config: BatchConfig, site: Site, wish: Wish, files: Mapping[str, Sequence[Path]]) -> list[str]:
    """Make the batch, or only count its work. -> what was made."""
    with site.database.write() as db:
        batch = batch_requests.make(db, wish, files)
        work = forecast.plan(db, batch, config.hourly)
        report = in_words(config, batch, work)
        if config.dry_run:
            db.rollback()
            return report
        audit_log.note(db, "cli", "batch.made", batch.id, tasks=work.tasks, kind=batch.kind, purpose=batch.purpose)
        if config.open:
            batches.open_batch(db, batch)
            audit_log.note(db, "cli", "batch.opened", batch.id)
    return report


def _wish(config: BatchConfig) -> Wish:
    """What the batch shall be. Raises BadInput where options contradict each other."""
    try:
        return Wish(**{name: getattr(config, name) for name in Wish.model_fields if name in BatchConfig.model_fields})
    except ValidationError as error:
        raise BadInput(explain(error)) from error


def _models(config: BatchConfig) -> list[tuple[str, str]]:
    """(name, model) of each of --models. Raises BadInput for one without a name, or two with the same."""
    pairs = [tuple(each.split("=", 1)) for each in config.models]
    for each, pair in zip(config.models, pairs, strict=True):
        if len(pair) != 2 or not all(pair):
            raise BadInput(f"--models {each}: expected NAME=MODEL, such as ppo=runs/ppo")
    if len({pair[0] for pair in pairs}) < len(pairs):
        raise BadInput("--models: two of them have the same name")
    return [(pair[0], pair[1]) for pair in pairs]


def in_words(config: BatchConfig, batch: Batch, work: Workload) -> list[str]:
    """What was made, or would be."""
    speed = "measured here" if work.speed.measured >= MEASURED else "a rule of thumb"
    cost = "" if work.cost is None else f", cost {work.cost:,.0f}"
    done = "would make" if config.dry_run else "made and opened" if config.open else "made"
    report = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in batch.intake.items() if count)
    lines = [
        f"{done} batch '{config.name}': {work.tasks} tasks, {work.assignments} assignments",
        f"about {work.hours:,.1f} hours of work{cost} ({work.speed.seconds:.0f} s apiece, {speed})",
        f"what came in: {report}",
    ]
    return lines if config.open or config.dry_run else [*lines, "labelers get it when it is opened on its page"]
