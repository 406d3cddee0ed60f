"""Read and write text, JSON lines, tables and data sets. Knows no record types and imports no torch.

Readers accept gzip under any name, byte order marks, CRLF, U+2028 inside strings and lone surrogates.
Writers are atomic and deterministic: equal rows give equal bytes.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import csv
import errno
import gzip
import io
import json
import math
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from instructgpt.errors import InputError, RunError, one_line


class SkippedLines:
    """Bad lines that were skipped, if `allowed`: of a command with --skip-bad."""

    def __init__(self, allowed: bool = True) -> None:
        self.allowed = allowed
        self.reasons: list[str] = []


def skip_or_raise(location: str, error: Exception, skipped: SkippedLines | None) -> None:
    """Record a bad line if skipping is allowed, else raise InputError. Only a command that could skip advises it."""
    if skipped is None:
        raise InputError(f"{location}: {error}") from error
    if not skipped.allowed:
        raise InputError(f"{location}: {error} (--skip-bad skips bad lines)") from error
    skipped.reasons.append(f"{location}: {error}")


def iter_rows(
    path: Path | str, skipped: SkippedLines | None = None, split: str | None = None, *, keep_nulls: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (location, JSON object) for every row of a file.

    Args:
        path: .jsonl; .csv or .tsv with a header; .txt (one document); .parquet; name or directory of a Hugging Face
            dataset. Any other file holds one object per line or one list of objects. All but Parquet may be gzipped.
        skipped: collects bad lines if it allows skipping; otherwise the first bad line is an error.
        split: split of a dataset; "train" if not set.
        keep_nulls: keep columns of datasets whose value is null; JSON lines always keep them.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz")
    is_dataset = not (_is_readable_file(path) or name.endswith((".txt", ".csv", ".tsv", ".parquet", ".jsonl", ".json")))
    if split is not None and not is_dataset:
        raise InputError(f"--split {split}: {path} is one file; only data sets and their directories have splits")
    if name.endswith(".txt"):
        yield str(path), {"text": _read_text(path).strip("\n")}
    elif name.endswith((".csv", ".tsv")):
        yield from _iter_table_rows(path, skipped)
    elif path.suffix == ".parquet" or is_dataset:
        raw_rows = _iter_dataset_rows(path, split) if is_dataset else _iter_parquet_rows(path)
        for row_number, raw_row in enumerate(raw_rows, 1):
            location = f"{path}: row {row_number}"
            try:
                row = {key: to_json_value(value, key) for key, value in raw_row.items()}
            except ValueError as error:
                skip_or_raise(location, error, skipped)
            else:
                yield location, row if keep_nulls else {key: item for key, item in row.items() if item is not None}
    elif not name.endswith(".jsonl") and _holds_list(path):
        yield from _iter_list_items(path, skipped)
    else:
        for row_number, line in iter_lines(path, skipped):
            try:
                row = parse_json_object(line)
            except ValueError as error:
                skip_or_raise(f"{path}:{row_number}", error, skipped)
            else:
                yield f"{path}:{row_number}", row


def iter_lines(path: Path, skipped: SkippedLines | None = None) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) of a text file, plain or gzipped, without blank lines and byte order mark.

    Only a line feed ends a line; U+2028 inside a string does not.

    Raises:
        InputError: the file is missing, a corrupt gzip file, or has a line that is not UTF-8 and may not be skipped.
    """
    line_number = 0
    try:
        with _open_decompressed(path) as file:
            for line_number, raw_line in enumerate(file, 1):
                line = _decode_line(raw_line, f"{path}:{line_number}", skipped)
                if line_number == 1:
                    line = line.removeprefix("\ufeff")
                if line.strip():
                    yield line_number, line
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}:{line_number + 1}: cannot be read ({error})") from error


def _decode_line(raw_line: bytes, location: str, skipped: SkippedLines | None) -> str:
    """Return a line as text; one that is not UTF-8 is skipped as blank, or an InputError."""
    try:
        return raw_line.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text ({error.reason}); convert the file to UTF-8"
        if skipped is None:
            raise InputError(f"{location}: {problem}") from error
        skip_or_raise(location, ValueError(problem), skipped)
        return ""


