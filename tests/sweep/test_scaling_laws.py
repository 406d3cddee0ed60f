"""`scaling-laws` on measurements whose laws are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from instructgpt.cli import run_command
from instructgpt.errors import InputError
from instructgpt.sweep.scaling_laws import fit_settings, is_falling, parse_curve, read_measurements
from instructgpt.sweep.scaling_laws_cli import describe_setting, judge_setting

SIZES, PROMPTS, N = (10_000, 40_000, 160_000, 640_000), (250, 1000, 4000), [2**power for power in range(1, 11)]


def alpha_of(size, prompts):
    return 0.2 * math.log10(size) + 0.1 * math.log10(prompts) - 0.6


def beta_of(size, prompts):
    return 0.6 - 0.08 * math.log10(size) - 0.02 * math.log10(prompts)


def quadratic(d, size, prompts):
    return d * (alpha_of(size, prompts) - beta_of(size, prompts) * d)


def measurement(size, prompts, seed, rng, curve=quadratic, noise=0.02, **settings):
    """Return a record with a cell's error on its coefficients and errors of groups of prompts."""
    kl = [math.log(n) - (n - 1) / n for n in N]
    d, cell, groups = np.sqrt(kl), rng.normal(0, noise), rng.normal(0, noise, 10)
    truth = curve(d, size, prompts)[:, None] + (0.05 * seed + cell + groups[None]) * d[:, None]
    truth -= rng.normal(0, noise / 4) * d[:, None] ** 2
    row = {"method": "best_of_n", "seed": seed, "labels": {"prompts": prompts}, "labeler_noise": 1.2, "labelers": 1}
    row |= {"reward_max_prompts": prompts, "reward_max_completions": 0, "reward_accuracy": 0.7}
    row |= {"reward_parameters_without_embeddings": size, "truth_accuracy": 0.8, "prompts": 100, "samples": 1024}
    points = [
        {"n": n, "kl": k, "truth": values.tolist(), "proxy": [float(x)] * 10}
        for n, k, values, x in zip(N, kl, truth, d, strict=True)
    ]
    return row | settings | {"points": points}


def grid(rng, **options):
    return [measurement(s, p, seed, rng, **options) for s in SIZES for p in PROMPTS for seed in (0, 1)]


def fit(rows):
    return fit_settings([parse_curve(row) for row in rows])


def test_laws_of_both_sizes_are_recovered_and_a_size_that_was_left_out_is_predicted():
    (setting,) = fit(grid(np.random.default_rng(0)))
    assert (setting.cells, len(setting.combinations)) == (24, 12)
    for axis, slopes in (("size", (0.2, -0.08)), ("prompts", (0.1, -0.02))):
        for estimate, slope in zip(setting.trends[axis], slopes, strict=True):
            assert abs(estimate.value - slope) < 0.75 * (estimate.high - estimate.low), "within three standard errors"
            assert estimate.high - estimate.low < 0.06
    largest = next(row for row in setting.heldout if row.axis == "size" and row.value == max(SIZES))
    assert largest.predicted < 0.5 * largest.nearest
    assert largest.fitted < 1e-6, "every cell has exactly its own curve"
    first = setting.combinations[0]
    alpha, beta = alpha_of(SIZES[0], 250) + 0.025, beta_of(SIZES[0], 250)  # the mean of both seeds
    assert first.coefficients[0].low < alpha < first.coefficients[0].high
    assert first.coefficients[1].low < beta < first.coefficients[1].high
    assert first.peak[0] == pytest.approx(first.coefficients[0].value / (2 * first.coefficients[1].value))
    text = " ".join(judge_setting(setting))
    assert "The form holds" in text
    assert "beta is above 0" in text
    assert "FAILS" not in text
    assert "alpha changes by 0.2" in text
    assert text.count("; holds)") == 2
    assert f"Cells of {max(SIZES)} parameters are predicted better" in text


