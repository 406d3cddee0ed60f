"""A file of records that is written block by block, and resumed after a kill.

Records go to `OUT.part`, whose first line says what they are made from. When all are there, they become OUT. A block is
written whole or computed again, so a resumed file equals an undisturbed one also where a result depends, in the last
bits, on what is computed together with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from instructgpt.errors import InputError
from instructgpt.io import format_json_line, translate_write_errors, write_text_atomic
from instructgpt.records import Record
from instructgpt.run.directory import console

_HEADER_START = b'{"unfinished": 1, '
"""Start of the first line of a part file; the number is that of the format."""


def hash_records(records: Iterable[Record]) -> str:
    """Return a hash that detects changed inputs, also of inputs that can be read only once."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(format_json_line(record.to_dict()).encode())
    return digest.hexdigest()


class ResumableFile:
    """Records on their way to a file. Use it within `open_resumable_file`."""

    def __init__(self, out: Path, stream: IO[bytes], count: int, block: int) -> None:
        self.out, self._stream = out, stream
        self.count = count
        """Records written so far."""
        self.block = block
        """Records per block."""

    def append(self, records: Iterable[Record]) -> None:
        """Append one block; it is on the disk when this returns."""
        lines = [format_json_line(record.to_dict()) for record in records]
        with translate_write_errors(self.out):
            self._stream.write("".join(lines).encode("utf-8", "replace"))
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self.count += len(lines)

    def finish(self) -> None:
        """Turn the part file into the output file, compressed where its name ends in .gz."""
        part = part_path(self.out)
        with part.open(encoding="utf-8", newline="\n") as lines:
            next(lines)  # what the records are made from
            write_text_atomic(self.out, lines)
        part.unlink()


def part_path(out: Path) -> Path:
    """Return where the records are until all of them are there."""
    return out.with_name(f"{out.name}.part")


@contextmanager
def open_resumable_file(
    out: Path, made_from: Mapping[str, Any], block: int, *, resume: bool
) -> Iterator[ResumableFile]:
    """Open the part file of `out`, at the end of its last whole block if it was left by a killed command.

    Args:
        made_from: options and hashes of inputs, as JSON: everything that a record depends on.
        block: records per block, where nothing is there yet.

    Raises:
        InputError: the part file is made from something else, or another command is writing it.
    """
    part = part_path(out)
    with translate_write_errors(out):
        part.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    with part.open("r+b") as stream:
        _lock(stream, part)
        count = 0
        header = _read_header(stream)
        if header is not None and resume:
            _check_same_source(header["made_from"], json.loads(json.dumps(made_from)), part)
            block = header["block"]
            count = _keep_whole_blocks(stream, block)
            if count:
                console.print(f"resuming: {count} records are in {part}", markup=False, soft_wrap=True)
        else:
            stream.truncate(0)
            stream.seek(0)
            stream.write(_HEADER_START + json.dumps({"block": block, "made_from": made_from})[1:].encode() + b"\n")
            stream.flush()
        yield ResumableFile(out, stream, count, block)


def _lock(stream: IO[bytes], part: Path) -> None:
    with suppress(OSError):  # file systems without locks accept every command
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{part}: another command is writing it; wait for it, or choose another --out") from None


def _read_header(stream: IO[bytes]) -> dict[str, Any] | None:
    """Return the first line of a part file, or None if a kill tore it. Raise InputError for a file of another kind."""
    line = stream.readline()
    if not line.startswith(_HEADER_START) and not _HEADER_START.startswith(line):
        raise InputError(f"{stream.name}: is not an unfinished file of this command; move it away")
    return json.loads(line) if line.endswith(b"\n") else None


def _check_same_source(before: Mapping[str, Any], now: Mapping[str, Any], part: Path) -> None:
    for name in (*now, *before):
        if before.get(name) != now.get(name):
            change = f"({before.get(name)}, now {now.get(name)})" if len(str(before.get(name))) < 40 else ""
            raise InputError(
                f"{part}: is unfinished and was made with another {name.replace('_', '-')} {change}".rstrip()
                + "; use that one, or start again with --no-resume"
            )


def _keep_whole_blocks(stream: IO[bytes], block: int) -> int:
    """Cut off what follows the last whole block, leave the position there, and return the number of records."""
    count, end = 0, stream.tell()
    position = end
    lines = 0
    while line := stream.readline():
        if not line.endswith(b"\n"):
            break
        lines, position = lines + 1, position + len(line)
        if lines % block == 0:
            count, end = lines, position
    stream.truncate(end)
    stream.seek(end)
    return count
