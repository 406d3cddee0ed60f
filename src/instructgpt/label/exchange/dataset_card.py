"""The part of a data set's card that is about people: how far labelers agree, and what they were told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from instructgpt.label.analysis.rankings import read_rankings
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Batch, Person
from instructgpt.label.exchange.selection import Filter, snapshot
from instructgpt.label.tasks import instructions

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate


def card_text(database: Database, wanted: Filter) -> str:
    """Agreement under the three rules about ties, by cohort, and the instructions for the use."""
    from instructgpt.statistics import agreement as agreeing

    lines = ["\n## Agreement\n\n"]
    with snapshot(database) as db:
        chosen = select(Batch.id).where(Batch.purpose == wanted.use, Batch.screening.is_(None))
        if wanted.batches:
            chosen = chosen.where(Batch.name.in_(wanted.batches))
        counted = set(db.scalars(chosen))
        rankings = [each for batch in sorted(counted) for each in read_rankings(db, batch)]
        newest = instructions.latest(db, wanted.use)
        cohorts = sorted({cohort for cohort in db.scalars(select(Person.cohort).distinct()) if cohort})
        body = "" if newest is None else newest.body
        version = "" if newest is None else f" (version {newest.version})"
    lines.append("| labelers | pairs | without ties | three answers | half credit | ties |\n|---|---:|---:|---:|---:|---:|\n")
    for name, part in (("all", rankings), *((cohort, [each for each in rankings if each.cohort == cohort]) for cohort in cohorts)):
        found = agreeing.agreement(part)
        pairs = found.alike + found.opposite + found.one_tied + found.both_tied
        shares = " | ".join(share(each) for each in (found.decided, found.three_way, found.half_credit, found.tie_rate))
        lines.append(f"| {name} | {pairs:,} | {shares} |\n")
    lines.append("\nShares of pairs on which two labelers of the same prompt agree, with 95 % intervals; compare numbers of one rule.\n")
    if body:
        lines.append(f"\n## Instructions for {wanted.use}{version}\n\n" + "".join(f"> {line}\n" for line in body.splitlines()))
    return "".join(lines)


def share(found: Estimate) -> str:
    """An estimate in per cent with its interval; a dash where nothing was measured."""
    if found.value is None:
        return "–"
    width = "" if found.low is None or found.high is None else f" ({100 * found.low:.1f}–{100 * found.high:.1f})"
    return f"{100 * found.value:.1f} %{width}"