def parse_json_object(line: str) -> dict[str, Any]:
    """Parse one JSON line. Lone surrogates become U+FFFD, NaN becomes None.

    Raises:
        ValueError: the line is not a JSON object; one line with what was found and what was expected.
    """
    try:
        row = json.loads(line, parse_constant=_parse_constant)
        if _NEEDS_NORMALIZATION.search(line) or line.count("[") + line.count("{") > _MAX_DEPTH:
            row = to_json_value(row)
    except json.JSONDecodeError as error:
        is_truncated = error.msg.startswith("Unterminated") or error.pos >= len(line.rstrip())
        problem = f"{error.msg} at column {error.colno}" + (": the line is truncated" if is_truncated else "")
        raise ValueError(f"not valid JSON ({problem}); expected one JSON object per line") from error
    except RecursionError as error:
        raise ValueError(f"{_TOO_DEEP}; expected one JSON object per line") from error
    except ValueError as error:
        if "digits" in str(error):  # Python reads integers of up to 4300 digits
            raise ValueError("a number has too many digits; expected one JSON object per line") from error
        raise
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def _holds_list(path: Path) -> bool:
    """Return whether the first line that is not blank begins a JSON list."""
    with contextlib.suppress(EOFError, zlib.error, OSError), _open_decompressed(path) as file:
        for raw_line in file:
            if content := raw_line.removeprefix(codecs.BOM_UTF8).strip():
                return bool(content.startswith(b"["))
    return False  # also for a damaged file, which the reading that follows reports


def _read_text(path: Path) -> str:
    for _ in iter_lines(path):
        pass  # raises with the number of the first line that is not UTF-8
    return _read_escaped_text(path)


def _read_escaped_text(path: Path) -> str:
    """Return a file's text; bytes that are not UTF-8 become lone surrogates, so that only their row is bad."""
    try:
        with _open_decompressed(path) as file:
            text: str = file.read().removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return text.replace("\r\n", "\n")


_NOT_UTF8 = "not UTF-8 text; convert the file to UTF-8"
_JSON_SPACE = re.compile(r"[ \t\n\r]*")


