"""How fast this machine multiplies and copies: two numbers, measured in a second or two."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

_MATRIX_WIDTH = {"cpu": 768, "cuda": 8192}
"""Width of the square matrices that are multiplied, by kind of device: large enough for the best rate, small enough for a second."""
_COPY_BYTES = {"cpu": 2**26, "cuda": 2**31}
"""Bytes that are copied, by kind of device: more than its caches hold."""
_REPEATS = 7
HOP_LATENCY_S = 3e-6
"""Seconds from one GPU to the next in a ring before the first byte is there; assumed."""
_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
"""Libraries that take the place of the C library's allocator (LD_PRELOAD). Their heaps have hardly any holes."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the roofline is made of."""

    matmul: float  # FLOP/s of a matrix product, a multiplication and an addition counted as two
    bandwidth: float  # bytes/s read and written by a copy
    link: float = math.inf  # bytes/s that a rank sends to the next one
    ring_latency_s: float = 0.0  # seconds until all ranks have heard of each other

    def compute_seconds(self, flops: float, bytes_moved: float) -> float:
        """Least time for some work: multiplying and moving go side by side, so the slower of the two."""
        return max(flops / self.matmul, bytes_moved / self.bandwidth)

    def send_seconds(self, bytes_sent: float, calls: float) -> float:
        """Least time to send bytes to other ranks, in so many calls that each wait for all."""
        return bytes_sent / self.link + calls * self.ring_latency_s


def benchmark_machine(device: torch.device, dtype: torch.dtype = torch.float32) -> Machine:
    """Measure this machine, with as many threads as torch uses now: the median of a few tries, after one that warms up."""
    width, size = _MATRIX_WIDTH.get(device.type, _MATRIX_WIDTH["cpu"]), _COPY_BYTES.get(device.type, _COPY_BYTES["cpu"])
    a, b = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    matmul_seconds = _median_seconds(lambda: a @ b, device)
    copy_seconds = _median_seconds(lambda: target.copy_(source), device)
    return Machine(2 * width**3 / matmul_seconds, 2 * size / copy_seconds)


def _median_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a few calls. On a CPU seconds of its own work, so that other programs do not count."""
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
    """The same machine as one of some ranks, that stand in a ring.

    Args:
        ranks: how many; host: how many of them are on one host.
        link: bytes/s that a rank sends to another of its host; network: bytes/s that a host sends to another.
    """
    return replace(
        machine,
        link=link if ranks <= ranks_per_host else min(link, network),
        ring_latency_s=HOP_LATENCY_S * (ranks - 1),
    )


def uses_glibc_malloc() -> bool:
    """Whether memory comes from the C library's own heap, in this process and in those it starts."""
    return not any(name in os.environ.get("LD_PRELOAD", "") for name in _ALLOCATORS)