def test_a_law_that_fails_is_said():
    def rising(d, size, _prompts):
        return (2 - 0.2 * math.log10(size)) * (1 - np.exp(-0.6 * d))

    (setting,) = fit(grid(np.random.default_rng(1), curve=rising, noise=0.002))
    text = " ".join(judge_setting(setting))
    assert "THE FORM FAILS: alpha (1 - exp(-gamma d)) predicts larger d better" in text
    assert "in 0 of 24 cells" in text
    assert "Gao et al.: up; THE OPPOSITE" in text


def test_falling_needs_more_than_a_highest_point_by_chance():
    rng = np.random.default_rng(2)
    chance = [measurement(1000, 250, seed, rng, lambda d, *_: 0 * d, noise=0.0) for seed in range(60)]
    for row in chance:
        for point in row["points"]:
            point["truth"] = rng.normal(0, 1, 10).tolist()
    assert sum(is_falling(parse_curve(row)) for row in chance) <= 5, "2.5 % are expected"
    fallen = measurement(1000, 250, 0, rng, lambda d, *_: d * (1 - 0.35 * d), noise=0.01)
    assert is_falling(parse_curve(fallen))


def test_settings_are_fitted_on_their_own_and_seeds_without_a_twin_over_prompts():
    rng = np.random.default_rng(3)
    rows = [measurement(SIZES[0], 250, 0, rng), measurement(SIZES[0], 250, 0, rng, labeler_noise=0.0)]
    rows += [measurement(SIZES[0], 250, 0, rng, reward_max_completions=2)]
    fits = fit(rows)
    assert [describe_setting(entry.setting).split(", ")[:4] for entry in fits] == [
        ["best of n", "noise 1.2", "1 labelers a prompt", "K as ranked"],
        ["best of n", "noise 0", "1 labelers a prompt", "K as ranked"],
        ["best of n", "noise 1.2", "1 labelers a prompt", "K = 2"],
    ]
    estimate = fits[0].combinations[0].coefficients[0]
    groups = np.array([point["truth"] for point in rows[0]["points"]])
    assert estimate.low < estimate.value < estimate.high
    assert estimate.high - estimate.low == pytest.approx(
        2 * 2.262 * (groups[0] / math.sqrt(rows[0]["points"][0]["kl"])).std(ddof=1) / math.sqrt(10), rel=1e-3
    )


def test_command_writes_what_it_can_read_again(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = grid(np.random.default_rng(4))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:20]))
    cell = tmp_path / "sweep" / "cells" / "abc" / "evaluation"
    cell.mkdir(parents=True)
    for row in rows[20:21]:
        (cell / "overoptimization.json").write_text(json.dumps(row))
    out = tmp_path / "out"
    assert run_command(["scaling-laws", str(file), str(tmp_path / "sweep"), "--out", str(out)]) == 0
    assert len((out / "measurements.jsonl").read_text().splitlines()) == 21
    assert json.loads((out / "laws.json").read_text())[0]["cells"] == 21
    assert "| d (alpha - beta d) |" in (out / "laws.md").read_text()
    assert "<svg" in (out / "laws.svg").read_text()
    again = tmp_path / "again"
    assert run_command(["scaling-laws", str(out / "measurements.jsonl"), "--out", str(again)]) == 0
    for name in ("measurements.jsonl", "laws.json", "laws.md", "laws.svg"):
        assert (again / name).read_text() == (out / name).read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no evaluation/overoptimization.json"),
        ("{}\n", "rows.jsonl:1: no measurement"),
        ('{"method": "dpo", "points": []}\n', "rows.jsonl:1: no measurement"),
        ("no json\n", "rows.jsonl:1: no measurement"),
    ],
)
def test_files_without_measurements(tmp_path, text, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_measurements([file])
    with pytest.raises(InputError, match="cannot be read"):
        read_measurements([tmp_path / "missing.jsonl"])
