"""Checkpoints: everything needed to resume, in a directory that is complete or absent. No pickle.

    step-00000120/
        rank-0.safetensors …    each rank's shard of every tensor; replicated tensors are in the first file only
        state.json              everything else, and the place of each tensor in it
        manifest                sha256 of every file, and of the manifest's own lines

Rows of a sharded tensor are split as `torch.chunk` does. A tensor is read from the files that hold its rows, so that a
run can resume with another number of ranks.
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

from instructgpt.distributed.comm import barrier, gather_in_order, get_dist_info
from instructgpt.io import serialize_safetensors_header, translate_write_errors

_MANIFEST_FILE, _STATE_FILE, _PARTIAL_FOLDER = "manifest", "state.json", "half.part"
_TENSOR_KEY = "tensor"
"""state.json holds an object with this key in place of a tensor."""
_SAFETENSORS_DTYPES = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor in a checkpoint that is read on demand."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Any, ...]  # open safetensors files; only the first for a replicated tensor
    sharded: bool

    def read_rows(self, start: int, end: int) -> Tensor:
        """Return rows start to end - 1, from the shards that hold them."""
        slices: list[Tensor] = []
        for rank, part in enumerate(self.parts):
            first, last = shard_bounds(self.shape[0], rank, len(self.parts))
            if first < end and start < last:
                slices.append(part.get_slice(self.name)[max(start, first) - first : min(end, last) - first])
        return torch.cat(slices) if slices else self.parts[0].get_slice(self.name)[:0]

    def read_full(self) -> Tensor:
        if self.sharded:
            return self.read_rows(0, self.shape[0])
        tensor: Tensor = self.parts[0].get_tensor(self.name)
        return tensor

    def read_sharded_like(self, template: Any) -> Tensor:
        """Return this rank's shard as a DTensor like `template`; the full tensor if that is not one of this shape."""
        if not hasattr(template, "to_local") or tuple(template.shape) != self.shape:
            return self.read_full()
        dist_info = get_dist_info()
        start, end = shard_bounds(self.shape[0], dist_info.rank, dist_info.world_size)
        rows = self.read_rows(start, end) if self.sharded else self.read_full()[start:end]
        # empty_like keeps the template's device, which with offloading is not the device of its mesh.
        sharded: Tensor = torch.empty_like(template, dtype=rows.dtype, requires_grad=False)
        sharded.to_local().copy_(rows)  # type: ignore[attr-defined]
        return sharded


