"""What a dry run says, before anything is there."""

from __future__ import annotations

import re

import pytest

from instructgpt.config import make_config
from instructgpt.plan.hardware import Machine
from instructgpt.sweep.claims import ClaimFolder
from instructgpt.sweep.cli import Sweep
from instructgpt.sweep.cli import main as run_sweep
from instructgpt.sweep.configs import SweepConfig
from instructgpt.sweep.forecast import forecast_stages, measure_corrections, measure_lengths

MACHINE = Machine(50e9, 10e9)


def make_sweep_config(tmp_path, *vary, recipe="smoke", **options):
    return make_config(SweepConfig, {"recipe": recipe, "vary": vary, "out": tmp_path / "sweep", **options})


def test_a_dry_run_prints_cells_what_they_share_time_and_memory_and_makes_nothing(tmp_path, capsys):
    run_sweep(make_sweep_config(tmp_path, "ppo.lr=1e-4,2e-4", dry_run=True))
    printed = capsys.readouterr().out
    assert len(re.findall(r"cell \w{12}: ppo.lr [\d.e-]+, seed 0, open, [\d.]+ CPU minutes", printed)) == 2
    assert re.search(r"shared pretrain-\w{12}: for 2 cells, open, [\d.]+ CPU minutes", printed)
    assert re.search(r"together \d+ CPU minutes, [\d.]+ h with 1 at once", printed)
    assert re.search(r"memory up to \d+ MB", printed)
    assert "then the chosen cell again on 1 fresh seeds" in printed
    assert not (tmp_path / "sweep").exists()


def test_more_work_takes_longer(tmp_path):
    sweep = Sweep(make_sweep_config(tmp_path, "ppo.episodes=64,128", "reward.epochs=1,3"))
    by_values = {tuple(map(int, cell.values.values())): forecast_stages(cell.config, MACHINE) for cell in sweep.cells}
    seconds = {values: {stage: f.seconds for stage, f in stages.items()} for values, stages in by_values.items()}
    assert seconds[128, 1]["ppo"] == pytest.approx(2 * seconds[64, 1]["ppo"])
    assert seconds[64, 3]["reward"] == pytest.approx(3 * seconds[64, 1]["reward"])
    assert seconds[64, 1]["ppo_ptx"] == seconds[128, 3]["ppo_ptx"] > 0
    assert all(
        forecast.peak_bytes > 0 for forecast in (by_values[64, 1][name] for name in ("pretrain", "ppo", "reward"))
    )


def test_what_was_made_corrects_what_is_expected(tmp_path):
    config = make_sweep_config(tmp_path, "ppo.lr=1e-4,2e-4")
    sweep = Sweep(config)
    forecasts = {cell.key: forecast_stages(cell.config, MACHINE) for cell in sweep.cells}
    assert measure_corrections(sweep, forecasts) == {}
    stage = next(stage for stage in sweep.shared_stages().values() if stage.stage == "reward")
    claim = ClaimFolder(config.out / "claims").claim(stage.name)
    claim.complete({"seconds": 3 * forecasts[sweep.cells[0].key]["reward"].seconds})
    assert measure_corrections(sweep, forecasts) == {"reward": pytest.approx(3)}


def test_own_files_are_not_planned_and_it_is_said(tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("run: {corpus: c.txt, demonstrations: d.jsonl, rankings: r.jsonl}\nppo_ptx: {lr: 1e-5}\n")
    run_sweep(make_sweep_config(tmp_path, "ppo_ptx.kl_coef=0.02,0.04", recipe=str(recipe), dry_run=True))
    printed = capsys.readouterr().out
    assert "stages are not planned" in printed
    assert re.search(r"shared reward-\w{12}: for 2 cells, open\n", printed)


def test_lengths_are_those_of_the_worlds_texts():
    prompt, completion = measure_lengths(0)
    assert 5 < prompt < 60
    assert 2 < completion < 30
