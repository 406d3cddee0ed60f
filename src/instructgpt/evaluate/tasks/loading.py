"""Load the rows of a task's data: JSON lines, JSON, Parquet, CSV, TSV, a saved data set, or one of the hub.

A data set's validation split (else test) is evaluated; rows of its training split, marked by `split`, provide examples.
"""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError, one_line
from instructgpt.io import SkippedLines, iter_rows, skip_or_raise
from instructgpt.run.directory import console

DATA_FILE_SUFFIXES = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".csv", ".tsv", ".parquet", ".txt")
_MAX_TRAIN_ROWS = 1000


def load_task_rows(
    file: Path,
    *columns: str,
    skip_bad: bool = False,
    check_row: Callable[[dict[str, Any]], Any] | None = None,
    split_row: Callable[[dict[str, Any]], Iterable[dict[str, Any]]] | None = None,
) -> list[dict[str, Any]]:
    """Load the rows of a file or data set. Bad rows are left out and counted if `skip_bad`.

    Args:
        file: a file, a directory saved by `datasets`, or a hub name, `owner/name` or `owner/name:configuration`.
        columns: required columns; `premise|sentence1` accepts either and stores it under the first name.
        check_row: raises ValueError (or what parsing raises) for a bad row, such as one without a reference.
        split_row: splits a row of the file into several, such as the questions about a passage.

    Raises:
        InputError: the file is unreadable, or a row is bad.
    """
    skipped = SkippedLines(skip_bad)
    rows: list[dict[str, Any]] = []
    for location, file_row in _iter_located_rows(file, skipped):
        try:
            for row in split_row(file_row) if split_row else flatten_articles(file_row):
                _check_columns(row, columns)
                if check_row is not None:
                    check_row(row)
                rows.append(row)
        except (InputError, ValueError, LookupError, TypeError, AttributeError) as error:
            reason = error if isinstance(error, InputError | ValueError) else f"{type(error).__name__}: {error}"
            skip_or_raise(location, ValueError(one_line(f"{reason}", 300)), skipped)
    if skipped.reasons:
        summary = f"left out {len(skipped.reasons)} bad rows (the first: {skipped.reasons[0]})"
        console.print(f"{file}: {summary}", highlight=False, markup=False, soft_wrap=True)
    if not rows:
        raise InputError(f"{file}: " + ("no row is left" if skipped.reasons else "the file has no rows"))
    return rows


def _check_columns(row: dict[str, Any], columns: Sequence[str]) -> None:
    """Store each column under its first name. Raise ValueError if one is missing or blank."""
    for column_aliases in columns:
        column, *aliases = column_aliases.split("|")
        names = [name for name in (column, *aliases) if row.get(name) is not None]
        filled = next((name for name in names if not isinstance(row[name], str) or row[name].strip()), None)
        if filled is None:
            available = ", ".join(str(name) for name, value in row.items() if value is not None) or "none"
            problem = "is empty" if names else f"is missing (columns found: {available})"
            raise ValueError(f"column '{names[0] if names else column}' {problem}")
        row[column] = row[filled]


def parse_label(value: Any, num_choices: int) -> int:
    """Return a label as the index of a choice. Raise ValueError for -1, null and the like: a hidden answer."""
    text = str(int(value)) if isinstance(value, bool | float) and value == int(value) else str(value).strip()
    if not text.isdecimal() or int(text) >= num_choices:
        raise ValueError(f"the label is {value!r}; expected the index of one of {num_choices} answers, from 0")
    return int(text)


def _iter_located_rows(file: Path, skipped: SkippedLines) -> Iterable[tuple[str, dict[str, Any]]]:
    name = file.name.lower()
    if name.endswith((".json", ".json.gz")) and (json_object := _read_json_object(file)) is not None:
        return [(str(file), json_object)]
    return iter_rows(file, skipped) if name.endswith(DATA_FILE_SUFFIXES) else _iter_dataset_rows(file)


def _read_json_object(file: Path) -> dict[str, Any] | None:
    """Return a file that is a single JSON object; None for JSON lines, lists and unreadable files."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        document = json.loads(content.decode("utf-8-sig"))
    except (OSError, ValueError, EOFError):
        return None
    return document if isinstance(document, dict) else None


def flatten_articles(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the questions of SQuAD's and QuAC's layout (articles of paragraphs) as rows; other rows unchanged."""
    articles = row.get("data", [row] if isinstance(row.get("paragraphs"), list) else None)
    if not isinstance(articles, list):
        yield row
        return
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                fields = {"title": article.get("title"), "context": paragraph["context"]}
                for qa_pair in paragraph["qas"]:
                    answers = [answer["text"] for answer in qa_pair["answers"]]
                    yield fields | {"dialogue": paragraph.get("id")} | qa_pair | {"answers": answers}
    except (KeyError, TypeError, AttributeError) as error:
        expected = "expected articles with 'paragraphs' of 'context' and 'qas'"
        raise InputError(f"column 'data': {expected} ({type(error).__name__}: {error})") from error


def _iter_dataset_rows(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import datasets

    datasets.disable_progress_bars()
    name, _, configuration = str(source).partition(":")
    is_saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "dataset_info.json"))
    try:
        dataset = datasets.load_from_disk(name) if is_saved else datasets.load_dataset(name, configuration or None)
    except Exception as error:  # the library raises a dozen unrelated kinds
        problem = f"{type(error).__name__}: {one_line(error, 300)}"
        raise InputError(f"{source}: the data set does not load ({problem})") from error
    if not isinstance(dataset, dict):
        dataset = {"": dataset}
    eval_split = next((split for split in ("validation", "test") if split in dataset), next(iter(dataset)))
    for number, row in enumerate(dataset[eval_split], 1):
        yield f"{source}: {eval_split} row {number}", dict(row)
    if "train" in dataset and eval_split != "train":
        examples = dataset["train"]
        for number, row in enumerate(examples.take(min(_MAX_TRAIN_ROWS, len(examples))), 1):
            yield f"{source}: train row {number}", dict(row) | {"split": "train"}


def as_list(value: Any) -> list[Any]:
    """Return the values of a cell: a list, an object with `text`, a JSON list, or texts separated by `|`."""
    if isinstance(value, dict):
        value = value.get("text", value.get("texts")) or []
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, str):
        return [part.strip() for part in value.split("|") if part.strip()]
    return list(value)
