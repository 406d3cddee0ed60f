"""Energy: from counters, and nothing where there is none."""

from __future__ import annotations

import json

import pytest

from instructgpt.config import make_config
from instructgpt.run import energy
from instructgpt.run.configs import RunConfig
from instructgpt.run.directory import RunDirectory
from instructgpt.run.energy import EnergyCounter, EnergyMeter, open_rapl_counters
from instructgpt.run.timing import PHASE_TIMER


def write_package(folder, name, microjoules, limit=1000):
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    (folder / name / "max_energy_range_uj").write_text(f"{limit}\n")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two CPU packages, a part of the first, and something else."""
    write_package(tmp_path, "intel-rapl:0", 900_000_000, 1_000_000_000)
    write_package(tmp_path, "intel-rapl:1", 5_000_000, 1_000_000_000)
    write_package(tmp_path, "intel-rapl:0:0", 1, 2)
    (tmp_path / "dtpm").mkdir()
    monkeypatch.setattr(energy, "open_rapl_counters", lambda: open_rapl_counters(tmp_path))
    return tmp_path


def test_packages_are_added_and_wrap_around(packages):
    meter = EnergyMeter()
    assert meter.joules("cpu") == 0
    write_package(packages, "intel-rapl:0", 950_000_000, 1_000_000_000)  # 50 J
    write_package(packages, "intel-rapl:1", 12_000_000, 1_000_000_000)  # 7 J
    assert meter.joules("cpu") == pytest.approx(57)
    write_package(packages, "intel-rapl:0", 20_000_000, 1_000_000_000)  # 70 J, over the limit
    assert meter.joules("cpu") == pytest.approx(127)
    meter.earlier = 1000.0  # before a resume
    assert meter.joules("cpu") == pytest.approx(1127)


def test_energy_is_none_and_no_guess_without_a_counter(packages, monkeypatch):
    meter = EnergyMeter()
    assert meter.joules("cuda") is None  # the CPU's counter says nothing about the GPU
    (packages / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.joules("cpu") is None
    write_package(packages, "intel-rapl:1", 13_000_000)
    assert meter.joules("cpu") is None  # what was used meanwhile is unknown
    meter = EnergyMeter()
    meter.earlier = None
    assert meter.joules("cpu") is None  # nobody counted before the resume
    monkeypatch.setattr(energy, "open_rapl_counters", lambda: open_rapl_counters(packages / "none"))
    assert EnergyMeter().joules("cpu") is None
    assert EnergyMeter(counts_cpu=False).joules("cpu") is None


def test_a_gpu_and_the_machines_cpus_are_added(packages, monkeypatch):
    readings = iter([100.0, 130.0, 190.0])
    monkeypatch.setattr(energy, "open_nvml_counter", lambda: EnergyCounter(lambda: next(readings)))
    meter = EnergyMeter()
    assert meter.joules("cuda") == 30
    write_package(packages, "intel-rapl:1", 6_000_000, 1_000_000_000)
    assert meter.joules("cuda") == pytest.approx(91)


def test_a_stage_records_flops_and_energy(kit, command, monkeypatch, tmp_path):
    readings = iter(range(0, 10_000_000, 3600))
    monkeypatch.setattr(energy, "open_rapl_counters", lambda: [EnergyCounter(lambda: float(next(readings)))])
    out = tmp_path / "sft"
    arguments = ["sft", "--base", kit.base, "--data", kit.demonstrations, "--epochs", 1]
    command(*arguments, "--out", out)
    record = json.loads((out / "run.json").read_text())
    assert 0 < record["flops"] <= record["flops_done"]
    assert record["flops"] == sum(phase.get("flops", 0) for phase in record["phases"].values())
    assert record["gpu_seconds"] == 0
    assert record["energy_kwh"] > 0
    assert record["energy_kwh"] == pytest.approx(round(1000 * record["energy_kwh"]) / 1000)
    monkeypatch.setattr(energy, "open_rapl_counters", list)
    command(*arguments, "--out", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "run.json").read_text())
    assert again["energy_kwh"] is None
    assert (again["flops"], again["flops_done"]) == (record["flops"], record["flops_done"])


def test_a_pipeline_leaves_flops_to_its_stages(tmp_path):
    PHASE_TIMER.clear()
    PHASE_TIMER.add_flops(5.0, 6.0)  # of the last stage, in the same process
    run = RunDirectory.open(make_config(RunConfig, {"out": tmp_path / "run"}))
    assert run._measure_usage() | {"energy_kwh": None} == {
        "flops": None, "flops_done": None, "gpu_seconds": 0.0, "energy_kwh": None,
    }  # fmt: skip
    PHASE_TIMER.clear()
