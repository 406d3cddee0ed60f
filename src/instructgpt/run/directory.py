"""A run directory: record, metrics, log and checkpoints of one stage.

    run.json         stage, configuration, seed, versions, parents with hashes, seconds, tokens, "finished"
    metrics.jsonl    one line per logged step
    log.jsonl        one line per printed message, with its time
    samples.jsonl    completions sampled during training
    policies/        models saved during training, with --save-every
    checkpoints/     everything needed to resume; when the stage has finished, the last one, to extend the run

"finished" is set last, so that a killed run never counts as complete. Nothing is written before the stage has read all
its input, so that a wrong command leaves no directory behind.
"""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.markup import escape
from rich.text import Text

from instructgpt.config import StageConfig
from instructgpt.console import OutputConsole
from instructgpt.errors import InputError, one_line
from instructgpt.formatting import format_si
from instructgpt.io import check_output_directory, translate_write_errors, write_text_atomic
from instructgpt.run.energy import JOULES_PER_KWH, EnergyMeter, get_device_type
from instructgpt.run.lineage import content_hash as content_hash
from instructgpt.run.lineage import is_unchanged
from instructgpt.run.lock import acquire_directory_lock, release_directory_lock
from instructgpt.run.model_card import format_model_card
from instructgpt.run.patches import active_patches, check_patches
from instructgpt.run.signals import get_stop_request
from instructgpt.run.timing import PHASE_TIMER
from instructgpt.run.trackers import Tracker, check_trackers_installed, open_tracker

CHECKPOINT_INTERVAL_S = 60.0
"""Time between checkpoints. It never changes a result."""
_LONG_CHECKPOINT_S = 3.0
"""A checkpoint that takes longer to write is written less often, so that writing takes 5 % of the time at most."""
_PRINT_INTERVAL_S = 10.0
_LARGE_STATE_BYTES = 1e9
_RECORDED_PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
RESUMABLE_OPTIONS = (
    frozenset({"out", "device", "resume", "processes", "patience", "track", "checkpoints"})
    | frozenset({"checkpoint_minutes", "keep_state", "save_every", "save_limit", "cuda_graphs"})
    | frozenset({"rounds", "one_round_control", "baselines"})
    | frozenset({"microbatch_tokens", "validation_interval"})
    | frozenset({"kl_alarm", "min_entropy", "parity_tolerance", "parity_rms_tolerance"})
)
"""Options that may change when a run resumes: they do not affect its result."""

console = OutputConsole(highlight=False)


