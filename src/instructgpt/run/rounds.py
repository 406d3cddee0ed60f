"""Directories of a run with several rounds: `round-1/…`, and the control `one-round-of-3/…`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_ROUND_NAME = re.compile(r"round-(\d+)|one-round-of-(\d+)")


def round_directory_name(number: int) -> str:
    return f"round-{number}"


def control_directory_name(rounds: int) -> str:
    """Return the name of the round that spends as many rankings as `rounds` rounds."""
    return f"one-round-of-{rounds}"


def is_round_directory(folder: Path) -> bool:
    return _ROUND_NAME.fullmatch(folder.name) is not None


def find_rounds(run_directory: Path) -> list[Path]:
    """Return the rounds of a run by number, controls last."""
    folders = [path for path in run_directory.iterdir() if path.is_dir() and is_round_directory(path)]
    return sorted(folders, key=_round_order)


def find_newest_round(run_directory: Path) -> Path | None:
    """Return the last round that has been evaluated, or None."""
    rounds = [folder for folder in find_rounds(run_directory) if folder.name.startswith("round-")]
    return next((folder for folder in reversed(rounds) if (folder / "evaluation" / "results.json").exists()), None)


def _round_order(folder: Path) -> tuple[bool, int]:
    match = _ROUND_NAME.fullmatch(folder.name)
    assert match is not None
    return match[1] is None, int(match[1] or match[2])


def iter_stage_directories(folder: Path) -> Iterator[Path]:
    """Yield every directory with a run.json below a directory, those of its rounds included."""
    yield from sorted(file.parent for file in folder.glob("*/run.json"))
    for round_folder in find_rounds(folder):
        yield from sorted(file.parent for file in round_folder.glob("*/run.json"))


def stage_label(folder: Path) -> str:
    """Return the name of a stage directory, with its round: `round-2/ppo`."""
    return f"{folder.parent.name}/{folder.name}" if is_round_directory(folder.parent) else folder.name
