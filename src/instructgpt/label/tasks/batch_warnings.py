"""What an owner should look at before a batch is opened: settings that are allowed and rarely meant."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Batch, Person
from instructgpt.label.tasks.batches import OverlapPolicy


@dataclass(frozen=True, slots=True)
class BatchWarning:
    """`code` is the catalogue's key below `batch_warnings`, `values` fill its placeholders."""

    code: str
    values: dict[str, int] = field(default_factory=dict)


def find_batch_warnings(db: Session, batch: Batch) -> list[BatchWarning]:
    """Return the warnings of a batch. One statement."""
    people = _count_active_labelers(db)
    tasks, without_baseline = batch.intake.get("tasks", 0), batch.intake.get("without_baseline", 0)
    warnings = []
    if without_baseline:
        values = {"count": without_baseline, "total": without_baseline + tasks}
        warnings.append(BatchWarning("without_baseline", values))
    if batch.screening is not None:
        return warnings
    cohorts = (
        ["training"] if batch.purpose == "training" else [batch.cohort] if batch.cohort else ["training", "heldout"]
    )
    able = sum(people.get(cohort, 0) for cohort in cohorts)
    policy = OverlapPolicy.model_validate(batch.policy)
    overlap = max(policy.overlap, policy.cohort_overlap if round(policy.cohort_share * tasks) else 0)
    if not able:
        warnings.append(BatchWarning("nobody"))
    elif overlap > able:
        warnings.append(BatchWarning("overlap", {"overlap": overlap, "people": able}))
    if batch.purpose == "training" and batch.cohort is None and people.get("heldout"):
        warnings.append(BatchWarning("heldout_excluded", {"people": people["heldout"]}))
    if policy.heldout_share is not None:
        counts = {"heldout": round(tasks * policy.heldout_share)}
        counts["training"] = tasks - counts["heldout"]
        for cohort, count in counts.items():
            if count and not people.get(cohort):
                warnings.append(BatchWarning(f"nobody_{cohort}", {"tasks": count}))
    elif batch.purpose == "evaluation" and batch.cohort is None and people.get("heldout") and people.get("training"):
        warnings.append(BatchWarning("cohorts_compete"))
    return warnings


def _count_active_labelers(db: Session) -> dict[str, int]:
    """Count the active labelers of each cohort."""
    statement = select(Person.cohort, func.count()).where(Person.role == "labeler", Person.status == "active")
    return {cohort: count for cohort, count in db.execute(statement.group_by(Person.cohort)) if cohort is not None}
