"""Cache of model replies and verdicts on disk, so that nothing is computed twice.

One append-only JSONL file for each model and its settings. A line torn by a kill is ignored and computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructgpt.io import translate_write_errors
from instructgpt.run.progress import show_progress

_CACHE_CHUNK_SIZE = 256
"""Prompts between two writes: what a killed process loses."""


class ResultCache:
    """A folder of cached results, which must survive JSON. `None` means "no result": it is returned but not stored."""

    def __init__(self, folder: Path) -> None:
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
        """Return a model's result for each prompt, computing and storing `chunk_size` at a time what is missing.

        At temperature 0 (or without `temperature` in the settings) equal prompts share one result. Samples are drawn in
        blocks of `chunk_size` in list order; a block is computed whole, with its own seed, so that a resumed run gives
        the same numbers.

        Args:
            model_key: the hash of the weights (`run.content_hash`), or an endpoint's address and model.
            settings: everything else the results depend on: temperature, maximum length, seed, template, version of the
                scorer.
            compute: (prompts, seed) -> one result per prompt, None where there is none.
            title: label of the progress bar; without it there is none.
            map_fn: applies `compute` to each block, in order: `map`, or that of `process_map`.
        """
        file = self.folder / f"{_hash_json(model_key, dict(settings))[:16]}.jsonl"
        entries = self._read(file)
        is_sampled = float(settings.get("temperature") or 0) > 0
        keys = _sampled_block_keys(prompts, chunk_size) if is_sampled else [_hash_json(prompt) for prompt in prompts]
        results = {key: entries[key] for key in keys if key in entries}
        if is_sampled:
            blocks = _chunks(range(len(keys)), chunk_size)
            pending = [block for block in blocks if any(keys[index] not in entries for index in block)]
        else:
            first_index = {key: index for index, key in reversed(list(enumerate(keys))) if key not in entries}
            pending = _chunks(sorted(first_index.values()), chunk_size)
        if not pending:
            return [results[key] for key in keys]
        seed = settings.get("seed", 0)
        # a block's seed depends on its content, not on how many blocks were computed before
        seeds = [int(_hash_json(seed, keys[block[0]])[:8], 16) if is_sampled else seed for block in pending]
        with show_progress(title, len(keys), len(keys) - sum(map(len, pending))) as advance:
            computed = map_fn(compute, ([prompts[index] for index in block] for block in pending), seeds)
            for block, values in zip(pending, computed, strict=True):
                new_entries = dict(zip((keys[index] for index in block), values, strict=True))
                results |= new_entries
                entries |= self._append(file, model_key, settings, new_entries)
                advance(len(block))
        return [results[key] for key in keys]

    def _read(self, file: Path) -> dict[str, Any]:
        if file not in self._entries:
            self._entries[file] = {}
            for line in file.read_bytes().split(b"\n") if file.exists() else []:
                try:
                    row = json.loads(line)
                    self._entries[file][row["key"]] = row["value"]
                except (ValueError, KeyError, TypeError):
                    continue  # torn, empty, or the header
        return self._entries[file]

    def _append(self, file: Path, model_key: str, settings: Mapping[str, Any], entries: Any) -> dict[str, Any]:
        """Append results other than None and return them as they will be read back."""
        rows = [{"key": key, "value": value} for key, value in entries.items() if value is not None]
        lines = [json.dumps(row, allow_nan=False) for row in rows]
        with translate_write_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                lines.insert(0, json.dumps({"model": model_key, "settings": dict(settings)}))
            text = "".join(line + "\n" for line in lines)
            with file.open(
                "a+b", buffering=0
            ) as stream:  # unbuffered: one write, so that a kill tears at most one line
                if stream.seek(0, os.SEEK_END) > 0:
                    stream.seek(-1, os.SEEK_END)
                    text = "\n" * (stream.read(1) != b"\n") + text  # end a line that an earlier kill tore
                stream.write(text.encode())
                os.fsync(stream.fileno())
        return {row["key"]: row["value"] for row in map(json.loads, lines) if "key" in row}


def _hash_json(*values: Any) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _chunks(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def _sampled_block_keys(prompts: Sequence[Any], chunk_size: int) -> list[str]:
    """Return keys of samples: the hash of their block (its start and content) and their index in it."""
    keys: list[str] = []
    for start in range(0, len(prompts), chunk_size):
        block = list(prompts[start : start + chunk_size])
        block_hash = _hash_json(start, block)
        keys += [f"{block_hash}/{index}" for index in range(len(block))]
    return keys
