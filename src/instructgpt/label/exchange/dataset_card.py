"""The part of a data set's card that is about people: how far labelers agree, and what they were told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from instructgpt.label.analysis.rankings import load_stored_rankings
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Batch, Person
from instructgpt.label.exchange.selection import ExportFilter, snapshot
from instructgpt.label.tasks import instructions

if TYPE_CHECKING:
    from instructgpt.statistics.intervals import Estimate


def format_card_body(database: Database, export_filter: ExportFilter) -> str:
    """Agreement under the three rules about ties, by cohort, and the instructions for the use."""
    from instructgpt.statistics import agreement as agreeing

    lines = ["\n## Agreement\n\n"]
    with snapshot(database) as db:
        statement = select(Batch.id).where(Batch.purpose == export_filter.use, Batch.screening.is_(None))
        if export_filter.batches:
            statement = statement.where(Batch.name.in_(export_filter.batches))
        batch_ids = set(db.scalars(statement))
        rankings = [each for batch in sorted(batch_ids) for each in load_stored_rankings(db, batch)]
        latest_instructions = instructions.get_latest_instructions(db, export_filter.use)
        cohorts = sorted({cohort for cohort in db.scalars(select(Person.cohort).distinct()) if cohort})
        body = "" if latest_instructions is None else latest_instructions.body
        version = "" if latest_instructions is None else f" (version {latest_instructions.version})"
    lines.append(
        "| labelers | pairs | without ties | three answers | half credit | ties |\n|---|---:|---:|---:|---:|---:|\n"
    )
    for name, subset in (
        ("all", rankings),
        *((cohort, [each for each in rankings if each.cohort == cohort]) for cohort in cohorts),
    ):
        agreement = agreeing.inter_labeler_agreement(subset)
        pairs = agreement.concordant + agreement.discordant + agreement.one_tied + agreement.both_tied
        shares = " | ".join(
            _format_percent(each)
            for each in (agreement.decided, agreement.three_way, agreement.half_credit, agreement.tie_rate)
        )
        lines.append(f"| {name} | {pairs:,} | {shares} |\n")
    lines.append(
        "\nShares of pairs on which two labelers of the same prompt agree, with 95 % intervals; compare numbers of one rule.\n"
    )
    if body:
        lines.append(
            f"\n## Instructions for {export_filter.use}{version}\n\n"
            + "".join(f"> {line}\n" for line in body.splitlines())
        )
    return "".join(lines)


def _format_percent(estimate: Estimate) -> str:
    """An estimate in per cent with its interval; a dash where nothing was measured."""
    if estimate.value is None:
        return "–"
    interval_text = (
        ""
        if estimate.low is None or estimate.high is None
        else f" ({100 * estimate.low:.1f}–{100 * estimate.high:.1f})"
    )
    return f"{100 * estimate.value:.1f} %{interval_text}"
