"""What models said and judges found, kept on disk and never asked twice.

One append-only file of JSON lines for each model and its settings. A line is written whole or it does not count: whatever a kill tore
off is asked again, and nothing else is.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from instructgpt.io import translate_write_errors
from instructgpt.run.directory import console

_CACHE_CHUNK_SIZE = 256
"""Prompts between two writes: what is lost when the process is killed."""
PROGRESS_INTERVAL_S = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class ResultCache:
    """A folder of completions and verdicts.

    Whatever is kept must survive JSON (texts, numbers, lists, objects with texts as keys). `None` means that there is no verdict: it is
    handed on and not kept, so that it is asked again the next time.
    """

    def __init__(self, folder: Path) -> None:
        """Take a folder, which is made when the first thing is kept."""
        self.folder = folder
        self._entries: dict[Path, dict[str, Any]] = {}

    def get_or_compute(
        self,
        model_key: str,
        prompts: Sequence[Any],
        settings: Mapping[str, Any],
        compute: Callable[[list[Any], int], Sequence[Any]],
        *,
        title: str = "",
        chunk_size: int = _CACHE_CHUNK_SIZE,
        map_fn: Callable[..., Iterable[Any]] = map,
    ) -> list[Any]:
        """What a model said to each prompt: from the folder where it stands there, else made and kept, `at_once` at a time.

        At temperature 0 (no `temperature` in the settings means that too) a prompt has one completion, however often it is asked.
        Sampled completions are drawn in blocks of `at_once` in the order of the list, a prompt as often as it stands there; a block is
        made whole or not at all, with a seed of its own. So a stop and a second run change no number.

        Args:
            model_key: the hash of the weights (`run.content_hash`), or the address and name of an endpoint's model.
            prompts: tokens, texts, or anything else that JSON can say.
            settings: whatever else decides what is said: temperature, longest length, seed, template, version of the scorer.
            make: (prompts, seed) -> one result a prompt, None where there is none. Called for what is missing only.
            title: what the progress bar says; without it there is none.
            over: calls `make` for each block and gives the results in order: `map`, or what `dividing` gives.
        """
        file = self.folder / f"{_hash_json(model_key, dict(settings))[:16]}.jsonl"
        entries = self._read(file)
        is_sampled = float(settings.get("temperature") or 0) > 0
        keys = _sampled_block_keys(prompts, chunk_size) if is_sampled else [_hash_json(prompt) for prompt in prompts]
        results = {key: entries[key] for key in keys if key in entries}
        if is_sampled:
            blocks = [range(start, min(start + chunk_size, len(keys))) for start in range(0, len(keys), chunk_size)]
            pending = [list(block) for block in blocks if any(keys[index] not in entries for index in block)]
        else:
            first_index = {key: index for index, key in reversed(list(enumerate(keys))) if key not in entries}
            indices = sorted(first_index.values())
            pending = [indices[start : start + chunk_size] for start in range(0, len(indices), chunk_size)]
        if pending:
            with _progress_bar(title, len(keys), len(keys) - sum(map(len, pending))) as advance:
                seed = settings.get("seed", 0)
                seeds = [int(_hash_json(seed, keys[indices[0]])[:8], 16) if is_sampled else seed for indices in pending]
                computed_blocks = map_fn(compute, ([prompts[index] for index in indices] for indices in pending), seeds)
                for indices, values in zip(pending, computed_blocks, strict=True):
                    new_entries = dict(zip((keys[index] for index in indices), values, strict=True))
                    results |= new_entries
                    entries |= self._append(file, model_key, settings, new_entries)
                    advance(len(indices))
        return [results[key] for key in keys]

    def _read(self, file: Path) -> dict[str, Any]:
        """Everything whole in a file, by key."""
        if file not in self._entries:
            self._entries[file] = {}
            for line in file.read_bytes().split(b"\n") if file.exists() else []:
                try:
                    row = json.loads(line)
                    self._entries[file][row["key"]] = row["value"]
                except (ValueError, KeyError, TypeError):
                    continue  # torn, empty, or the line that says whose file it is
        return self._entries[file]

    def _append(
        self, file: Path, model_key: str, settings: Mapping[str, Any], new_entries: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Append what is not None, as it will be read. Raises RunFailed or BadInput where it cannot be written."""
        lines = [
            json.dumps({"key": key, "value": value}, allow_nan=False)
            for key, value in new_entries.items()
            if value is not None
        ]
        with translate_write_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                lines.insert(0, json.dumps({"model": model_key, "settings": dict(settings)}))
            with file.open("a+b", buffering=0) as stream:
                has_torn_line = (
                    stream.seek(0, os.SEEK_END) > 0 and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n"
                )
                stream.write(("\n" * has_torn_line + "".join(line + "\n" for line in lines)).encode())
                os.fsync(stream.fileno())
        return {row["key"]: row["value"] for row in map(json.loads, lines) if "key" in row}


def _hash_json(*values: Any) -> str:
    """sha256 of values as JSON says them, the keys of objects in order."""
    return hashlib.sha256(
        json.dumps(values, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


def _sampled_block_keys(prompts: Sequence[Any], chunk_size: int) -> list[str]:
    """Keys of sampled completions: which block of the list, what stands in it, and the place in it."""
    keys: list[str] = []
    for start in range(0, len(prompts), chunk_size):
        block_hash = _hash_json(start, list(prompts[start : start + chunk_size]))
        keys += [f"{block_hash}/{index}" for index in range(len(prompts[start : start + chunk_size]))]
    return keys


@contextmanager
def _progress_bar(title: str, total: int, completed: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on a terminal, a line now and then elsewhere; gives the function to call with what was done since."""
    if not title:
        yield lambda _: None
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(title, total=total, completed=completed)
            yield lambda count: progress.advance(task, count)
    else:
        last_report_s = time.monotonic()

        def advance(count: int) -> None:
            nonlocal completed, last_report_s
            completed += count
            if time.monotonic() - last_report_s > PROGRESS_INTERVAL_S:
                last_report_s = time.monotonic()
                console.print(f"{title}: {completed} of {total}", highlight=False, markup=False)

        yield advance
