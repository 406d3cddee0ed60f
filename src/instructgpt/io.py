"""Text, JSON lines and data sets in and out of files, below any kind of record. No torch.

Reading takes what real files hold: gzip whatever the name says, a byte order mark, Windows line ends, U+2028 inside strings, lone
surrogates. Writing is all or nothing, and the same rows are the same bytes.
"""

from __future__ import annotations

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
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from instructgpt.errors import InputError, RunError, one_line


class SkippedLines:
    """Whether bad lines are left out (--skip-bad), and which were, so that the count can be shown at the end."""

    def __init__(self, allowed: bool = True) -> None:
        self.allowed = allowed
        self.reasons: list[str] = []


def skip_or_raise(location: str, error: ValueError, skipped: SkippedLines | None) -> None:
    """Note a bad line where such lines may be skipped; raise BadInput where they may not."""
    if skipped is None or not skipped.allowed:
        raise InputError(f"{location}: {error} (--skip-bad goes on without such lines)") from error
    skipped.reasons.append(f"{location}: {error}")


def iter_rows(path: Path | str, skipped: SkippedLines | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, JSON object) of everything in a file, before it is any kind of record.

    Args:
        path: .jsonl; .csv or .tsv with a header; .txt (one document); .parquet; the name or directory of a Hugging Face data set.
            Any other file holds one object a line, or one list of objects. All but Parquet may be gzipped.
        skipped: where it allows it, bad lines are noted there and left out; otherwise the first one is an error.

    Raises:
        BadInput: the file cannot be read, or a line is not a JSON object.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz")
    if name.endswith(".txt"):
        yield str(path), {"text": _read_text(path).strip("\n")}
    elif name.endswith((".csv", ".tsv")):
        yield from _iter_table_rows(path, skipped)
    elif path.suffix == ".parquet" or not (path.is_file() or name.endswith((".jsonl", ".json"))):
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
    """The lines of a text file, plain or gzipped, numbered from 1; lines of white space are left out.

    Only a line feed ends a line (U+2028 inside a string does not); a byte order mark at the start is not text.

    Raises:
        BadInput: the file is missing, is not UTF-8 text, or is a damaged gzip file.
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
    """One JSON line as an object. Lone surrogates become U+FFFD, NaN becomes null.

    Raises:
        ValueError: in one line, what is wrong and what was expected.
    """
    try:
        row = json.loads(line, parse_constant=_parse_constant)
        if _SURROGATE_ESCAPE.search(line):
            row = _replace_surrogates(row)
    except json.JSONDecodeError as error:
        is_truncated = error.msg.startswith("Unterminated") or error.pos >= len(line.rstrip())
        problem = f"{error.msg} at column {error.colno}" + (": the line is cut off" if is_truncated else "")
        raise ValueError(f"not valid JSON ({problem}); expected one JSON object a line") from error
    except RecursionError as error:
        raise ValueError("nested too deeply; expected one JSON object a line") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    return row


def _read_text(path: Path) -> str:
    """A whole text file, its line ends as line feeds. Raises BadInput as `read_lines` does."""
    for _ in iter_lines(path):
        pass  # finds the first line that is not UTF-8, so that it can be named
    with _open_decompressed(path) as file:
        text: str = file.read().removeprefix(codecs.BOM_UTF8).decode("utf-8")
    return text.replace("\r\n", "\n")


def _iter_list_items(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file that is one JSON list, as data sets with a .json name often are."""
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
            skip_or_raise(
                f"{path}: item {item_number}",
                ValueError(f"expected a JSON object, found {type(item).__name__}"),
                skipped,
            )


