"""Where the numbers of a run are shown besides `metrics.jsonl`: TensorBoard, trackio, Weights & Biases, when asked for.

The file in the run directory is the record; a tracker is a window onto it. One that is not installed or not signed in is
refused before the run begins; one that fails on the way is dropped with a word, and the run goes on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from instructgpt.config import TrackerName
from instructgpt.errors import InputError, one_line


class Tracker(Protocol):
    """What a run tells: numbers after a step, and that it is over."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of one step."""

    def close(self) -> None:
        """Write what is still held."""


class _TensorBoardTracker:
    """Event files in `tensorboard/` of the run directory; steps that are done again replace those that were taken back."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in settings.items()))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar a metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()


class _TrackioTracker:
    """trackio's own database on this machine (TRACKIO_DIR); the project is the folder that holds the run directory."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], step: int) -> None:
        import trackio

        resume = "allow" if step else "never"
        resolved = directory.resolve()
        self._run: Any = trackio.init(
            resolved.parent.name or "runs",
            resolved.name,
            config=dict(settings),
            resume=resume,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Send what is still held."""
        self._run.finish()


class _WandBTracker:
    """A Weights & Biases run; WANDB_MODE=offline keeps it on this machine, in `wandb/` of the run directory."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], _: int) -> None:
        import wandb

        resolved = directory.resolve()
        begin_time_ns = (
            (directory / "run.json").stat().st_mtime_ns
        )  # written when a run begins and when it has finished
        run_id = hashlib.sha256(f"{resolved} {begin_time_ns}".encode()).hexdigest()[:16]
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", resolved.parent.name or "runs"),
            name=resolved.name,
            id=run_id,
            dir=str(directory),
            config=dict(settings),
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row a step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Send what is still held."""
        self._run.finish()


_TRACKERS: Mapping[TrackerName, Callable[[Path, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": _TensorBoardTracker,
    "trackio": _TrackioTracker,
    "wandb": _WandBTracker,
}


def check_trackers_installed(names: Sequence[TrackerName]) -> None:
    """Before any work: raises BadInput for a tracker whose library is not there."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--track {name}: the library is not installed; pip install {name}")


def open_tracker(name: TrackerName, directory: Path, settings: Mapping[str, Any], step: int) -> Tracker:
    """Start a tracker for a run that has `step` steps behind it.

    Args:
        name: which; directory: the run's, which exists; settings: its configuration, shown beside the numbers.

    Raises:
        BadInput: it refuses to start (an account it needs is missing).
    """
    try:
        return _TRACKERS[name](directory, settings, step)
    except Exception as error:  # whatever a service says of accounts and networks
        raise InputError(
            f"--track {name}: does not start ({one_line(error, 200)}); mend that or leave it out"
        ) from error
