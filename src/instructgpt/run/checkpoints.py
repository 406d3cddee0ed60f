"""Checkpoints: everything needed to go on, in a folder that is whole or not there.

    step-00000120/
        rank-0.safetensors …    each rank's part of every tensor; what all ranks have alike is in the first
        state.json              all the rest, and which tensor stands where in it
        manifest                sha256 of every file, its own lines included

Rows of a sharded tensor are divided among ranks as torch divides them, in equal parts, the last ones smaller. A tensor is put
together again from those files that hold its rows, so that a run goes on with another number of ranks than wrote it.
Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from instructgpt.distributed.comm import all_ranks, collect, wait_for_all
from instructgpt.io import safetensors_head, writing

MANIFEST, STATE, HALF = "manifest", "state.json", "half.part"
LEAF = "tensor"
"""In state.json a tensor is an object of this one name."""
NAMES = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""What safetensors calls the kinds of numbers."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in a checkpoint, not yet read."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Any, ...]  # opened files; of a tensor that all ranks have alike only the first
    sharded: bool

    def rows(self, start: int, end: int) -> Tensor:
        """Some of the tensor's rows."""
        found: list[Tensor] = []
        for rank, part in enumerate(self.parts):
            first, last = rows_of(self.shape[0], rank, len(self.parts))
            if first < end and start < last:
                found.append(part.get_slice(self.name)[max(start, first) - first : min(end, last) - first])
        return torch.cat(found) if found else self.parts[0].get_slice(self.name)[:0]

    def whole(self) -> Tensor:
        """All of it."""
        if self.sharded:
            return self.rows(0, self.shape[0])
        tensor: Tensor = self.parts[0].get_tensor(self.name)
        return tensor

    def like(self, other: Any) -> Tensor:
        """The tensor, divided as another of its shape is; whole, where the other is not divided or has another shape."""
        if not hasattr(other, "to_local") or tuple(other.shape) != self.shape:
            return self.whole()
        ranks = all_ranks()
        start, end = rows_of(self.shape[0], ranks.own, ranks.total)
        own = self.rows(start, end) if self.sharded else self.whole()[start:end]
        divided: Tensor = torch.empty_like(other, dtype=own.dtype, requires_grad=False)  # on its device, not always that of its mesh
        divided.to_local().copy_(own)  # type: ignore[attr-defined]
        return divided


def rows_of(count: int, rank: int, ranks: int) -> tuple[int, int]:
    """First row of a rank's part of `count` rows, and the row after its last, as `torch.chunk` divides."""
    size = -(-count // ranks)
    return min(count, rank * size), min(count, (rank + 1) * size)


# --- writing -------------------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint so that it is either whole or not there. All ranks call it, each with its part.

    Args:
        folder: where it will be.
        state: mappings by text, lists, tensors, numbers and texts.

    Raises:
        RunFailed, BadInput: as `files.writing` does.
    """
    ranks = all_ranks()
    half = folder.with_name(HALF)
    with writing(folder):
        if ranks.own == 0:
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir(parents=True, exist_ok=True)
        wait_for_all()
        try:
            tensors: dict[str, Tensor] = {}
            skeleton = taken_apart(state, "", tensors, {})
            name = f"rank-{ranks.own}.safetensors"
            shared = {leaf for leaf, tensor in tensors.items() if not hasattr(tensor, "to_local")}
            own = {leaf: local(tensor) for leaf, tensor in tensors.items() if ranks.own == 0 or leaf not in shared}
            written = write_file(half / name, safetensors_of(own))
            hashes = dict(collect([ranks.own], [(name, written)], ranks.total, ranks))
            if ranks.own == 0:
                text = json.dumps({"ranks": ranks.total, "state": skeleton}).encode()
                hashes[STATE] = write_file(half / STATE, [text])
                write_file(half / MANIFEST, [manifest_of(hashes)])
                shutil.rmtree(folder, ignore_errors=True)
                half.rename(folder)
        except BaseException:
            if ranks.own == 0:
                shutil.rmtree(half, ignore_errors=True)
            raise
    wait_for_all()


def taken_apart(value: Any, name: str, tensors: dict[str, Tensor], known: dict[Any, str]) -> Any:
    """What JSON can hold of a state; its tensors by name, each once however often it occurs."""
    if isinstance(value, Tensor):
        own = value.to_local() if hasattr(value, "to_local") else value
        place = (own.untyped_storage().data_ptr() + own.storage_offset(), own.shape)
        leaf = known.setdefault(place, name) if own.numel() else name
        tensors.setdefault(leaf, value.detach())
        return {LEAF: leaf, "shape": list(value.shape), "sharded": hasattr(value, "to_local")}
    if isinstance(value, Mapping):
        assert all(isinstance(key, str) for key in value), f"{name}: names are texts"
        return {key: taken_apart(part, f"{name}/{key}" if name else key, tensors, known) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [taken_apart(part, f"{name}/{place}", tensors, known) for place, part in enumerate(value)]
    return value


def local(tensor: Any) -> Tensor:
    """The rows of a tensor that this rank has, on the CPU."""
    own: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return own.detach().cpu().contiguous()


def safetensors_of(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """A safetensors file, piece by piece: its head, then the numbers."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    yield safetensors_head(header)
    for tensor in tensors.values():
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def write_file(file: Path, pieces: Iterable[Any]) -> str:
    """Write a file to the disk itself. Returns its sha256."""
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for piece in pieces:
            digest.update(piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def manifest_of(hashes: Mapping[str, str]) -> bytes:
    """A line for each file, and one for these lines."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()
    return lines + f"{hashlib.sha256(lines).hexdigest()}  {MANIFEST}\n".encode()


# --- reading -------------------------------------------------------------------------------------------------------


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every byte is as it was written."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
    except OSError:
        return f"{MANIFEST} is missing"
    try:
        hashes = {name: code for code, name in (line.split("  ") for line in manifest.decode().splitlines()[:-1])}
    except ValueError:
        hashes = {}
    if not hashes or manifest != manifest_of(hashes):
        return f"{MANIFEST} is not as it was written"
    for name, code in hashes.items():
        try:
            with (folder / name).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            return f"{name} is missing"
        if found != code:
            return f"{name} is not as it was written"
    return None


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state in a whole checkpoint; its tensors are `Stored`, to be read as they are needed."""
    content = json.loads((folder / STATE).read_text(encoding="utf-8"))
    files = tuple(safetensors.safe_open(folder / f"rank-{rank}.safetensors", framework="pt") for rank in range(content["ranks"]))

    def stored(value: Any) -> Any:
        if isinstance(value, list):
            return [stored(part) for part in value]
        if not isinstance(value, dict):
            return value
        if LEAF in value:
            return Stored(value[LEAF], tuple(value["shape"]), files if value["sharded"] else files[:1], value["sharded"])
        return {key: stored(part) for key, part in value.items()}

    state: dict[str, Any] = stored(content["state"])
    return state


def placed(state: Any, like: Any) -> Any:
    """Read the tensors of a state. `like` is a tensor as which those of its shape are divided, or tensors by the state's own names."""
    if isinstance(state, Stored):
        return state.like(like)
    if isinstance(state, dict):
        return {name: placed(part, like[name] if isinstance(like, Mapping) else like) for name, part in state.items()}
    return state
