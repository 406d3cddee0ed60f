"""Pretraining text tokenized once into a file that ranks and later runs map into memory.

The file is known by the hash of what it is made from: the text files, the tokenizer, the window and how many windows.
It holds the windows as int32, row after row, and nothing else; any file in the folder may be deleted. Processes that
need the same file at the same time wait for the first one. The same windows result as without a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instructgpt.data.pretraining_text import Corpus, document_start, iter_documents, iter_windows, join_windows
from instructgpt.data.tokenization import PromptTokenizer
from instructgpt.errors import one_line

CACHE_VARIABLE = "INSTRUCTGPT_CACHE"
"""The environment variable that names another folder than `~/.cache/instructgpt`."""
_FORMAT = 1
"""Raised when the same input gives other windows, so that old files are not used."""
_BYTES_PER_TOKEN = 4


def load_corpus(
    paths: Sequence[Path],
    tokenizer: PromptTokenizer,
    window: int,
    seed: int,
    max_windows: int,
    *,
    hashes: Mapping[str, str] | None = None,
    report: Callable[[str], object] = print,
) -> Corpus:
    """Return the windows of text files, mapped from the file that holds them, which is written where there is none.

    Args:
        paths: text files, directories of data sets, or hub names; with hub names nothing is kept.
        tokenizer: the model's.
        window: tokens of a window.
        seed: seed of the window order; it is not part of the file.
        max_windows: windows that the run needs at most.
        hashes: content hashes of paths that are known already.
        report: gets a message where a file is written, or cannot be.

    Raises:
        InputError: not even one window of text.
    """

    def build() -> Iterator[Tensor]:
        return iter_windows(iter_documents(paths), tokenizer, window, max_windows)

    start = document_start(tokenizer)
    if any(not (path.is_file() or path.is_dir()) for path in paths):
        return Corpus(join_windows(build()), start, seed)
    settings = {
        "format": _FORMAT,
        "texts": [(hashes or {}).get(str(path)) or _hash_path(path) for path in paths],
        "tokenizer": _hash_tokenizer(tokenizer),
        "window": window,
        "max_windows": max_windows,
    }
    name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    file = token_folder() / f"{name}.tokens"
    with ExitStack() as stack:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(file.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            is_missing = not file.exists()
        except OSError as error:
            report(f"pretraining text is tokenized into memory, {file.parent} cannot be used ({one_line(error, 100)})")
            return Corpus(join_windows(build()), start, seed)
        if is_missing:
            try:
                _write(file, build())
            except OSError as error:
                report(f"pretraining text is tokenized into memory, {file} cannot be written ({one_line(error, 100)})")
                return Corpus(join_windows(build()), start, seed)
            report(f"pretraining text is tokenized into {file} ({file.stat().st_size / 1e6:.1f} MB)")
    return Corpus(_map(file, window + 1), start, seed)


def token_folder() -> Path:
    """Return the folder of the files."""
    if folder := os.environ.get(CACHE_VARIABLE):
        return Path(folder) / "tokens"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "instructgpt" / "tokens"


def _write(file: Path, blocks: Iterable[Tensor]) -> None:
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as stream:
            for rows in blocks:
                stream.write(rows.numpy().astype("<i4").tobytes())
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def _map(file: Path, width: int) -> Tensor:
    # copy on write: torch wants writable memory, and nobody's writes reach the file
    rows = file.stat().st_size // (_BYTES_PER_TOKEN * width)
    return torch.from_numpy(np.memmap(file, dtype="<i4", mode="c", shape=(rows, width)))


def _hash_path(path: Path) -> str:
    """Return the sha256 of a file, or of the names and contents of all files of a directory."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _hash_tokenizer(tokenizer: PromptTokenizer) -> str:
    """Return the sha256 of what decides over the tokens of a text: the vocabulary and rules, and special tokens."""
    words = tokenizer.hf_tokenizer
    backend = getattr(words, "backend_tokenizer", None)
    if backend is None:
        rules = {"class": type(words).__name__, "vocabulary": words.get_vocab()}
    else:  # truncation and padding are set by calls, and change nothing here
        rules = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    special = [tokenizer.bos, tokenizer.eos]
    return hashlib.sha256(json.dumps([rules, special], sort_keys=True).encode()).hexdigest()
