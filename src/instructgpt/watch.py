"""`watch`: a run while it goes, on a terminal: how far each stage is, its curves, the last completions, what is wrong.

It reads the files of the run directory alone, so it can be started and ended at any time, beside the run, on any machine
that sees the directory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from instructgpt.config import CommandConfig
from instructgpt.doctor.cli import diagnose_stage, find_stage_directories
from instructgpt.run.directory import console, content_hash, read_jsonl_log, read_run_record

_SPARKLINE_BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 24
"""Columns of a curve."""
_QUIET_AFTER_S = 120.0
"""Seconds without a line after which an unfinished stage is called quiet: it has stopped, or its steps are long."""
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
    ),
}
"""The curves of each stage; of a stage that is not here, whatever it logged first."""
_SAMPLE_COUNT = 3


class WatchConfig(CommandConfig):
    """What to watch, and how."""

    stage: ClassVar[str] = "watch"

    run: Path = Field(description="a run directory, or the directory of one stage")
    every: float = Field(2.0, gt=0, description="seconds between two looks")
    once: bool = Field(False, description="look once and end")


def main(config: WatchConfig) -> None:
    """Show the run until it has finished, or until Ctrl-C.

    Raises:
        BadInput: there is no stage in the directory, or a run.json is damaged.
    """
    if not config.once:
        is_terminal = console.is_terminal
        with (
            Live(render_run(config.run), console=console, auto_refresh=False, screen=True)
            if is_terminal
            else nullcontext() as screen
        ):
            while not is_run_finished(config.run):
                time.sleep(config.every)
                if screen:
                    screen.update(render_run(config.run), refresh=True)
    console.print(render_run(config.run))


def is_run_finished(folder: Path) -> bool:
    """Whether there is nothing left to wait for: the run has finished, or every stage in a directory that is not a run's."""
    run_record = read_run_record(folder)
    run_records = (
        [run_record]
        if run_record is not None
        else [read_run_record(stage) or {} for stage in find_stage_directories(folder)]
    )
    return all(record.get("finished") for record in run_records)


def render_run(folder: Path) -> Group:
    """Everything there is to see of a run at this moment."""
    table = Table("stage", "", "step", "time", "left", box=None, pad_edge=False)
    parts: list[RenderableType] = [table]
    stage_folders = find_stage_directories(folder)
    for stage_folder in sorted(stage_folders, key=lambda stage_folder: (stage_folder / "run.json").stat().st_ctime):
        info, log_rows, rows = (
            read_run_record(stage_folder) or {},
            read_jsonl_log(stage_folder / "log.jsonl"),
            read_jsonl_log(stage_folder / "metrics.jsonl"),
        )
        table.add_row(*_format_stage_row(stage_folder, info, log_rows, rows))
        if not info.get("finished") or stage_folder == folder:
            parts += [Text(), _build_curves_table(stage_folder.name, info, rows), *_format_last_samples(stage_folder)]
    findings_text = Text()
    for stage_folder in stage_folders:
        for finding in diagnose_stage(stage_folder, cached_content_hash):
            findings_text.append(
                f"{finding.severity} {finding.stage}: {finding.message}\n",
                "red" if finding.severity == "bad" else "yellow",
            )
    return Group(*parts, Text(), findings_text)


def cached_content_hash(path: Path) -> str:
    """`run.content_hash`, computed anew only where a file has another size or time: models and corpora are not read at every look."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return _content_hash_of_state(
        path, tuple((file.name, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()])
    )


@lru_cache(maxsize=256)
def _content_hash_of_state(path: Path, _: tuple[tuple[str, int, int], ...]) -> str:
    return content_hash(path)


def _format_stage_row(
    folder: Path, info: Mapping[str, Any], log_rows: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """One line about a stage: name, state, step of steps, seconds, seconds left."""
    progress_rows = [row for row in log_rows if "steps" in row]
    step, steps = (rows[-1]["step"] if rows else 0), (progress_rows[-1]["steps"] if progress_rows else None)
    if info.get("finished"):
        return [
            f"[bold]{escape(folder.name)}[/]",
            "[green]done[/]",
            f"{steps or step}",
            f"{info.get('seconds', 0):.0f} s",
            "",
        ]
    files = [file for name in ("metrics.jsonl", "log.jsonl", "run.json") if (file := folder / name).exists()]
    silent_s = time.time() - max(file.stat().st_mtime for file in files)
    state = f"[yellow]quiet for {silent_s:.0f} s[/]" if silent_s > _QUIET_AFTER_S else "[cyan]running[/]"
    remaining = (
        f"{progress_rows[-1]['left'] * (steps - step) / max(1, steps - progress_rows[-1]['step']):.0f} s"
        if steps
        else ""
    )
    elapsed = f"{rows[-1]['seconds']:.0f} s" if rows else ""
    return [f"[bold]{escape(folder.name)}[/]", state, f"{step}/{steps}" if steps else f"{step}", elapsed, remaining]


def _build_curves_table(name: str, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    """The curves of one stage, each with its first, smallest, largest and last value."""
    logged = [metric for row in rows[-1:] for metric in row if metric not in ("step", "seconds")]
    table = Table(name, Column("curve", no_wrap=True), "first", "least", "most", "now", box=None, pad_edge=False)
    for metric in _STAGE_CURVES.get(str(info.get("stage")), tuple(logged[:4])):
        values = [float(row[metric]) for row in rows if metric in row]
        if values:
            table.add_row(
                metric,
                sparkline(values),
                *(f"{number:.4g}" for number in (values[0], min(values), max(values), values[-1])),
            )
    return table


def sparkline(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """A curve in one line: the means of `width` parts of the values, each a block from the lowest to the highest."""
    count = min(width, len(values))
    parts = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    if not high - low > 0:  # all alike, or not a number
        return _SPARKLINE_BLOCKS[0] * count
    return "".join(
        _SPARKLINE_BLOCKS[min(len(_SPARKLINE_BLOCKS) - 1, int((mean - low) / (high - low) * len(_SPARKLINE_BLOCKS)))]
        for mean in means
    )


def _format_last_samples(folder: Path) -> list[Text]:
    """The first completions of the latest update, with score, KL and total."""
    rows = read_jsonl_log(folder / "samples.jsonl")
    latest = [row for row in rows if row.get("step") == rows[-1].get("step")][:_SAMPLE_COUNT]
    return [
        Text.assemble(
            ("\n" if not position else "", ""),
            (_to_printable_line(row["prompt"], 120), "dim"),
            " → ",
            _to_printable_line(row["completion"], 160),
            (f"  score {row['score']:+.2f}  kl {row['kl']:+.2f}  total {row['total']:+.2f}", "dim"),
        )
        for position, row in enumerate(latest)
        if {"prompt", "completion", "score", "kl", "total"} <= row.keys()
    ]


def _to_printable_line(text: str, max_length: int) -> str:
    """Text on one line, without what would steer the terminal."""
    return "".join(letter if letter.isprintable() else "·" for letter in " ".join(text.split()))[:max_length]
