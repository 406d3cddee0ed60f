"""The family tree of all models, and lineage tables."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from instructgpt.report.inputs import Parent, Stage
from instructgpt.report.language import format_count, format_duration, translate
from instructgpt.report.naming import model_color, model_name
from instructgpt.report.section import ReportTable
from instructgpt.report.svg import CSS_COLORS

_BOX_SIZE = (170, 74)
_SLOT_SIZE = (190, 112)


def _parent_names(stage: Stage, stages: Mapping[str, Stage]) -> list[str]:
    """Return the parents of a stage within this run."""
    recorded_names = (PurePosixPath(parent.path.replace("\\", "/")).name for parent in stage.parents)
    return [name for name in dict.fromkeys(recorded_names) if name in stages and name != stage.name]


def render_family_tree(stages: Mapping[str, Stage]) -> str:
    positions = _layout_tree(stages)
    num_columns = max(x for x, _ in positions.values()) + 1
    width, height = (
        _SLOT_SIZE[0] * max(num_columns, 1),
        _SLOT_SIZE[1] * (max(y for _, y in positions.values()) + 1) - _SLOT_SIZE[1] + _BOX_SIZE[1] + 4,
    )
    edges = [
        _render_edge(positions[parent], positions[name], parent)
        for name, stage in stages.items()
        for parent in _parent_names(stage, stages)
    ]
    boxes = [_render_box(stage, positions[name], _recorded_hash(name, stages)) for name, stage in stages.items()]
    size_attributes = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{1.25 * width:.0f}px"'
    return (
        f'<svg class="tree" {size_attributes} role="img" aria-label="{html.escape(translate("lineage.tree"))}">'
        f"{''.join(edges + boxes)}</svg>"
    )


def _layout_tree(stages: Mapping[str, Stage]) -> dict[str, tuple[float, int]]:
    """Return (column, generation) of every stage: below its parents, as near as space allows."""
    generations: dict[str, int] = {}

    def get_generation(name: str, ancestors: tuple[str, ...] = ()) -> int:
        if name not in generations:
            parent_generations = [
                get_generation(parent, (*ancestors, name))
                for parent in _parent_names(stages[name], stages)
                if parent not in ancestors
            ]
            generations[name] = 1 + max(parent_generations, default=-1)
        return generations[name]

    names_by_generation: dict[int, list[str]] = {}
    for name in stages:
        names_by_generation.setdefault(get_generation(name), []).append(name)
    max_row_size = max(map(len, names_by_generation.values()))
    positions: dict[str, tuple[float, int]] = {}
    for level in sorted(names_by_generation):
        preferred_columns = {}
        for name in names_by_generation[level]:
            parent_columns = [
                positions[parent][0] for parent in _parent_names(stages[name], stages) if parent in positions
            ]
            preferred_columns[name] = (
                sum(parent_columns) / len(parent_columns) if parent_columns else (max_row_size - 1) / 2
            )
        is_single = len(names_by_generation[level]) == 1
        first_column = (max_row_size - len(names_by_generation[level])) / 2
        for column_index, name in enumerate(
            sorted(
                names_by_generation[level],
                key=lambda name: (preferred_columns[name], names_by_generation[level].index(name)),
            )
        ):
            positions[name] = (preferred_columns[name] if is_single else first_column + column_index, level)
    return positions


def _recorded_hash(name: str, stages: Mapping[str, Stage]) -> str:
    """Return the hash that a stage's children recorded."""
    recorded_parents = (
        parent for stage in stages.values() for parent in stage.parents if PurePosixPath(parent.path).name == name
    )
    return next((parent.sha256 for parent in recorded_parents if parent.sha256), "")


def _render_edge(parent: tuple[float, int], child: tuple[float, int], name: str) -> str:
    (x0, y0), (x1, y1) = ((_SLOT_SIZE[0] * (column + 0.5), _SLOT_SIZE[1] * level) for column, level in (parent, child))
    y0 += _BOX_SIZE[1]
    bend_y = y1 - (_SLOT_SIZE[1] - _BOX_SIZE[1])  # a long line goes straight down first, past the boxes between
    control_y = (bend_y + y1) / 2
    color = CSS_COLORS.get(model_color(name), model_color(name))
    path_data = f"M {x0:g} {y0:g} V {bend_y:g} C {x0:g} {control_y:g} {x1:g} {control_y:g} {x1:g} {y1:g}"
    return f'<path d="{path_data}" style="fill:none;stroke:{color};stroke-width:1.6"/>'