def shard_bounds(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return the first row of a rank's shard of `count` rows and the row after its last, as `torch.chunk` splits."""
    size = -(-count // world_size)
    return min(count, rank * size), min(count, (rank + 1) * size)


# --- writing -------------------------------------------------------------------------------------------------------


def write_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint to a temporary directory, then rename it. All ranks call this with their shards.

    Args:
        state: nested mappings with string keys, lists, tensors, numbers and strings.

    Raises:
        RunError, InputError: as `translate_write_errors`.
    """
    dist_info = get_dist_info()
    partial_folder = folder.with_name(_PARTIAL_FOLDER)
    with translate_write_errors(folder):
        if dist_info.rank == 0:
            shutil.rmtree(partial_folder, ignore_errors=True)
            partial_folder.mkdir(parents=True, exist_ok=True)
        barrier()
        try:
            tensors: dict[str, Tensor] = {}
            skeleton = _flatten_state(state, "", tensors, {})
            name = f"rank-{dist_info.rank}.safetensors"
            # Rank 0 also writes the replicated tensors.
            saved = tensors if dist_info.rank == 0 else {k: v for k, v in tensors.items() if hasattr(v, "to_local")}
            shards = {key: _local_shard(tensor) for key, tensor in saved.items()}
            digest = write_file(partial_folder / name, _serialize_safetensors(shards))
            hashes = dict(gather_in_order([dist_info.rank], [(name, digest)], dist_info.world_size, dist_info))
            if dist_info.rank == 0:
                text = json.dumps({"ranks": dist_info.world_size, "state": skeleton}).encode()
                hashes[_STATE_FILE] = write_file(partial_folder / _STATE_FILE, [text])
                write_file(partial_folder / _MANIFEST_FILE, [_build_manifest(hashes)])
                shutil.rmtree(folder, ignore_errors=True)
                partial_folder.rename(folder)
        except BaseException:
            if dist_info.rank == 0:
                shutil.rmtree(partial_folder, ignore_errors=True)
            raise
    barrier()


def _flatten_state(value: Any, name: str, tensors: dict[str, Tensor], names_by_storage: dict[Any, str]) -> Any:
    """Replace tensors by references and collect them in `tensors`; tied tensors (same storage and shape) once."""
    if isinstance(value, Tensor):
        shard = value.to_local() if hasattr(value, "to_local") else value
        storage = (shard.untyped_storage().data_ptr() + shard.storage_offset(), shard.shape)
        tensor_name = names_by_storage.setdefault(storage, name) if shard.numel() else name
        tensors.setdefault(tensor_name, value.detach())
        return {_TENSOR_KEY: tensor_name, "shape": list(value.shape), "sharded": hasattr(value, "to_local")}
    if isinstance(value, Mapping):
        assert all(isinstance(key, str) for key in value), f"{name}: keys must be strings"
        prefix = f"{name}/" if name else ""
        return {key: _flatten_state(part, prefix + key, tensors, names_by_storage) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_flatten_state(part, f"{name}/{i}", tensors, names_by_storage) for i, part in enumerate(value)]
    return value


def _local_shard(tensor: Any) -> Tensor:
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard.detach().cpu().contiguous()


def _serialize_safetensors(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """Yield a safetensors file in pieces, so that it never exists twice in memory."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = _SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    yield serialize_safetensors_header(header)
    for tensor in tensors.values():
        yield tensor.reshape(-1).view(torch.uint8).numpy().data


def write_file(file: Path, pieces: Iterable[Any]) -> str:
    """Write and fsync a file. Return its sha256."""
    digest = hashlib.sha256()
    with file.open("wb") as stream:
        for piece in pieces:
            digest.update(piece)
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _build_manifest(hashes: Mapping[str, str]) -> bytes:
    """Return one sha256sum line per file, and one for these lines."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()
    return lines + f"{hashlib.sha256(lines).hexdigest()}  {_MANIFEST_FILE}\n".encode()


# --- reading -------------------------------------------------------------------------------------------------------


def find_corruption(folder: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if all hashes match."""
    try:
        manifest = (folder / _MANIFEST_FILE).read_bytes()
    except OSError:
        return f"{_MANIFEST_FILE} is missing"
    try:
        lines = [line.split("  ") for line in manifest.decode().splitlines()[:-1]]
        hashes = {name: expected for expected, name in lines}
    except ValueError:
        hashes = {}
    if not hashes or manifest != _build_manifest(hashes):
        return f"{_MANIFEST_FILE} is corrupt"
    for name, expected in hashes.items():
        try:
            with (folder / name).open("rb") as stream:
                actual = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            return f"{name} is missing"
        if actual != expected:
            return f"{name} is corrupt"
    return None


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Return the state of a valid checkpoint, with a LazyTensor for each tensor."""
    content = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
    paths = [folder / f"rank-{rank}.safetensors" for rank in range(content["ranks"])]
    files = tuple(safetensors.safe_open(path, framework="pt") for path in paths)

    def to_lazy(value: Any) -> Any:
        if isinstance(value, list):
            return [to_lazy(part) for part in value]
        if not isinstance(value, dict):
            return value
        if _TENSOR_KEY in value:
            parts = files if value["sharded"] else files[:1]
            return LazyTensor(value[_TENSOR_KEY], tuple(value["shape"]), parts, value["sharded"])
        return {key: to_lazy(part) for key, part in value.items()}

    state: dict[str, Any] = to_lazy(content["state"])
    return state


def load_tensors(state: Any, template: Any) -> Any:
    """Read all tensors of a state, sharded like `template`: one tensor, or a mapping with the state's keys."""
    if isinstance(state, LazyTensor):
        return state.read_sharded_like(template)
    if isinstance(state, dict):
        templates = template if isinstance(template, Mapping) else dict.fromkeys(state, template)
        return {name: load_tensors(part, templates[name]) for name, part in state.items()}
    return state
