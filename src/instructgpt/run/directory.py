"""A run directory: what made it, how it went, and where to go on.

    run.json         stage, configuration, seed, versions, parents with hashes, seconds, tokens; "finished" comes last
    metrics.jsonl    one line a logged step
    log.jsonl        one line for everything that was said, with its time
    samples.jsonl    completions sampled on the way
    checkpoints/     everything needed to go on; gone when the stage has finished

A directory is finished when `run.json` says so, and that is written last, so a killed run is never taken for a whole one.
Nothing is written before the stage has read all its input: a command that was wrong leaves no directory behind.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from instructgpt.config import StageConfig
from instructgpt.errors import InputError, one_line
from instructgpt.io import check_output_directory, translate_write_errors, write_text_atomic
from instructgpt.run.lineage import content_hash as content_hash
from instructgpt.run.lock import acquire_directory_lock, release_directory_lock
from instructgpt.run.model_card import format_model_card
from instructgpt.run.signals import get_stop_request
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.run.trackers import Tracker, check_trackers_installed, open_tracker

CHECKPOINT_INTERVAL_S = 60.0
"""A checkpoint is written when this long has passed since the last one. When it is written never changes a result."""
_PRINT_INTERVAL_S = 10.0
_RECORDED_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
_RESUMABLE_OPTIONS = {"out", "device", "resume", "processes", "patience", "track", "checkpoints"}
"""Options that say where and how fast a run happens, not what it is: they may change when it goes on."""

console = Console(highlight=False)


class RunDirectory:
    """The directory of one stage while it is being made."""

    def __init__(self, config: StageConfig, parents: Mapping[str, Path | str]) -> None:
        from instructgpt.distributed.comm import get_dist_info  # loads torch

        rank, self.world_size = get_dist_info()
        self.is_main_process = rank == 0  # the other ranks write nothing but their part of checkpoints
        self.config, self.directory, self.stage = config, config.out, config.stage
        self.parents = {name: {"path": str(path), "sha256": content_hash(Path(path))} for name, path in parents.items()}
        self.summary: dict[str, Any] = {}
        self.start_time = self._last_checkpoint_time = time.monotonic()
        self._last_print_time = 0.0
        self.logged_to_console = self._is_last_step = False
        self._previous_seconds = 0.0
        self._is_created = False
        self._pending_log: list[dict[str, Any]] = []  # before there is a directory
        self._trackers: dict[str, Tracker] = {}

    @classmethod
    def open(cls, config: StageConfig, parents: Mapping[str, Path | str] | None = None) -> RunDirectory:
        """Open the directory of a stage, new or half done.

        Args:
            config: the stage's; parents: what it is made from, by name.

        Raises:
            BadInput: the directory holds something else than this run, cannot be made, or another command is at work there.
        """
        run = cls(config, parents or {})
        check_trackers_installed(config.track)
        for name, path in (parents or {}).items():
            if config.out.resolve() in (Path(path).resolve(), *Path(path).resolve().parents):
                raise InputError(
                    f"--out {config.out}: holds {name} ({path}), which this run is made from; choose another --out"
                )
        record = read_run_record(config.out)
        if record is None:
            check_output_directory(config.out)
            return run
        run._check_matches(record)
        if run.is_main_process and run.is_finished:  # killed after it was
            run._remove_partial_files()
            shutil.rmtree(run._checkpoints_folder, ignore_errors=True)
        elif run.is_main_process:
            acquire_directory_lock(config.out)
        return run

    def create(self) -> None:
        """Make the directory. Called once all input is known to be good; everything that is written comes after it.

        Raises:
            BadInput: it cannot be made, or another command is at work there.
            RunFailed: the disk is full.
        """
        PHASE_TIMER.clear()
        if not self.is_main_process:
            return
        with translate_write_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        acquire_directory_lock(self.directory)
        with translate_write_errors(self.directory):
            for entry in () if self.config.resume else self.directory.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._remove_partial_files()
        record = read_run_record(self.directory)
        if record is None:
            self._write_record(finished=False)
        else:
            PHASE_TIMER.clear(record.get("phases"))
        self._is_created = True

    def _remove_partial_files(self) -> None:
        """Remove what a killed process had half written here; what it was is written again."""
        for partial_file in self.directory.rglob(".*.part"):
            if partial_file.is_file():
                partial_file.unlink(missing_ok=True)

    @property
    def is_finished(self) -> bool:
        """Whether the directory is already whole; then the stage has nothing to do."""
        return self.config.resume and bool((read_run_record(self.directory) or {}).get("finished"))

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(self.config.model_dump_json())
        return settings

    def _check_matches(self, record: Mapping[str, Any]) -> None:
        if record.get("stage") != self.stage:
            raise InputError(
                f"{self.directory}: holds a run of stage '{record.get('stage')}', not of '{self.stage}'; choose another --out"
            )
        if not self.config.resume:
            return
        previous_options, current_options = _flatten_settings(record["config"]), _flatten_settings(self._settings())
        for flag in sorted(previous_options.keys() | current_options.keys()):
            if previous_options.get(flag) != current_options.get(flag):
                raise InputError(
                    f"{self.directory}: was begun with {flag} {previous_options.get(flag)}, now it is {current_options.get(flag)}; "
                    "choose another --out, or start it afresh with --no-resume"
                )
        for name, parent in self.parents.items():
            if parent["sha256"] != record["parents"].get(name, parent)["sha256"]:
                raise InputError(
                    f"{self.directory}: was made from another '{name}' than {parent['path']} is now; start it afresh with --no-resume"
                )

    def _build_record(self, *, finished: bool) -> dict[str, Any]:
        return {
            "stage": self.stage,
            "finished": finished,
            "config": self._settings(),
            "seed": self.config.seed,
            "parents": self.parents,
            "versions": {
                "instructgpt": metadata.version("instructgpt") if _installed("instructgpt") else "source",
                "python": platform.python_version(),
            }
            | {name: metadata.version(name) for name in _RECORDED_PACKAGES if _installed(name)},
            "seconds": round(self._previous_seconds + time.monotonic() - self.start_time, 1),
            "ranks": self.world_size,
            "phases": PHASE_TIMER.summary(),  # of the first rank
            **self.summary,
        }

    def _write_record(self, *, finished: bool) -> None:
        record = self._build_record(finished=finished)
        write_text_atomic(self.directory / "run.json", json.dumps(record, indent=2, default=str) + "\n")

    # --- while it runs -------------------------------------------------------------------------------------------

    def info(self, text: str, **numbers: float) -> None:
        """One line for the person who watches, and for log.jsonl, there with numbers a program may want."""
        if not self.is_main_process:
            return
        console.print(f"[bold]{escape(self.directory.name)}[/] {text}", markup=True, soft_wrap=True)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._pending_log.append({"time": now, "said": Text.from_markup(text).plain} | numbers)
        if self._is_created:
            for row in self._pending_log:
                _append_jsonl(self.directory / "log.jsonl", row)
            self._pending_log.clear()

    def log(self, step: int, steps: int, metrics: Mapping[str, float], show: Iterable[str] = ()) -> None:
        """Append one line to metrics.jsonl, and show some of it from time to time."""
        self._is_last_step = step >= steps
        if not self.is_main_process:
            return
        row = {"step": step, "seconds": round(self._previous_seconds + time.monotonic() - self.start_time, 2)} | dict(
            metrics
        )
        _append_jsonl(self.directory / "metrics.jsonl", row)
        for name in list(self._trackers):
            self._notify_tracker(name, lambda tracker: tracker.log(step, metrics))
        self.logged_to_console = time.monotonic() - self._last_print_time > _PRINT_INTERVAL_S or step >= steps
        if self.logged_to_console:
            self._last_print_time = time.monotonic()
            self._write_record(finished=False)
            metrics_text = "  ".join(f"{name} {metrics[name]:.4g}" for name in show if name in metrics)
            remaining_s = (time.monotonic() - self.start_time) / max(1, step) * (steps - step)
            self.info(
                f"{step}/{steps}  {metrics_text}  [dim]{remaining_s:.0f} s left[/]",
                step=step,
                steps=steps,
                left=round(remaining_s),
            )

    def _notify_tracker(self, name: str, action: Callable[[Tracker], None]) -> None:
        """Tell a tracker something. One that fails is a loss of comfort, not of the run: it is left out from here on."""
        try:
            action(self._trackers[name])
        except Exception as error:  # whatever a service says of networks and accounts
            del self._trackers[name]
            self.info(f"[yellow]{name} has failed and hears no more: {escape(one_line(error, 200))}[/]")

    def log_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append sampled completions to samples.jsonl."""
        for row in rows if self.is_main_process else ():
            _append_jsonl(self.directory / "samples.jsonl", row)

    # --- going on ------------------------------------------------------------------------------------------------

    def save_checkpoint(self, step: int, state: Callable[[], dict[str, Any]], *, force: bool = False) -> None:
        """Write everything needed to go on from after `step`, when it is time or somebody asked to end. All ranks call it.

        Raises:
            KeyboardInterrupt: the checkpoint is written, and the run shall end.
        """
        from instructgpt.distributed.comm import any_rank
        from instructgpt.run.checkpoints import write_checkpoint

        request = get_stop_request()
        is_due = self.is_main_process and (
            force or time.monotonic() - self._last_checkpoint_time >= CHECKPOINT_INTERVAL_S
        )
        due, stop_requested = any_rank(is_due, request.requested_at is not None)
        if due or stop_requested:
            elapsed_s = self._previous_seconds + time.monotonic() - self.start_time
            write_checkpoint(
                self._checkpoints_folder / f"step-{step:08d}", {"step": step, "spent": elapsed_s} | state()
            )
            self._last_checkpoint_time = time.monotonic()
            if self.is_main_process:
                self._prune_checkpoints(step)
        if stop_requested:
            raise KeyboardInterrupt
        request.deferred = not self._is_last_step

    @property
    def _checkpoints_folder(self) -> Path:
        return self.directory / "checkpoints"

    def _prune_checkpoints(self, step: int) -> None:
        """Remove all checkpoints but the last ones: those before them, and damaged ones of later steps."""
        folders = sorted(self._checkpoints_folder.glob("step-*"))
        retained = [folder for folder in folders if folder.name <= f"step-{step:08d}"][-self.config.checkpoints :]
        for folder in folders:
            if folder not in retained:
                shutil.rmtree(folder)

    def restore(self) -> dict[str, Any] | None:
        """Begin, and return the state of the last whole checkpoint, or None; what was logged after it is taken back. All ranks call it.

        Raises:
            BadInput: the ranks do not see the same directory.
        """
        from instructgpt.distributed.comm import any_rank, barrier, broadcast_from_rank0
        from instructgpt.run.checkpoints import read_checkpoint

        barrier()  # everyone has looked at the directory before it is changed
        self.create()
        name = broadcast_from_rank0(
            self._latest_valid_checkpoint() if self.is_main_process and self.config.resume else None
        )
        folder = self._checkpoints_folder / name if name else self.directory
        if any_rank(not folder.is_dir())[0]:
            raise InputError(
                f"--out {self.directory}: not all ranks see {folder}; it has to be on a disk that all hosts share"
            )
        state = read_checkpoint(folder) if name else None
        for file in ("metrics.jsonl", "samples.jsonl") if self.is_main_process else ():
            _truncate_after_step(self.directory / file, state["step"] if state else 0)
        if state:
            self._previous_seconds = state["spent"]
            self.info(f"goes on after step {state['step']}")
        for tracker in self.config.track if self.is_main_process else ():
            self._trackers[tracker] = open_tracker(
                tracker, self.directory, self._settings(), state["step"] if state else 0
            )
        get_stop_request().deferred = True
        return state

    def _latest_valid_checkpoint(self) -> str | None:
        """The name of the last checkpoint that is as it was written; says which are not."""
        from instructgpt.run.checkpoints import find_corruption

        folders = sorted(self._checkpoints_folder.glob("step-*"), reverse=True)
        for position, folder in enumerate(folders, 1):
            problem = find_corruption(folder)
            if problem is None:
                return folder.name
            fallback = "takes the one before it" if position < len(folders) else "begins again from the start"
            self.info(f"[yellow]{escape(str(folder))} is damaged: {fallback}[/] ({problem})")
        return None

    def finish(self, save: Callable[[Path], None], **summary: Any) -> Path:
        """Write the result beside its place, move it in, remove the checkpoints, and mark the directory finished."""
        if not self.is_main_process:
            return self.directory
        partial_folder = self.directory / ".part"
        self.summary.update(summary)
        with translate_write_errors(self.directory):
            shutil.rmtree(partial_folder, ignore_errors=True)
            partial_folder.mkdir()
            try:
                save(partial_folder)
                if (partial_folder / "config.json").exists():
                    (partial_folder / "README.md").write_text(
                        format_model_card(self._build_record(finished=True)), encoding="utf-8"
                    )
                _replace_all(partial_folder, self.directory)
            finally:
                shutil.rmtree(partial_folder, ignore_errors=True)
        self._write_record(finished=True)
        for name in list(self._trackers):
            self._notify_tracker(name, lambda tracker: tracker.close())
        shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)
        release_directory_lock(self.directory)
        self.info(
            f"[green]done[/] in {self._previous_seconds + time.monotonic() - self.start_time:.0f} s: {self.directory}"
        )
        return self.directory


