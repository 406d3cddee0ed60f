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
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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


def iter_rows(path: Path | str, skipped: SkippedLines | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (location, JSON object) for every row of a file.

    Args:
        path: .jsonl; .csv or .tsv with a header; .txt (one document); .parquet; name or directory of a Hugging Face
            dataset. Any other file holds one object per line or one list of objects. All but Parquet may be gzipped.
        skipped: collects bad lines if it allows skipping; otherwise the first bad line is an error.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz")
    if name.endswith(".txt"):
        yield str(path), {"text": _read_text(path).strip("\n")}
    elif name.endswith((".csv", ".tsv")):
        yield from _iter_table_rows(path, skipped)
    elif path.suffix == ".parquet" or not (_is_readable_file(path) or name.endswith((".jsonl", ".json"))):
        for row_number, row in enumerate(_iter_dataset_rows(path), 1):
            yield f"{path}: row {row_number}", json.loads(json.dumps(row, default=str), parse_constant=_parse_constant)
    elif not name.endswith(".jsonl") and next(iter_lines(path), (0, ""))[1].lstrip().startswith("["):
        yield from _iter_list_items(path, skipped)
    else:
        for row_number, line in iter_lines(path):
            try:
                row = parse_json_object(line)
            except ValueError as error:
                skip_or_raise(f"{path}:{row_number}", error, skipped)
            else:
                yield f"{path}:{row_number}", row


def iter_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, line) of a text file, plain or gzipped, without blank lines and byte order mark.

    Only a line feed ends a line; U+2028 inside a string does not.

    Raises:
        InputError: the file is missing, not UTF-8, or a corrupt gzip file.
    """
    line_number = 0
    try:
        with _open_decompressed(path) as file:
            for line_number, raw_line in enumerate(file, 1):
                line = (raw_line.removeprefix(codecs.BOM_UTF8) if line_number == 1 else raw_line).decode("utf-8")
                if line.strip():
                    yield line_number, line
    except UnicodeDecodeError as error:
        raise InputError(f"{path}:{line_number}: not UTF-8 text ({error.reason}); convert the file to UTF-8") from error
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}:{line_number + 1}: cannot be read ({error})") from error


def parse_json_object(line: str) -> dict[str, Any]:
    """Parse one JSON line. Lone surrogates become U+FFFD, NaN becomes None.

    Raises:
        ValueError: the line is not a JSON object; one line with what was found and what was expected.
    """
    try:
        row = json.loads(line, parse_constant=_parse_constant)
        if _SURROGATE_ESCAPE.search(line):
            row = _replace_surrogates(row)
    except json.JSONDecodeError as error:
        is_truncated = error.msg.startswith("Unterminated") or error.pos >= len(line.rstrip())
        problem = f"{error.msg} at column {error.colno}" + (": the line is truncated" if is_truncated else "")
        raise ValueError(f"not valid JSON ({problem}); expected one JSON object per line") from error
    except RecursionError as error:
        raise ValueError("nested too deeply; expected one JSON object per line") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def _read_text(path: Path) -> str:
    for _ in iter_lines(path):
        pass  # raises with the number of the first line that is not UTF-8
    with _open_decompressed(path) as file:
        text: str = file.read().removeprefix(codecs.BOM_UTF8).decode("utf-8")
    return text.replace("\r\n", "\n")


def _iter_list_items(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        items = _replace_surrogates(json.loads(_read_text(path), parse_constant=_parse_constant))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); expected a list of objects") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {error}") from error
    for item_number, item in enumerate(items, 1):
        if isinstance(item, dict):
            yield f"{path}: item {item_number}", item
        else:
            problem = ValueError(f"expected a JSON object, found {type(item).__name__}")
            skip_or_raise(f"{path}: item {item_number}", problem, skipped)


def _iter_table_rows(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows whose cells are text. A .csv is split at commas or semicolons, whichever the header has more of."""
    text = _read_text(path)
    header = text.partition("\n")[0]
    delimiter = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else max(",;", key=header.count)
    csv.field_size_limit(2**31 - 1)  # the default limit of a cell is 128 KiB
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            location = f"{path}:{reader.line_num}"
            row.pop("", None)  # the unnamed index column of a data frame
            if None in row:  # DictReader's key for surplus cells
                columns = len(reader.fieldnames or ())
                skip_or_raise(location, ValueError(f"more cells than the {columns} columns; quote the text"), skipped)
            elif None in row.values():
                problem = ValueError("fewer cells than columns; is the file truncated?")
                skip_or_raise(location, problem, skipped)
            else:
                yield location, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not a valid table ({error}); is the file truncated?") from error


def is_missing_path(name: Path | str) -> bool:
    """Return whether a name can only be a local path, and nothing is there: the hub need not be asked.

    Names of the hub are `name` or `owner/name`; where a folder `owner` exists here, a file in it is meant.
    """
    path = Path(name)
    if path.exists():
        return False
    is_local = path.is_absolute() or str(name).startswith((".", "~")) or len(path.parts) > 2
    return is_local or (len(path.parts) == 2 and path.parent.is_dir())


def _iter_dataset_rows(path: Path) -> Iterator[dict[str, Any]]:
    if is_missing_path(path) or (len(path.parts) == 1 and path.suffix and not path.exists()):
        raise InputError(f"{path}: no such file or directory")
    import datasets

    datasets.disable_progress_bars()
    try:
        if path.suffix == ".parquet":
            dataset = datasets.load_dataset("parquet", data_files=str(path), split="train")
        elif path.is_dir() and (path / "dataset_dict.json").exists():
            dataset = datasets.load_from_disk(str(path))["train"]
        elif path.is_dir() and (path / "dataset_info.json").exists():
            dataset = datasets.load_from_disk(str(path))
        else:
            dataset = datasets.load_dataset(str(path), split="train")
    except Exception as error:  # datasets raises a dozen unrelated types
        raise InputError(
            f"{path}: neither a JSON-lines, CSV, text or Parquet file nor a dataset that loads "
            f"({type(error).__name__}: {one_line(error, 300)})"
        ) from error
    for row in dataset:
        yield {key: value for key, value in row.items() if value is not None}


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
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def _replace_surrogates(value: Any) -> Any:
    """Replace lone surrogates by U+FFFD: UTF-8 cannot encode them and tokenizers reject them."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace_surrogates(item) for key, item in value.items()}
    return value


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