def _iter_list_items(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the items of a JSON list one by one: damage costs the items behind it, not those before."""
    text, decoder, item_number, position = _read_escaped_text(path), json.JSONDecoder(), 0, 0

    def skip_space(start: int) -> int:
        match = _JSON_SPACE.match(text, start)
        return match.end() if match else start

    def next_token(start: int, expected: str) -> int:
        start = skip_space(start)
        if text[start : start + 1] not in tuple(expected):
            raise json.JSONDecodeError(f"Expecting {' or '.join(expected)}", text, start)
        return start

    position = skip_space(next_token(0, "[") + 1)
    while text[position : position + 1] != "]":
        item_number += 1
        location = f"{path}: item {item_number}"
        try:
            item, end = decoder.raw_decode(text, position)
            separator = next_token(end, ",]")
        except (ValueError, RecursionError) as error:
            line_number = text.count("\n", 0, getattr(error, "pos", position)) + 1
            problem = f"not valid JSON ({getattr(error, 'msg', error)}), so the list ends here"
            skip_or_raise(f"{path}:{line_number}", ValueError(f"{problem}; expected a list of objects"), skipped)
            return
        try:
            if _SURROGATE.search(text[position:end]):
                raise ValueError(_NOT_UTF8)
            item = to_json_value(item)
            if not isinstance(item, dict):
                raise ValueError(f"expected a JSON object, found {type(item).__name__}")
        except ValueError as error:
            skip_or_raise(location, error, skipped)
        else:
            yield location, item
        position = skip_space(separator + 1) if text[separator] == "," else separator
    if text[position + 1 :].strip():
        skip_or_raise(f"{path}: after item {item_number}", ValueError("not valid JSON (text after the list)"), skipped)


def _iter_table_rows(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows whose cells are text. A .csv is split at commas or semicolons, whichever the header has more of."""
    text = _read_escaped_text(path)
    header = text.partition("\n")[0]
    delimiter = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else max(",;", key=header.count)
    csv.field_size_limit(2**31 - 1)  # the default limit of a cell is 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    line_number = 1
    while True:
        location = f"{path}:{line_number}"
        try:
            cells = next(reader)
            if columns is not None and cells:
                yield location, _parse_table_row(columns, cells)
        except StopIteration:
            return
        except (csv.Error, ValueError) as error:
            problem = f"not a valid table ({error}); is the file truncated?" if isinstance(error, csv.Error) else error
            if columns is None:
                raise InputError(f"{location}: {problem}") from error
            skip_or_raise(location, ValueError(problem), skipped)
        else:
            if columns is None and cells:
                columns = _parse_table_header(location, cells)
        line_number = reader.line_num + 1


def _parse_table_header(location: str, cells: list[str]) -> list[str]:
    repeated = {name for name in cells if name and cells.count(name) > 1}
    if repeated:
        raise InputError(f"{location}: columns named twice: {', '.join(sorted(repeated))}; rename one")
    if _SURROGATE.search("".join(cells)):
        raise InputError(f"{location}: {_NOT_UTF8}")
    return cells


def _parse_table_row(columns: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) > len(columns):
        raise ValueError(f"more cells than the {len(columns)} columns; quote the text")
    if len(cells) < len(columns):
        raise ValueError("fewer cells than columns; is the file truncated?")
    for name, cell in zip(columns, cells, strict=True):
        if _SURROGATE.search(cell):
            raise ValueError(f"column '{name}': {_NOT_UTF8}")
    # A column without a name is the index of a data frame.
    return {name: cell for name, cell in zip(columns, cells, strict=True) if name}


def _iter_parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows of a Parquet file. Binary cells stay bytes; the index of a data frame is left out."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    yield {key: value for key, value in row.items() if not key.startswith("__index_level_")}
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read ({one_line(error, 300)})") from error


def is_missing_path(name: Path | str) -> bool:
    """Return whether a name can only be a local path, and nothing is there: the hub need not be asked.

    Names of the hub are `name` or `owner/name`; where a folder `owner` exists here, a file in it is meant.
    """
    path = Path(name)
    if path.exists():
        return False
    is_local = path.is_absolute() or str(name).startswith((".", "~")) or len(path.parts) > 2
    return is_local or (len(path.parts) == 2 and path.parent.is_dir())


def list_splits(path: Path | str) -> tuple[str, ...]:
    """Return the splits of a dataset: a directory, or a hub name. None for a file, or a dataset without splits.

    Raises InputError if the directory is no dataset.
    """
    path = Path(path)
    return tuple(_load_splits(path)) if path.is_dir() or not path.exists() else ()


def _load_splits(path: Path) -> Mapping[str, Any]:
    """Load a dataset by its splits; one without splits has the name "". Raises InputError."""
    if is_missing_path(path) or (len(path.parts) == 1 and path.suffix and not path.exists()):
        raise InputError(f"{path}: no such file or directory")
    import datasets

    datasets.disable_progress_bars()
    try:
        if path.is_dir() and any((path / name).exists() for name in ("dataset_dict.json", "dataset_info.json")):
            dataset = datasets.load_from_disk(str(path))
        else:
            dataset = datasets.load_dataset(str(path))
    except Exception as error:  # datasets raises a dozen unrelated types
        raise InputError(
            f"{path}: neither a JSON-lines, CSV, text or Parquet file nor a dataset that loads "
            f"({type(error).__name__}: {one_line(error, 300)})"
        ) from error
    return dataset if isinstance(dataset, Mapping) else {"": dataset}


def _iter_dataset_rows(path: Path, split: str | None) -> Iterator[dict[str, Any]]:
    splits = _load_splits(path)
    if "" in splits:
        if split is not None:
            raise InputError(f"--split {split}: {path} has no splits")
        split = ""
    elif (split or "train") not in splits:
        wish = f"--split {split}: {path} has no such split" if split else f"{path}: has no split 'train'"
        raise InputError(f"{wish}; it has {', '.join(map(str, splits))}; name one with 'data import --split NAME'")
    yield from splits[split if split is not None else "train"]


def _open_decompressed(path: Path) -> gzip.GzipFile | Any:
    """Open a file's bytes, decompressed if the first two bytes are gzip's, whatever the name."""
    if path.is_dir():
        raise InputError(f"{path}: is a directory, expected a file")
    if path.is_fifo():
        path = _copy_pipe(path)
    if not path.is_file():
        raise InputError(f"{path}: {'is not a regular file' if path.exists() else 'no such file'}")
    with path.open("rb") as file:
        is_gzipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzipped else path.open("rb")


def _is_readable_file(path: Path) -> bool:
    return path.exists() and not path.is_dir()


_pipe_copies: dict[tuple[int, int], Path] = {}


def _copy_pipe(path: Path) -> Path:
    """Return a temporary copy of a pipe, such as `<(zcat a.gz)`: files are read more than once, a pipe only once."""
    status = path.stat()
    key = (status.st_dev, status.st_ino)
    if key not in _pipe_copies:
        with path.open("rb") as pipe, tempfile.NamedTemporaryFile(prefix="instructgpt-", delete=False) as copy:
            atexit.register(Path(copy.name).unlink, missing_ok=True)
            shutil.copyfileobj(pipe, copy)
        _pipe_copies[key] = Path(copy.name)
    return _pipe_copies[key]


_SURROGATE = re.compile("[\ud800-\udfff]")
_NEEDS_NORMALIZATION = re.compile(r"\\u[dD][89a-fA-F]|\d[eE]\+?\d{3}")
"""A surrogate escape, or a number that may exceed a float."""

_MAX_DEPTH = 100
"""Levels of nesting; pydantic writes up to 255."""
_TOO_DEEP = f"nested too deeply (more than {_MAX_DEPTH} levels)"


def to_json_value(value: Any, column: str = "", depth: int = 0) -> Any:
    """Return a value of any data set as JSON: bytes as UTF-8 text, dates as ISO 8601, NaN as None.

    Lone surrogates become U+FFFD: UTF-8 cannot encode them and tokenizers reject them.

    Raises:
        ValueError: the value cannot be JSON; names the column.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"column '{column.partition('.')[0]}': {_TOO_DEEP}")
    match value:
        case str():
            return _SURROGATE.sub("\ufffd", value)
        case None | bool() | int():
            return value
        case float() | Decimal():
            if math.isnan(value):  # data frames write missing values so
                return None
            if math.isinf(value):
                raise ValueError(f"column '{column}': expected a finite number, found {value}")
            return float(value)
        case bytes():
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"column '{column}': binary data that is not UTF-8 text ({error.reason})") from error
        case Mapping():
            return {
                to_json_value(str(key)): to_json_value(item, f"{column}.{key}" if column else str(key), depth + 1)
                for key, item in value.items()
            }
        case list() | tuple():
            return [to_json_value(item, column, depth + 1) for item in value]
        case date() | time():
            return value.isoformat()
        case timedelta() | UUID():
            return str(value)
    raise ValueError(f"column '{column}': expected text, numbers, lists or objects, found {type(value).__name__}")


def _parse_constant(name: str) -> None:
    """Read NaN as None, since data frames write missing values as NaN; reject infinities."""
    if name != "NaN":
        raise ValueError(f"not valid JSON ({name} is not a JSON number); expected one JSON object per line")


_UNSAFE_CHARACTERS = re.compile("[\ud800-\udfff\u2028\u2029\x85]")


def format_json_line(row: dict[str, Any]) -> str:
    """Return an object as one JSON line. Unicode line separators are escaped, lone surrogates become U+FFFD.

    Raises:
        ValueError: a number is not finite, which JSON cannot express.
    """

    def escape(match: re.Match[str]) -> str:
        return "\ufffd" if "\ud800" <= match[0] <= "\udfff" else f"\\u{ord(match[0]):04x}"

    return _UNSAFE_CHARACTERS.sub(escape, json.dumps(row, ensure_ascii=False, allow_nan=False)) + "\n"


def write_text_atomic(path: Path, chunks: str | Iterable[str]) -> None:
    """Write a text file (gzip for .gz) to a temporary file beside it, fsync, then rename.

    Raises:
        InputError: the path cannot be written.
        RunError: the disk is full.
    """
    _check_no_dangling_link(path)
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.part")
    pieces = [chunks] if isinstance(chunks, str) else chunks
    with translate_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial_path.open("wb") as raw:
                # The gzip header holds no name and no time, so that equal records give equal bytes.
                compressed = gzip.GzipFile("", "wb", 6, raw, 0) if path.suffix == ".gz" else contextlib.nullcontext(raw)
                with compressed as file:
                    file.writelines(piece.encode("utf-8", "replace") for piece in pieces)
                raw.flush()
                os.fsync(raw.fileno())
            partial_path.replace(path)
        finally:
            with contextlib.suppress(OSError):
                partial_path.unlink(missing_ok=True)


def check_output_directory(directory: Path) -> None:
    """Raise InputError if a run cannot be created here: not writable, a file, or a directory that is not empty."""
    if directory.is_dir():
        if any(not entry.name.startswith(".") for entry in directory.iterdir()):
            raise InputError(f"--out {directory}: is not empty and is not a run directory; choose another --out")
    elif directory.exists():
        raise InputError(f"--out {directory}: is a file, expected a directory; choose another --out")
    check_writable(directory)


@contextlib.contextmanager
def atomic_directory(out: Path, mode: int = 0o777) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to `out` at the end, and removed on an error.

    Raises:
        InputError: `out` is not empty or cannot be written.
    """
    check_output_directory(out)
    partial_folder = out.with_name(f".{out.name}.{os.getpid()}.part")
    with translate_write_errors(out):
        try:
            partial_folder.mkdir(mode=mode, parents=True)
            yield partial_folder
            if out.is_dir():
                out.rmdir()
            partial_folder.replace(out)
        finally:
            shutil.rmtree(partial_folder, ignore_errors=True)


def check_output_file(path: Path) -> None:
    """Raise InputError if a file cannot be written here."""
    if path.is_dir():
        raise InputError(f"--out {path}: is a directory, expected a file name")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Raise InputError if nothing can be written here. Commands check this before they compute anything."""
    _check_no_dangling_link(path)
    existing_parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing_parent.is_dir():
        raise InputError(f"--out {path}: {existing_parent} is not a directory; choose another --out")
    if not os.access(existing_parent, os.W_OK | os.X_OK):
        raise InputError(f"--out {path}: {existing_parent} is not writable; choose another --out")


def _check_no_dangling_link(path: Path) -> None:
    for place in (path.absolute(), *path.absolute().parents):
        with contextlib.suppress(OSError):  # a name that is too long is no link
            if place.is_symlink() and not place.exists():
                target = f"{place} is a symbolic link to {place.readlink()}, which does not exist"
                raise InputError(f"{path}: {target}; create that or choose another place")


@contextlib.contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Translate write errors of any library into one line.

    Raises:
        RunError: the disk is full.
        InputError: the path cannot be written.
    """
    try:
        yield
    except Exception as error:
        if _is_disk_full(error):
            raise RunError(f"{path}: no space left on the disk; free some and run the same command again") from error
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
        raise


def _is_disk_full(error: BaseException | None) -> bool:
    """Search the chain of causes: torch wraps the OSError, safetensors and tokenizers only name it in the message."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"(os error {errno.ENOSPC})" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def serialize_safetensors_header(header: Mapping[str, Any]) -> bytes:
    """Return a safetensors header: eight bytes of length, then JSON padded with spaces to a multiple of eight."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
