"""The results file of `evaluate`: where it is, and how a second command adds to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from instructgpt.errors import InputError
from instructgpt.io import translate_write_errors
from instructgpt.results import ResultRow, merge_result_rows, read_result_rows, write_result_rows

_FILE_NAME = "results.json"


def resolve_results_path(out: Path | None, model_sources: Sequence[str]) -> Path:
    """Return the results file. A path without an ending is a folder for it.

    By default it lies where `report` looks: in the run directory if all models are stages of one, else here. Raise
    InputError if the file exists and holds no results, before anything is computed.
    """
    if out is None:
        run_directory = _find_run_directory(model_sources)
        path = Path(_FILE_NAME) if run_directory is None else run_directory / _FILE_NAME
    elif out.is_dir() or not out.suffix:
        path = out / _FILE_NAME
    else:
        path = out
    if path.exists():
        try:
            read_result_rows(path)
        except InputError as error:
            raise InputError(f"--out: {error}; evaluate adds its rows to this file, so name another") from error
    return path


def _find_run_directory(model_sources: Sequence[str]) -> Path | None:
    """Return the directory whose stages these models are, if it is one."""
    folders = [Path(source) for source in model_sources]
    if not folders or not all((folder / "run.json").is_file() for folder in folders):
        return None
    parents = {folder.resolve().parent for folder in folders}
    return folders[0].parent if len(parents) == 1 else None


def cache_folder(results_path: Path) -> Path:
    """Return the folder beside the results that holds replies, verdicts and completions."""
    return results_path.with_suffix("")


def add_result_rows(path: Path, rows: Sequence[ResultRow]) -> int:
    """Write rows into a results file and keep those that other commands wrote. Return how many were kept."""
    with _locked(cache_folder(path)):
        earlier_rows = read_result_rows(path) if path.exists() else []
        merged_rows = merge_result_rows(earlier_rows, rows)
        write_result_rows(path, sort_rows(merged_rows))
    return len(merged_rows) - len(rows)


def sort_rows(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Sort rows by evaluation, then by metric and condition, each in order of appearance."""
    evaluations = {name: place for place, name in enumerate(dict.fromkeys(row.evaluation for row in rows))}
    keys = {key: place for place, key in enumerate(dict.fromkeys(map(row_key, rows)))}
    return sorted(rows, key=lambda row: (evaluations[row.evaluation], keys[row_key(row)]))


def row_key(row: ResultRow) -> tuple[str, str, str]:
    return row.evaluation, row.metric, row.condition


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder, so that two commands do not overwrite each other's rows; the lock ends with the process."""
    with translate_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # this file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
