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
from instructgpt.errors import BadInput, in_one_line
from instructgpt.io import must_be_free, write_text, writing
from instructgpt.run.lineage import content_hash as content_hash
from instructgpt.run.lock import claim, give_up
from instructgpt.run.model_card import model_card
from instructgpt.run.signals import current_request
from instructgpt.run.timing import PHASES
from instructgpt.run.trackers import Tracker, check_installed, open_tracker

CHECKPOINT_SECONDS = 60.0
"""A checkpoint is written when this long has passed since the last one. When it is written never changes a result."""
PRINT_SECONDS = 10.0
CARRIED = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
PLACE_ONLY = {"out", "device", "resume", "processes", "patience", "track", "checkpoints"}
"""Options that say where and how fast a run happens, not what it is: they may change when it goes on."""

console = Console(highlight=False)


class Run:
    """The directory of one stage while it is being made."""

    def __init__(self, config: StageConfig, parents: Mapping[str, Path | str]) -> None:
        from instructgpt.distributed.comm import all_ranks  # loads torch

        own, self.ranks = all_ranks()
        self.watched = own == 0  # the other ranks write nothing but their part of checkpoints
        self.config, self.directory, self.stage = config, config.out, config.stage
        self.parents = {name: {"path": str(path), "sha256": content_hash(Path(path))} for name, path in parents.items()}
        self.facts: dict[str, Any] = {}
        self.started = self._last_checkpoint = time.monotonic()
        self._last_print = 0.0
        self.just_shown = self._last_step = False
        self._spent = 0.0
        self._begun = False
        self._said: list[dict[str, Any]] = []  # before there is a directory
        self._trackers: dict[str, Tracker] = {}

    @classmethod
    def start(cls, config: StageConfig, parents: Mapping[str, Path | str] | None = None) -> Run:
        """Open the directory of a stage, new or half done.

        Args:
            config: the stage's; parents: what it is made from, by name.

        Raises:
            BadInput: the directory holds something else than this run, cannot be made, or another command is at work there.
        """
        run = cls(config, parents or {})
        check_installed(config.track)
        for name, path in (parents or {}).items():
            if config.out.resolve() in (Path(path).resolve(), *Path(path).resolve().parents):
                raise BadInput(f"--out {config.out}: holds {name} ({path}), which this run is made from; choose another --out")
        there = read_record(config.out)
        if there is None:
            must_be_free(config.out)
            return run
        run._must_match(there)
        if run.watched and run.finished:  # killed after it was
            run._tidy()
            shutil.rmtree(run._checkpoints, ignore_errors=True)
        elif run.watched:
            claim(config.out)
        return run

    def begin(self) -> None:
        """Make the directory. Called once all input is known to be good; everything that is written comes after it.

        Raises:
            BadInput: it cannot be made, or another command is at work there.
            RunFailed: the disk is full.
        """
        PHASES.clear()
        if not self.watched:
            return
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
        claim(self.directory)
        with writing(self.directory):
            for entry in () if self.config.resume else self.directory.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        self._tidy()
        there = read_record(self.directory)
        if there is None:
            self._write(finished=False)
        else:
            PHASES.clear(there.get("phases"))
        self._begun = True

    def _tidy(self) -> None:
        """Remove what a killed process had half written here; what it was is written again."""
        for half in self.directory.rglob(".*.part"):
            if half.is_file():
                half.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the directory is already whole; then the stage has nothing to do."""
        return self.config.resume and bool((read_record(self.directory) or {}).get("finished"))

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(self.config.model_dump_json())
        return settings

    def _must_match(self, there: Mapping[str, Any]) -> None:
        if there.get("stage") != self.stage:
            raise BadInput(f"{self.directory}: holds a run of stage '{there.get('stage')}', not of '{self.stage}'; choose another --out")
        if not self.config.resume:
            return
        then, now = by_flag(there["config"]), by_flag(self._settings())
        for flag in sorted(then.keys() | now.keys()):
            if then.get(flag) != now.get(flag):
                raise BadInput(
                    f"{self.directory}: was begun with {flag} {then.get(flag)}, now it is {now.get(flag)}; "
                    "choose another --out, or start it afresh with --no-resume"
                )
        for name, parent in self.parents.items():
            if parent["sha256"] != there["parents"].get(name, parent)["sha256"]:
                raise BadInput(
                    f"{self.directory}: was made from another '{name}' than {parent['path']} is now; start it afresh with --no-resume"
                )

    def _record(self, *, finished: bool) -> dict[str, Any]:
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
            | {name: metadata.version(name) for name in CARRIED if _installed(name)},
            "seconds": round(self._spent + time.monotonic() - self.started, 1),
            "ranks": self.ranks,
            "phases": PHASES.summary(),  # of the first rank
            **self.facts,
        }

    def _write(self, *, finished: bool) -> None:
        record = self._record(finished=finished)
        write_text(self.directory / "run.json", json.dumps(record, indent=2, default=str) + "\n")

    # --- while it runs -------------------------------------------------------------------------------------------

    def say(self, text: str, **numbers: float) -> None:
        """One line for the person who watches, and for log.jsonl, there with numbers a program may want."""
        if not self.watched:
            return
        console.print(f"[bold]{escape(self.directory.name)}[/] {text}", markup=True, soft_wrap=True)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._said.append({"time": now, "said": Text.from_markup(text).plain} | numbers)
        if self._begun:
            for row in self._said:
                append_line(self.directory / "log.jsonl", row)
            self._said.clear()

    def log(self, step: int, steps: int, metrics: Mapping[str, float], show: Iterable[str] = ()) -> None:
        """Append one line to metrics.jsonl, and show some of it from time to time."""
        self._last_step = step >= steps
        if not self.watched:
            return
        row = {"step": step, "seconds": round(self._spent + time.monotonic() - self.started, 2)} | dict(metrics)
        append_line(self.directory / "metrics.jsonl", row)
        for name in list(self._trackers):
            self._tell(name, lambda tracker: tracker.log(step, metrics))
        self.just_shown = time.monotonic() - self._last_print > PRINT_SECONDS or step >= steps
        if self.just_shown:
            self._last_print = time.monotonic()
            self._write(finished=False)
            shown = "  ".join(f"{name} {metrics[name]:.4g}" for name in show if name in metrics)
            left = (time.monotonic() - self.started) / max(1, step) * (steps - step)
            self.say(f"{step}/{steps}  {shown}  [dim]{left:.0f} s left[/]", step=step, steps=steps, left=round(left))

    def _tell(self, name: str, what: Callable[[Tracker], None]) -> None:
        """Tell a tracker something. One that fails is a loss of comfort, not of the run: it is left out from here on."""
        try:
            what(self._trackers[name])
        except Exception as error:  # whatever a service says of networks and accounts
            del self._trackers[name]
            self.say(f"[yellow]{name} has failed and hears no more: {escape(in_one_line(error, 200))}[/]")

    def samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append sampled completions to samples.jsonl."""
        for row in rows if self.watched else ():
            append_line(self.directory / "samples.jsonl", row)

    # --- going on ------------------------------------------------------------------------------------------------

    def checkpoint(self, step: int, state: Callable[[], dict[str, Any]], *, now: bool = False) -> None:
        """Write everything needed to go on from after `step`, when it is time or somebody asked to end. All ranks call it.

        Raises:
            KeyboardInterrupt: the checkpoint is written, and the run shall end.
        """
        from instructgpt.distributed.comm import any_says
        from instructgpt.run.checkpoints import write_checkpoint

        request = current_request()
        time_has_come = self.watched and (now or time.monotonic() - self._last_checkpoint >= CHECKPOINT_SECONDS)
        due, asked = any_says(time_has_come, request.since is not None)
        if due or asked:
            spent = self._spent + time.monotonic() - self.started
            write_checkpoint(self._checkpoints / f"step-{step:08d}", {"step": step, "spent": spent} | state())
            self._last_checkpoint = time.monotonic()
            if self.watched:
                self._keep_few(step)
        if asked:
            raise KeyboardInterrupt
        request.deferred = not self._last_step

    @property
    def _checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    def _keep_few(self, step: int) -> None:
        """Remove all checkpoints but the last ones: those before them, and damaged ones of later steps."""
        written = sorted(self._checkpoints.glob("step-*"))
        last = [folder for folder in written if folder.name <= f"step-{step:08d}"][-self.config.checkpoints :]
        for folder in written:
            if folder not in last:
                shutil.rmtree(folder)

    def restore(self) -> dict[str, Any] | None:
        """Begin, and return the state of the last whole checkpoint, or None; what was logged after it is taken back. All ranks call it.

        Raises:
            BadInput: the ranks do not see the same directory.
        """
        from instructgpt.distributed.comm import any_says, told_by_first, wait_for_all
        from instructgpt.run.checkpoints import read_checkpoint

        wait_for_all()  # everyone has looked at the directory before it is changed
        self.begin()
        name = told_by_first(self._last_whole() if self.watched and self.config.resume else None)
        folder = self._checkpoints / name if name else self.directory
        if any_says(not folder.is_dir())[0]:
            raise BadInput(f"--out {self.directory}: not all ranks see {folder}; it has to be on a disk that all hosts share")
        state = read_checkpoint(folder) if name else None
        for file in ("metrics.jsonl", "samples.jsonl") if self.watched else ():
            keep_until(self.directory / file, state["step"] if state else 0)
        if state:
            self._spent = state["spent"]
            self.say(f"goes on after step {state['step']}")
        for tracker in self.config.track if self.watched else ():
            self._trackers[tracker] = open_tracker(tracker, self.directory, self._settings(), state["step"] if state else 0)
        current_request().deferred = True
        return state

    def _last_whole(self) -> str | None:
        """The name of the last checkpoint that is as it was written; says which are not."""
        from instructgpt.run.checkpoints import damage

        folders = sorted(self._checkpoints.glob("step-*"), reverse=True)
        for number, folder in enumerate(folders, 1):
            problem = damage(folder)
            if problem is None:
                return folder.name
            then = "takes the one before it" if number < len(folders) else "begins again from the start"
            self.say(f"[yellow]{escape(str(folder))} is damaged: {then}[/] ({problem})")
        return None

    def finish(self, save: Callable[[Path], None], **facts: Any) -> Path:
        """Write the result beside its place, move it in, remove the checkpoints, and mark the directory finished."""
        if not self.watched:
            return self.directory
        half = self.directory / ".part"
        self.facts.update(facts)
        with writing(self.directory):
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            try:
                save(half)
                if (half / "config.json").exists():
                    (half / "README.md").write_text(model_card(self._record(finished=True)), encoding="utf-8")
                move_in(half, self.directory)
            finally:
                shutil.rmtree(half, ignore_errors=True)
        self._write(finished=True)
        for name in list(self._trackers):
            self._tell(name, lambda tracker: tracker.close())
        shutil.rmtree(self.directory / "checkpoints", ignore_errors=True)
        give_up(self.directory)
        self.say(f"[green]done[/] in {self._spent + time.monotonic() - self.started:.0f} s: {self.directory}")
        return self.directory


def move_in(half: Path, directory: Path) -> None:
    """Move what was written into its place, over what a run left there that was killed between this and being finished."""
    for file in half.iterdir():
        place = directory / file.name
        if place.is_dir():
            shutil.rmtree(place)
        file.replace(place)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def by_flag(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is made with, by the name a person gave it: `--lr`, or `ppo.lr` for what a section says to a stage."""
    named: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            named |= {f"{section}.{option}": told for section, options in value.items() for option, told in options.items()}
        elif name not in PLACE_ONLY:
            named["--" + name.replace("_", "-")] = value
    return named


def read_record(folder: Path) -> dict[str, Any] | None:
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
        raise BadInput(f"{file}: damaged ({type(error).__name__}: {error}); delete {folder} and give the same command again") from error
    return record


def append_line(file: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line. Raises RunFailed or BadInput as `writing` does."""
    with writing(file), file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_logged(file: Path) -> list[dict[str, Any]]:
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


def keep_until(file: Path, step: int) -> None:
    """Keep only the lines up to a step."""
    if file.exists():
        kept = [row for row in read_logged(file) if row["step"] <= step]
        write_text(file, (json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
