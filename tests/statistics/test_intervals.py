"""Intervals against enumeration, against scipy, and against the truth: do 95 % of them hold it?"""

from itertools import product

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.sandwich_covariance import cov_cluster_2groups

from instructgpt.statistics import intervals


def every_resample(table):
    """All equally likely two-way resamples of a small table of cells, each a list of values: means, NaN where empty.

    By brute force.
    """
    rows, columns = len(table), len(table[0])
    for drawn_rows in product(range(rows), repeat=rows):
        for drawn_columns in product(range(columns), repeat=columns):
            cells = [value for i in drawn_rows for j in drawn_columns for value in table[i][j]]
            yield np.mean(cells) if cells else np.nan


def test_replicates_have_the_distribution_of_all_resamples():
    table = [[[1.0, 2.0], [4.0]], [[0.0], []], [[7.0], [3.0, 3.0, 5.0]]]
    rows = [(value, i, j) for i, line in enumerate(table) for j, cell in enumerate(line) for value in cell]
    y, a, b = (np.array(column) for column in zip(*rows, strict=True))
    exact = np.array(list(every_resample(table)))
    drawn = intervals._bootstrap_ratios(y, np.ones(len(y)), a, b, seed=0, resamples=40_000)
    assert np.isnan(exact).mean() == pytest.approx(np.isnan(drawn).mean(), abs=0.01)
    for level in (0.05, 0.25, 0.5, 0.75, 0.95):
        below = np.nanquantile(drawn, level)
        assert (exact[~np.isnan(exact)] <= below + 1e-9).mean() == pytest.approx(
            (drawn[~np.isnan(drawn)] <= below + 1e-9).mean(), abs=0.01
        )


def test_one_way_interval_is_that_of_scipy():
    rng = np.random.default_rng(1)
    sample = rng.gamma(2, size=400)
    ours = intervals.mean(sample, range(400))
    theirs = stats.bootstrap((sample,), np.mean, n_resamples=5_000, method="percentile", rng=rng).confidence_interval
    assert ours.value == pytest.approx(sample.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.015)
    assert ours.high == pytest.approx(theirs.high, abs=0.015)


def test_repeating_every_row_changes_nothing_when_clustered():
    sample = np.random.default_rng(2).normal(size=120)
    once = intervals.mean(sample, range(120))
    tenfold = intervals.mean(np.repeat(sample, 10), np.repeat(np.arange(120), 10).tolist())
    assert (tenfold.value, tenfold.low, tenfold.high) == pytest.approx((once.value, once.low, once.high))
    assert (once.n, tenfold.n) == (120, 1200)


def test_crossed_width_is_the_known_standard_error():
    """A balanced table with known variances: rows 1, columns 0.25, noise 1;
    plain product weights would be too wide for the noise.
    """
    rng = np.random.default_rng(3)
    rows, columns = 60, 30
    widths = []
    for _ in range(20):
        cells = rng.normal(size=(rows, 1)) + 0.5 * rng.normal(size=(1, columns)) + rng.normal(size=(rows, columns))
        i, j = (index.ravel().tolist() for index in np.indices(cells.shape))
        measured = intervals.mean(cells.ravel(), i, j)
        widths.append(measured.high - measured.low)
    exact = np.sqrt(1 / rows + 0.25 / columns + 1 / (rows * columns))
    assert np.mean(widths) / (2 * 1.96) == pytest.approx(exact, rel=0.1)


def simulated_coverage(prompts, labelers, per_prompt, prompt_sd, labeler_sd, times=400):
    """Return how often the interval covers the true mean 0; effects have these sizes, noise 1."""
    rng = np.random.default_rng(4)
    held = 0
    for seed in range(times):
        a = np.repeat(np.arange(prompts), per_prompt)
        b = np.concatenate([rng.choice(labelers, per_prompt, replace=False) for _ in range(prompts)])
        y = rng.normal(0, prompt_sd, prompts)[a] + rng.normal(0, labeler_sd, labelers)[b] + rng.normal(size=len(a))
        measured = intervals.mean(y, a.tolist(), b.tolist(), seed=seed)
        held += measured.low <= 0 <= measured.high
    return held / times


@pytest.mark.parametrize(
    ("prompts", "labelers", "per_prompt", "prompt_sd", "labeler_sd"),
    [(9, 1, 1, 1, 0), (60, 1, 1, 1, 0), (60, 12, 2, 0, 0), (60, 20, 2, 1, 0.5)],
    ids=["few prompts", "prompts", "noise alone", "prompts and labelers"],
)
def test_intervals_hold_the_truth(prompts, labelers, per_prompt, prompt_sd, labeler_sd):
    """93 to 97 %, give or take the chance of 400 trials (standard error 1.1 %)."""
    assert simulated_coverage(prompts, labelers, per_prompt, prompt_sd, labeler_sd) == pytest.approx(
        0.95, abs=0.02 + 0.011
    )


def test_ratio_of_sums_by_hand():
    measured = intervals.mean([6, 1, 5], ["a", "b", "c"], weights=[2, 1, 3])
    assert measured.value == pytest.approx(2.0)
    assert 1 <= measured.low <= 2 <= measured.high <= 3


def test_paired_difference_is_narrower_than_two_means():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 3, 100)
    first, second = hard + 0.3 + rng.normal(0, 0.1, 100), hard
    gain = intervals.paired_difference(first, second, range(100))
    assert 0.2 < gain.low < gain.value < gain.high < 0.4
    alone = intervals.mean(first, range(100))
    assert alone.high - alone.low > 10 * (gain.high - gain.low)


