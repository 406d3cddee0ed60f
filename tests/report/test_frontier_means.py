"""The frontier of several seeds: means over runs, checked by hand, and the section of a comparison.

pytest tests/report/test_frontier_means.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from instructgpt.report.comparison import ComparedRun, RunGroup
from instructgpt.report.frontier_means import mean_frontier
from instructgpt.report.sections.frontier import compared_frontier_sections
from instructgpt.results import ResultRow


def point(label: str, gain: float, deviation: float, kl: float = 1.0, win_rate: float = 0.6) -> dict[str, Any]:
    measures = {
        f"{name}_{end}": value
        for name in ("utility", "heldout", "score")
        for end, value in (("gain", gain), ("low", gain - 1), ("high", gain + 1), ("start_sd", deviation))
    }
    rates = dict.fromkeys(("win_rate_validation_training", "win_rate_test_training", "win_rate_test_heldout"), win_rate)
    method = label.partition("@")[0]
    row = {"method": method, "label": label, "n": None, "kl": kl, "sqrt_kl": kl**0.5, "kl_is_bound": False}
    costs = {"training_flops": 1e12, "answer_flops": 1e7}
    return row | costs | measures | rates | {"utility": 5.0, "heldout": 5.0, "score": 1.0}


RUNS = (
    [point("start", 0.0, 2.0, 0.0, 0.5), point("ppo@2", 1.0, 2.0, 1.0, 0.55), point("ppo", 3.0, 2.0, 4.0)],
    [point("start", 0.0, 4.0, 0.0, 0.5), point("ppo", 2.0, 4.0, 2.0, 0.7)],
)


def test_gains_are_averaged_in_each_runs_own_unit() -> None:
    start, ppo = mean_frontier(RUNS)
    assert start["utility_gain"] == 0
    assert ppo["label"] == "ppo"  # the step that one run lacks is left out
    assert ppo["utility_gain"] / ppo["utility_start_sd"] == pytest.approx((3 / 2 + 2 / 4) / 2)
    half = float(stats.t.ppf(0.975, 1)) * 0.5  # standard error of 1.5 and 0.5
    assert ppo["utility_low"] == pytest.approx(1 - half)
    assert ppo["utility_high"] == pytest.approx(1 + half)
    assert ppo["kl"] == 3
    assert ppo["sqrt_kl"] == pytest.approx((2 + 2**0.5) / 2)
    assert ppo["win_rate_test_training"] == pytest.approx(0.65)
    assert 0 <= ppo["win_rate_test_training_low"] < 0.6 < 0.7 < ppo["win_rate_test_training_high"] <= 1


def test_a_single_run_is_unchanged() -> None:
    assert mean_frontier(RUNS[:1]) == RUNS[0]


def test_each_group_of_runs_has_a_section() -> None:
    runs = [ComparedRun(Path(f"run-{n}"), f"run-{n}", (), frontier=tuple(points)) for n, points in enumerate(RUNS)]
    without = ComparedRun(Path("other"), "other", ())
    (section,) = compared_frontier_sections([RunGroup("run", (*runs, without))])
    assert "2 runs of different seeds" in section.caption
    first, second = compared_frontier_sections([RunGroup("a", (runs[0],)), RunGroup("b", (runs[1],))])
    assert (first.id, second.id) == ("frontier", "frontier-2")
    assert second.title.endswith("b")
    assert "intervals over prompts" in first.caption
    assert compared_frontier_sections([RunGroup("other", (without,))]) == []


@pytest.mark.parametrize("lowest", [0.51, 0.49])
def test_runs_without_a_truth_have_the_judges_mean_accuracy(lowest: float) -> None:
    runs = []
    for number, points in enumerate(RUNS):
        judged = [
            {k: v for k, v in row.items() if ("utility" not in k and "training" not in k) or k == "training_flops"}
            | {"win_rate_validation_heldout": 0.6}
            for row in points
        ]
        rows = tuple(
            ResultRow("frontier", "pair_accuracy", model, "", accuracy + 0.1 * number, lowest, 0.9, 100)
            for model, accuracy in (("judge", 0.6), ("reward", 0.55))
        )
        runs.append(ComparedRun(Path(f"run-{number}"), f"run-{number}", rows, frontier=tuple(judged)))
    (section,) = compared_frontier_sections([RunGroup("run", tuple(runs))])
    assert "orders 65 % of held-out pairs as people do, the proxy 60 %" in section.caption.replace("\xa0", " ")
    assert ("no better than a coin" in section.caption) == (lowest < 0.5)
    assert "judge's score was still at its best" in section.headline
    assert len(section.tables[0].head) == 5  # one win rate
