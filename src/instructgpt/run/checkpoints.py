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

from instructgpt.distributed.comm import barrier, gather_in_order, get_dist_info
from instructgpt.io import serialize_safetensors_header, translate_write_errors

_MANIFEST_FILE, _STATE_FILE, _PARTIAL_FOLDER = "manifest", "state.json", "half.part"
_TENSOR_KEY = "tensor"
"""In state.json a tensor is an object of this one name."""
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
"""What safetensors calls the kinds of numbers."""


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor in a checkpoint, not yet read."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[Any, ...]  # opened files; of a tensor that all ranks have alike only the first
    sharded: bool

    def read_rows(self, start: int, end: int) -> Tensor:
        """Some of the tensor's rows."""
        slices: list[Tensor] = []
        for rank, part in enumerate(self.parts):
            shard_start, shard_end = shard_bounds(self.shape[0], rank, len(self.parts))
            if shard_start < end and start < shard_end:
                slices.append(
                    part.get_slice(self.name)[max(start, shard_start) - shard_start : min(end, shard_end) - shard_start]
                )
        return torch.cat(slices) if slices else self.parts[0].get_slice(self.name)[:0]

    def read_full(self) -> Tensor:
        """All of it."""
        if self.sharded:
            return self.read_rows(0, self.shape[0])
        tensor: Tensor = self.parts[0].get_tensor(self.name)
        return tensor

    def read_sharded_like(self, template: Any) -> Tensor:
        """The tensor, divided as another of its shape is; whole, where the other is not divided or has another shape."""
        if not hasattr(template, "to_local") or tuple(template.shape) != self.shape:
            return self.read_full()
        dist_info = get_dist_info()
        start, end = shard_bounds(self.shape[0], dist_info.rank, dist_info.world_size)
        local_rows = self.read_rows(start, end) if self.sharded else self.read_full()[start:end]
        sharded: Tensor = torch.empty_like(
            template, dtype=local_rows.dtype, requires_grad=False
        )  # on its device, not always that of its mesh
        sharded.to_local().copy_(local_rows)  # type: ignore[attr-defined]
        return sharded


def shard_bounds(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """First row of a rank's part of `count` rows, and the row after its last, as `torch.chunk` divides."""
    size = -(-count // world_size)
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
            replicated = {tensor_name for tensor_name, tensor in tensors.items() if not hasattr(tensor, "to_local")}
            local_tensors = {
                tensor_name: _local_shard(tensor)
                for tensor_name, tensor in tensors.items()
                if dist_info.rank == 0 or tensor_name not in replicated
            }
            digest = write_file(partial_folder / name, _serialize_safetensors(local_tensors))
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
    """What JSON can hold of a state; its tensors by name, each once however often it occurs."""
    if isinstance(value, Tensor):
        local_tensor = value.to_local() if hasattr(value, "to_local") else value
        position = (local_tensor.untyped_storage().data_ptr() + local_tensor.storage_offset(), local_tensor.shape)
        tensor_name = names_by_storage.setdefault(position, name) if local_tensor.numel() else name
        tensors.setdefault(tensor_name, value.detach())
        return {_TENSOR_KEY: tensor_name, "shape": list(value.shape), "sharded": hasattr(value, "to_local")}
    if isinstance(value, Mapping):
        assert all(isinstance(key, str) for key in value), f"{name}: names are texts"
        return {
            key: _flatten_state(part, f"{name}/{key}" if name else key, tensors, names_by_storage)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [
            _flatten_state(part, f"{name}/{position}", tensors, names_by_storage) for position, part in enumerate(value)
        ]
    return value


def _local_shard(tensor: Any) -> Tensor:
    """The rows of a tensor that this rank has, on the CPU."""
    shard: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return shard.detach().cpu().contiguous()


def _serialize_safetensors(tensors: Mapping[str, Tensor]) -> Iterator[Any]:
    """A safetensors file, piece by piece: its head, then the numbers."""
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    yield serialize_safetensors_header(header)
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


def _build_manifest(hashes: Mapping[str, str]) -> bytes:
    """A line for each file, and one for these lines."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes)).encode()
    return lines + f"{hashlib.sha256(lines).hexdigest()}  {_MANIFEST_FILE}\n".encode()


# --- reading -------------------------------------------------------------------------------------------------------


def find_corruption(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every byte is as it was written."""
    try:
        manifest = (folder / _MANIFEST_FILE).read_bytes()
    except OSError:
        return f"{_MANIFEST_FILE} is missing"
    try:
        hashes = {
            name: expected for expected, name in (line.split("  ") for line in manifest.decode().splitlines()[:-1])
        }
    except ValueError:
        hashes = {}
    if not hashes or manifest != _build_manifest(hashes):
        return f"{_MANIFEST_FILE} is not as it was written"
    for name, expected in hashes.items():
        try:
            with (folder / name).open("rb") as stream:
                actual = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:
            return f"{name} is missing"
        if actual != expected:
            return f"{name} is not as it was written"
    return None


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The state in a whole checkpoint; its tensors are `Stored`, to be read as they are needed."""
    content = json.loads((folder / _STATE_FILE).read_text(encoding="utf-8"))
    files = tuple(
        safetensors.safe_open(folder / f"rank-{rank}.safetensors", framework="pt") for rank in range(content["ranks"])
    )

    def to_lazy(value: Any) -> Any:
        if isinstance(value, list):
            return [to_lazy(part) for part in value]
        if not isinstance(value, dict):
            return value
        if _TENSOR_KEY in value:
            return LazyTensor(
                value[_TENSOR_KEY], tuple(value["shape"]), files if value["sharded"] else files[:1], value["sharded"]
            )
        return {key: to_lazy(part) for key, part in value.items()}

    state: dict[str, Any] = to_lazy(content["state"])
    return state


def load_tensors(state: Any, template: Any) -> Any:
    """Read the tensors of a state. `like` is a tensor as which those of its shape are divided, or tensors by the state's own names."""
    if isinstance(state, LazyTensor):
        return state.read_sharded_like(template)
    if isinstance(state, dict):
        return {
            name: load_tensors(part, template[name] if isinstance(template, Mapping) else template)
            for name, part in state.items()
        }
    return state
