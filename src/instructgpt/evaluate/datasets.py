"""Find the data of each evaluation: a folder with the usual file names, a single file, a saved data set, or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instructgpt.errors import InputError
from instructgpt.evaluate.tasks.base import EvalTask
from instructgpt.evaluate.tasks.loading import DATA_FILE_SUFFIXES


def parse_data_sources(data: Sequence[str], option: str = "data") -> tuple[list[Path], dict[str, Path]]:
    """Split `--data` arguments into paths and NAME=SOURCE entries. Raise InputError for a missing path."""
    paths: list[Path] = []
    named_paths: dict[str, Path] = {}
    for argument in data:
        name, separator, source = argument.partition("=")
        if not separator or "/" in name:
            if not Path(argument).exists():
                raise InputError(f"--{option} {argument}: no such file or folder")
            paths.append(Path(argument))
        elif name in named_paths:
            raise InputError(f"--{option} {argument}: {name} already has a source, {named_paths[name]}")
        else:
            named_paths[name] = Path(source)
    return paths, named_paths


def find_data_source(
    task: EvalTask, paths: Sequence[Path], named_paths: dict[str, Path], num_tasks: int
) -> Path | None:
    """Return where an evaluation's data is, or None. `paths` are folders, or a single file if `num_tasks` is 1."""
    if task.name in named_paths:
        return named_paths[task.name]
    file = task.default_file
    stem = next((file.removesuffix(suffix) for suffix in DATA_FILE_SUFFIXES if file.endswith(suffix)), file)
    for path in paths:
        if path.is_file():
            if num_tasks > 1:
                hint = f"give the folder with {file} and the others, or {task.name}={path}"
                raise InputError(f"--data {path}: one file for {num_tasks} evaluations; {hint}")
            return path
        if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
            return path if num_tasks == 1 else None
        for name in (file, *(stem + suffix for suffix in DATA_FILE_SUFFIXES), stem):
            if (path / name).exists():
                return path / name
    return None
