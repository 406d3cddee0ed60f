"""Agreement about categories: beside evalica, against numbers worked by hand."""

import evalica
import numpy as np
import pandas as pd
import pytest

from instructgpt.statistics.categorical_agreement import gwet_ac1, krippendorff_alpha, positive_agreement


def long_form(table):
    """(labelers, units) with NaN for no answer -> units, values."""
    row, column = np.nonzero(~np.isnan(table))
    return column.tolist(), table[row, column].tolist()


@pytest.mark.parametrize("level", ["nominal", "ordinal", "interval"])
@pytest.mark.parametrize("seed", range(4))
def test_alpha_is_evalica_s(level, seed):
    rng = np.random.default_rng(seed)
    table = np.clip(rng.integers(1, 8, 40) + rng.integers(-2, 3, (5, 40)), 1, 7).astype(float)
    table[rng.random(table.shape) < 0.4] = np.nan
    found = krippendorff_alpha(*long_form(table), level)
    assert found.value == pytest.approx(evalica.alpha(pd.DataFrame(table), level).alpha)
    assert found.low < found.value < found.high


def test_alpha_by_hand():
    """Two labelers, four units: yes yes, yes no, no no, no no.

    Coincidences: yy 2, yn 1, ny 1, nn 4; 3 yes and 5 no of 8.
    """
    units, values = [1, 1, 2, 2, 3, 3, 4, 4], [True, True, True, False, False, False, False, False]
    found = krippendorff_alpha(units, values)
    assert found.value == pytest.approx(1 - (2 / 8) / (2 * 3 * 5 / (8 * 7)))
    assert found.n == 8
    assert (
        krippendorff_alpha([*units, 5], [*values, True]).value == found.value
    )  # an answer that stands alone tells nothing
    assert krippendorff_alpha(["a"] * 4, ["x"] * 4).value is None  # one answer only
    assert krippendorff_alpha([], []).value is None
    with pytest.raises(ValueError, match="no level"):
        krippendorff_alpha(units, values, "ratio")
    with pytest.raises(ValueError, match="do not fit"):
        krippendorff_alpha(units, values[:-1])


def test_ac1_by_hand():
    """Two labelers, 100 units: 90 times both no, 2 both yes, 5 and 3 times one alone."""
    pairs = [(0, 0)] * 90 + [(1, 1)] * 2 + [(1, 0)] * 5 + [(0, 1)] * 3
    units, values = [u for u in range(100) for _ in range(2)], [answer for pair in pairs for answer in pair]
    share = (7 + 5) / 200
    chance = 2 * share * (1 - share)
    found = gwet_ac1(units, values)
    assert found.value == pytest.approx((0.92 - chance) / (1 - chance))
    assert krippendorff_alpha(units, values).value < 0.4 < 0.9 < found.value  # rare answers: what AC1 is for
    assert positive_agreement(units, [bool(value) for value in values]).value == pytest.approx(2 * 2 / (2 * 2 + 5 + 3))


def test_three_labelers_by_hand():
    """Yes yes no; no no no; yes yes yes; yes and nobody else."""
    units = ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["d"]
    values = [True, True, False, False, False, False, True, True, True, True]
    observed = (1 / 3 + 1 + 1) / 3
    share = (2 / 3 + 0 + 1) / 3
    chance = 2 * share * (1 - share)
    assert gwet_ac1(units, values).value == pytest.approx((observed - chance) / (1 - chance))
    assert positive_agreement(units, values).value == pytest.approx(
        (2 * 1 / 2 + 3) / (2 + 3)
    )  # of 2 and 3 yeses: 1/2 and all
    assert positive_agreement(units, [False] * 10).value is None
    three = gwet_ac1(units, values, categories=3)
    assert three.value == pytest.approx((observed - chance / 2) / (1 - chance / 2))


def test_units_of_one_prompt_widen_the_interval():
    rng = np.random.default_rng(0)
    hard = np.repeat(rng.random(40) < 0.5, 6)
    truth = rng.integers(1, 8, 240)
    answers = [np.where(hard, rng.integers(1, 8, 240), truth) for _ in range(2)]
    units, values = [*range(240), *range(240)], np.concatenate(answers).tolist()
    prompts = [unit // 6 for unit in units]
    alone, together = (
        krippendorff_alpha(units, values, "interval"),
        krippendorff_alpha(units, values, "interval", prompts),
    )
    assert alone.value == together.value
    assert together.high - together.low > 1.3 * (alone.high - alone.low)


def test_alpha_s_interval_holds_the_truth():
    """Yes or no with 20 % slips: alpha is (1 − 2 · 0.2)² in the long run."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        truth = rng.random(80) < 0.5
        values = np.concatenate([truth ^ (rng.random(80) < 0.2) for _ in range(3)])
        found = krippendorff_alpha(np.tile(np.arange(80), 3), values.tolist())
        held += found.low <= 0.36 <= found.high
    assert held / 400 == pytest.approx(0.95, abs=0.02 + 0.011)


def test_alpha_of_krippendorff_s_example():
    """Four observers, twelve units, gaps (Krippendorff, 2011): 0.743, 0.815 and 0.849."""
    rows = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
    units, values = zip(
        *((unit, int(value)) for row in rows for unit, value in enumerate(row) if value != "."), strict=True
    )
    alphas = [krippendorff_alpha(units, values, level).value for level in ("nominal", "ordinal", "interval")]
    assert alphas == pytest.approx([0.743, 0.815, 0.849], abs=5e-4)
