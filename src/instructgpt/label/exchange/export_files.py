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
from instructgpt.errors import InputError
from instructgpt.io import atomic_directory, format_json_line
from instructgpt.label.db.database import Database
from instructgpt.label.db.models import Instructions
from instructgpt.label.exchange.export_rows import EXPORT_FILES, ExportFileName, ExportRow, iter_export_rows
from instructgpt.label.exchange.selection import ExportFilter, ExportTally, snapshot
from instructgpt.records import LABELS

if TYPE_CHECKING:
    import pyarrow

ExportFormat = Literal["jsonl", "parquet", "datasets"]
_SCHEMA_VERSION = 1
"""Version of the columns below; it rises when a column changes its meaning."""
_PARQUET_ROW_GROUP_SIZE = 10_000

_PROVENANCE_COLUMNS = {
    "id": "text",
    "labeler": "text",
    "cohort": "text",
    "fold": "whole",
    "source": "text",
    "batch": "text",
    "task": "text",
    "prompt_id": "text",
    "user": "text",
    "use_case": "text",
    "split": "text",
    "instructions": "whole",
    "gold": "truth",
    "surplus": "truth",
    "round": "whole",
    "note": "text",
    "active_ms": "whole",
    "created_at": "whole",
}
_PROMPT_COLUMNS = {"prompt": "text", "messages": "turns"}
EXPORT_COLUMNS: dict[ExportFileName, dict[str, str]] = {
    "rankings": _PROMPT_COLUMNS
    | {
        "completions": "texts",
        "ranks": "wholes",
        "labeler": "text",
        "cohort": "text",
        "fold": "whole",
        "models": "texts",
        "finish": "texts",
        "ratings": "wholes",
        "labels": "labels of each",
        "unanswered": "texts of each",
        "none_acceptable": "truth",
        "confidence": "whole",
        "shown": "wholes",
        "names_itself": "truth",
    }
    | _PROVENANCE_COLUMNS,
    "demonstrations": _PROMPT_COLUMNS | {"completion": "text"} | _PROVENANCE_COLUMNS,
    "prompts": {"id": "text"}
    | _PROMPT_COLUMNS
    | {
        "user": "text",
        "source": "text",
        "use_case": "text",
        "split": "text",
        "sensitive": "truth",
        "labeler": "text",
        "created_at": "whole",
    },
    "comparisons": {
        "ranking": "text",
        "prompt_id": "text",
        "prompt": "text",
        "i": "whole",
        "j": "whole",
        "completion_i": "text",
        "completion_j": "text",
        "model_i": "text",
        "model_j": "text",
        "better": "text",
        "weight": "number",
        "labeler": "text",
        "cohort": "text",
        "fold": "whole",
    },
    "pairs": {"prompt": "text", "chosen": "text", "rejected": "text", "ranking": "text", "labeler": "text"},
    "ratings": {
        "ranking": "text",
        "prompt_id": "text",
        "prompt": "text",
        "completion": "text",
        "model": "text",
        "rating": "whole",
        "labels": "labels",
        "unanswered": "texts",
        "note": "text",
        "rank": "whole",
        "labeler": "text",
        "cohort": "text",
        "fold": "whole",
        "created_at": "whole",
    },
    "reviews": _PROMPT_COLUMNS
    | {
        "reviewed_use_case": "text",
        "personal_data": "truth",
        "sensitive": "truth",
        "prompt_labels": "prompt labels",
        "rejected": "text",
    }
    | _PROVENANCE_COLUMNS,
}
"""The columns of every file in their order, and what kind of value each holds."""


def write_export(
    database: Database,
    out: Path,
    export_filter: ExportFilter,
    format: ExportFormat = "jsonl",
    file_names: Iterable[ExportFileName] = tuple(EXPORT_FILES),
    card: str = "",
) -> dict[str, Any]:
    """Write an export into a folder that is not there yet. Returns its manifest.

    Args:
        format: `datasets` is Parquet with a card (`card` is what it says below its table of contents).
        names: which files; one that would be empty is not written, only counted.

    Raises:
        BadInput: the folder is taken or cannot be written, a batch does not exist, or there is nothing to export.
    """
    with atomic_directory(out) as folder:
        if format == "datasets":
            (folder / "data").mkdir()
        with snapshot(database) as db:
            manifest = _write_all(db, folder, export_filter, format, file_names)
        if format == "datasets":
            (folder / "README.md").write_text(_card_front_matter(manifest) + card, encoding="utf-8")
        (folder / "manifest.json").write_text(
            json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return manifest


def _write_all(
    db: Session, folder: Path, export_filter: ExportFilter, format: ExportFormat, file_names: Iterable[ExportFileName]
) -> dict[str, Any]:
    """Every file of an export, and the manifest."""
    files: dict[str, Any] = {}
    labelers: dict[str, set[str]] = {}
    for name in file_names:
        tally = ExportTally()
        path = folder / (
            f"{name}.jsonl"
            if format == "jsonl"
            else f"{name}.parquet"
            if format == "parquet"
            else f"data/{name}.parquet"
        )
        write = _write_jsonl if format == "jsonl" else _write_parquet
        write(path, name, iter_export_rows(db, name, export_filter, tally))
        file_entry = (
            {"file": str(path.relative_to(folder)), "sha256": sha256_file(path), "bytes": path.stat().st_size}
            if tally.rows
            else {}
        )
        if not tally.rows:
            path.unlink()
        files[name] = {"rows": tally.rows, "left_out": dict(sorted(tally.left_out.items()))} | file_entry
        for cohort, people in tally.labelers.items():
            labelers.setdefault(cohort, set()).update(people)
    if not any(entry["rows"] for entry in files.values()):
        reasons = {reason: count for entry in files.values() for reason, count in entry["left_out"].items()}
        reason_list = (
            ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items())) or "nothing was handed in yet"
        )
        raise InputError(f"nothing to export for {export_filter.use} ({reason_list})")
    return {
        "schema": _SCHEMA_VERSION,
        "instructgpt": __version__,
        "filter": export_filter.model_dump(mode="json"),
        "format": format,
        "labelers": {cohort: len(people) for cohort, people in sorted(labelers.items())},
        "instructions": _list_instruction_versions(db, export_filter),
        "files": files,
    }


