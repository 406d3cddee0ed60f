"""Rows of an evaluation's data: JSON lines, JSON, Parquet, CSV, TSV, a data set saved to disk or one of the hub.

Where a data set has splits, validation (or else test) is asked, and the training split gives examples: its rows say so in `split`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from instructgpt.errors import BadInput, in_one_line
from instructgpt.io import read_rows

SUFFIXES = (".jsonl.gz", ".jsonl", ".json.gz", ".json", ".csv", ".tsv", ".parquet", ".txt")
EXAMPLES = 1000
"""Rows of a training split that are read: examples are drawn from these."""


def rows_of(file: Path, *columns: str) -> list[dict[str, Any]]:
    """The rows of a file or data set.

    Args:
        file: a file, a directory that `datasets` saved, or a name on the hub, as `owner/name` or `owner/name:configuration`.
        columns: what every row must have; `premise|sentence1` is either, found under the first name afterwards.

    Raises:
        BadInput: the file cannot be read, or a row lacks one of the columns.
    """
    rows = [(place, each) for place, row in numbered_rows(file) for each in unfolded(row)]
    for place, row in rows:
        for names in columns:
            first, *others = names.split("|")
            if row.get(first) is None:
                row[first] = next((row[other] for other in others if row.get(other) is not None), None)
            if row[first] is None:
                found = ", ".join(str(name) for name, value in row.items() if value is not None) or "none"
                raise BadInput(f"{place}: column '{first}' is missing (columns found: {found})")
    if not rows:
        raise BadInput(f"{file}: nothing in it")
    return [row for _, row in rows]


def numbered_rows(file: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    """(place, row) of whatever kind of file it is."""
    name = file.name.lower()
    if name.endswith((".json", ".json.gz")) and (whole := one_object(file)) is not None:
        return [(str(file), whole)]
    return read_rows(file) if name.endswith(SUFFIXES) else data_set(file)


def one_object(file: Path) -> dict[str, Any] | None:
    """A file that is one JSON object over as many lines as it likes; None for lines, lists and whatever cannot be read."""
    try:
        with gzip.open(file, "rt", encoding="utf-8-sig") if file.suffix == ".gz" else file.open(encoding="utf-8-sig") as stream:
            whole = json.load(stream)
    except (OSError, ValueError, EOFError):
        return None
    return whole if isinstance(whole, dict) else None


def unfolded(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The questions of the layout of SQuAD and QuAC (articles of paragraphs of questions) as rows; any other row as it is.

    Raises:
        BadInput: the layout is not what it seems to be.
    """
    articles = row.get("data", [row] if isinstance(row.get("paragraphs"), list) else None)
    if not isinstance(articles, list):
        yield row
        return
    try:
        for article in articles:
            for paragraph in article["paragraphs"]:
                about = {"title": article.get("title"), "context": paragraph["context"], "dialogue": paragraph.get("id")}
                for asked in paragraph["qas"]:
                    yield about | asked | {"answers": [answer["text"] for answer in asked["answers"]]}
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"'data' is there, but not articles with 'paragraphs' of 'context' and 'qas' ({type(error).__name__}: {error})"
        ) from error


def data_set(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of a Hugging Face data set."""
    import datasets

    datasets.disable_progress_bars()
    name, _, configuration = str(source).partition(":")
    try:
        if Path(name).is_dir() and any((Path(name) / file).exists() for file in ("dataset_dict.json", "dataset_info.json")):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # the library raises a dozen unrelated kinds
        raise BadInput(f"{source}: no data set that loads ({type(error).__name__}: {in_one_line(error, 300)})") from error
    if not isinstance(loaded, dict):
        loaded = {"": loaded}
    asked = next((split for split in ("validation", "test") if split in loaded), next(iter(loaded)))
    for split in dict.fromkeys((asked, *(split for split in loaded if split == "train"))):
        for number, row in enumerate(loaded[split] if split == asked else loaded[split].take(min(EXAMPLES, len(loaded[split]))), 1):
            yield f"{source}: {split} row {number}", dict(row) | ({"split": "train"} if split != asked else {})


def listed(value: Any) -> list[Any]:
    """A column with several values: a list, an object with a list under `text`, a list written as JSON, or texts with `|` between them."""
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
