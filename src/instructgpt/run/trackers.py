"""Metrics in TensorBoard, trackio and Weights & Biases, besides metrics.jsonl.

metrics.jsonl is the record. A tracker that is not installed or does not start is an error before the run begins; a
tracker that fails later is disabled with a message.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from instructgpt.config import TrackerName
from instructgpt.errors import InputError, one_line


class Tracker(Protocol):
    def log(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class _TensorBoardTracker:
    """Event files in `tensorboard/` of the run directory. On resume, events after the checkpoint's step are purged."""

    def __init__(self, directory: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            self._writer.add_text("config", "\n".join(f"    {name}: {value}" for name, value in settings.items()))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandBTracker:
    """A run of wandb, or of trackio, which has the same API. The project is the parent of the run directory.

    WANDB_MODE=offline keeps a wandb run in `wandb/` of the run directory. trackio keeps its database below TRACKIO_DIR.
    """

    def __init__(self, name: TrackerName, directory: Path, settings: Mapping[str, Any], step: int) -> None:
        tracker: Any = importlib.import_module(name)
        resolved = directory.resolve()
        project, config = resolved.parent.name or "runs", dict(settings)
        if name == "trackio":
            options = {"resume": "allow" if step else "never", "embed": False}
            options |= {"auto_log_gpu": False, "auto_log_cpu": False}
        else:
            project = os.environ.get("WANDB_PROJECT", project)
            # run.json is written when a run begins, so that its time identifies this run and not an earlier one here.
            identity = f"{resolved} {(directory / 'run.json').stat().st_mtime_ns}"
            options = {"id": hashlib.sha256(identity.encode()).hexdigest()[:16], "dir": str(directory)}
            options |= {"resume": "allow", "settings": tracker.Settings(silent=True, console="off")}
        self._run: Any = tracker.init(project=project, name=resolved.name, config=config, **options)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


def check_trackers_installed(names: Sequence[TrackerName]) -> None:
    """Raise InputError if a tracker's library is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--track {name}: the library is not installed; pip install {name}")


def open_tracker(name: TrackerName, directory: Path, settings: Mapping[str, Any], step: int) -> Tracker:
    """Start a tracker of an existing run directory with `step` completed steps.

    Raises:
        InputError: the tracker does not start, for example because it needs an account.
    """
    try:
        if name == "tensorboard":
            return _TensorBoardTracker(directory, settings, step)
        return _WandBTracker(name, directory, settings, step)
    except Exception as error:  # services raise their own types for accounts and networks
        raise InputError(f"--track {name}: does not start ({one_line(error, 200)}); fix this or omit it") from error