class RunDirectory:
    """The directory of a running stage. Methods may be called by all ranks; only rank 0 writes, checkpoints apart."""

    def __init__(self, config: StageConfig, parents: Mapping[str, Path | str]) -> None:
        from instructgpt.distributed.comm import get_dist_info  # loads torch

        rank, self.world_size = get_dist_info()
        self.is_main_process = rank == 0
        self.config, self.directory, self.stage = config, config.out, config.stage
        self.parents = {name: {"path": str(path), "sha256": content_hash(Path(path))} for name, path in parents.items()}
        self.summary: dict[str, Any] = {}
        self.start_time = self._last_checkpoint_time = time.monotonic()
        self._last_print_time = self._checkpoint_seconds = 0.0
        self.logged_to_console = self._is_last_step = False
        self._previous_seconds = 0.0
        self.start_date = date.today()
        self._is_created = self._is_extension = self._extends_finished_run = False
        self._first_step = 0  # of this process
        self._pending_log: list[dict[str, Any]] = []  # messages before the directory exists
        self._trackers: dict[str, Tracker] = {}
        self._energy = EnergyMeter(counts_cpu=rank == 0)  # RAPL counts a whole machine

    @property
    def input_hashes(self) -> dict[str, str]:
        """The content hashes of the inputs that are files, by path."""
        return {parent["path"]: parent["sha256"] for parent in self.parents.values() if Path(parent["path"]).is_file()}

    @classmethod
    def open(cls, config: StageConfig, parents: Mapping[str, Path | str] | None = None) -> RunDirectory:
        """Open the directory of a new, interrupted or finished stage. `parents` are its inputs by name.

        Raises:
            InputError: the directory holds something else, cannot be created, or is in use by another command.
        """
        run = cls(config, parents or {})
        check_trackers_installed(config.track)
        for name, path in (parents or {}).items():
            if config.out.resolve() in (Path(path).resolve(), *Path(path).resolve().parents):
                raise InputError(f"--out {config.out}: contains the input {name} ({path}); choose another --out")
        record = read_run_record(config.out)
        if record is None:
            check_output_directory(config.out)
            return run
        run._check_matches(record)
        if config.resume and "started" in record:
            run.start_date = date.fromisoformat(record["started"])
        if run.is_main_process and run.is_finished:  # possibly killed between "finished" and the clean-up
            run._remove_partial_files()
            run._prune_final_checkpoints()
        elif run.is_main_process:
            acquire_directory_lock(config.out)
        return run

    def create(self) -> None:
        """Create and lock the directory. Call this after all input has been validated; everything is written later.

        Raises:
            InputError: the directory cannot be created, or is in use by another command.
            RunError: the disk is full.
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
        # A finished run goes on when rounds are added; an extended one stays finished until its state is restored.
        if record is None or (record.get("finished") and not self._extends_finished_run):
            self._write_record(finished=False)
        else:
            PHASE_TIMER.clear(record.get("phases"))
        self._is_created = True

    def _remove_partial_files(self) -> None:
        """Remove temporary files of a killed process."""
        for partial_file in list(self.directory.rglob(".*.part")):
            if partial_file.is_file():
                partial_file.unlink(missing_ok=True)
            else:
                shutil.rmtree(partial_file, ignore_errors=True)

    @property
    def is_finished(self) -> bool:
        """Whether the stage is complete and has nothing to do."""
        if self._is_extension or not self.config.resume:
            return False
        return bool((read_run_record(self.directory) or {}).get("finished"))

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(self.config.model_dump_json())
        return settings

    def _normalize(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return recorded options as this version writes them; one that an older version lacked has its default."""
        try:
            normalized: dict[str, Any] = json.loads(type(self.config).model_validate(settings).model_dump_json())
        except ValidationError:
            return settings
        return normalized

    def _check_matches(self, record: Mapping[str, Any]) -> None:
        if record.get("stage") != self.stage:
            stages = f"'{record.get('stage')}', not of '{self.stage}'"
            raise InputError(f"{self.directory}: holds a run of stage {stages}; choose another --out")
        if not self.config.resume:
            return
        check_patches(record, self.directory)
        recorded_parents = record["parents"]
        moved: dict[str, str] = {}  # new path -> path when the run started, of inputs with the same content
        for name, parent in self.parents.items():
            recorded = self._find_recorded_parent(name, parent, recorded_parents)
            if recorded is None or is_unchanged(parent, recorded["sha256"]):
                moved |= {} if recorded is None else {parent["path"]: recorded["path"]}
                continue
            if parent["path"] == recorded["path"]:
                change = f"'{name}' ({parent['path']}) has changed since the run started"
                raise InputError(f"{self.directory}: {change}; restart with --no-resume")
        before, now = _flatten_settings(self._normalize(record["config"])), _flatten_settings(self._settings())
        now = {flag: _replace_paths(value, moved) for flag, value in now.items()}
        if "extended_from" in record:
            self.summary["extended_from"] = record["extended_from"]
        for flag in sorted(before.keys() | now.keys()):
            if before.get(flag) != now.get(flag):
                if flag == f"--{self.config.length_option}" and now[flag] > before[flag]:
                    self._extend(before[flag], now[flag], record)
                    continue
                change = f"{flag} was {before.get(flag)} when the run started and is {now.get(flag)} now"
                raise InputError(f"{self.directory}: {change}; choose another --out, or restart with --no-resume")

    def _extend(self, before: int, now: int, record: Mapping[str, Any]) -> None:
        """Let a run that has ended, or has not, go on to a larger number of steps, and say where its result differs.

        Raises:
            InputError: it has ended, and its final state was not kept.
        """
        option = self.config.length_option
        if record["finished"] and not any(self._checkpoints_folder.glob("step-*")):
            raise InputError(
                f"{self.directory}: the run has finished with --{option} {before}, and its final state was not kept "
                "(--no-keep-state, or an earlier version); choose another --out, or restart with --no-resume"
            )
        self._is_extension, self._extends_finished_run = True, bool(record["finished"])
        self.summary["extended_from"] = [*record.get("extended_from", []), before]
        differences = "; ".join(self.config.extension_differences(before))
        identical = f"the result is that of a run with --{option} {now} from its start"
        self.info(f"goes on from --{option} {before} to {now}; {differences or identical}")

    def _find_recorded_parent(
        self, name: str, parent: Mapping[str, str], recorded: Mapping[str, dict[str, str]]
    ) -> dict[str, str] | None:
        """Return the recorded input of this name, or one of its kind with the same content under another name."""
        if name in recorded:
            return recorded[name]
        kind = name.partition(" ")[0]
        same_kind = (entry for key, entry in recorded.items() if key.partition(" ")[0] == kind)
        return next((entry for entry in same_kind if entry["sha256"] == parent["sha256"]), None)

    def _build_record(self, *, finished: bool) -> dict[str, Any]:
        versions = {"instructgpt": _installed_version("instructgpt") or "source", "python": platform.python_version()}
        versions |= {name: version for name in _RECORDED_PACKAGES if (version := _installed_version(name))}
        return {
            "stage": self.stage,
            "finished": finished,
            "started": self.start_date.isoformat(),
            "config": self._settings(),
            "seed": self.config.seed,
            **({"patches": patches} if (patches := active_patches()) else {}),
            "parents": self.parents,
            "versions": versions,
            "seconds": round(self._elapsed_seconds(), 1),
            "ranks": self.world_size,
            "phases": PHASE_TIMER.summary(),  # of rank 0
            **self._measure_usage(),
            **self.summary,
        }

    def _measure_usage(self) -> dict[str, Any]:
        """Return FLOPs, GPU-seconds and energy; of this rank until `finish` adds those of the others."""
        flops, flops_done = (None, None) if self.config.consists_of_stages else PHASE_TIMER.total_flops()
        device_type = get_device_type()
        joules = self._energy.joules(device_type)
        return {
            "flops": flops,
            "flops_done": flops_done,
            "gpu_seconds": round(self._elapsed_seconds() * self.world_size, 1) if device_type == "cuda" else 0.0,
            "energy_kwh": None if joules is None else joules / JOULES_PER_KWH,
        }

    def _add_up_usage(self) -> None:
        """Sum FLOPs and energy over the ranks, in a finished run's record. All ranks call this."""
        if self.world_size == 1:
            return
        from instructgpt.distributed.comm import gather_in_order, get_dist_info

        usage, dist_info = self._measure_usage(), get_dist_info()
        ranks = gather_in_order([dist_info.rank], [usage], self.world_size, dist_info)
        for name in ("flops", "flops_done", "energy_kwh"):
            values = [rank_usage[name] for rank_usage in ranks]
            self.summary[name] = None if None in values else sum(values)

    def _elapsed_seconds(self) -> float:
        """Return the run's seconds, those before a resume included."""
        return self._previous_seconds + time.monotonic() - self.start_time

    def update_record(self) -> None:
        """Write run.json with what `summary` holds by now."""
        if self.is_main_process:
            self._write_record(finished=False)

    def _write_record(self, *, finished: bool) -> None:
        record = self._build_record(finished=finished)
        write_text_atomic(self.directory / "run.json", json.dumps(record, indent=2, default=str) + "\n")

    # --- while it runs -------------------------------------------------------------------------------------------

    def info(self, text: str, **numbers: float) -> None:
        """Print a line of rich markup and append its plain text to log.jsonl, together with `numbers`."""
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
        """Append a step's metrics to metrics.jsonl; every few seconds print those named in `show`."""
        self._is_last_step = step >= steps
        if not self.is_main_process:
            return
        row = {"step": step, "seconds": round(self._elapsed_seconds(), 2)}
        _append_jsonl(self.directory / "metrics.jsonl", row | dict(metrics))
        for name in list(self._trackers):
            self._notify_tracker(name, lambda tracker: tracker.log(step, metrics))
        self.logged_to_console = time.monotonic() - self._last_print_time > _PRINT_INTERVAL_S or step >= steps
        if self.logged_to_console:
            self._last_print_time = time.monotonic()
            self._write_record(finished=False)
            numbers = "  ".join(f"{name} {metrics[name]:.4g}" for name in show if name in metrics)
            remaining_s = (time.monotonic() - self.start_time) / max(1, step - self._first_step) * (steps - step)
            text = f"{step}/{steps}  {numbers}  [dim]{remaining_s:.0f} s left[/]"
            self.info(text, step=step, steps=steps, left=round(remaining_s))

    def _notify_tracker(self, name: str, action: Callable[[Tracker], None]) -> None:
        """Call a tracker. A failure disables the tracker and never the run."""
        try:
            action(self._trackers[name])
        except Exception as error:  # services raise their own types for networks and accounts
            del self._trackers[name]
            self.info(f"[yellow]tracker {name} failed and was disabled: {escape(one_line(error, 200))}[/]")

    def log_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows if self.is_main_process else ():
            _append_jsonl(self.directory / "samples.jsonl", row)

    # --- checkpoints and resume ----------------------------------------------------------------------------------

    def save_checkpoint(self, step: int, state: Callable[[], dict[str, Any]], *, force: bool = False) -> None:
        """Write a checkpoint after `step` if one is due or a stop was requested. All ranks call this.

        Raises:
            KeyboardInterrupt: a stop was requested, and the checkpoint has been written.
        """
        from instructgpt.distributed.comm import any_rank
        from instructgpt.run.checkpoints import write_checkpoint

        request = get_stop_request()
        interval_s = time.monotonic() - self._last_checkpoint_time
        force = force or (self._is_last_step and self.config.keep_state)
        is_due = self.is_main_process and (force or interval_s >= self._checkpoint_interval_s())
        # Clocks and signals differ between ranks; the decision must not, or ranks would wait for each other forever.
        due, stop_requested = any_rank(is_due, request.requested_at is not None)
        if due or stop_requested:
            contents = {"step": step, "spent": self._elapsed_seconds(), "phases": PHASE_TIMER.summary()}
            contents |= {"joules": self._energy.joules(get_device_type())} | state()
            start = time.monotonic()
            write_checkpoint(self._checkpoints_folder / f"step-{step:08d}", contents)
            self._last_checkpoint_time = time.monotonic()
            self._checkpoint_seconds = self._last_checkpoint_time - start
            if self.is_main_process:
                self._prune_checkpoints(step)
        if stop_requested:
            raise KeyboardInterrupt
        request.deferred = not self._is_last_step

    def _checkpoint_interval_s(self) -> float:
        """Return the option's interval; by default a minute, and so long that writing takes at most 5 % of the time."""
        if self.config.checkpoint_minutes is not None:
            return 60 * self.config.checkpoint_minutes
        return CHECKPOINT_INTERVAL_S * max(1.0, self._checkpoint_seconds / _LONG_CHECKPOINT_S)

    @property
    def _checkpoints_folder(self) -> Path:
        return self.directory / "checkpoints"

    def _prune_checkpoints(self, step: int) -> None:
        """Remove all but the latest checkpoints up to `step`. Later ones are corrupt: restore has skipped them."""
        folders = sorted(self._checkpoints_folder.glob("step-*"))
        retained = [folder for folder in folders if folder.name <= f"step-{step:08d}"][-self.config.checkpoints :]
        for folder in folders:
            if folder not in retained:
                shutil.rmtree(folder)

    def _prune_final_checkpoints(self) -> None:
        """Remove the checkpoints of a finished run: all, or all but the final state."""
        folders = sorted(self._checkpoints_folder.glob("*"))
        final = [folder for folder in folders if folder.name.startswith("step-")][-1:]
        for folder in folders:
            if folder not in final or not self.config.keep_state:
                shutil.rmtree(folder, ignore_errors=True)
        if not final or not self.config.keep_state:
            shutil.rmtree(self._checkpoints_folder, ignore_errors=True)

    def restore(self) -> dict[str, Any] | None:
        """Create the directory and return the state of the latest valid checkpoint, or None. All ranks call this.

        Rows that were logged after that checkpoint are removed.

        Raises:
            InputError: the ranks do not see the same directory.
        """
        from instructgpt.distributed.comm import any_rank, barrier, broadcast_from_rank0
        from instructgpt.run.checkpoints import read_checkpoint

        barrier()  # all ranks have read the directory before rank 0 changes it
        self.create()
        can_resume = self.is_main_process and self.config.resume
        name = broadcast_from_rank0(self._latest_valid_checkpoint() if can_resume else None)
        folder = self._checkpoints_folder / name if name else self.directory
        if any_rank(not folder.is_dir())[0]:
            raise InputError(f"--out {self.directory}: not all ranks see {folder}; use a disk that all hosts share")
        state = read_checkpoint(folder) if name else None
        step = state["step"] if state else 0
        PHASE_TIMER.clear((state or {}).get("phases"))  # what came after the checkpoint is computed again
        if state is None and can_resume and (rows := read_jsonl_log(self.directory / "metrics.jsonl")):
            self.info(
                f"[yellow]no checkpoint was written before the run stopped after step {rows[-1]['step']}; "
                "starting again from step 0[/]"
            )
        if self._extends_finished_run and state is None:
            raise InputError(f"{self.directory}: its final state is corrupt; choose another --out")
        for file in ("metrics.jsonl", "samples.jsonl") if self.is_main_process else ():
            _truncate_after_step(self.directory / file, step)
        if state:
            self._previous_seconds, self._first_step = state["spent"], step
            self._energy.earlier = state.get("joules")
            self.info(f"resuming after step {step}")
        if self._is_extension and self.is_main_process:
            self._write_record(finished=False)
        for tracker in self.config.track if self.is_main_process else ():
            self._trackers[tracker] = open_tracker(tracker, self.directory, self._settings(), step)
        get_stop_request().deferred = True
        return state

    def _latest_valid_checkpoint(self) -> str | None:
        """Return the name of the latest valid checkpoint, and report corrupt ones."""
        from instructgpt.run.checkpoints import find_corruption

        folders = sorted(self._checkpoints_folder.glob("step-*"), reverse=True)
        for position, folder in enumerate(folders, 1):
            problem = find_corruption(folder)
            if problem is None:
                return folder.name
            fallback = "using the previous one" if position < len(folders) else "restarting from the beginning"
            self.info(f"[yellow]checkpoint {escape(str(folder))} is corrupt ({problem}); {fallback}[/]")
        return None

    def finish(self, save: Callable[[Path], None], **summary: Any) -> Path:
        """Save the result with `save(folder)`, mark the run as finished, and prune its checkpoints. Return `--out`."""
        self._add_up_usage()
        if not self.is_main_process:
            return self.directory
        partial_folder = self.directory / ".part"
        self.summary.update(summary)
        with translate_write_errors(self.directory):
            shutil.rmtree(partial_folder, ignore_errors=True)
            partial_folder.mkdir()
            try:
                save(partial_folder)
                if (partial_folder / "config.json").exists():  # a model
                    self._write_card(partial_folder)
                _replace_all(partial_folder, self.directory)
            finally:
                shutil.rmtree(partial_folder, ignore_errors=True)
        self._write_record(finished=True)
        for name in list(self._trackers):
            self._notify_tracker(name, lambda tracker: tracker.close())
        self._prune_final_checkpoints()
        self._report_final_state()
        release_directory_lock(self.directory)
        self.info(f"[green]done[/] in {self._elapsed_seconds():.0f} s: {self.directory}")
        return self.directory

    def _report_final_state(self) -> None:
        """Say how much disk the kept final state takes, where it matters."""
        size = sum(file.stat().st_size for file in self._checkpoints_folder.rglob("*") if file.is_file())
        if size > _LARGE_STATE_BYTES:
            self.info(
                f"checkpoints/ holds the final state, {format_si(size, 'B')}, to extend the run; "
                "remove it when the run is long enough, or give --no-keep-state"
            )

    def save_model(self, folder: Path, save: Callable[[Path], None], **facts: Any) -> None:
        """Save a model of this run with `save(folder)`, complete or not at all, with a card. Rank 0 calls it."""
        partial_folder = folder.with_name(f".{folder.name}.part")
        with translate_write_errors(self.directory):
            for old_folder in (partial_folder, folder):
                shutil.rmtree(old_folder, ignore_errors=True)
            partial_folder.mkdir(parents=True)
            save(partial_folder)
            self._write_card(partial_folder, **facts)
            partial_folder.replace(folder)

    def _write_card(self, folder: Path, **facts: Any) -> None:
        card = format_model_card(self._build_record(finished=True) | facts)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _replace_all(source: Path, directory: Path) -> None:
    """Move all entries of `source` into `directory`, over those of a run that was killed while it finished."""
    for file in source.iterdir():
        target = directory / file.name
        if target.is_dir():
            shutil.rmtree(target)
        file.replace(target)