def _render_box(stage: Stage, position: tuple[float, int], digest: str) -> str:
    x, y = _SLOT_SIZE[0] * (position[0] + 0.5) - _BOX_SIZE[0] / 2, _SLOT_SIZE[1] * position[1] + 1
    color = CSS_COLORS.get(model_color(stage.name), model_color(stage.name))
    num_parameters, seconds, tokens = (_get_number(stage.info, name) for name in ("parameters", "seconds", "tokens"))
    facts = [
        translate("lineage.parameters", count=format_count(num_parameters)) if num_parameters else "",
        ", ".join(
            part
            for part in (
                format_duration(seconds) if seconds else "",
                translate("lineage.tokens", count=format_count(tokens)) if tokens else "",
            )
            if part
        ),
        f"sha {digest[:12]}" if digest else "",
    ]
    text_elements = "".join(
        f'<text x="{x + 13:g}" y="{y + 35 + 14 * line:g}" '
        f'style="font-size:10.5px;fill:var(--muted)">{html.escape(fact)}</text>'
        for line, fact in enumerate(fact for fact in facts if fact)
    )
    name = html.escape(model_name(stage.name) + ("" if is_stage_finished(stage) else translate("lineage.not_finished")))
    frame = (
        f'<rect x="{x:g}" y="{y:g}" width="{_BOX_SIZE[0]}" height="{_BOX_SIZE[1]}" rx="7" '
        'style="fill:var(--page);stroke:var(--line)"/>'
    )
    bar = f'<rect x="{x:g}" y="{y + 9:g}" width="4" height="{_BOX_SIZE[1] - 18}" rx="2" style="fill:{color}"/>'
    return (
        f'{frame}{bar}<text x="{x + 13:g}" y="{y + 20:g}" '
        f'style="font-size:12.5px;font-weight:600;fill:currentColor">{name}</text>{text_elements}'
    )


def is_stage_finished(stage: Stage) -> bool:
    return stage.info.get("finished") is not False


def _get_number(info: Mapping[str, Any], name: str) -> float | None:
    value = info.get(name)
    return float(value) if isinstance(value, int | float) else None


def sum_over_stages(stages: Sequence[Stage], name: str) -> float:
    return sum(_get_number(stage.info, name) or 0 for stage in stages)


def build_lineage_tables(stages: Sequence[Stage]) -> tuple[ReportTable, ...]:
    """Return the lineage tables: parents with hashes, seeds, settings, versions."""
    headers = tuple(
        translate(f"lineage.column.{column}")
        for column in ("model", "made_from", "seed", "time", "tokens", "parameters")
    )
    table_rows = tuple(
        (
            model_name(stage.name),
            "\n".join(_format_parent(parent) for parent in stage.parents) or translate("lineage.nothing"),
            str(stage.info.get("seed", "–")),
            format_duration(_get_number(stage.info, "seconds") or 0),
            format_count(_get_number(stage.info, "tokens")),
            f"{_get_number(stage.info, 'parameters') or 0:,.0f}",
        )
        for stage in stages
    )
    return (
        ReportTable(translate("lineage.made_of"), headers, table_rows),
        _stage_mapping_table(translate("lineage.settings"), "config", stages),
        _stage_mapping_table(translate("lineage.versions"), "versions", stages),
    )


def _stage_mapping_table(title: str, info_key: str, stages: Sequence[Stage]) -> ReportTable:
    """Return one mapping of run.json as a table: a line an option, a column a model."""
    values = {stage.name: mapping if isinstance(mapping := stage.info.get(info_key), dict) else {} for stage in stages}
    options = dict.fromkeys(option for options in values.values() for option in options)
    table_rows = tuple(
        (str(option), *(str(values[stage.name].get(option, "")) for stage in stages)) for option in options
    )
    return ReportTable(title, ("", *(model_name(stage.name) for stage in stages)), table_rows)


def _format_parent(parent: Parent) -> str:
    return f"{parent.name}: {PurePosixPath(parent.path).name} {parent.sha256[:12]}".strip()
