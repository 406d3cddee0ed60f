"""Whether sampling steps are captured as CUDA graphs in this process: an option says so, and a failed capture ends it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

GRAPH_DEVICES = ("cuda",)
"""Device types on which sampling steps are captured as graphs."""
CUDA_GRAPHS_SWITCH = "INSTRUCTGPT_CUDA_GRAPHS"
"""The environment variable that switches graphs off with 0, for commands without `--no-cuda-graphs`."""


@dataclass(slots=True)
class _GraphState:
    is_enabled: bool = True
    failure: str | None = None  # why the last capture failed


_STATE = _GraphState()


def enable_cuda_graphs(enabled: bool) -> None:
    """Switch CUDA graphs on or off for the process, as `--cuda-graphs` says; on, a failed capture is tried again."""
    _STATE.is_enabled, _STATE.failure = enabled, None


def stop_capturing(reason: str) -> str:
    """Run all later steps without graphs, and return the message to print."""
    _STATE.failure = reason
    return f"a CUDA graph could not be captured ({reason}); sampling goes on without graphs, which is slower"


def captures_graphs(device: torch.device) -> bool:
    """Return whether sampling steps on a device are captured."""
    is_enabled = _STATE.is_enabled and _STATE.failure is None and os.environ.get(CUDA_GRAPHS_SWITCH) != "0"
    return device.type in GRAPH_DEVICES and is_enabled
