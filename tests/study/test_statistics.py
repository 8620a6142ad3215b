"""Tests and intervals against scipy, brute force, closed forms and published tables."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from research.errors import ConfigError
from research.study.statistics import (
    Summary,
    bootstrap_interval,
    holm,
    paired_test,
    power_of_pairs,
    seeds_needed,
)


def test_summary_equals_numpy_and_its_interval_holds_the_mean():
    values = np.random.default_rng(0).normal(3, 2, 30)
    summary = Summary.of(values)
    assert (summary.mean, summary.sd, summary.n) == (values.mean(), values.std(ddof=1), 30)
    assert summary.low < summary.mean < summary.high
    assert Summary.of(values) == summary
    normal = 1.96 * values.std() / math.sqrt(30)  # what the bootstrap interval tends to
    assert summary.high - summary.low == pytest.approx(2 * normal, rel=0.05)


def test_a_single_value_has_no_spread_and_none_is_refused():
    single = Summary.of([0.5])
    assert (single.mean, single.n) == (0.5, 1)
    assert math.isnan(single.sd) and math.isnan(single.low) and math.isnan(single.high)
    failed = Summary.of([0.5, math.inf, -math.inf])
    assert failed.n == 3 and math.isnan(failed.mean) and math.isnan(failed.low)
    with pytest.raises(ConfigError, match="summary"):
        Summary.of([])


@pytest.mark.parametrize("statistic", [np.mean, np.median, np.std])
def test_bootstrap_equals_scipy_for_the_same_draws(statistic):
    values = np.random.default_rng(1).exponential(1.0, 40)
    found = bootstrap_interval(values, statistic, seed=5, resamples=2000, confidence=0.9)
    wanted = stats.bootstrap(
        (values,),
        statistic,
        n_resamples=2000,
        confidence_level=0.9,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert found == pytest.approx(tuple(wanted), rel=1e-12)


def test_bootstrap_in_chunks_and_over_rows():
    pairs = np.random.default_rng(2).normal(size=(300, 2))

    def covariance(samples, axis):
        centred = samples - samples.mean(axis, keepdims=True)
        return centred.prod(-1).mean(axis)

    low, high = bootstrap_interval(pairs, covariance, seed=0)
    assert low < np.cov(pairs.T, ddof=0)[0, 1] < high


def brute_force(differences):
    """Share of sign patterns whose mean is as far from 0, in exact integers."""
    sums = [
        abs(sum(sign * d for sign, d in zip(signs, differences)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(value >= abs(sum(differences)) for value in sums) / len(sums)


@pytest.mark.parametrize("n", range(2, 11))
def test_exact_flips_equal_brute_force(n):
    generator = np.random.default_rng(n)
    for _ in range(10):
        whole = [int(d) for d in generator.integers(-4, 6, n)]
        base = generator.integers(0, 9, n)
        test = paired_test((base + whole) / 10, base / 10)  # tenths are not exact in binary
        assert test.p == brute_force(whole)
        assert test.method == "exact sign flips"
        assert test.p >= test.least_p or test.p == 1


def test_five_pairs_cannot_go_below_a_sixteenth_but_the_t_test_can():
    a, b = [0.91, 0.92, 0.9, 0.93, 0.92], [0.81, 0.80, 0.83, 0.82, 0.8]
    test = paired_test(a, b)
    assert test.p == test.least_p == 0.0625
    assert test.t_p == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9)
    assert test.t_p < 0.001
    difference = np.subtract(a, b)
    assert test.dz == pytest.approx(difference.mean() / difference.std(ddof=1))
    assert "0.0625" in str(test) and "t-test" in str(test)


def test_random_flips_agree_with_scipy_and_with_the_exact_p():
    generator = np.random.default_rng(7)
    a = generator.normal(0.25, 1, 40)
    test = paired_test(a, np.zeros(40), seed=3)
    assert "100,000" in test.method and test == paired_test(a, np.zeros(40), seed=3)
    wanted = stats.permutation_test(
        (a, np.zeros(40)),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).pvalue
    assert test.p == pytest.approx(wanted, abs=4 * math.sqrt(wanted / 20_000))
    few = np.concatenate([[0.9, 0.4, -0.3, 0.8, 0.1, 0.7], np.zeros(20)])  # ties tell nothing
    exact = paired_test(few[:6], np.zeros(6)).p
    sampled = paired_test(few, np.zeros(26)).p
    assert sampled == pytest.approx(exact, abs=4 * math.sqrt(exact / 100_000))


def test_p_values_of_no_effect_are_uniform():
    generator = np.random.default_rng(8)
    found = [paired_test(generator.normal(size=8), np.zeros(8)).p for _ in range(400)]
    for level in (0.05, 0.2, 0.5):
        share = np.mean(np.array(found) <= level)
        assert share == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 400))


def test_differences_without_spread():
    same = paired_test([0.3, 0.5, 0.7], [0.3, 0.5, 0.7])
    assert (same.difference, same.p, same.t_p) == (0, 1, 1)
    assert math.isnan(same.dz)
    shifted = paired_test([0.3, 0.5, 0.7, 0.9], [0.2, 0.4, 0.6, 0.8])
    assert shifted.p == shifted.least_p == 0.125
    assert (shifted.dz, shifted.t_p) == (math.inf, 0)


@pytest.mark.parametrize(
    ("a", "b"), [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([1.0, math.nan], [1.0, 2.0])]
)
def test_paired_test_refuses(a, b):
    with pytest.raises(ConfigError):
        paired_test(a, b)


def test_holm_equals_the_step_down_rule():
    assert holm([0.01, 0.04]) == [0.02, 0.04]
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []
    generator = np.random.default_rng(9)
    for _ in range(50):
        p = generator.random(int(generator.integers(1, 8))) ** 3
        adjusted = np.array(holm(p))
        for alpha in (0.01, 0.05, 0.2):
            rejected = np.zeros(p.size, bool)
            for rank, place in enumerate(np.argsort(p)):
                if p[place] > alpha / (p.size - rank):
                    break
                rejected[place] = True
            assert (rejected == (adjusted <= alpha)).all()
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        holm([0.5, math.nan])


@pytest.mark.parametrize(("dz", "n"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_equals_published_sample_sizes(dz, n):
    """Two-sided, alpha 0.05, power 0.8: the table of Cohen's small, medium and large effects."""
    assert seeds_needed(2.0, 2.0 * dz) == n
    assert seeds_needed(1.0, -dz) == n


def test_seeds_needed_is_the_least_that_suffices():
    for dz, power, alpha in (
        (0.3, 0.9, 0.05),
        (1.0, 0.8, 0.01),
        (0.1, 0.06, 0.05),
        (2.5, 0.5, 0.1),
    ):
        n = seeds_needed(1.0, dz, power, alpha)
        assert power_of_pairs(n, dz, alpha) >= power
        assert n == 2 or power_of_pairs(n - 1, dz, alpha) < power
    assert seeds_needed(1.0, 100.0) == 2


def test_power_equals_simulation():
    draws = np.random.default_rng(10).normal(0.7, 1, (20_000, 10))
    share = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    power = power_of_pairs(10, 0.7)
    assert share == pytest.approx(power, abs=4 * math.sqrt(power * (1 - power) / 20_000))
    assert power_of_pairs(10, 0.0) == pytest.approx(0.05, rel=1e-9)


@pytest.mark.parametrize("given", [(0, 1), (1, 0), (1, math.nan), (1, 1, 1.0), (1, 1, 0.8, 0)])
def test_seeds_needed_refuses(given):
    with pytest.raises(ConfigError, match="seeds_needed"):
        seeds_needed(*given)
