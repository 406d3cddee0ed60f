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

from instructgpt.config import Options
from instructgpt.doctor.cli import examine, stages
from instructgpt.run.directory import console, content_hash, read_logged, read_record

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 24
"""Columns of a curve."""
QUIET = 120.0
"""Seconds without a line after which an unfinished stage is called quiet: it has stopped, or its steps are long."""
SHOWN = {
    "pretrain": ("loss/train", "loss/validation"),
    "sft": ("loss/train", "loss/validation", "validation/score"),
    "reward": ("loss/train", "accuracy/train", "validation/accuracy", "validation/accuracy_heldout"),
    "ppo": ("objective/scores", "objective/kl", "policy/entropy_avg", "completion/length", "completion/truncated", "loss/ptx_avg"),
}
"""The curves of each stage; of a stage that is not here, whatever it logged first."""
SAMPLES = 3


class WatchConfig(Options):
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
        terminal = console.is_terminal
        with Live(view(config.run), console=console, auto_refresh=False, screen=True) if terminal else nullcontext() as screen:
            while not finished(config.run):
                time.sleep(config.every)
                if screen:
                    screen.update(view(config.run), refresh=True)
    console.print(view(config.run))


def finished(folder: Path) -> bool:
    """Whether there is nothing left to wait for: the run has finished, or every stage in a directory that is not a run's."""
    whole = read_record(folder)
    parts = [whole] if whole is not None else [read_record(stage) or {} for stage in stages(folder)]
    return all(part.get("finished") for part in parts)


def view(folder: Path) -> Group:
    """Everything there is to see of a run at this moment."""
    table = Table("stage", "", "step", "time", "left", box=None, pad_edge=False)
    parts: list[RenderableType] = [table]
    found = stages(folder)
    for one in sorted(found, key=lambda one: (one / "run.json").stat().st_ctime):
        info, said, rows = read_record(one) or {}, read_logged(one / "log.jsonl"), read_logged(one / "metrics.jsonl")
        table.add_row(*standing(one, info, said, rows))
        if not info.get("finished") or one == folder:
            parts += [Text(), curves(one.name, info, rows), *last_samples(one)]
    wrong = Text()
    for one in found:
        for finding in examine(one, hashed_once):
            wrong.append(f"{finding.weight} {finding.where}: {finding.what}\n", "red" if finding.weight == "bad" else "yellow")
    return Group(*parts, Text(), wrong)


def hashed_once(path: Path) -> str:
    """`run.content_hash`, computed anew only where a file has another size or time: models and corpora are not read at every look."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return _hashed(path, tuple((file.name, status.st_size, status.st_mtime_ns) for file in files for status in [file.stat()]))


@lru_cache(maxsize=256)
def _hashed(path: Path, _: tuple[tuple[str, int, int], ...]) -> str:
    return content_hash(path)


def standing(folder: Path, info: Mapping[str, Any], said: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line about a stage: name, state, step of steps, seconds, seconds left."""
    counted = [row for row in said if "steps" in row]
    step, steps = (rows[-1]["step"] if rows else 0), (counted[-1]["steps"] if counted else None)
    if info.get("finished"):
        return [f"[bold]{escape(folder.name)}[/]", "[green]done[/]", f"{steps or step}", f"{info.get('seconds', 0):.0f} s", ""]
    files = [file for name in ("metrics.jsonl", "log.jsonl", "run.json") if (file := folder / name).exists()]
    silent = time.time() - max(file.stat().st_mtime for file in files)
    state = f"[yellow]quiet for {silent:.0f} s[/]" if silent > QUIET else "[cyan]running[/]"
    left = f"{counted[-1]['left'] * (steps - step) / max(1, steps - counted[-1]['step']):.0f} s" if steps else ""
    spent = f"{rows[-1]['seconds']:.0f} s" if rows else ""
    return [f"[bold]{escape(folder.name)}[/]", state, f"{step}/{steps}" if steps else f"{step}", spent, left]


def curves(name: str, info: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    """The curves of one stage, each with its first, smallest, largest and last value."""
    logged = [metric for row in rows[-1:] for metric in row if metric not in ("step", "seconds")]
    table = Table(name, Column("curve", no_wrap=True), "first", "least", "most", "now", box=None, pad_edge=False)
    for metric in SHOWN.get(str(info.get("stage")), tuple(logged[:4])):
        values = [float(row[metric]) for row in rows if metric in row]
        if values:
            table.add_row(metric, spark(values), *(f"{number:.4g}" for number in (values[0], min(values), max(values), values[-1])))
    return table


def spark(values: Sequence[float], width: int = WIDTH) -> str:
    """A curve in one line: the means of `width` parts of the values, each a block from the lowest to the highest."""
    count = min(width, len(values))
    parts = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means), max(means)
    if not high - low > 0:  # all alike, or not a number
        return BLOCKS[0] * count
    return "".join(BLOCKS[min(len(BLOCKS) - 1, int((mean - low) / (high - low) * len(BLOCKS)))] for mean in means)


def last_samples(folder: Path) -> list[Text]:
    """The first completions of the latest update, with score, KL and total."""
    rows = read_logged(folder / "samples.jsonl")
    latest = [row for row in rows if row.get("step") == rows[-1].get("step")][:SAMPLES]
    return [
        Text.assemble(
            ("\n" if not place else "", ""),
            (one_line(row["prompt"], 120), "dim"),
            " → ",
            one_line(row["completion"], 160),
            (f"  score {row['score']:+.2f}  kl {row['kl']:+.2f}  total {row['total']:+.2f}", "dim"),
        )
        for place, row in enumerate(latest)
        if {"prompt", "completion", "score", "kl", "total"} <= row.keys()
    ]


def one_line(text: str, most: int) -> str:
    """Text on one line, without what would steer the terminal."""
    return "".join(letter if letter.isprintable() else "·" for letter in " ".join(text.split()))[:most]
