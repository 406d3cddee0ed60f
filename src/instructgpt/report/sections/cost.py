"""What it cost: stages and labels in one place, beside the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from instructgpt.formatting import format_seconds
from instructgpt.report.cost import PAPER_PFS_DAYS, PFS_DAY, PRETRAINING_STAGE, LabelCost, RunCost, StageCost
from instructgpt.report.language import join_list, translate
from instructgpt.report.section import ReportTable, Section

_NO_VALUE = "–"
_PAPER_PRETRAINING = PAPER_PFS_DAYS["pretraining (GPT-3)"]


def cost_section(cost: RunCost | None) -> list[Section]:
    """Return the section, or nothing where no stage counted its FLOPs."""
    if cost is None or not any(stage.flops for stage in cost.stages):
        return []
    share = cost.share_of_pretraining
    seconds = sum(stage.seconds for stage in cost.stages)
    headline = translate("cost.headline", time=format_seconds(seconds))
    if share is not None:
        headline += translate("cost.share", share=f"{share:.1%}")
    return [
        Section(
            id="cost",
            title=translate("cost.title"),
            headline=headline,
            paper=(translate("cost.paper")),
            tables=tuple(build_cost_tables(cost)),
        )
    ]


def build_cost_tables(cost: RunCost) -> list[ReportTable]:
    """Return the table of stages, and that of labels where there are any."""
    return [build_stage_table(cost), *([build_label_table(cost)] if cost.labels else [])]


def build_stage_table(cost: RunCost) -> ReportTable:
    pretraining = cost.sum_flops(pretraining=True)
    has_money = any(stage.money is not None for stage in cost.stages)
    head = ["", *_head("flops", "computed", "days", "of_pretraining", "time", "gpu_hours", "energy")]
    rows = [_stage_cells(stage, pretraining, has_money=has_money) for stage in cost.stages]
    rows.append(_sum_cells(cost, pretraining, has_money=has_money))
    for name, days in PAPER_PFS_DAYS.items():
        flops = days * PFS_DAY
        share = f"{days / _PAPER_PRETRAINING:.2%}"
        cells = [translate("cost.of_paper", name=name), _format_flops(flops), "", f"{days:,g}", share, "", "", ""]
        rows.append((*cells, *([""] if has_money else [])))
    if has_money:
        head.append(translate("cost.money_in", currency=cost.currency) if cost.currency else translate("cost.money"))
    return ReportTable(translate("cost.stages"), tuple(head), tuple(rows), tuple(_stage_notes(cost)))


def _head(*columns: str) -> list[str]:
    return [translate(f"cost.column.{column}") for column in columns]


def _stage_cells(stage: StageCost, pretraining: float | None, *, has_money: bool) -> tuple[str, ...]:
    share = stage.flops / pretraining if stage.flops is not None and pretraining else None
    cells = [
        stage.name + ("" if stage.finished else translate("cost.unfinished")),
        _format_flops(stage.flops),
        _format_flops(stage.flops_done),
        _format_days(stage.flops),
        _NO_VALUE if share is None else f"{share:.2%}",
        format_seconds(stage.seconds),
        f"{stage.gpu_seconds / 3600:.3g}" if stage.gpu_seconds else "0",
        _format_energy(stage.energy_kwh, is_estimated=stage.is_energy_estimated),
    ]
    return (*cells, *([_format_money(stage.money)] if has_money else []))


def _sum_cells(cost: RunCost, pretraining: float | None, *, has_money: bool) -> tuple[str, ...]:
    stages = cost.stages
    flops = _sum([stage.flops for stage in stages])
    share = flops / pretraining if flops is not None and pretraining else None
    energy = _sum([stage.energy_kwh for stage in stages])
    cells = [
        translate("cost.together"),
        _format_flops(flops),
        _format_flops(_sum([stage.flops_done for stage in stages])),
        _format_days(flops),
        _NO_VALUE if share is None else f"{share:.2%}",
        format_seconds(sum(stage.seconds for stage in stages)),
        f"{sum(stage.gpu_seconds for stage in stages) / 3600:.3g}",
        _format_energy(energy, is_estimated=any(stage.is_energy_estimated for stage in stages)),
    ]
    return (*cells, *([_format_money(_sum([stage.money for stage in stages]))] if has_money else []))


def _stage_notes(cost: RunCost) -> list[str]:
    notes = [translate("cost.flops_note")]
    uncounted = [stage.name for stage in cost.stages if stage.flops is None]
    if uncounted:
        notes.append(translate("cost.uncounted_note", stages=join_list(uncounted)))
    if any(stage.energy_kwh is None for stage in cost.stages):
        notes.append(translate("cost.energy_note"))
    if any(stage.is_energy_estimated for stage in cost.stages):
        notes.append(translate("cost.watts_note"))
    if not any(stage.stage == PRETRAINING_STAGE for stage in cost.stages):
        notes.append(translate("cost.no_pretraining_note"))
    return notes


def build_label_table(cost: RunCost) -> ReportTable:
    has_money = any(label.money is not None for label in cost.labels)
    head = ["", *_head("records", "pairs", "labelers", "minutes", "minutes_a_record")]
    rows = [_label_cells(label, has_money=has_money) for label in cost.labels]
    if has_money:
        head.append(translate("cost.pay_in", currency=cost.currency) if cost.currency else translate("cost.pay"))
    notes = []
    if any(label.active_minutes is None for label in cost.labels):
        notes.append(translate("cost.untimed_note"))
    partly = [
        label for label in cost.labels if label.active_minutes is not None and label.timed_records < label.records
    ]
    notes += [
        translate("cost.timed_note", name=label.name, timed=f"{label.timed_records:,}", records=f"{label.records:,}")
        for label in partly
    ]
    return ReportTable(translate("cost.labels"), tuple(head), tuple(rows), tuple(notes))


def _label_cells(label: LabelCost, *, has_money: bool) -> tuple[str, ...]:
    minutes = label.active_minutes
    cells = [
        label.name,
        f"{label.records:,}",
        f"{label.pairs:,}",
        f"{label.labelers:,}",
        _NO_VALUE if minutes is None else f"{minutes:,.1f}",
        _NO_VALUE if minutes is None else f"{minutes / label.timed_records:.2f}",
    ]
    return (*cells, *([_format_money(label.money)] if has_money else []))


def _sum(values: Sequence[float | None]) -> float | None:
    """Return a sum, or None where a part is unknown."""
    numbers = [value for value in values if value is not None]
    return math.fsum(numbers) if numbers and len(numbers) == len(values) else None


def _format_flops(number: float | None) -> str:
    return _NO_VALUE if number is None else f"{number:.3g}"


def _format_days(flops: float | None) -> str:
    return _NO_VALUE if flops is None else f"{flops / PFS_DAY:.3g}"


def _format_energy(kwh: float | None, *, is_estimated: bool) -> str:
    return _NO_VALUE if kwh is None else f"{'≈ ' if is_estimated else ''}{kwh:.3g}"


def _format_money(money: float | None) -> str:
    return _NO_VALUE if money is None else f"{money:,.2f}"
