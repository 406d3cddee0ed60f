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

from instructgpt.io import writing
from instructgpt.run.directory import console

AT_ONCE = 256
"""Prompts between two writes: what is lost when the process is killed."""
QUIET = 30.0
"""Seconds between two lines of progress where there is no terminal."""


class Cache:
    """A folder of completions and verdicts.

    Whatever is kept must survive JSON (texts, numbers, lists, objects with texts as keys). `None` means that there is no verdict: it is
    handed on and not kept, so that it is asked again the next time.
    """

    def __init__(self, folder: Path) -> None:
        """Take a folder, which is made when the first thing is kept."""
        self.folder = folder
        self._known: dict[Path, dict[str, Any]] = {}

    def completions(
        self,
        model_key: str,
        prompts: Sequence[Any],
        settings: Mapping[str, Any],
        make: Callable[[list[Any], int], Sequence[Any]],
        *,
        title: str = "",
        at_once: int = AT_ONCE,
        over: Callable[..., Iterable[Any]] = map,
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
        file = self.folder / f"{digest(model_key, dict(settings))[:16]}.jsonl"
        known = self._read(file)
        sampled = float(settings.get("temperature") or 0) > 0
        keys = drawn_keys(prompts, at_once) if sampled else [digest(prompt) for prompt in prompts]
        found = {key: known[key] for key in keys if key in known}
        if sampled:
            blocks = [range(start, min(start + at_once, len(keys))) for start in range(0, len(keys), at_once)]
            todo = [list(block) for block in blocks if any(keys[place] not in known for place in block)]
        else:
            first = {key: place for place, key in reversed(list(enumerate(keys))) if key not in known}
            places = sorted(first.values())
            todo = [places[start : start + at_once] for start in range(0, len(places), at_once)]
        if todo:
            with following(title, len(keys), len(keys) - sum(map(len, todo))) as advance:
                seed = settings.get("seed", 0)
                seeds = [int(digest(seed, keys[places[0]])[:8], 16) if sampled else seed for places in todo]
                blocks_made = over(make, ([prompts[place] for place in places] for places in todo), seeds)
                for places, made in zip(todo, blocks_made, strict=True):
                    fresh = dict(zip((keys[place] for place in places), made, strict=True))
                    found |= fresh
                    known |= self._keep(file, model_key, settings, fresh)
                    advance(len(places))
        return [found[key] for key in keys]

    def _read(self, file: Path) -> dict[str, Any]:
        """Everything whole in a file, by key."""
        if file not in self._known:
            self._known[file] = {}
            for line in file.read_bytes().split(b"\n") if file.exists() else []:
                try:
                    row = json.loads(line)
                    self._known[file][row["key"]] = row["value"]
                except (ValueError, KeyError, TypeError):
                    continue  # torn, empty, or the line that says whose file it is
        return self._known[file]

    def _keep(self, file: Path, model_key: str, settings: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
        """Append what is not None, as it will be read. Raises RunFailed or BadInput where it cannot be written."""
        lines = [json.dumps({"key": key, "value": value}, allow_nan=False) for key, value in fresh.items() if value is not None]
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                lines.insert(0, json.dumps({"model": model_key, "settings": dict(settings)}))
            with file.open("a+b", buffering=0) as stream:
                torn = stream.seek(0, os.SEEK_END) > 0 and (stream.seek(-1, os.SEEK_END), stream.read(1))[1] != b"\n"
                stream.write(("\n" * torn + "".join(line + "\n" for line in lines)).encode())
                os.fsync(stream.fileno())
        return {row["key"]: row["value"] for row in map(json.loads, lines) if "key" in row}


def digest(*parts: Any) -> str:
    """sha256 of values as JSON says them, the keys of objects in order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def drawn_keys(prompts: Sequence[Any], at_once: int) -> list[str]:
    """Keys of sampled completions: which block of the list, what stands in it, and the place in it."""
    keys: list[str] = []
    for start in range(0, len(prompts), at_once):
        block = digest(start, list(prompts[start : start + at_once]))
        keys += [f"{block}/{place}" for place in range(len(prompts[start : start + at_once]))]
    return keys


@contextmanager
def following(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on a terminal, a line now and then elsewhere; gives the function to call with what was done since."""
    if not title:
        yield lambda _: None
    elif console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(title, total=total, completed=done)
            yield lambda count: progress.advance(task, count)
    else:
        said = time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, said
            done += count
            if time.monotonic() - said > QUIET:
                said = time.monotonic()
                console.print(f"{title}: {done} of {total}", highlight=False, markup=False)

        yield advance
