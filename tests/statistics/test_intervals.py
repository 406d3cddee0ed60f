"""Intervals against slow definitions, against scipy and statsmodels, and against the truth."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from instructgpt.statistics import clustered, intervals


def test_one_way_interval_is_student_s():
    sample = np.random.default_rng(1).gamma(2, size=8)
    ours = intervals.mean(sample, range(8))
    low, high = stats.t.interval(0.95, 7, sample.mean(), stats.sem(sample))
    assert (ours.value, ours.low, ours.high) == pytest.approx((sample.mean(), low, high))


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
    for _ in range(times):
        a = np.repeat(np.arange(prompts), per_prompt)
        b = np.concatenate([rng.choice(labelers, per_prompt, replace=False) for _ in range(prompts)])
        y = rng.normal(0, prompt_sd, prompts)[a] + rng.normal(0, labeler_sd, labelers)[b] + rng.normal(size=len(a))
        measured = intervals.mean(y, a.tolist(), b.tolist())
        held += measured.low <= 0 <= measured.high
    return held / times


@pytest.mark.parametrize(
    ("prompts", "labelers", "per_prompt", "prompt_sd", "labeler_sd"),
    [(2, 1, 1, 1, 0), (3, 1, 1, 1, 0), (60, 1, 1, 1, 0), (60, 12, 2, 0, 0), (60, 20, 2, 1, 0.5), (100, 3, 3, 1, 1)],
    ids=["two prompts", "three prompts", "prompts", "noise alone", "prompts and labelers", "three labelers"],
)
def test_intervals_hold_the_truth(prompts, labelers, per_prompt, prompt_sd, labeler_sd):
    """93 to 97 %, give or take the chance of 400 trials (standard error 1.1 %)."""
    assert simulated_coverage(prompts, labelers, per_prompt, prompt_sd, labeler_sd) == pytest.approx(
        0.95, abs=0.02 + 0.011
    )


def test_ratio_of_sums_by_leaving_out():
    """A definition that shares no formula: the ratio without each cluster, from the raw rows."""
    rng = np.random.default_rng(12)
    w = rng.integers(1, 9, 30).astype(float)
    y, a = w * rng.normal(2, 1, 30), rng.integers(0, 6, 30)
    measured = intervals.mean(y, a.tolist(), weights=w)
    without = np.array([y[a != g].sum() / w[a != g].sum() for g in range(6)])
    share = np.bincount(a, w) / w.sum()
    spread = np.sqrt(5 / 6 * ((without - measured.value) ** 2).sum())
    half = stats.t.ppf(0.975, 1 / (share**2).sum() - 1) * spread
    assert measured.value == pytest.approx(y.sum() / w.sum())
    assert (measured.low, measured.high) == pytest.approx((measured.value - half, measured.value + half))
    padded = intervals.mean([*y, 5.0], [*a.tolist(), "extra"], weights=[*w, 0.0])
    assert padded == measured  # a row of weight 0 is no cluster


def test_paired_difference_is_narrower_than_two_means():
    rng = np.random.default_rng(5)
    hard = rng.normal(0, 3, 100)
    first, second = hard + 0.3 + rng.normal(0, 0.1, 100), hard
    gain = intervals.paired_difference(first, second, range(100))
    assert 0.2 < gain.low < gain.value < gain.high < 0.4
    assert (gain.low, gain.high) == pytest.approx(stats.ttest_rel(first, second).confidence_interval(0.95), abs=1e-9)


def test_a_difference_is_that_of_its_two_rows():
    """Nine rows of one cluster and one of another: a mean of cluster means would say 0.00 for 0.90 and 0.26."""
    rng = np.random.default_rng(13)
    sides, rows = [], []
    for seed in range(2):
        keys = np.random.default_rng(seed).choice(7, 40, p=[0.7, *[0.05] * 6])
        values, weights = rng.random(40), rng.integers(1, 20, 40).astype(float)
        sides.append(intervals.Measurements(values * weights, [keys.tolist(), (keys % 3).tolist()], weights))
        rows.append(intervals.mean(values * weights, keys.tolist(), (keys % 3).tolist(), weights=weights))
    for bounds in (None, intervals.SHARE):
        found = intervals.difference(*sides, bounds)
        assert found.value == pytest.approx(rows[0].value - rows[1].value)
        assert found.low < found.value < found.high
        mirrored = intervals.difference(*sides[::-1], bounds)
        assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_a_difference_of_independent_samples_has_welch_s_error():
    rng = np.random.default_rng(14)
    first, second = rng.normal(0, 1, 30), rng.normal(0, 3, 30)
    sides = [
        intervals.Measurements(sample, [[f"{name}{i}" for i in range(30)]])
        for name, sample in (("a", first), ("b", second))
    ]
    found = intervals.difference(*sides)
    error = np.sqrt(first.var(ddof=1) / 30 + second.var(ddof=1) / 30)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 59) * error, rel=0.02)
    assert found.n == 0


@pytest.mark.parametrize(
    ("clusters", "first", "second"), [(3, 0.02, 0.25), (10, 0.01, 0.15), (20, 0.005, 0.12), (50, 0.01, 0.12)]
)
def test_a_difference_of_rare_events_is_not_called_none(clusters, first, second):
    """The interval lies within ± 0.1 although the truth does not: nominal 2.5 %, and never of width 0."""
    rng = np.random.default_rng(15)
    within = held = 0
    for _ in range(400):
        luck, other = rng.random(clusters), rng.random(clusters)
        shared = np.where(rng.random(clusters) < 0.6, luck, other)
        found = intervals.paired_difference(luck < first, shared < second, range(clusters), bounds=intervals.SHARE)
        assert found.low < found.high
        within += found.low > -0.1 and found.high < 0.1
        held += found.low <= first - second <= found.high
    assert within <= 0.035 * 400
    assert held >= 0.93 * 400


def test_a_share_that_was_never_seen_may_still_happen():
    exact = stats.binomtest(0, 50).proportion_ci(0.95, method="exact")
    measured = intervals.mean(np.zeros(50), range(50), bounds=intervals.SHARE)
    assert (measured.low, measured.high) == pytest.approx((exact.low, exact.high))
    full = intervals.mean(np.ones(50), range(50), bounds=intervals.SHARE)
    assert (full.low, full.high) == pytest.approx((1 - exact.high, 1.0))
    sevens = intervals.mean(np.full(50, 7), range(50), bounds=intervals.RATING)
    assert (sevens.low, sevens.high) == pytest.approx((7 - 6 * exact.high, 7))
    ties = intervals.mean(np.full(50, 0.5), range(50), bounds=intervals.SHARE)
    assert (ties.low, ties.high) == pytest.approx((0.5 - exact.high / 2, 0.5 + exact.high / 2))
    alike = intervals.paired_difference(np.zeros(50), np.zeros(50), range(50), bounds=intervals.SHARE)
    assert (alike.low, alike.high) == pytest.approx((-exact.high, exact.high))
    dominated = intervals.mean([0.0, 0.0], "ab", weights=[99, 1], bounds=intervals.SHARE)
    assert dominated.high > 0.97
    assert dominated.caution == "dominant prompt"
    unbounded = intervals.mean(np.full(50, 7.0), range(50))
    assert (unbounded.value, unbounded.low, unbounded.high) == (7.0, None, None)


def test_what_cannot_be_known_is_not_made_up():
    assert intervals.mean([], []) == intervals.NO_ESTIMATE
    assert intervals.mean([0.0], ["a"], weights=[0.0]) == intervals.NO_ESTIMATE
    assert intervals.mean([1.0, 3.0], ["same", "same"]) == intervals.Estimate(2.0, None, None, 2, "single prompt")
    with pytest.raises(ValueError, match="not finite"):
        intervals.mean([1.0, float("nan")], ["a", "b"])
    with pytest.raises(ValueError, match="3 values"):
        intervals.mean([1.0, 2.0, 3.0], ["a", "b"])
    with pytest.raises(ValueError, match="one or two"):
        intervals.mean([1.0])
    with pytest.raises(ValueError, match="negative"):
        intervals.mean([1.0], ["a"], weights=[-1.0])


def test_an_interval_says_what_it_rests_on():
    values, prompts = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0], list("aabbcc")
    cautions = {
        "single prompt": (["a"] * 6, list("xyxyxy")),
        "single labeler": (prompts, ["x"] * 6),
        "two labelers": (prompts, list("xyxyxy")),
        "dominant prompt": (list("aaaabc"), list("xyzxyz")),
        "dominant labeler": (prompts, list("xxxxyz")),
        "": (prompts, list("xyzzxy")),
    }
    for caution, keys in cautions.items():
        assert intervals.mean(values, *keys).caution == caution
    assert intervals.mean(values, prompts).caution == ""  # nothing is claimed of labelers


def test_wilson_is_that_of_statsmodels():
    for successes, n in ((0, 5), (15, 20), (45, 60), (7, 7), (3, 1000)):
        measured = intervals.wilson_interval(successes, n)
        assert (measured.low, measured.high) == pytest.approx(proportion_confint(successes, n, method="wilson"))
    screening = intervals.wilson_interval(15, 20)
    assert (round(screening.low, 2), round(screening.high, 2)) == (0.53, 0.89)
    assert intervals.wilson_interval(0, 0) == intervals.NO_ESTIMATE
    with pytest.raises(ValueError, match="3 successes in 2"):
        intervals.wilson_interval(3, 2)


def test_one_way_variance_is_that_of_statsmodels():
    """Clusters of one size: leaving out one of G is the usual G / (G − 1)."""
    rng = np.random.default_rng(7)
    a = np.repeat(np.arange(30), 12)
    y = rng.normal(size=30)[a] + rng.normal(size=360)
    ours = clustered.ratio_uncertainty(clustered.residuals(y, np.ones(360)), np.ones(360), a)
    theirs = sm.OLS(y, np.ones(360)).fit(cov_type="cluster", cov_kwds={"groups": a, "use_correction": False})
    assert ours.variance == pytest.approx(theirs.bse[0] ** 2 * 30 / 29)
    assert (ours.cluster_count, ours.degrees_of_freedom) == (30, pytest.approx(29))


def test_two_way_variance_is_that_of_the_analysis_of_variance():
    """Everybody judged everything once: the variance of the mean is (MS prompts + MS labelers − MS rest) / N."""
    rng = np.random.default_rng(7)
    table = rng.normal(size=(30, 1)) + 2 * rng.normal(size=(1, 12)) + rng.normal(size=(30, 12))
    rows, columns = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    by_row = 12 * rows.var(ddof=1)
    by_column = 30 * columns.var(ddof=1)
    rest = ((table - rows - columns + table.mean()) ** 2).sum() / (29 * 11)
    a, b = (index.ravel() for index in np.indices(table.shape))
    ours = clustered.ratio_uncertainty(clustered.residuals(table.ravel(), np.ones(360)), np.ones(360), a, b)
    assert ours.variance == pytest.approx((by_row + by_column - rest) / 360, rel=0.06)
    assert (ours.cluster_count, ours.degrees_of_freedom) == (30, pytest.approx(11))


def test_interval_of_a_share_stays_between_0_and_1():
    spread = clustered.Uncertainty(0.02, 5, 6, 6)
    wide = intervals.t_interval(0.97, spread, 10, intervals.SHARE)
    assert 0 < wide.low < 0.97 < wide.high < 1
    half = np.sqrt(0.02) * stats.t.ppf(0.975, 5)
    assert intervals.t_interval(0.97, spread, 10).high == pytest.approx(0.97 + half)
    logit = np.log(0.97 / 0.03) - half / (0.97 * 0.03)
    assert wide.low == pytest.approx(1 / (1 + np.exp(-logit)))
    assert intervals.t_interval(0.5, clustered.Uncertainty(0.0, 1, 1, 1), 3) == intervals.Estimate(0.5, None, None, 3)


def test_jackknife_of_a_mean_is_the_t_interval():
    sample = np.random.default_rng(10).normal(size=(12, 1))
    sums = intervals.ClusterSums(np.column_stack([sample, np.ones(12)]), np.ones(12))
    measured = intervals.jackknife(sums.parts.sum(0), lambda total: total[..., 0] / total[..., 1], 12, sums)
    low, high = stats.t.interval(0.95, 11, sample.mean(), stats.sem(sample[:, 0]))
    assert (measured.low, measured.high) == pytest.approx((low, high))
