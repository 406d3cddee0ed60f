"""An export as files: JSON lines or Parquet, or a folder that `datasets.load_dataset` opens, with a manifest that says what is in it.

The same database gives the same bytes. A folder is either whole or not there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt import __version__
from instructgpt.errors import BadInput
from instructgpt.io import json_line, whole_folder
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Instructions
from instructgpt.label.exchange.export_rows import FILES, FileName, Row, rows
from instructgpt.label.exchange.selection import Filter, Tally, snapshot
from instructgpt.records import LABELS

if TYPE_CHECKING:
    import pyarrow

Format = Literal["jsonl", "parquet", "datasets"]
SCHEMA = 1
"""Version of the columns below; it rises when a column changes its meaning."""
PARQUET_ROWS = 10_000

ORIGIN = {
    "id": "text", "labeler": "text", "cohort": "text", "fold": "whole", "source": "text", "batch": "text", "task": "text",
    "prompt_id": "text", "user": "text", "use_case": "text", "split": "text", "instructions": "whole", "gold": "truth",
    "surplus": "truth", "round": "whole", "note": "text", "active_ms": "whole", "created_at": "whole",
}  # fmt: skip
ASKED = {"prompt": "text", "messages": "turns"}
COLUMNS: dict[FileName, dict[str, str]] = {
    "rankings": ASKED | {
        "completions": "texts", "ranks": "wholes", "labeler": "text", "cohort": "text", "fold": "whole", "models": "texts",
        "finish": "texts", "ratings": "wholes", "labels": "labels of each", "unanswered": "texts of each", "none_acceptable": "truth",
        "confidence": "whole", "shown": "wholes", "names_itself": "truth",
    } | ORIGIN,
    "demonstrations": ASKED | {"completion": "text"} | ORIGIN,
    "prompts": {"id": "text"} | ASKED | {
        "user": "text", "source": "text", "use_case": "text", "split": "text", "sensitive": "truth", "labeler": "text",
        "created_at": "whole",
    },
    "comparisons": {
        "ranking": "text", "prompt_id": "text", "prompt": "text", "i": "whole", "j": "whole", "completion_i": "text",
        "completion_j": "text", "model_i": "text", "model_j": "text", "better": "text", "weight": "number", "labeler": "text",
        "cohort": "text", "fold": "whole",
    },
    "pairs": {"prompt": "text", "chosen": "text", "rejected": "text", "ranking": "text", "labeler": "text"},
    "ratings": {
        "ranking": "text", "prompt_id": "text", "prompt": "text", "completion": "text", "model": "text", "rating": "whole",
        "labels": "labels", "unanswered": "texts", "note": "text", "rank": "whole", "labeler": "text", "cohort": "text",
        "fold": "whole", "created_at": "whole",
    },
    "reviews": ASKED | {
        "reviewed_use_case": "text", "personal_data": "truth", "sensitive": "truth", "prompt_labels": "prompt labels",
        "rejected": "text",
    } | ORIGIN,
}  # fmt: skip
"""The columns of every file in their order, and what kind of value each holds."""


def export(
    database: Database, out: Path, wanted: Filter, format: Format = "jsonl", names: Iterable[FileName] = tuple(FILES), card: str = ""
) -> dict[str, Any]:
    """Write an export into a folder that is not there yet. Returns its manifest.

    Args:
        format: `datasets` is Parquet with a card (`card` is what it says below its table of contents).
        names: which files; one that would be empty is not written, only counted.

    Raises:
        BadInput: the folder is taken or cannot be written, a batch does not exist, or there is nothing to export.
    """
    with whole_folder(out) as folder:
        if format == "datasets":
            (folder / "data").mkdir()
        with snapshot(database) as db:
            manifest = _write_all(db, folder, wanted, format, names)
        if format == "datasets":
            (folder / "README.md").write_text(front(manifest) + card, encoding="utf-8")
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _write_all(db: Session, folder: Path, wanted: Filter, format: Format, names: Iterable[FileName]) -> dict[str, Any]:
    """Every file of an export, and the manifest."""
    files: dict[str, Any] = {}
    labelers: dict[str, set[str]] = {}
    for name in names:
        tally = Tally()
        file = folder / (f"{name}.jsonl" if format == "jsonl" else f"{name}.parquet" if format == "parquet" else f"data/{name}.parquet")
        write = write_jsonl if format == "jsonl" else write_parquet
        write(file, name, rows(db, name, wanted, tally))
        written = {"file": str(file.relative_to(folder)), "sha256": sha256_of(file), "bytes": file.stat().st_size} if tally.rows else {}
        if not tally.rows:
            file.unlink()
        files[name] = {"rows": tally.rows, "left_out": dict(sorted(tally.left_out.items()))} | written
        for cohort, people in tally.labelers.items():
            labelers.setdefault(cohort, set()).update(people)
    if not any(facts["rows"] for facts in files.values()):
        reasons = {reason: count for facts in files.values() for reason, count in facts["left_out"].items()}
        said = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "nothing was handed in yet"
        raise BadInput(f"nothing to export for {wanted.use} ({said})")
    return {
        "schema": SCHEMA,
        "instructgpt": __version__,
        "filter": wanted.model_dump(mode="json"),
        "format": format,
        "labelers": {cohort: len(people) for cohort, people in sorted(labelers.items())},
        "instructions": instructions(db, wanted),
        "files": files,
    }


def instructions(db: Session, wanted: Filter) -> list[dict[str, Any]]:
    """The versions of the instructions for a use."""
    found = db.scalars(select(Instructions).where(Instructions.purpose == wanted.use).order_by(Instructions.version))
    return [{"purpose": each.purpose, "version": each.version, "sha256": hashlib.sha256(each.body.encode()).hexdigest()} for each in found]


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_jsonl(file: Path, name: FileName, found: Iterable[Row]) -> None:
    """One row a line, columns in their order."""
    with file.open("wb") as opened:
        opened.writelines(line.encode("utf-8", "replace") for line in lines(name, found))
        opened.flush()
        os.fsync(opened.fileno())


def lines(name: FileName, found: Iterable[Row]) -> Iterator[str]:
    """Rows as JSON lines, columns in their order."""
    columns = COLUMNS[name]
    return (json_line({column: row[column] for column in columns if column in row}) for row in found)


def write_parquet(file: Path, name: FileName, found: Iterable[Row]) -> None:
    """Rows as a Parquet file of that schema, in groups."""
    import pyarrow
    import pyarrow.parquet

    schema = arrow_schema(name)
    found = iter(found)
    with pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        while portion := list(islice(found, PARQUET_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(portion, schema))


def arrow_schema(name: FileName) -> pyarrow.Schema:
    """The types of a file's columns. Labels are structures: a label nobody answered is empty there, and named in `unanswered`."""
    import pyarrow as pa

    from instructgpt.label.tasks.forms import PROMPT_LABELS

    labels = pa.struct([(label, pa.bool_()) for label in LABELS])
    kinds = {
        "text": pa.string(), "whole": pa.int64(), "number": pa.float64(), "truth": pa.bool_(), "texts": pa.list_(pa.string()),
        "wholes": pa.list_(pa.int64()), "texts of each": pa.list_(pa.list_(pa.string())), "labels": labels,
        "labels of each": pa.list_(labels), "prompt labels": pa.struct([(label, pa.bool_()) for label in PROMPT_LABELS]),
        "turns": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }  # fmt: skip
    return pa.schema([(column, kinds[kind]) for column, kind in COLUMNS[name].items()])


