"""Sections of a comparison: the runs, the options that differ, and what their stages ended with."""

from __future__ import annotations

from collections.abc import Sequence

from instructgpt.report.captions import join_sentences
from instructgpt.report.comparison import (
    ComparedRun,
    RunGroup,
    compare_last_values,
    list_differing_options,
)
from instructgpt.report.language import format_duration, join_list, translate
from instructgpt.report.naming import model_name
from instructgpt.report.section import ReportTable, Section

_NO_VALUE = "–"


def build_comparison_sections(groups: Sequence[RunGroup]) -> list[Section]:
    """Return the sections, or nothing for files of results, which state no options."""
    if not any(run.stages for group in groups for run in group.runs):
        return []
    sections = [_runs_section(groups)]
    if len(groups) > 1:
        sections.append(_options_section(groups))
    if table := _last_values_table(groups):
        sections.append(
            Section(
                id="last-values",
                title=translate("comparison.last_values.title"),
                headline=translate("comparison.last_values.headline"),
                tables=(table,),
            )
        )
    return sections


def _runs_section(groups: Sequence[RunGroup]) -> Section:
    rows = [_run_cells(group, run) for group in groups for run in group.runs]
    names = ("run", "group", "seed", "stages", "time", "flops")
    head = tuple(translate(f"comparison.runs.{name}") for name in names)
    notes = [
        translate("comparison.runs.repeated_seed", group=group.name)
        for group in groups
        if len({run.seeds for run in group.runs if run.seeds}) < len(group.runs) and len(group.runs) > 1
    ]
    has_means = any(len(group.runs) > 1 for group in groups)
    return Section(
        id="runs",
        title=translate("comparison.runs.title"),
        headline=translate("comparison.runs.means" if has_means else "comparison.runs.single"),
        tables=(ReportTable(translate("comparison.runs.title"), head, tuple(rows), tuple(notes)),),
    )


def _run_cells(group: RunGroup, run: ComparedRun) -> tuple[str, ...]:
    stages = run.cost.stages if run.cost else []
    seconds = sum(stage.seconds for stage in stages)
    flops = [stage.flops for stage in stages]
    unfinished = [stage.name for stage in stages if not stage.finished]
    open_stages = f" ({translate('opening.unfinished', stages=join_list(unfinished))})" if unfinished else ""
    return (
        run.name,
        group.name,
        join_list(run.seeds) or _NO_VALUE,
        (join_list(model_name(name) for name in run.stages) or _NO_VALUE) + open_stages,
        format_duration(seconds) if seconds else _NO_VALUE,
        f"{sum(number for number in flops if number):.3g}" if any(flops) and None not in flops else _NO_VALUE,
    )


def _options_section(groups: Sequence[RunGroup]) -> Section:
    options = list_differing_options(groups)
    groups_without_options = [group.name for group in groups if not group.runs[0].options]
    sentences = (
        translate("comparison.options.headline", count=len(options))
        if options
        else translate("comparison.options.none"),
        translate("comparison.options.unknown", groups=join_list(groups_without_options))
        if groups_without_options
        else "",
    )
    rows = tuple((name, *(cell or _NO_VALUE for cell in cells)) for name, cells in options.items())
    head = (translate("comparison.options.option"), *(group.name for group in groups))
    return Section(
        id="options",
        title=translate("comparison.options.title"),
        headline=join_sentences(*sentences),
        tables=(ReportTable(translate("comparison.options.title"), head, rows),),
    )


def _last_values_table(groups: Sequence[RunGroup]) -> ReportTable | None:
    rows = tuple(
        (f"{model_name(stage)}: {metric}", *(cell or _NO_VALUE for cell in cells))
        for (stage, metric), cells in compare_last_values(groups).items()
    )
    head = ("", *(group.name for group in groups))
    return ReportTable(translate("comparison.last_values.title"), head, rows) if rows else None
