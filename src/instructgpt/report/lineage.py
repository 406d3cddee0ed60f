"""Where every model came from: a family tree, and the facts behind it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from instructgpt.report.inputs import Parent, Stage
from instructgpt.report.naming import amount, colour, duration, model_name
from instructgpt.report.section import Table
from instructgpt.report.svg import FOLLOWING

BOX = (170, 74)
SLOT = (190, 112)


def parents_of(stage: Stage, stages: Mapping[str, Stage]) -> list[str]:
    """The stages of this run from which a stage was made."""
    found = (PurePosixPath(parent.path.replace("\\", "/")).name for parent in stage.parents)
    return [name for name in dict.fromkeys(found) if name in stages and name != stage.name]


def family_tree(stages: Mapping[str, Stage]) -> str:
    """Every model as a box under the models it was made from: an SVG."""
    places = _places(stages)
    slots = max(x for x, _ in places.values()) + 1
    width, height = SLOT[0] * max(slots, 1), SLOT[1] * (max(y for _, y in places.values()) + 1) - SLOT[1] + BOX[1] + 4
    edges = [_edge(places[parent], places[name], parent) for name, stage in stages.items() for parent in parents_of(stage, stages)]
    boxes = [_box(stage, places[name], _hash(name, stages)) for name, stage in stages.items()]
    size = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{1.25 * width:.0f}px"'
    return f'<svg class="tree" {size} role="img" aria-label="Family tree of the models">{"".join(edges + boxes)}</svg>'


def _places(stages: Mapping[str, Stage]) -> dict[str, tuple[float, int]]:
    """(column, generation) of every stage: below its parents, as near to them as there is room."""
    generation: dict[str, int] = {}

    def depth(name: str, seen: tuple[str, ...] = ()) -> int:
        if name not in generation:
            above = [depth(parent, (*seen, name)) for parent in parents_of(stages[name], stages) if parent not in seen]
            generation[name] = 1 + max(above, default=-1)
        return generation[name]

    rows: dict[int, list[str]] = {}
    for name in stages:
        rows.setdefault(depth(name), []).append(name)
    widest = max(map(len, rows.values()))
    places: dict[str, tuple[float, int]] = {}
    for level in sorted(rows):
        wish = {}
        for name in rows[level]:
            above = [places[parent][0] for parent in parents_of(stages[name], stages) if parent in places]
            wish[name] = sum(above) / len(above) if above else (widest - 1) / 2
        alone = len(rows[level]) == 1
        first = (widest - len(rows[level])) / 2
        for place, name in enumerate(sorted(rows[level], key=lambda name: (wish[name], rows[level].index(name)))):
            places[name] = (wish[name] if alone else first + place, level)
    return places


def _hash(name: str, stages: Mapping[str, Stage]) -> str:
    """The hash by which the children of a stage know it."""
    known = (parent for stage in stages.values() for parent in stage.parents if PurePosixPath(parent.path).name == name)
    return next((parent.sha256 for parent in known if parent.sha256), "")


def _edge(parent: tuple[float, int], child: tuple[float, int], name: str) -> str:
    """A line from the foot of the parent to the head of the child."""
    (x0, y0), (x1, y1) = ((SLOT[0] * (column + 0.5), SLOT[1] * level) for column, level in (parent, child))
    y0 += BOX[1]
    bend = y1 - (SLOT[1] - BOX[1])  # a long line goes straight down first, past the boxes between
    middle = (bend + y1) / 2
    shade = FOLLOWING.get(colour(name), colour(name))
    line = f"M {x0:g} {y0:g} V {bend:g} C {x0:g} {middle:g} {x1:g} {middle:g} {x1:g} {y1:g}"
    return f'<path d="{line}" style="fill:none;stroke:{shade};stroke-width:1.6"/>'


def _box(stage: Stage, place: tuple[float, int], digest: str) -> str:
    """One model: its name, size, time and hash."""
    x, y = SLOT[0] * (place[0] + 0.5) - BOX[0] / 2, SLOT[1] * place[1] + 1
    shade = FOLLOWING.get(colour(stage.name), colour(stage.name))
    size, seconds, tokens = (_number(stage.info, name) for name in ("parameters", "seconds", "tokens"))
    facts = [
        f"{amount(size)} parameters" if size else "",
        ", ".join(part for part in (duration(seconds) if seconds else "", f"{amount(tokens)} tokens" if tokens else "") if part),
        f"sha {digest[:12]}" if digest else "",
    ]
    words = "".join(
        f'<text x="{x + 13:g}" y="{y + 35 + 14 * line:g}" style="font-size:10.5px;fill:var(--muted)">{html.escape(fact)}</text>'
        for line, fact in enumerate(fact for fact in facts if fact)
    )
    name = html.escape(model_name(stage.name) + ("" if finished(stage) else " (not finished)"))
    frame = f'<rect x="{x:g}" y="{y:g}" width="{BOX[0]}" height="{BOX[1]}" rx="7" style="fill:var(--page);stroke:var(--line)"/>'
    bar = f'<rect x="{x:g}" y="{y + 9:g}" width="4" height="{BOX[1] - 18}" rx="2" style="fill:{shade}"/>'
    return (
        f'{frame}{bar}<text x="{x + 13:g}" y="{y + 20:g}" style="font-size:12.5px;font-weight:600;fill:currentColor">{name}</text>{words}'
    )


def finished(stage: Stage) -> bool:
    """Whether a stage ran to its end."""
    return stage.info.get("finished") is not False


def _number(info: Mapping[str, Any], name: str) -> float | None:
    value = info.get(name)
    return float(value) if isinstance(value, int | float) else None


def total(stages: Sequence[Stage], name: str) -> float:
    """The sum of a number over stages."""
    return sum(_number(stage.info, name) or 0 for stage in stages)


def tables(stages: Sequence[Stage]) -> tuple[Table, ...]:
    """Of what each model was made, and how: parents with hashes, seeds, settings, versions."""
    heads = ("model", "made from", "seed", "time", "tokens", "parameters")
    lines = tuple(
        (
            model_name(stage.name),
            "\n".join(_parent(parent) for parent in stage.parents) or "nothing",
            str(stage.info.get("seed", "–")),
            duration(_number(stage.info, "seconds") or 0),
            amount(_number(stage.info, "tokens")),
            f"{_number(stage.info, 'parameters') or 0:,.0f}",
        )
        for stage in stages
    )
    return (
        Table("What each model was made of", heads, lines),
        _by_stage("Settings", "config", stages),
        _by_stage("Versions", "versions", stages),
    )


def _by_stage(title: str, entry: str, stages: Sequence[Stage]) -> Table:
    """One of the mappings of run.json: a line an option, a column a model."""
    values = {stage.name: found if isinstance(found := stage.info.get(entry), dict) else {} for stage in stages}
    options = dict.fromkeys(option for options in values.values() for option in options)
    lines = tuple((str(option), *(str(values[stage.name].get(option, "")) for stage in stages)) for option in options)
    return Table(title, ("", *(model_name(stage.name) for stage in stages)), lines)


def _parent(parent: Parent) -> str:
    return f"{parent.name}: {PurePosixPath(parent.path).name} {parent.sha256[:12]}".strip()
