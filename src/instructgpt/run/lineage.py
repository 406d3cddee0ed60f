"""What a run is made from: its input files by name, and the hashes that detect changes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path


def named_inputs(**kinds: Iterable[Path]) -> dict[str, Path | str]:
    """Return inputs by "kind name", or by "kind path" where two files of a kind have the same name."""
    files = [(kind, path) for kind, paths in kinds.items() for path in paths]
    name_counts = Counter((kind, path.name) for kind, path in files)
    return {f"{kind} {path if name_counts[kind, path.name] > 1 else path.name}": path for kind, path in files}


_MODEL_SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_MODEL_SUFFIXES_BEFORE = (".safetensors", ".json")
"""What `content_hash` read in runs of earlier versions."""


def content_hash(path: Path, suffixes: tuple[str, ...] = _MODEL_SUFFIXES) -> str:
    """Return the sha256 of a file, of a model directory, or of a hub model's name.

    Of a directory it covers weights, configurations, the tokenizer's files and the chat template.
    """
    digest = hashlib.sha256()
    if path.is_dir():
        hashed = (file for file in path.iterdir() if file.suffix in suffixes)
        files = sorted(file for file in hashed if file.name != "run.json")
    elif path.is_file():
        files = [path]
    else:
        digest.update(str(path).encode())
        files = []
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def is_unchanged(parent: Mapping[str, str], recorded_sha256: str) -> bool:
    """Return whether an input (`path`, `sha256`) has the hash that a run recorded, also one of an earlier version.

    The files are read again only where the hashes differ.
    """
    if parent["sha256"] == recorded_sha256:
        return True
    return content_hash(Path(parent["path"]), _MODEL_SUFFIXES_BEFORE) == recorded_sha256
