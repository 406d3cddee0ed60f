"""`watch`: follow a run on a terminal: progress, curves, latest completions and findings of `doctor`.

It only reads the files of the run directory, so it can run beside the run or on any machine that sees the directory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from instructgpt.doctor.cli import diagnose_stage, find_stage_directories
from instructgpt.formatting import format_seconds
from instructgpt.run.configs import WatchConfig
from instructgpt.run.directory import console, content_hash, read_jsonl_log, read_run_record
from instructgpt.run.lock import is_directory_locked
from instructgpt.run.rounds import stage_label

_SPARKLINE_BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 24
_QUIET_AFTER_S = 120.0
"""An unfinished stage that has logged nothing for so long is shown as quiet, also where its process lives."""
_STOPPED_AFTER_S = 5.0
"""Without a process that holds it, a stage has stopped; not at once, since a stage begins before it is locked."""
_STAGE_CURVES = {
    "pretrain": ("loss/train", "loss/validation"),
    "sft": ("loss/train", "loss/validation", "validation/score"),
    "reward": ("loss/train", "accuracy/train", "validation/accuracy", "validation/accuracy_heldout"),
    "ppo": (
        "objective/scores",
        "objective/kl",
        "policy/entropy_avg",
        "completion/length",
        "completion/truncated",
        "loss/ptx_avg",
        "validation/scores",
        "validation/kl",
    ),
}
"""Curves by stage. Other stages show the first metrics that they log."""
_SAMPLE_COUNT = 3


def main(config: WatchConfig) -> None:
    """Show the run until it has finished, or until Ctrl-C.

    Raises:
        InputError: the directory holds no stage, or a run.json is corrupt.
    """
    if not config.once:
        live = Live(render_run(config.run), console=console, auto_refresh=False, screen=True)
        with live if console.is_terminal else nullcontext() as screen:
            while not is_run_finished(config.run):
                time.sleep(config.every)
                if screen:
                    screen.update(render_run(config.run), refresh=True)
    console.print(render_run(config.run))


def is_run_finished(folder: Path) -> bool:
    """Return whether a run is finished, or every stage in a directory that is not itself a run's."""
    run_record = read_run_record(folder)
    if run_record is not None:
        return bool(run_record.get("finished"))
    return all((read_run_record(stage) or {}).get("finished") for stage in find_stage_directories(folder))


def render_run(folder: Path) -> Group:
    table = Table("stage", "", "step", "time", "left", box=None, pad_edge=False)
    parts: list[RenderableType] = [table]
    stages = find_stage_directories(folder)
    for stage in sorted(stages, key=lambda stage: (stage / "run.json").stat().st_ctime):
        record = read_run_record(stage) or {}
        log, metrics = read_jsonl_log(stage / "log.jsonl"), read_jsonl_log(stage / "metrics.jsonl")
        table.add_row(*_format_stage_row(stage, record, log, metrics))
        if not record.get("finished") or stage == folder:
            parts += [Text(), _build_curves_table(stage_label(stage), record, metrics), *_format_last_samples(stage)]
    findings = Text()
    for stage in stages:
        for finding in diagnose_stage(stage, cached_content_hash):
            color = "red" if finding.severity == "bad" else "yellow"
            findings.append(f"{finding.severity} {finding.stage}: {finding.message}\n", color)
    return Group(*parts, Text(), findings)


def cached_content_hash(path: Path) -> str:
    """Return `content_hash(path)`, computed again only when the size or time of a file changes: weights are large."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    states = [(file.name, file.stat()) for file in files]
    return _content_hash_of_state(path, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in states))


@lru_cache(maxsize=256)
def _content_hash_of_state(path: Path, _: tuple[tuple[str, int, int], ...]) -> str:
    return content_hash(path)


def _format_stage_row(
    folder: Path, record: Mapping[str, Any], log: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Return the cells of a stage: name, state, step of steps, seconds, seconds left."""
    name = f"[bold]{escape(stage_label(folder))}[/]"
    progress = next((row for row in reversed(log) if "steps" in row), None)
    step, steps = (metrics[-1]["step"] if metrics else 0), (progress["steps"] if progress else None)
    if record.get("finished"):
        return [name, "[green]done[/]", f"{steps or step}", f"{record.get('seconds', 0):.0f} s", ""]
    files = [file for name in ("metrics.jsonl", "log.jsonl", "run.json") if (file := folder / name).exists()]
    silent_s = time.time() - max(file.stat().st_mtime for file in files)
    state = _format_state(is_directory_locked(folder), silent_s)
    elapsed = f"{metrics[-1]['seconds']:.0f} s" if metrics else ""
    if not progress or not steps:
        return [name, state, f"{step}", elapsed, ""]
    remaining_s = progress["left"] * (steps - step) / max(1, steps - progress["step"])
    return [name, state, f"{step}/{steps}", elapsed, f"{remaining_s:.0f} s"]


def _format_state(is_locked: bool | None, silent_s: float) -> str:
    """Return the state of an unfinished stage; `is_locked` says whether a process of this machine works on it."""
    if is_locked is False and silent_s > _STOPPED_AFTER_S:
        return f"[red]stopped[/] {format_seconds(silent_s)} ago; the same command resumes it"
    if silent_s <= _QUIET_AFTER_S:
        return "[cyan]running[/]"
    activity = "its process lives" if is_locked else "on another machine, or stopped"
    return f"[yellow]quiet for {format_seconds(silent_s)}[/], {activity}"


def _build_curves_table(name: str, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    logged = [metric for row in rows[-1:] for metric in row if metric not in ("step", "seconds")]
    table = Table(name, Column("curve", no_wrap=True), "first", "least", "most", "now", box=None, pad_edge=False)
    for metric in _STAGE_CURVES.get(str(record.get("stage")), tuple(logged[:4])):
        values = [float(row[metric]) for row in rows if metric in row]
        if values:
            numbers = (values[0], min(values), max(values), values[-1])
            table.add_row(metric, sparkline(values), *(f"{number:.4g}" for number in numbers))
    return table


def sparkline(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """Return the means of `width` equal parts of the values as block characters, scaled from lowest to highest."""
    count = min(width, len(values))
    parts = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    if not high - low > 0:  # constant, or NaN
        return _SPARKLINE_BLOCKS[0] * count
    levels = len(_SPARKLINE_BLOCKS)
    return "".join(_SPARKLINE_BLOCKS[min(levels - 1, int((mean - low) / (high - low) * levels))] for mean in means)


def _format_last_samples(folder: Path) -> list[Text]:
    """Return the first completions of the latest update, with score, KL and total."""
    rows = [row for row in read_jsonl_log(folder / "samples.jsonl") if row.get("split") != "validation"]
    latest = [row for row in rows if row.get("step") == rows[-1].get("step")][:_SAMPLE_COUNT]
    return [
        Text.assemble(
            "" if index else "\n",
            (_to_printable_line(row["prompt"], 120), "dim"),
            " → ",
            _to_printable_line(row["completion"], 160),
            (f"  score {row['score']:+.2f}  kl {row['kl']:+.2f}  total {row['total']:+.2f}", "dim"),
        )
        for index, row in enumerate(latest)
        if {"prompt", "completion", "score", "kl", "total"} <= row.keys()
    ]


def _to_printable_line(text: str, max_length: int) -> str:
    """Return text on one line with control characters replaced, so that a sample cannot steer the terminal."""
    return "".join(letter if letter.isprintable() else "·" for letter in " ".join(text.split()))[:max_length]
