"""Load the rows of a task's data: JSON lines, JSON, Parquet, CSV, TSV, a saved data set, or one of the hub.

A data set's validation split (else test) is evaluated; rows of its training split, marked by `split`, provide examples.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError, one_line
from instructgpt.io import iter_rows

DATA_FILE_SUFFIXES = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".csv", ".tsv", ".parquet", ".txt")
_MAX_TRAIN_ROWS = 1000


def load_task_rows(file: Path, *columns: str) -> list[dict[str, Any]]:
    """Load the rows of a file or data set. Raise InputError if it is unreadable or a row lacks a column.

    Args:
        file: a file, a directory saved by `datasets`, or a hub name, `owner/name` or `owner/name:configuration`.
        columns: required columns; `premise|sentence1` accepts either and stores it under the first name.
    """
    rows = [(location, flat_row) for location, row in _iter_located_rows(file) for flat_row in _flatten_articles(row)]
    for location, row in rows:
        for column_aliases in columns:
            column, *aliases = column_aliases.split("|")
            if row.get(column) is None:
                row[column] = next((row[alias] for alias in aliases if row.get(alias) is not None), None)
            if row[column] is None:
                available_columns = ", ".join(str(name) for name, value in row.items() if value is not None) or "none"
                raise InputError(f"{location}: column '{column}' is missing (columns found: {available_columns})")
    if not rows:
        raise InputError(f"{file}: nothing in it")
    return [row for _, row in rows]


def _iter_located_rows(file: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    name = file.name.lower()
    if name.endswith((".json", ".json.gz")) and (json_object := _read_json_object(file)) is not None:
        return [(str(file), json_object)]
    return iter_rows(file) if name.endswith(DATA_FILE_SUFFIXES) else _iter_dataset_rows(file)


def _read_json_object(file: Path) -> dict[str, Any] | None:
    """Return a file that is a single JSON object; None for JSON lines, lists and unreadable files."""
    try:
        with (
            gzip.open(file, "rt", encoding="utf-8-sig")
            if file.suffix == ".gz"
            else file.open(encoding="utf-8-sig") as stream
        ):
            document = json.load(stream)
    except (OSError, ValueError, EOFError):
        return None
    return document if isinstance(document, dict) else None


def _flatten_articles(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the questions of SQuAD's and QuAC's layout (articles, paragraphs, questions) as rows; other rows unchanged."""
    articles = row.get("data", [row] if isinstance(row.get("paragraphs"), list) else None)
    if not isinstance(articles, list):
        yield row
        return
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                paragraph_fields = {
                    "title": article.get("title"),
                    "context": paragraph["context"],
                    "dialogue": paragraph.get("id"),
                }
                for qa_pair in paragraph["qas"]:
                    yield paragraph_fields | qa_pair | {"answers": [answer["text"] for answer in qa_pair["answers"]]}
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"'data' is there, but not articles with 'paragraphs' of 'context' and 'qas' ({type(error).__name__}: {error})"
        ) from error


def _iter_dataset_rows(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    datasets.disable_progress_bars()
    name, _, configuration = str(source).partition(":")
    try:
        if Path(name).is_dir() and any(
            (Path(name) / file).exists() for file in ("dataset_dict.json", "dataset_info.json")
        ):
            dataset = datasets.load_from_disk(name)
        else:
            dataset = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # the library raises a dozen unrelated kinds
        raise InputError(
            f"{source}: no data set that loads ({type(error).__name__}: {one_line(error, 300)})"
        ) from error
    if not isinstance(dataset, dict):
        dataset = {"": dataset}
    eval_split = next((split for split in ("validation", "test") if split in dataset), next(iter(dataset)))
    for split in dict.fromkeys((eval_split, *(split for split in dataset if split == "train"))):
        for row_number, row in enumerate(
            dataset[split] if split == eval_split else dataset[split].take(min(_MAX_TRAIN_ROWS, len(dataset[split]))), 1
        ):
            yield f"{source}: {split} row {row_number}", dict(row) | ({"split": "train"} if split != eval_split else {})


def as_list(value: Any) -> list[Any]:
    """Return the values of a cell: a list, an object with `text`, a JSON list, or texts separated by `|`."""
    if isinstance(value, dict):
        value = value.get("text", value.get("texts", []))
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [value]
    if isinstance(value, str):
        return [part.strip() for part in value.split("|") if part.strip()]
    return list(value)