def _list_instruction_versions(db: Session, export_filter: ExportFilter) -> list[dict[str, Any]]:
    """The versions of the instructions for a use."""
    versions = db.scalars(
        select(Instructions).where(Instructions.purpose == export_filter.use).order_by(Instructions.version)
    )
    return [
        {"purpose": each.purpose, "version": each.version, "sha256": hashlib.sha256(each.body.encode()).hexdigest()}
        for each in versions
    ]


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_jsonl(path: Path, name: ExportFileName, rows: Iterable[ExportRow]) -> None:
    """One row a line, columns in their order."""
    with path.open("wb") as stream:
        stream.writelines(line.encode("utf-8", "replace") for line in iter_export_jsonl(name, rows))
        stream.flush()
        os.fsync(stream.fileno())


def iter_export_jsonl(name: ExportFileName, rows: Iterable[ExportRow]) -> Iterator[str]:
    """Rows as JSON lines, columns in their order."""
    columns = EXPORT_COLUMNS[name]
    return (format_json_line({column: row[column] for column in columns if column in row}) for row in rows)


def _write_parquet(path: Path, name: ExportFileName, rows: Iterable[ExportRow]) -> None:
    """Rows as a Parquet file of that schema, in groups."""
    import pyarrow
    import pyarrow.parquet

    schema = _arrow_schema(name)
    rows = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := list(islice(rows, _PARQUET_ROW_GROUP_SIZE)):
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))


def _arrow_schema(name: ExportFileName) -> pyarrow.Schema:
    """The types of a file's columns. Labels are structures: a label nobody answered is empty there, and named in `unanswered`."""
    import pyarrow as pa

    from instructgpt.label.tasks.forms import PROMPT_LABELS

    labels = pa.struct([(label, pa.bool_()) for label in LABELS])
    arrow_types = {
        "text": pa.string(),
        "whole": pa.int64(),
        "number": pa.float64(),
        "truth": pa.bool_(),
        "texts": pa.list_(pa.string()),
        "wholes": pa.list_(pa.int64()),
        "texts of each": pa.list_(pa.list_(pa.string())),
        "labels": labels,
        "labels of each": pa.list_(labels),
        "prompt labels": pa.struct([(label, pa.bool_()) for label in PROMPT_LABELS]),
        "turns": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }
    return pa.schema([(column, arrow_types[type_name]) for column, type_name in EXPORT_COLUMNS[name].items()])


# ---------------------------------------------------------------- the card of a data set


def _card_front_matter(manifest: dict[str, Any]) -> str:
    """The head of a data set's card: which file is which configuration, and a table of what is there."""
    files = {name: entry for name, entry in manifest["files"].items() if entry["rows"]}
    configs = "".join(
        f"- config_name: {name}\n  data_files: {entry['file']}\n"
        + ("  default: true\n" if name == next(iter(files)) else "")
        for name, entry in files.items()
    )
    export_filter = manifest["filter"]
    table = "".join(
        f"| `{name}` | {entry['rows']:,} | {', '.join(f'{count} {why}' for why, count in entry['left_out'].items()) or 'none'} |\n"
        for name, entry in files.items()
    )
    cohorts = ", ".join(f"{count} {cohort}" for cohort, count in manifest["labelers"].items()) or "none"
    return (
        f"---\nconfigs:\n{configs}---\n"
        f"# Work of labelers, for {export_filter['use']}\n\n"
        f"Written by instructgpt {manifest['instructgpt']}, columns of version {manifest['schema']}. "
        f"Batches: {', '.join(export_filter['batches']) or 'all'}. Labelers: {cohorts}. They are named by pseudonyms.\n\n"
        f"| configuration | rows | left out |\n|---|---:|---|\n{table}\n"
        "A rank of 1 is best, equal ranks tie. A label that is empty was not applicable, unless `unanswered` names it.\n"
        "`manifest.json` has the filter, the counts and the SHA-256 of each file.\n"
    )
