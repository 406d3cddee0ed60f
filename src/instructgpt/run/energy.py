"""Energy from hardware counters: NVIDIA's total-energy counter of a GPU, and RAPL of the CPUs. Never a guess.

RAPL counts the whole machine's CPUs, other programs included, and often only root may read it. Where a counter is
missing for the device that computes, the energy is None.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

RAPL_FOLDER = Path("/sys/class/powercap")
JOULES_PER_KWH = 3.6e6
_NVML_LIBRARY = "libnvidia-ml.so.1"


@dataclass
class EnergyCounter:
    """A counter of joules that wraps around at `limit`."""

    read: Callable[[], float]
    limit: float | None = None
    total: float = 0.0
    last: float = field(init=False)

    def __post_init__(self) -> None:
        self.last = self.read()

    def update(self) -> None:
        """Add what was used since the last reading. Call it more often than the counter wraps."""
        reading = self.read()
        used = reading - self.last
        if used < 0:
            used = used + self.limit if self.limit is not None else reading
        self.total, self.last = self.total + used, reading


class EnergyMeter:
    """The energy that one process's run has used, as far as the hardware counts it."""

    def __init__(self, *, counts_cpu: bool = True) -> None:
        self.earlier: float | None = 0.0  # joules before a resume; None where they are unknown
        self.has_failed = False
        self.counters: dict[str, list[EnergyCounter]] = {}
        if counts_cpu and (cpu_counters := open_rapl_counters()):
            self.counters["rapl"] = cpu_counters

    def joules(self, device_type: str) -> float | None:
        """Return the joules so far; None without a counter of the device that computes."""
        if device_type == "cuda" and "nvml" not in self.counters and (gpu_counter := open_nvml_counter()) is not None:
            self.counters["nvml"] = [gpu_counter]
        if ("nvml" if device_type == "cuda" else "rapl") not in self.counters or self.earlier is None:
            return None
        self.update()
        if self.has_failed:
            return None
        return self.earlier + sum(counter.total for counters in self.counters.values() for counter in counters)

    def update(self) -> None:
        """Read all counters."""
        for counters in self.counters.values():
            for counter in counters:
                try:
                    counter.update()
                except (OSError, ValueError):
                    self.has_failed = True  # part of the energy is unknown from here on


def get_device_type() -> str:
    """Return the type of the device that this process computes on by now, without loading torch."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return "cuda" if cuda is not None and cuda.is_initialized() else "cpu"


def open_rapl_counters(folder: Path = RAPL_FOLDER) -> list[EnergyCounter]:
    """Return a counter for each CPU package that this process may read."""
    counters: list[EnergyCounter] = []
    with contextlib.suppress(OSError, ValueError):
        for package in sorted(folder.glob("intel-rapl:*")):
            if package.name.count(":") == 1:  # intel-rapl:0:0 is a part of intel-rapl:0
                limit = _read_microjoules(package / "max_energy_range_uj")
                counters.append(EnergyCounter(_reader(package / "energy_uj"), limit))
    return counters


def _reader(path: Path) -> Callable[[], float]:
    return lambda: _read_microjoules(path)


def _read_microjoules(path: Path) -> float:
    return int(path.read_text(encoding="ascii")) / 1e6


def open_nvml_counter() -> EnergyCounter | None:
    """Return the counter of the GPU that torch uses, or None where the driver has none."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return None
    try:
        nvml = ctypes.CDLL(_NVML_LIBRARY)
        uuid = f"GPU-{cuda.get_device_properties(cuda.current_device()).uuid}"
        handle, energy = ctypes.c_void_p(), ctypes.c_ulonglong()
        if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)):
            return None

        def read() -> float:
            if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(energy)):
                raise OSError("the energy counter of the GPU cannot be read")
            return energy.value / 1000

        return EnergyCounter(read)
    except (OSError, AttributeError):
        return None
