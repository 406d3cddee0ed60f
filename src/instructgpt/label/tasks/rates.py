"""What an hour of work on a batch costs, and what was spent: each rate counts for the work from its time on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import and_, case, func, select
from sqlalchemy.orm import Session

from instructgpt.label.db.models import Assignment, Batch, Submission, Task
from instructgpt.label.errors import SiteError

MAX_HOURLY_RATE = 1e6
_HOUR_MS = 3_600_000


class HourlyRate(BaseModel):
    """A rate; `since`: milliseconds since 1970, from which on work costs that much. The first counts from the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    amount: float = Field(gt=0, lt=MAX_HOURLY_RATE)
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    since: int = 0


def list_rates(batch: Batch) -> list[HourlyRate]:
    """Return the rates of a batch, oldest first."""
    return [HourlyRate.model_validate(row) for row in batch.rates]


def get_current_rate(batch: Batch) -> HourlyRate | None:
    rates = list_rates(batch)
    return rates[-1] if rates else None


def parse_rate(amount: str, currency: str, since: int = 0) -> HourlyRate:
    """Read a rate as typed, with a decimal comma or point; raise SiteError `bad_rate` (422)."""
    try:
        value = float(amount.strip().replace(",", "."))
    except ValueError as error:
        raise SiteError(422, "bad_rate") from error
    code = currency.strip().upper()
    if (
        not isfinite(value)
        or not 0 < value < MAX_HOURLY_RATE
        or not (len(code) == 3 and code.isascii() and code.isalpha())
    ):
        raise SiteError(422, "bad_rate")
    return HourlyRate(amount=value, currency=code, since=since)


def set_rate(db: Session, batch: Batch, rate: HourlyRate) -> bool:
    """Let work from `rate.since` on cost that much; earlier work keeps its cost. Return whether anything changed."""
    current = get_current_rate(batch)
    if current is not None and (current.amount, current.currency) == (rate.amount, rate.currency):
        return False
    batch.rates = [*batch.rates, rate.model_dump()]
    db.flush()
    return True


def sum_spent(db: Session, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
    """Return batch -> currency -> cost of the current versions of all submitted work. One statement."""
    rates = {batch.id: batch_rates for batch in batches if (batch_rates := list_rates(batch))}
    if not rates:
        return {}
    changes = [
        and_(Task.batch_id == batch, Submission.created_at >= rate.since)
        for batch, batch_rates in rates.items()
        for rate in batch_rates[1:]
    ]
    number = sum((case((change, 1), else_=0) for change in changes), start=case((Task.batch_id.is_(None), 1), else_=0))
    statement = (
        select(Task.batch_id, number, func.sum(Submission.active_ms))
        .select_from(Submission)
        .join(Assignment, Assignment.id == Submission.assignment_id)
        .join(Task, Task.id == Assignment.task_id)
    )
    statement = statement.where(Submission.replaced_at.is_(None), Task.batch_id.in_(rates)).group_by(
        Task.batch_id, number
    )
    spent: dict[str, dict[str, float]] = {}
    for batch, index, active_ms in db.execute(statement):
        rate, costs = rates[batch][index], spent.setdefault(batch, {})
        costs[rate.currency] = costs.get(rate.currency, 0.0) + int(active_ms or 0) / _HOUR_MS * rate.amount
    return spent


def add_costs(costs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Add up costs by currency; amounts of different currencies stay apart."""
    total: dict[str, float] = {}
    for amounts in costs:
        for currency, amount in amounts.items():
            total[currency] = total.get(currency, 0.0) + amount
    return dict(sorted(total.items()))