# ---------------------------------------------------------------- the card of a data set


def front(manifest: dict[str, Any]) -> str:
    """The head of a data set's card: which file is which configuration, and a table of what is there."""
    files = {name: facts for name, facts in manifest["files"].items() if facts["rows"]}
    configs = "".join(
        f"- config_name: {name}\n  data_files: {facts['file']}\n" + ("  default: true\n" if name == next(iter(files)) else "")
        for name, facts in files.items()
    )
    wanted = manifest["filter"]
    table = "".join(
        f"| `{name}` | {facts['rows']:,} | {', '.join(f'{count} {why}' for why, count in facts['left_out'].items()) or 'none'} |\n"
        for name, facts in files.items()
    )
    cohorts = ", ".join(f"{count} {cohort}" for cohort, count in manifest["labelers"].items()) or "none"
    return (
        f"---\nconfigs:\n{configs}---\n"
        f"# Work of labelers, for {wanted['use']}\n\n"
        f"Written by instructgpt {manifest['instructgpt']}, columns of version {manifest['schema']}. "
        f"Batches: {', '.join(wanted['batches']) or 'all'}. Labelers: {cohorts}. They are named by pseudonyms.\n\n"
        f"| configuration | rows | left out |\n|---|---:|---|\n{table}\n"
        "A rank of 1 is best, equal ranks tie. A label that is empty was not applicable, unless `unanswered` names it.\n"
        "`manifest.json` has the filter, the counts and the SHA-256 of each file.\n"
    )
