"""What it cost: stages and labels in one place, beside the paper's numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from instructgpt.formatting import format_seconds
from instructgpt.report.cost import PAPER_PFS_DAYS, PFS_DAY, PRETRAINING_STAGE, LabelCost, RunCost, StageCost
from instructgpt.report.section import ReportTable, Section

_NO_VALUE = "–"
_PAPER_PRETRAINING = PAPER_PFS_DAYS["pretraining (GPT-3)"]


def cost_section(cost: RunCost | None) -> list[Section]:
    """Return the section, or nothing where no stage counted its FLOPs."""
    if cost is None or not any(stage.flops for stage in cost.stages):
        return []
    share = cost.share_of_pretraining
    seconds = sum(stage.seconds for stage in cost.stages)
    headline = f"All stages together took {format_seconds(seconds)}."
    if share is not None:
        headline += f" What follows pretraining took {share:.1%} of its FLOPs; in the paper PPO-ptx took 1.65 %."
    return [
        Section(
            id="cost",
            title="What it cost",
            headline=headline,
            paper=(
                "SFT took 4.9 petaflop/s-days and PPO-ptx 60, GPT-3 3,640; the cost of labels is not in these numbers."
            ),
            tables=tuple(build_cost_tables(cost)),
        )
    ]


def build_cost_tables(cost: RunCost) -> list[ReportTable]:
    """Return the table of stages, and that of labels where there are any."""
    return [build_stage_table(cost), *([build_label_table(cost)] if cost.labels else [])]


def build_stage_table(cost: RunCost) -> ReportTable:
    pretraining = cost.sum_flops(pretraining=True)
    has_money = any(stage.money is not None for stage in cost.stages)
    head = ["", "FLOPs", "computed", "petaflop/s-days", "of pretraining", "time", "GPU-hours", "kWh"]
    rows = [_stage_cells(stage, pretraining, has_money=has_money) for stage in cost.stages]
    rows.append(_sum_cells(cost, pretraining, has_money=has_money))
    for name, days in PAPER_PFS_DAYS.items():
        flops = days * PFS_DAY
        share = f"{days / _PAPER_PRETRAINING:.2%}"
        cells = [f"paper, 175B: {name}", _format_flops(flops), "", f"{days:,g}", share, "", "", ""]
        rows.append((*cells, *([""] if has_money else [])))
    if has_money:
        head.append(f"money, {cost.currency}" if cost.currency else "money")
    return ReportTable("Stages", tuple(head), tuple(rows), tuple(_stage_notes(cost)))


def _stage_cells(stage: StageCost, pretraining: float | None, *, has_money: bool) -> tuple[str, ...]:
    share = stage.flops / pretraining if stage.flops is not None and pretraining else None
    cells = [
        stage.name + ("" if stage.finished else " (not finished)"),
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
        "together",
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
    notes = [
        "FLOPs are counted from the shapes of every pass; 'computed' has padding, masked attention and layers computed "
        "twice. Evaluation and labeling are not stages and are not counted."
    ]
    uncounted = [stage.name for stage in cost.stages if stage.flops is None]
    if uncounted:
        notes.append(f"FLOPs of {', '.join(uncounted)} were not counted: an earlier version, or an unknown family")
    if any(stage.energy_kwh is None for stage in cost.stages):
        notes.append("energy is not known where the hardware has no counter that may be read; --watts states a power")
    if any(stage.is_energy_estimated for stage in cost.stages):
        notes.append("≈ is energy by --watts, which nobody measured")
    if not any(stage.stage == PRETRAINING_STAGE for stage in cost.stages):
        notes.append("no pretraining in this run, so that there is no share of it")
    return notes


def build_label_table(cost: RunCost) -> ReportTable:
    has_money = any(label.money is not None for label in cost.labels)
    head = ["", "records", "pairs", "labelers", "active minutes", "minutes a record"]
    rows = [_label_cells(label, has_money=has_money) for label in cost.labels]
    if has_money:
        head.append(f"pay, {cost.currency}" if cost.currency else "pay")
    notes = []
    if any(label.active_minutes is None for label in cost.labels):
        notes.append("labels without times (simulated labelers, other people's data) have no minutes and no pay")
    partly = [
        label for label in cost.labels if label.active_minutes is not None and label.timed_records < label.records
    ]
    notes += [f"{label.name}: {label.timed_records:,} of {label.records:,} records have a time" for label in partly]
    return ReportTable("Labels", tuple(head), tuple(rows), tuple(notes))


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