def test_a_share_that_was_never_seen_may_still_happen():
    exact = stats.binomtest(0, 50).proportion_ci(0.95, method="exact")
    measured = intervals.mean(np.zeros(50), range(50), share=True)
    assert (measured.low, measured.high) == pytest.approx((exact.low, exact.high))
    full = intervals.mean(np.ones(50), range(50), share=True)
    assert (full.low, full.high) == pytest.approx((1 - exact.high, 1.0))


def test_what_cannot_be_known_is_not_made_up():
    assert intervals.mean([], []) == intervals.NO_ESTIMATE
    assert intervals.mean([1.0, 3.0], ["same", "same"]) == intervals.Estimate(2.0, None, None, 2)
    with pytest.raises(ValueError, match="not finite"):
        intervals.mean([1.0, float("nan")], ["a", "b"])
    with pytest.raises(ValueError, match="3 values"):
        intervals.mean([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(ValueError, match="one or two"):
        intervals.mean([1.0])


def test_the_same_data_give_the_same_interval():
    sample = np.random.default_rng(6).normal(size=50)
    assert intervals.mean(sample, range(50)) == intervals.mean(sample, range(50))
    assert intervals.mean(sample, range(50)) != intervals.mean(sample, range(50), seed=1)


def test_wilson_is_that_of_statsmodels():
    for successes, n in ((0, 5), (15, 20), (45, 60), (7, 7), (3, 1000)):
        measured = intervals.wilson_interval(successes, n)
        assert (measured.low, measured.high) == pytest.approx(proportion_confint(successes, n, method="wilson"))
    screening = intervals.wilson_interval(15, 20)
    assert (round(screening.low, 2), round(screening.high, 2)) == (0.53, 0.89)
    assert intervals.wilson_interval(0, 0) == intervals.NO_ESTIMATE
    with pytest.raises(ValueError, match="3 successes in 2"):
        intervals.wilson_interval(3, 2)


def test_two_way_variance_is_that_of_statsmodels():
    rng = np.random.default_rng(7)
    a, b = rng.integers(30, size=400), rng.integers(12, size=400)
    y = rng.normal(size=30)[a] + rng.normal(size=12)[b] + rng.normal(size=400)
    ours = intervals.clustered_uncertainty(intervals.residuals(y, np.ones(400)), a, b)
    both, first, second = (
        float(v[0, 0]) for v in cov_cluster_2groups(sm.OLS(y, np.ones(400)).fit(), a, b, use_correction=False)
    )
    cells = len(set(zip(a.tolist(), b.tolist(), strict=True)))
    assert ours.variance == pytest.approx(
        first * 30 / 29 + second * 12 / 11 - (first + second - both) * cells / (cells - 1)
    )
    assert ours.cluster_count == 30


def test_many_clusters_in_blocks_have_the_same_width():
    rng = np.random.default_rng(8)
    prompts, labelers = 3 * intervals.MAX_BOOTSTRAP_CLUSTERS, 30
    a, b = np.repeat(np.arange(prompts), 2), rng.integers(labelers, size=2 * prompts)
    y = (rng.normal(size=prompts)[a] + 0.3 * rng.normal(size=labelers)[b] + rng.normal(size=len(a)) > 0).astype(float)
    whole = intervals.percentile_interval(
        intervals._bootstrap_ratios(y, np.ones(len(y)), a, b, 0),
        intervals.clustered_uncertainty(intervals.residuals(y, np.ones(len(y))), a, b),
    )
    measured = intervals.mean(y, a, b, share=True)
    assert (measured.low, measured.high) == pytest.approx(whole, abs=0.1 * (whole[1] - whole[0]))


def test_interval_of_a_share_stays_between_0_and_1():
    spread = intervals.Uncertainty(0.02, 5, 6)
    wide = intervals.t_interval(0.97, spread, 10, share=True)
    assert 0 < wide.low < 0.97 < wide.high < 1
    half = np.sqrt(0.02) * stats.t.ppf(0.975, 5)
    assert intervals.t_interval(0.97, spread, 10).high == pytest.approx(0.97 + half)
    logit = np.log(0.97 / 0.03) - half / (0.97 * 0.03)
    assert wide.low == pytest.approx(1 / (1 + np.exp(-logit)))
    assert intervals.t_interval(0.5, intervals.Uncertainty(0.0, 1, 1), 3) == intervals.Estimate(0.5, None, None, 3)


def test_p_value_is_that_of_the_t_test():
    sample = np.random.default_rng(9).normal(0.3, 1, 25)
    spread = intervals.clustered_uncertainty(
        intervals.residuals(sample, np.ones(25)), np.arange(25), np.zeros(25, dtype=int)
    )
    assert intervals.t_test_p_value(sample.mean(), 0.0, spread) == pytest.approx(stats.ttest_1samp(sample, 0).pvalue)


def test_holm_is_that_of_statsmodels():
    p = [0.04, 0.001, 0.3, 0.012, 0.9]
    assert intervals.holm_correction(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert intervals.holm_correction([None, 0.03, None]) == [None, 0.03, None]


def test_jackknife_of_a_mean_is_the_t_interval():
    sample = np.random.default_rng(10).normal(size=(12, 1))
    measured = intervals.jackknife(np.column_stack([sample, np.ones(12)]), lambda sums: sums[..., 0] / sums[..., 1], 12)
    low, high = stats.t.interval(0.95, 11, sample.mean(), stats.sem(sample[:, 0]))
    assert (measured.low, measured.high) == pytest.approx((low, high))
