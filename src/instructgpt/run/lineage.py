"""What a run is made from: files by name, and the hashes by which a change is noticed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def named_inputs(**kinds: Iterable[Path]) -> dict[str, Path | str]:
    """Files a run is made from, each by what it is for and its name; by its whole path where two of a kind have one name."""
    files = [(kind, path) for kind, paths in kinds.items() for path in paths]
    name_counts = Counter((kind, path.name) for kind, path in files)
    return {f"{kind} {path if name_counts[kind, path.name] > 1 else path.name}": path for kind, path in files}


def content_hash(path: Path) -> str:
    """sha256 of a file, or of what a model directory is made of; of the name itself for something on the hub."""
    digest = hashlib.sha256()
    if path.is_dir():
        files = sorted(
            file for file in path.iterdir() if file.suffix in (".safetensors", ".json") and file.name != "run.json"
        )
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
