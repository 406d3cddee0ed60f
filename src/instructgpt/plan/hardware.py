"""Matrix and copy throughput of this machine, measured in a second or two."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

_MATRIX_WIDTH = {"cpu": 768, "cuda": 8192}
"""Side of the square matrices, by device type: large enough for the peak rate."""
_COPY_BYTES = {"cpu": 2**26, "cuda": 2**31}
"""Bytes copied, by device type: more than its caches hold."""
_REPEATS = 7
HOP_LATENCY_S = 3e-6
"""Assumed latency between neighboring GPUs in a ring, in seconds."""
_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
"""Preloaded allocators (LD_PRELOAD) whose heaps hardly fragment."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Rates of the roofline."""

    matmul: float  # FLOP/s of a matrix product, a multiplication and an addition counted as two
    bandwidth: float  # bytes/s read and written by a copy
    link: float = math.inf  # bytes/s that a rank sends to the next one
    ring_latency_s: float = 0.0  # seconds until all ranks have heard of each other

    def compute_seconds(self, flops: float, bytes_moved: float) -> float:
        """Return the minimum seconds: compute and memory traffic overlap, so the slower of the two."""
        return max(flops / self.matmul, bytes_moved / self.bandwidth)

    def send_seconds(self, bytes_sent: float, calls: float) -> float:
        """Return the minimum seconds to send bytes in `calls` collective calls."""
        return bytes_sent / self.link + calls * self.ring_latency_s


def benchmark_machine(device: torch.device, dtype: torch.dtype = torch.float32) -> Machine:
    """Measure this machine with torch's current number of threads: median of a few tries after a warm-up."""
    width, size = _MATRIX_WIDTH.get(device.type, _MATRIX_WIDTH["cpu"]), _COPY_BYTES.get(device.type, _COPY_BYTES["cpu"])
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    matmul_seconds = _median_seconds(lambda: a @ b, device)
    copy_seconds = _median_seconds(lambda: target.copy_(source), device)
    return Machine(2 * width**3 / matmul_seconds, 2 * size / copy_seconds)


def _median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of a few calls; on a CPU the process's own CPU time."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    durations = []
    for _ in range(_REPEATS + 1):
        start = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        durations.append(clock() - start)
    return max(statistics.median(durations[1:]), 1e-9)


def with_links(machine: Machine, ranks: int, ranks_per_host: int, link: float, network: float) -> Machine:
    """Return the machine as a member of a ring of ranks.

    Args:
        ranks_per_host: ranks on one host.
        link: bytes/s between two ranks of a host.
        network: bytes/s between hosts.
    """
    return replace(
        machine,
        link=link if ranks <= ranks_per_host else min(link, network),
        ring_latency_s=HOP_LATENCY_S * (ranks - 1),
    )


def device_capacity(device: torch.device) -> float:
    """Return the bytes of memory of a GPU of this machine; infinite for any other device."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return math.inf
    return float(torch.cuda.get_device_properties(device).total_memory)


def uses_glibc_malloc() -> bool:
    """Return whether this process and its children use glibc's malloc."""
    return not any(name in os.environ.get("LD_PRELOAD", "") for name in _ALLOCATORS)