def _installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _flatten_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by the name that a user sets: `--lr`, or `ppo.lr` for an option in a section."""
    flattened: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            for section, options in value.items():
                if isinstance(options, dict):
                    flattened |= {f"{section}.{option}": setting for option, setting in options.items()}
                else:
                    flattened[f"{name}.{section}"] = options
        elif name not in RESUMABLE_OPTIONS:
            flattened["--" + name.replace("_", "-")] = value
    return flattened


def _replace_paths(value: Any, replacements: Mapping[str, str]) -> Any:
    if isinstance(value, list):
        return [_replace_paths(entry, replacements) for entry in value]
    return replacements.get(value, value) if isinstance(value, str) else value


def read_run_record(folder: Path) -> dict[str, Any] | None:
    """Return the run.json of a directory, or None. Raise InputError if it is corrupt."""
    file = folder / "run.json"
    if not file.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if not all(isinstance(record[name], dict) for name in ("config", "parents")):
            raise ValueError("not the record of a run")
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise InputError(f"{file}: corrupt ({problem}); delete {folder} and run the same command again") from error
    return record


def _append_jsonl(file: Path, row: Mapping[str, Any]) -> None:
    with translate_write_errors(file), file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_jsonl_log(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file that a run wrote, up to a line that was truncated by a kill."""
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
    if file.exists():
        rows = [row for row in read_jsonl_log(file) if row["step"] <= step]
        write_text_atomic(file, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
