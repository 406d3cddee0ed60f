"""Forms of over-optimization curves against numbers by hand, and intervals against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from instructgpt.statistics.least_squares import fit_least_squares
from instructgpt.statistics.overoptimization import (
    FORMS,
    basis_log,
    effect_code,
    extrapolation_error,
    find_peak,
    fit_curve,
    project,
)

D = np.linspace(0.3, 2.4, 10)
_GENERAL = {"linear": {"quadratic", "log", "saturating"}, "kl": {"quadratic"}}
"""Forms that another form is a case of."""


def test_forms_at_points_worked_by_hand():
    d = np.array([0.0, 1.0, math.e])
    assert FORMS["quadratic"].basis(d) @ [2, 0.5] == pytest.approx([0, 1.5, 2 * math.e - 0.5 * math.e**2])
    assert FORMS["log"].basis(d) @ [2, 0.5] == pytest.approx([0, 2, 1.5 * math.e])
    assert FORMS["saturating"].basis(d, 1.0)[:, 0] * 3 == pytest.approx([0, 3 * (1 - 1 / math.e), 2.80209], abs=1e-4)
    # k rounds of d / k each: k (d/k) (alpha - beta log(d/k))
    rounds = [4, 4, 4]
    one_round = d / 4 * (2 - 0.5 * np.log(np.maximum(d, 1e-9) / 4))
    assert basis_log(d, rounds) @ [2, 0.5] == pytest.approx(4 * one_round, abs=1e-7)


@pytest.mark.parametrize(
    ("form", "coefficients", "values"),
    [
        ("quadratic", (1.2, 0.3), D * (1.2 - 0.3 * D)),
        ("log", (0.8, 0.5), D * (0.8 - 0.5 * np.log(D))),
        ("linear", (0.7,), 0.7 * D),
        ("kl", (0.4,), 0.4 * D**2),
        ("saturating", (1.5, 0.9), 1.5 * (1 - np.exp(-0.9 * D))),
    ],
)
def test_known_coefficients_are_recovered_and_the_true_form_predicts_best(form, coefficients, values):
    fit = fit_curve(form, D, values)
    assert fit.coefficients == pytest.approx(coefficients, rel=1e-3)
    assert fit.squares == pytest.approx(0, abs=1e-8)
    assert fit.predict(D) == pytest.approx(values, abs=1e-4)
    noisy = values + np.random.default_rng(0).normal(0, 1e-4, len(D))
    errors = {name: extrapolation_error(name, D, noisy, 1.5) for name in FORMS}
    assert errors[form] < 0.02
    rivals = FORMS.keys() - {form} - _GENERAL.get(form, set())
    assert min(errors[name] for name in rivals) > 3 * errors[form]
    assert fit_curve(form, D, noisy).aicc < min(fit_curve(n, D, noisy).aicc for n in FORMS if n != form) + 4


def test_peaks():
    assert find_peak("quadratic", 1.0, 0.25) == pytest.approx((2, 1))
    assert find_peak("log", 1.0, 0.5) == pytest.approx((math.e, math.e / 2))
    d, height = find_peak("log", 0.8, 0.5)
    around = d + np.array([-0.01, 0, 0.01])
    assert around[np.argmax(around * (0.8 - 0.5 * np.log(around)))] == pytest.approx(d)
    assert height == pytest.approx(d * (0.8 - 0.5 * math.log(d)))
    assert find_peak("quadratic", 1.0, -0.1) is None
    assert find_peak("quadratic", -1.0, 0.1) is None
    assert find_peak("log", 1.0, 1e-9) is None
    with pytest.raises(ValueError, match="linear"):
        find_peak("linear", 1, 1)


def test_the_fit_of_a_mean_is_the_mean_of_fits():
    rows = np.random.default_rng(1).normal(size=(7, len(D)))
    for form in ("quadratic", "log"):
        assert project(form, D, rows).mean(0) == pytest.approx(fit_curve(form, D, rows.mean(0)).coefficients)


def test_too_few_points():
    with pytest.raises(ValueError, match="expected 2 or more"):
        fit_curve("quadratic", [1.0], [1.0])
    with pytest.raises(ValueError, match="0 or more"):
        fit_curve("linear", [-1.0, 1.0], [1.0, 2.0])
    assert fit_curve("quadratic", [1.0, 2.0], [1.0, 2.0]).aicc == math.inf
    assert extrapolation_error("linear", [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 2.0) is None


def test_aicc_by_hand():
    fit = fit_curve("linear", [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 6.0])
    slope = (1 + 4 + 9 + 16 + 30) / 55
    squares = sum((y - slope * x) ** 2 for x, y in zip([1, 2, 3, 4, 5], [1, 2, 3, 4, 6], strict=True))
    assert fit.aicc == pytest.approx(5 * math.log(squares / 5) + 2 * 2 + 2 * 2 * 3 / (5 - 2 - 1))


def test_least_squares_is_that_of_scipy():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=12), rng.normal(size=12)
    slope = fit_least_squares(np.stack([np.ones(12), x], 1), y).estimate([0, 1])
    reference = stats.linregress(x, y)
    margin = stats.t.ppf(0.975, 10) * reference.stderr
    assert (slope.value, slope.low, slope.high) == pytest.approx(
        (reference.slope, reference.slope - margin, reference.slope + margin)
    )
    alone = fit_least_squares([[1.0]], [2.0]).estimate([1])
    assert (alone.value, alone.low, alone.high) == (pytest.approx(2.0), None, None)
    with pytest.raises(ValueError, match="expected finite"):
        fit_least_squares([[1.0], [np.nan]], [1.0, 2.0])


def test_effects_sum_to_zero():
    code = effect_code(["a", "b", "c", "b"])
    assert code.tolist() == [[1, 0], [0, 1], [-1, -1], [0, 1]]
    assert effect_code([1, 1]).shape == (2, 0)


def test_intervals_of_a_layout_with_seeds_cover():
    """Two seeds whose effect is shared by all combinations, twelve combinations: 95 % for a mean and for a slope."""
    rng, sizes = np.random.default_rng(3), np.tile(np.linspace(-1, 1, 4), 6)
    combinations, seeds = np.tile(np.arange(12), 2), np.repeat([0, 1], 12)
    layout = np.hstack([combinations[:, None] == np.arange(12), effect_code(seeds.tolist())])
    trend = np.hstack([np.ones((24, 1)), sizes[:, None], effect_code(seeds.tolist())])
    inside, effect = np.zeros(2), np.array([0.4, -0.4])
    trials = 600
    for _ in range(trials):
        y = 1 + 0.5 * sizes + effect[seeds] + rng.normal(0, 0.3, 24)
        mean = fit_least_squares(layout, y).estimate(np.arange(13) == 0)
        slope = fit_least_squares(trend, y).estimate([0, 1, 0])
        inside += [mean.low <= 1 + 0.5 * sizes[0] <= mean.high, slope.low <= 0.5 <= slope.high]
    assert (abs(inside / trials - 0.95) < 0.03).all()