def _iter_table_rows(path: Path, skipped: SkippedLines | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table with a header; every cell is text. Of commas and semicolons those divide a .csv of which the header has more."""
    text = _read_text(path)
    header = text.partition("\n")[0]
    delimiter = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else max(",;", key=header.count)
    csv.field_size_limit(2**31 - 1)  # a text may be longer than the library's 128 KiB
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            location = f"{path}:{reader.line_num}"
            row.pop("", None)  # the numbers that data frames write in front
            if None in row:
                skip_or_raise(
                    location,
                    ValueError(f"more cells than the header's {len(reader.fieldnames or ())}; put texts into quotes"),
                    skipped,
                )
            elif None in row.values():
                skip_or_raise(
                    location, ValueError("fewer cells than the header has columns; is the file cut off?"), skipped
                )
            else:
                yield location, row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not a table ({error}); is the file cut off?") from error


def _iter_dataset_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a Parquet file, or of a Hugging Face data set on disk or on the hub."""
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
    except Exception as error:  # the library raises a dozen unrelated kinds
        raise InputError(
            f"{path}: neither a JSON-lines, CSV, text or Parquet file nor a data set that loads "
            f"({type(error).__name__}: {one_line(error, 300)})"
        ) from error
    for row in dataset:
        yield {key: value for key, value in row.items() if value is not None}


def _open_decompressed(path: Path) -> gzip.GzipFile | Any:
    """A file's bytes, unpacked where its first two bytes say gzip, whatever its name."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a file")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with path.open("rb") as file:
        is_gzipped = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if is_gzipped else path.open("rb")


_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def _replace_surrogates(value: Any) -> Any:
    """Half a surrogate pair is no character: no UTF-8 file can hold it and no tokenizer takes it. It becomes U+FFFD."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_replace_surrogates(item) for item in value]
    return (
        {_replace_surrogates(key): _replace_surrogates(item) for key, item in value.items()}
        if isinstance(value, dict)
        else value
    )


def _parse_constant(name: str) -> None:
    """NaN is how data frames write a missing value; the infinities mean nothing here."""
    if name != "NaN":
        raise ValueError(f"not valid JSON ({name} is not a number there); expected one JSON object a line")


_UNSAFE_CHARACTERS = re.compile("[\ud800-\udfff\u2028\u2029\x85]")


def format_json_line(row: dict[str, Any]) -> str:
    """An object as one line of UTF-8 JSON; what other programs take for a line end is escaped, lone surrogates become U+FFFD.

    Raises:
        ValueError: a number in it is not finite, which JSON cannot say.
    """
    line = json.dumps(row, ensure_ascii=False, allow_nan=False)
    return (
        _UNSAFE_CHARACTERS.sub(
            lambda match: "\ufffd" if "\ud800" <= match[0] <= "\udfff" else f"\\u{ord(match[0]):04x}", line
        )
        + "\n"
    )


def write_text_atomic(path: Path, chunks: str | Iterable[str]) -> None:
    """Write a text file so that it is either whole or not there: beside its place first, then renamed.

    Raises:
        BadInput: the place cannot be written to (no permission, a file where a folder should be).
        RunFailed: no space is left on the disk.
    """
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.part")
    pieces = [chunks] if isinstance(chunks, str) else chunks
    with translate_write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial_path.open("wb") as raw:
                # No name and no time in the gzip header: the same records are the same bytes.
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
    """Refuse a place where a run cannot be made, before anything is computed.

    Raises:
        BadInput: it is a file, lies in a place that cannot be written to, or holds other things.
    """
    if directory.is_dir():
        if any(not entry.name.startswith(".") for entry in directory.iterdir()):
            raise InputError(f"--out {directory}: is not empty and holds no run; choose another --out")
    elif directory.exists():
        raise InputError(f"--out {directory}: is a file, expected a folder; choose another --out")
    check_writable(directory)


@contextlib.contextmanager
def atomic_directory(out: Path, mode: int = 0o777) -> Iterator[Path]:
    """A folder that is written beside its place and moved in at the end: it is whole or not there.

    Raises:
        BadInput: the place is taken or cannot be written.
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
    """Refuse a place where a file cannot be written, before anything is computed.

    Raises:
        BadInput: it is a folder, or lies in a place that cannot be written to.
    """
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder, expected the name of a file")
    check_writable(path)


def check_writable(path: Path) -> None:
    """Refuse a place in which nothing can be written, before anything is computed.

    Raises:
        BadInput: it lies under a file, or in a folder that cannot be written to.
    """
    existing_parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing_parent.is_dir():
        raise InputError(f"--out {path}: {existing_parent} is not a folder; choose another --out")
    if not os.access(existing_parent, os.W_OK | os.X_OK):
        raise InputError(f"--out {path}: nothing can be written in {existing_parent}; choose another --out")


@contextlib.contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """What goes wrong while something is written, in one line, whichever library met it.

    Raises:
        RunFailed: the disk is full.
        BadInput: the place cannot be written to.
    """
    try:
        yield
    except Exception as error:
        if _is_disk_full(error):
            raise RunError(f"{path}: no space left on the disk; make room and give the same command again") from error
        if isinstance(error, OSError):
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
        raise


def _is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: torch raises its own on top, safetensors and tokenizers say it in words."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or f"(os error {errno.ENOSPC})" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def serialize_safetensors_header(header: Mapping[str, Any]) -> bytes:
    """What stands before the numbers in a safetensors file: eight bytes of length, and JSON with blanks up to a multiple of eight."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
