"""Checkpoints: round trips, detection of every corrupt byte, and no partial checkpoints.

pytest tests/run/test_checkpoints.py
"""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess

import pytest
import safetensors.torch
import torch

from instructgpt.run import checkpoints
from instructgpt.run.checkpoints import (
    LazyTensor,
    find_corruption,
    load_tensors,
    read_checkpoint,
    shard_bounds,
    write_checkpoint,
)


@pytest.fixture
def state():
    """Everything a checkpoint may have to hold."""
    weights = torch.arange(6, dtype=torch.float32).reshape(3, 2)
    return {
        "step": 12,
        "spent": 0.1 + 0.2,
        "models": {
            "model": {
                "embed.weight": weights,
                "head.weight": weights,
                "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
            }
        },
        "optimizers": {
            "adam": {"0": {"step": torch.tensor(3.0), "sign": torch.tensor([True, False]), "none": torch.zeros(0, 4)}}
        },
        "best": {"quality": float("-inf"), "epoch": None, "weights": {}},
        "groups": [{"lr": 1e-4, "params": [0, 1]}],
        "view": torch.arange(12).reshape(3, 4)[:, 1:3],
    }


@pytest.fixture
def folder(state, tmp_path):
    write_checkpoint(tmp_path / "step-00000012", state)
    return tmp_path / "step-00000012"


def same(one, other) -> bool:
    """Equal, tensors bit for bit and of the same kind."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    return one == other


def test_state_round_trips(state, folder):
    read = load_tensors(read_checkpoint(folder), None)
    assert same(read, state)
    assert find_corruption(folder) is None
    assert not folder.with_name("half.part").exists()


def test_safetensors_reads_the_file_and_tied_tensors_are_stored_once(state, folder):
    read = safetensors.torch.load_file(folder / "rank-0.safetensors")
    assert len(read) == 6
    assert torch.equal(read["models/model/embed.weight"], state["models"]["model"]["embed.weight"])
    assert torch.equal(read["view"], state["view"])


def test_manifest_matches_sha256sum(folder):
    listed = (folder / "manifest").read_text().splitlines()
    assert [line.partition("  ")[2] for line in listed] == ["rank-0.safetensors", "state.json", "manifest"]
    said = subprocess.run(
        ["sha256sum", "rank-0.safetensors", "state.json"], cwd=folder, capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == listed[:2]


def test_corruption_of_any_byte_is_detected(folder):
    for file in sorted(folder.iterdir()):
        whole = file.read_bytes()
        for place in range(len(whole)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert find_corruption(folder), f"byte {place} of {file.name}"
        for cut in (0, 1, len(whole) - 1):
            file.write_bytes(whole[:cut])
            assert find_corruption(folder), f"{file.name} cut at {cut}"
        file.unlink()
        assert f"{file.name} is missing" == find_corruption(folder)
        file.write_bytes(whole)
    assert find_corruption(folder) is None


def test_interrupted_checkpoint_leaves_the_previous_one(state, folder, monkeypatch, tmp_path):
    """Interrupt before each file: the previous checkpoint stays intact, and the next one is complete."""
    write, calls = checkpoints.write_file, []
    for limit in range(3):
        calls.clear()

        def interrupted(file, pieces, limit=limit):
            if len(calls) == limit:
                raise KeyboardInterrupt
            calls.append(file)
            return write(file, pieces)

        monkeypatch.setattr(checkpoints, "write_file", interrupted)
        for name in ("step-00000012", "step-00000013"):
            with pytest.raises(KeyboardInterrupt):
                write_checkpoint(tmp_path / name, state | {"step": 99})
            calls.clear()
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]
        assert find_corruption(folder) is None
        assert read_checkpoint(folder)["step"] == 12
    monkeypatch.undo()
    (tmp_path / "half.part").mkdir()
    (tmp_path / "half.part" / "rank-7.safetensors").write_bytes(b"left by a killed run of eight")
    write_checkpoint(folder, state | {"step": 13})
    assert find_corruption(folder) is None
    assert sorted(file.name for file in folder.iterdir()) == ["manifest", "rank-0.safetensors", "state.json"]


def test_nothing_is_unpickled(folder, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", forbidden)
    monkeypatch.setattr(pickle, "loads", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    assert load_tensors(read_checkpoint(folder), None)["step"] == 12


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9, 16])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_shard_bounds_match_torch_chunk(count, ranks):
    parts = [shard_bounds(count, rank, ranks) for rank in range(ranks)]
    chunks = torch.arange(count).chunk(ranks) if count else ()
    assert [list(range(*part)) for part in parts if part[0] < part[1]] == [chunk.tolist() for chunk in chunks]
    assert parts[-1][1] == count


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_rows_are_read_from_their_shards(ranks, tmp_path):
    """Parts written by hand, read in every slice."""
    whole = torch.arange(14.0).reshape(7, 2)
    files = []
    for rank in range(ranks):
        start, end = shard_bounds(7, rank, ranks)
        safetensors.torch.save_file({"w": whole[start:end].clone()}, tmp_path / f"{rank}")
        files.append(safetensors.safe_open(tmp_path / f"{rank}", framework="pt"))
    stored = LazyTensor("w", (7, 2), tuple(files), sharded=True)
    assert torch.equal(stored.read_full(), whole)
    for start in range(8):
        for end in range(start, 8):
            assert torch.equal(stored.read_rows(start, end), whole[start:end])


def test_state_is_plain_json(folder):
    content = json.loads((folder / "state.json").read_text())
    assert content["ranks"] == 1
    assert content["state"]["spent"] == 0.1 + 0.2
    assert content["state"]["models"]["model"]["head.weight"]["tensor"] == "models/model/embed.weight"
    assert hashlib.sha256((folder / "state.json").read_bytes()).hexdigest() in (folder / "manifest").read_text()