def _replace_all(source: Path, directory: Path) -> None:
    """Move what was written into its place, over what a run left there that was killed between this and being finished."""
    for file in source.iterdir():
        target = directory / file.name
        if target.is_dir():
            shutil.rmtree(target)
        file.replace(target)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is made with, by the name a person gave it: `--lr`, or `ppo.lr` for what a section says to a stage."""
    flattened: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flattened |= {
                f"{section}.{option}": option_value
                for section, options in value.items()
                for option, option_value in options.items()
            }
        elif name not in _RESUMABLE_OPTIONS:
            flattened["--" + name.replace("_", "-")] = value
    return flattened


def read_run_record(folder: Path) -> dict[str, Any] | None:
    """The run.json of a directory, or None.

    Raises:
        BadInput: the file is damaged.
    """
    file = folder / "run.json"
    if not file.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(record[name], dict) for name in ("config", "parents")):
            raise ValueError("it is not the record of a run")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: damaged ({type(error).__name__}: {error}); delete {folder} and give the same command again"
        ) from error
    return record


def _append_jsonl(file: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line. Raises RunFailed or BadInput as `writing` does."""
    with translate_write_errors(file), file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl_log(file: Path) -> list[dict[str, Any]]:
    """The JSON lines of a file the run itself wrote; a last line cut short by a kill is left out."""
    rows: list[dict[str, Any]] = []
    if file.exists():
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            if not line:
                continue
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def _truncate_after_step(file: Path, step: int) -> None:
    """Keep only the lines up to a step."""
    if file.exists():
        rows = [row for row in read_jsonl_log(file) if row["step"] <= step]
        write_text_atomic(file, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
