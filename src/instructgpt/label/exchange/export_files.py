"""Exports as files: JSON lines, Parquet, or a folder for `datasets.load_dataset`, with a manifest of the contents.

The same database gives the same bytes. A folder is written atomically.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from sqlalchemy import select
from sqlalchemy.orm import Session

from instructgpt import __version__
from instructgpt.errors import InputError
from instructgpt.io import atomic_directory, format_json_line
from instructgpt.label.analysis.rankings import load_stored_rankings
from instructgpt.label.db.database import Database
from instructgpt.label.db.models.people import Instructions, Person
from instructgpt.label.db.models.tasks import Batch
from instructgpt.label.exchange.export_rows import EXPORT_FILES, ExportRow, iter_export_rows
from instructgpt.label.exchange.selection import ExportFilter, ExportTally, snapshot
from instructgpt.label.tasks.forms import PROMPT_LABELS
from instructgpt.label.tasks.instructions import get_latest_instructions
from instructgpt.label.tasks.questions import CONSTRAINT_QUESTION, LabelQuestion, load_own_questions
from instructgpt.label.vocabulary import ExportFileName, ExportFormat
from instructgpt.records import LABELS

if TYPE_CHECKING:
    import pyarrow

    from instructgpt.statistics.intervals import Estimate

_SCHEMA_VERSION = 1
"""Rises when a column changes its meaning."""
_PARQUET_ROW_GROUP_SIZE = 10_000


def _columns(*columns: str) -> dict[str, str]:
    """Parse "name:type" columns into name -> type; `_arrow_schema` defines the types."""
    return dict(column.split(":") for line in columns for column in line.split())


_PROMPT = "prompt:text messages:turns"
_PROVENANCE = (
    "id:text labeler:text cohort:text fold:int source:text batch:text task:text prompt_id:text user:text use_case:text",
    "split:text instructions:int gold:bool surplus:bool round:int note:text active_ms:int created_at:int",
)
EXPORT_COLUMNS: dict[ExportFileName, dict[str, str]] = {
    "rankings": _columns(
        f"{_PROMPT} completions:texts ranks:ints labeler:text cohort:text group:text fold:int",
        "models:texts finish:texts",
        "ratings:ints rating_points:int labels:label_list unanswered:text_lists answers:answers",
        "none_acceptable:bool confidence:int shown:ints names_itself:bool",
        *_PROVENANCE,
    ),
    "demonstrations": _columns(f"{_PROMPT} completion:text", *_PROVENANCE),
    "prompts": _columns(
        f"id:text {_PROMPT} user:text source:text use_case:text split:text sensitive:bool labeler:text created_at:int"
    ),
    "comparisons": _columns(
        "ranking:text prompt_id:text prompt:text i:int j:int completion_i:text completion_j:text model_i:text",
        "model_j:text better:text weight:float labeler:text cohort:text fold:int",
    ),
    "pairs": _columns("prompt:text chosen:text rejected:text ranking:text labeler:text"),
    "ratings": _columns(
        "ranking:text prompt_id:text prompt:text completion:text model:text rating:int rating_points:int labels:labels",
        "unanswered:texts note:text rank:int labeler:text cohort:text fold:int created_at:int",
    ),
    "reviews": _columns(
        f"{_PROMPT} reviewed_use_case:text personal_data:bool sensitive:bool prompt_labels:prompt_labels rejected:text",
        *_PROVENANCE,
    ),
}
"""The columns of each file in their order, with their types."""


def write_export(
    database: Database,
    out: Path,
    export_filter: ExportFilter,
    format: ExportFormat = "jsonl",
    file_names: Iterable[ExportFileName] = tuple(EXPORT_FILES),
    card: str = "",
) -> dict[str, Any]:
    """Write an export into a new folder that only its owner can read, and return its manifest.

    Args:
        format: `datasets` is Parquet with a dataset card, to whose generated part `card` is appended.
        file_names: files to write; an empty one is counted in the manifest but not written.

    Raises:
        InputError: the folder exists or cannot be written, a batch does not exist, or there is nothing to export.
    """
    with atomic_directory(out, mode=0o700) as folder:
        if format == "datasets":
            (folder / "data").mkdir(mode=0o700)
        with snapshot(database) as db:
            manifest = _write_all(db, folder, export_filter, format, file_names)
        if format == "datasets":
            (folder / "README.md").write_text(_format_card_head(manifest) + card, encoding="utf-8")
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (folder / "manifest.json").write_text(text, encoding="utf-8")
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(0o600)
    return manifest


def _write_all(
    db: Session, folder: Path, export_filter: ExportFilter, format: ExportFormat, file_names: Iterable[ExportFileName]
) -> dict[str, Any]:
    files: dict[str, Any] = {}
    labelers: dict[str, set[str]] = {}
    path_template = {"jsonl": "{}.jsonl", "parquet": "{}.parquet", "datasets": "data/{}.parquet"}[format]
    write = _write_jsonl if format == "jsonl" else _write_parquet
    own_questions = load_own_questions(db)
    for name in file_names:
        tally, path = ExportTally(), folder / path_template.format(name)
        write(path, name, iter_export_rows(db, name, export_filter, tally), own_questions)
        files[name] = {"rows": tally.rows, "left_out": dict(sorted(tally.left_out.items()))}
        if tally.rows:
            file = str(path.relative_to(folder))
            files[name] |= {"file": file, "sha256": sha256_file(path), "bytes": path.stat().st_size}
        else:
            path.unlink()
        for cohort, people in tally.labelers.items():
            labelers.setdefault(cohort, set()).update(people)
    if not any(entry["rows"] for entry in files.values()):
        reasons = {reason: count for entry in files.values() for reason, count in entry["left_out"].items()}
        reason_list = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise InputError(f"nothing to export for {export_filter.use} ({reason_list or 'there are no submissions yet'})")
    return {
        "schema": _SCHEMA_VERSION,
        "instructgpt": __version__,
        "filter": export_filter.model_dump(mode="json"),
        "format": format,
        "labelers": {cohort: len(people) for cohort, people in sorted(labelers.items())},
        "instructions": _list_instruction_versions(db, export_filter),
        "questions": {name: question.text for name, question in own_questions.items()},
        "files": files,
    }


def _list_instruction_versions(db: Session, export_filter: ExportFilter) -> list[dict[str, Any]]:
    statement = select(Instructions).where(Instructions.purpose == export_filter.use).order_by(Instructions.version)
    return [
        {"purpose": row.purpose, "version": row.version, "sha256": hashlib.sha256(row.body.encode()).hexdigest()}
        for row in db.scalars(statement)
    ]


def sha256_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_jsonl(path: Path, name: ExportFileName, rows: Iterable[ExportRow], _: Mapping[str, LabelQuestion]) -> None:
    with path.open("wb") as stream:
        stream.writelines(line.encode("utf-8", "replace") for line in iter_export_jsonl(name, rows))
        stream.flush()
        os.fsync(stream.fileno())


def iter_export_jsonl(name: ExportFileName, rows: Iterable[ExportRow]) -> Iterator[str]:
    """Yield rows as JSON lines with their columns in the order of EXPORT_COLUMNS."""
    columns = EXPORT_COLUMNS[name]
    return (format_json_line({column: row[column] for column in columns if column in row}) for row in rows)


def _write_parquet(
    path: Path, name: ExportFileName, rows: Iterable[ExportRow], own_questions: Mapping[str, LabelQuestion]
) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = _arrow_schema(name, own_questions)
    rows = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while chunk := list(islice(rows, _PARQUET_ROW_GROUP_SIZE)):
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema))


def _arrow_schema(name: ExportFileName, own_questions: Mapping[str, LabelQuestion]) -> pyarrow.Schema:
    """Build the Arrow schema of a file. A struct of labels holds null for unanswered ones; `unanswered` names them."""
    import pyarrow as pa

    names_by_scope = {
        scope: [n for n, each in own_questions.items() if each.scope == scope] for scope in ("completion", "task")
    }
    labels = pa.struct([(label, pa.bool_()) for label in (*LABELS, *names_by_scope["completion"])])
    answers = pa.struct([(label, pa.bool_()) for label in (CONSTRAINT_QUESTION, *names_by_scope["task"])])
    arrow_types = {
        "text": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "texts": pa.list_(pa.string()),
        "ints": pa.list_(pa.int64()),
        "text_lists": pa.list_(pa.list_(pa.string())),
        "labels": labels,
        "label_list": pa.list_(labels),
        "answers": answers,
        "prompt_labels": pa.struct([(label, pa.bool_()) for label in PROMPT_LABELS]),
        "turns": pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])),
    }
    return pa.schema([(column, arrow_types[kind]) for column, kind in EXPORT_COLUMNS[name].items()])


# ---------------------------------------------------------------- dataset card


def _format_card_head(manifest: dict[str, Any]) -> str:
    files = {name: entry for name, entry in manifest["files"].items() if entry["rows"]}
    configs: list[dict[str, Any]] = [{"config_name": name, "data_files": files[name]["file"]} for name in files]
    configs[0]["default"] = True
    export_filter = manifest["filter"]
    rows = (f"| `{name}` | {row['rows']:,} | {_format_counts(row['left_out'])} |\n" for name, row in files.items())
    cohorts = ", ".join(f"{count} {cohort}" for cohort, count in manifest["labelers"].items()) or "none"
    return (
        f"---\n{yaml.safe_dump({'configs': configs}, sort_keys=False)}---\n"
        f"# Labelers' work for {export_filter['use']}\n\n"
        f"Exported by instructgpt {manifest['instructgpt']}, schema version {manifest['schema']}. "
        f"Batches: {', '.join(export_filter['batches']) or 'all'}. Labelers: {cohorts}, named by pseudonyms.\n\n"
        f"| configuration | rows | left out |\n|---|---:|---|\n{''.join(rows)}\n"
        "Rank 1 is best; equal ranks tie. A null label was not applicable, unless `unanswered` names it.\n"
        "`manifest.json` has the filter, the counts and the SHA-256 of each file.\n"
    )


def format_card_body(database: Database, export_filter: ExportFilter) -> str:
    """Return the card's sections: agreement by cohort under each treatment of ties, and the labelers' instructions."""
    from instructgpt.statistics.agreement import inter_labeler_agreement

    with snapshot(database) as db:
        statement = select(Batch.id).where(Batch.purpose == export_filter.use, Batch.screening.is_(None))
        if export_filter.batches:
            statement = statement.where(Batch.name.in_(export_filter.batches))
        batch_ids = set(db.scalars(statement))
        rankings = [row for batch in sorted(batch_ids) for row in load_stored_rankings(db, batch)]
        cohorts = sorted({cohort for cohort in db.scalars(select(Person.cohort).distinct()) if cohort})
        instructions = get_latest_instructions(db, export_filter.use)
    lines = [
        "\n## Agreement\n\n",
        "| labelers | pairs | without ties | three answers | half credit | ties |\n|---|---:|---:|---:|---:|---:|\n",
    ]
    subsets = {"all": rankings} | {cohort: [row for row in rankings if row.cohort == cohort] for cohort in cohorts}
    for name, subset in subsets.items():
        agreement = inter_labeler_agreement(subset)
        pairs = agreement.concordant + agreement.discordant + agreement.one_tied + agreement.both_tied
        estimates = (agreement.decided, agreement.three_way, agreement.half_credit, agreement.tie_rate)
        lines.append(f"| {name} | {pairs:,} | {' | '.join(map(_format_percent, estimates))} |\n")
    lines.append("\nShares of pairs on which two labelers of a prompt agree, with 95 % intervals.\n")
    if instructions is not None and instructions.body:
        lines.append(f"\n## Instructions for {export_filter.use} (version {instructions.version})\n\n")
        lines += [f"> {line}\n" for line in instructions.body.splitlines()]
    return "".join(lines)


def _format_counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _format_percent(estimate: Estimate) -> str:
    if estimate.value is None:
        return "–"
    value = f"{100 * estimate.value:.1f} %"
    if estimate.low is None or estimate.high is None:
        return value
    interval = f"{100 * estimate.low:.1f}–{100 * estimate.high:.1f}"
    return f"{value} ({interval}; {estimate.caution})" if estimate.caution else f"{value} ({interval})"
