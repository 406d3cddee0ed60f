"""`sweep`: runs of the pipeline that differ in a few options, their table and figure.

    instructgpt sweep demo --vary ppo_ptx.ptx_coef=0.05,0.1,0.2,0.4 --seeds 3 --out runs/gamma
    instructgpt sweep --preset figure-33 --out runs/figure-33 --jobs 2

    OUT/cells/HASH/          a run directory a cell
    OUT/shared/STAGE-HASH/   stages that several cells have in common
    OUT/claims/              who works on what, and how it ended
    OUT/sweep.jsonl, sweep.md, sweep.svg

The same command may run on several machines that share OUT, and again after it was killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.markup import escape

from instructgpt.config import make_config
from instructgpt.errors import InputError, RunError
from instructgpt.io import check_writable, write_text_atomic
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import console
from instructgpt.sweep.cells import Axis, Cell, build_cells, parse_axis, read_recipe, resolve_stages
from instructgpt.sweep.claims import ClaimFolder
from instructgpt.sweep.configs import SweepConfig
from instructgpt.sweep.figure import write_figure
from instructgpt.sweep.paper_readings import PAPER_FIGURES
from instructgpt.sweep.scheduler import Item, Scheduler
from instructgpt.sweep.shared_stages import SharedStage, find_shared_stages, make_cell, make_shared_stage
from instructgpt.sweep.table import (
    CellRow,
    SweepChoice,
    choose,
    compares_reward_models,
    format_table,
    format_values,
    read_metrics,
    resolve_choice,
    to_value,
    write_rows,
)

_DEFAULT_PANELS = ("preference:win_rate_vs_sft:{model}:training", "tax:passage_qa:{model}")


class Sweep:
    """The cells of a sweep, and where they are."""

    def __init__(self, config: SweepConfig) -> None:
        self.config, self.out = config, config.out
        self.axes = [parse_axis(text) for text in config.vary]
        if len({axis.name for axis in self.axes}) < len(self.axes):
            raise InputError("--vary names an option twice; give all its values at once")
        if config.paper_figure is not None and config.paper_figure not in PAPER_FIGURES:
            raise InputError(f"--paper-figure {config.paper_figure}: known are {', '.join(map(str, PAPER_FIGURES))}")
        self.choice_metric = resolve_choice(config.select, self.axes)
        self.recipe = read_recipe(config)
        self.first_seed = make_config(RunConfig, self.recipe).seed
        self.cells = build_cells(self.recipe, self.axes, range(self.first_seed, self.first_seed + config.seeds))
        self.shared = {cell.key: find_shared_stages(cell, self.axes) for cell in self.cells}
        self.claims = ClaimFolder(config.out / "claims", stale_s=60 * config.stale_minutes, attempts=config.attempts)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of table and figure."""
        if self.config.plot:
            return self.config.plot
        sections = [section for axis in self.axes for section in axis.sections]
        model = next((name for name in reversed(sections) if name in ("sft", "ppo", "ppo_ptx")), "ppo_ptx")
        panels = tuple(panel.format(model=model) for panel in _DEFAULT_PANELS)
        return (self.choice_metric.removeprefix("-"), *panels) if self.choice_metric else panels

    def add_fresh_cells(self, choice: SweepChoice) -> None:
        """Add the chosen combination on seeds that have chosen nothing."""
        first = self.first_seed + self.config.seeds
        texts = {axis.name: {to_value(value): value for value in axis.values} for axis in self.axes}
        axes = [Axis(axis.sections, axis.option, (texts[axis.name][choice.values[axis.name]],)) for axis in self.axes]
        fresh_cells = build_cells(self.recipe, axes, range(first, first + self.config.fresh_seeds), is_fresh=True)
        keys = {cell.key for cell in self.cells}
        self.cells += [cell for cell in fresh_cells if cell.key not in keys]
        self.shared |= {cell.key: find_shared_stages(cell, self.axes) for cell in fresh_cells}

    def shared_stages(self) -> dict[str, SharedStage]:
        """All stages that cells have in common, by name, each after those that it needs."""
        return {stage.name: stage for cell in self.cells for stage in self.shared[cell.key]}

    def items(self) -> list[Item]:
        """Return what is to be made: shared stages, and cells as soon as what they need is there."""
        folder, stages = self.out / "shared", self.shared_stages()
        items = [
            Item(
                name,
                partial(make_shared_stage, stage, folder, list(_ancestors(stage, stages).values())),
                stage.parents,
            )
            for name, stage in stages.items()
        ]
        for cell in self.cells:
            shared = self.shared[cell.key]
            make = partial(make_cell, cell, self.directory(cell), folder, shared)
            items.append(Item(self.item_name(cell), make, tuple(stage.name for stage in shared)))
        return items

    def directory(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.key

    def item_name(self, cell: Cell) -> str:
        return f"cell-{cell.key}"

    def rows(self, scheduler: Scheduler | None = None) -> list[CellRow]:
        """Return a row a cell, in the order of the values."""
        items = {item.name: item for item in self.items()}
        rows: list[CellRow] = []
        for cell in self.cells:
            status, directory = self.claims.status(self.item_name(cell)), self.directory(cell)
            outcome = status.outcome if status.state in ("done", "failed") else None
            is_blocked = scheduler is not None and scheduler.is_blocked(items[self.item_name(cell)])
            failed_parents = [
                stage.name for stage in self.shared[cell.key] if self.claims.status(stage.name).state == "failed"
            ]
            error = (
                f"needs {', '.join(failed_parents)}, which failed" if is_blocked else (outcome or {}).get("error", "")
            )
            rows.append(
                {
                    "cell": cell.key,
                    "values": {name: to_value(value) for name, value in cell.values.items()},
                    "seed": cell.seed,
                    "fresh": cell.is_fresh,
                    "state": "blocked" if is_blocked and status.state == "open" else status.state,
                    "seconds": (outcome or {}).get("seconds"),
                    "directory": str(directory.relative_to(self.out)),
                    "shared": [stage.name for stage in self.shared[cell.key]],
                    "error": error,
                    "metrics": read_metrics(directory) if status.state == "done" else {},
                }
            )
        return rows


def _ancestors(stage: SharedStage, stages: Mapping[str, SharedStage]) -> dict[str, SharedStage]:
    ancestors: dict[str, SharedStage] = {}
    for name in stage.parents:
        ancestors |= _ancestors(stages[name], stages) | {name: stages[name]}
    return ancestors


def main(config: SweepConfig) -> Path:
    """Make all cells, and write table and figure. Return the sweep's directory.

    Raises:
        InputError: a cell's configuration is wrong; nothing has been made then.
        RunError: a cell has failed; all others have been made.
    """
    sweep = Sweep(config)
    check_writable(config.out)
    if config.dry_run:
        from instructgpt.sweep.forecast import print_forecast  # loads torch

        print_forecast(sweep)
        return config.out
    _record_command(sweep)
    stages = len(sweep.shared_stages())
    _report(f"{len(sweep.cells)} cells and {stages} stages that they share, {config.jobs} at once")
    scheduler = _run(sweep, retry=config.retry)
    rows = sweep.rows(scheduler)
    choice = _choose(sweep, rows)
    if choice is not None and config.fresh_seeds:
        sweep.add_fresh_cells(choice)
        scheduler = _run(sweep, retry=config.retry)
        rows = sweep.rows(scheduler)
    _write_outputs(sweep, rows, choice)
    failed = sum(row["state"] in ("failed", "blocked") for row in rows)
    _report(f"{len(rows) - failed} cells done, {failed} failed: {config.out / 'sweep.md'}")
    if failed:
        raise RunError(f"{failed} of {len(rows)} cells failed, see {config.out / 'sweep.md'}; --retry makes them again")
    return config.out


def _run(sweep: Sweep, *, retry: bool) -> Scheduler:
    scheduler = Scheduler(sweep.items(), sweep.claims, jobs=sweep.config.jobs, retry=retry, report=_report)
    scheduler.run(on_change=lambda: write_rows(sweep.out / "sweep.jsonl", sweep.rows()))
    return scheduler


def _report(text: str) -> None:
    console.print(f"[bold]sweep[/] {escape(text)}", soft_wrap=True)


def _record_command(sweep: Sweep) -> None:
    """Write what the sweep varies. The same directory may hold the cells of several commands."""
    settings = json.loads(sweep.config.model_dump_json(exclude={"out", "jobs", "retry", "dry_run"}))
    write_text_atomic(sweep.out / "sweep.json", json.dumps(settings, indent=2) + "\n")


def _choose(sweep: Sweep, rows: Sequence[CellRow]) -> SweepChoice | None:
    metric = sweep.choice_metric
    if not metric:
        return None
    if compares_reward_models(metric, sweep.axes):
        _report(f"chooses nothing: {metric} comes from a different reward model in each cell; see --select")
        return None
    choice = choose(rows, metric)
    if choice is None:
        _report(f"chooses nothing: no combination has {metric} on all seeds")
    else:
        _report(f"chosen by {metric}: {format_values(choice.values)}")
    return choice


def _write_outputs(sweep: Sweep, rows: Sequence[CellRow], choice: SweepChoice | None) -> None:
    write_rows(sweep.out / "sweep.jsonl", rows)
    write_text_atomic(sweep.out / "sweep.md", format_table(rows, sweep.axes, sweep.metrics, choice))
    number = sweep.config.paper_figure
    write_figure(sweep.out / "sweep.svg", rows, sweep.axes, sweep.metrics, number, recipe_value(sweep, number))


def recipe_value(sweep: Sweep, paper_figure: int | None) -> float | None:
    """Return the recipe's own value of the option that a figure of the paper varies."""
    option = PAPER_FIGURES[paper_figure].option if paper_figure is not None else ""
    if not option:
        return None
    stage, _, name = option.partition(".")
    recipe_config: Any = make_config(RunConfig, sweep.recipe, {"out": Path("cell")})
    value = resolve_stages(recipe_config)[stage][name]
    return float(value)
