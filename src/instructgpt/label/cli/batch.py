"""The command `label batch`: create a batch from files, or from models after sampling their completions.

instructgpt label batch --site site/ --name round-1 --prompts prompts.jsonl --models sft=runs/sft ppo=runs/ppo --n 2
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy.orm import Session

from instructgpt.config import SamplingOptions
from instructgpt.errors import InputError
from instructgpt.label.analysis import forecast
from instructgpt.label.analysis.forecast import MIN_SPEED_SAMPLES, Workload
from instructgpt.label.configs import BatchConfig
from instructgpt.label.context import Site
from instructgpt.label.db import audit_log
from instructgpt.label.db.models import Batch
from instructgpt.label.db.staging import try_out, write_in_portions
from instructgpt.label.site_folder import open_site
from instructgpt.label.tasks import batch_requests, batches
from instructgpt.label.tasks.batch_requests import BatchSpec
from instructgpt.label.tasks.questions import load_questions_yaml
from instructgpt.records import format_validation_error


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
            sampled = batch_requests.sample_in_subprocess(models, config.prompts, _sampling_arguments(config), out)
            completions = (*config.completions, *sampled)
            files = {"prompts": config.prompts, "completions": completions, "gold": config.gold}
            print("\n".join(_create_batch(config, site, spec, files)))
    finally:
        site.database.close()


def _sampling_arguments(config: BatchConfig) -> list[str]:
    """Return the options of `instructgpt sample` for --models."""
    arguments = ["--n", str(config.n)]
    if config.temperature > 0:
        arguments += ["--seed", str(config.seed)]
    for name in SamplingOptions.model_fields.keys() & config.model_fields_set:
        value = getattr(config, name)
        arguments += [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else [str(value)])]
    return arguments


def _create_batch(config: BatchConfig, site: Site, spec: BatchSpec, files: Mapping[str, Sequence[Path]]) -> list[str]:
    """Create the batch and return its summary; a dry run rolls the transaction back."""

    def create(db: Session) -> list[str]:
        batch = batch_requests.create_batch_from_spec(db, spec, files)
        workload = forecast.estimate_batch_workload(db, batch)
        summary = _format_summary(config, batch, workload)
        if config.dry_run:
            return summary
        details = {"tasks": workload.tasks, "kind": batch.kind, "purpose": batch.purpose}
        audit_log.append_entry(db, "cli", "batch.made", batch.id, **details)
        if config.open:
            batches.mark_batch_open(db, batch)
            audit_log.append_entry(db, "cli", "batch.opened", batch.id)
        return summary

    return try_out(site.database, create) if config.dry_run else write_in_portions(site.database, create)


def _batch_spec(config: BatchConfig) -> BatchSpec:
    shared = (BatchSpec.model_fields.keys() & BatchConfig.model_fields) - {"questions"}
    questions = _read_questions(config.questions) if config.questions else None
    try:
        return BatchSpec(questions=questions, **{name: getattr(config, name) for name in shared})
    except ValidationError as error:
        raise InputError(format_validation_error(error)) from error


def _read_questions(path: Path) -> dict[str, Any] | None:
    try:
        return load_questions_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--questions {path}: cannot be read as UTF-8 text ({error})") from error
    except InputError as error:
        raise InputError(f"--questions {path}: {error}") from error


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
    cost_text = "" if workload.cost is None else f", cost {workload.cost:,.0f} {config.currency}"
    action = "would create" if config.dry_run else "created and opened" if config.open else "created"
    intake_summary = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in batch.intake.items() if count)
    lines = [
        f"{action} batch '{config.name}': {workload.tasks} tasks, {workload.assignments} assignments",
        f"about {workload.hours:,.1f} hours of work{cost_text} ({workload.speed.seconds:.0f} s each, {speed_source})",
        f"input: {intake_summary}",
    ]
    return lines if config.open or config.dry_run else [*lines, "open it on its page to make it available to labelers"]
